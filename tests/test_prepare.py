"""Prepared corpora: nothing lost, nothing twice, nothing changed."""

import concurrent.futures
import csv
import json
import os
import pickle
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from doors import door

from ssl_jax import config as config_lib
from ssl_jax.data import prepare
from ssl_jax.data.batch_plan import BatchPlan
from ssl_jax.data.batches import load_batch
from ssl_jax.data.sources import (
  archives,
  audio,
  manifest,
  open_source,
  records,
  shards,
)
from ssl_jax.errors import UserError

ROOT = Path(__file__).parents[1]
CORPUS = ROOT / "ssl_jax" / "data" / "corpus"


def run(clips, out, **changes):
  options = {
    "min_seconds": 0.1,
    "max_seconds": 60.0,
    "pack_seconds": 0.0,
    "num_workers": 2,
  }
  source = manifest.open_clips(clips)
  with prepare.alone(out):
    return prepare.prepare(source, out, **options | changes)


def opened(out):
  return records.open_records(str(out), out)


def whole(clip):
  return audio.read(clip.path, 0, 1 << 40)


@pytest.fixture(scope="module")
def clips():
  """Of all voices, 5 minutes in all."""
  return manifest.find_clips(CORPUS / "metadata.jsonl")[::10]


@pytest.fixture(scope="module")
def prepared(clips, tmp_path_factory):
  """In shards of 40 s."""
  out = tmp_path_factory.mktemp("prepared")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(prepare, "_SHARD_SECONDS", 40.0)
    return out, run(clips, out)


def test_every_clip_comes_back_sample_for_sample(clips, prepared):
  out, header = prepared
  source = opened(out)
  assert header["clips"] == len(clips) == 146
  assert header["speakers"] == 17 and header["skipped"] == 0
  assert header["shards"] == 8
  assert source.ids == [clip.id for clip in clips]
  for i, clip in enumerate(clips):
    expected = whole(clip)
    np.testing.assert_array_equal(source.read(i, 0, 1 << 40), expected)
    np.testing.assert_array_equal(source.read(i, 99, 300), expected[99:399])
    assert source.num_samples[i] == len(expected)
    assert source.metadata[i].items() >= clip.metadata.items()
  hours = source.num_samples.sum() / 16_000 / 3600
  assert header["hours"] == pytest.approx(hours)
  assert prepare.verify(out) == {}


def test_a_flipped_byte_is_found(clips, prepared, tmp_path):
  out = tmp_path / "copy"
  shutil.copytree(prepared[0], out)
  samples = opened(out).read(100, 0, 500).tobytes()
  (path,) = [
    path
    for path in (out / "shards").glob("*.records")
    if samples in path.read_bytes()
  ]
  content = bytearray(path.read_bytes())
  at = content.find(samples)
  content[at + 7] ^= 1
  path.write_bytes(content)
  assert [*prepare.verify(out)] == [clips[100].id]
  (out / "shards" / "00000.jsonl").write_text("{}\n")
  with pytest.raises(UserError, match="shard 0 is not the one"):
    opened(out)


def test_batches_are_those_of_the_files(prepared, clips, tmp_path):
  folder = tmp_path / "folder"
  for clip in clips[:60]:
    target = folder / clip.id
    target.parent.mkdir(parents=True, exist_ok=True)
    os.link(clip.path, target)
  run(manifest.find_clips(folder), tmp_path / "records")
  batches = {}
  for source in ("folder", "records"):
    config = config_lib.base().data
    config.source, config.dir = source, str(tmp_path / source)
    config.min_seconds, config.valid_fraction = 0.5, 0.2
    for split in ("train", "valid"):
      clips_of = open_source(config, split)
      plan = BatchPlan(clips_of.num_samples, [12_000, 30_000], 8.0, 0)
      batches[source, split] = [
        load_batch(clips_of, plan.batch(update)) for update in range(6)
      ]
  for split in ("train", "valid"):
    for ours, theirs in zip(
      batches["records", split], batches["folder", split]
    ):
      assert ours.keys() == theirs.keys()
      for key in ours:
        np.testing.assert_array_equal(ours[key], theirs[key])


def test_threads_and_processes_share_it(prepared, clips):
  source = pickle.loads(pickle.dumps(opened(prepared[0])))
  order = np.random.default_rng(0).permutation(len(clips))
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    found = list(pool.map(lambda i: source.read(i, 0, 1 << 40), order))
  for i, samples in zip(order, found):
    assert len(samples) == source.num_samples[i]
    if i % 40 == 0:
      np.testing.assert_array_equal(samples, whole(clips[i]))


@pytest.mark.parametrize("lost", [(0,), (2, 3), range(8)])
def test_what_a_kill_left_is_gone_on_with(
  clips, prepared, tmp_path, monkeypatch, lost
):
  monkeypatch.setattr(prepare, "_SHARD_SECONDS", 40.0)
  expected = {
    path.relative_to(prepared[0]): path.read_bytes()
    for path in prepared[0].rglob("*")
    if path.is_file()
  }
  out = tmp_path / "out"
  for name, content in expected.items():
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    (out / name).write_bytes(content)
  (out / "dataset.json").unlink()
  for shard in lost:
    (out / "shards" / f"{shard:05}.jsonl").unlink()
    (out / "shards" / f"{shard:05}.part").write_bytes(b"half")
  with pytest.raises(UserError, match="run it again if it did not finish"):
    opened(out)
  kept = out / "shards" / "00005.records"
  before = kept.stat().st_mtime_ns
  run(clips, out)
  found = {
    path.relative_to(out): path.read_bytes()
    for path in out.rglob("*")
    if path.is_file()
  }
  assert found == expected
  if 5 not in lost:
    assert kept.stat().st_mtime_ns == before


def test_another_corpus_is_refused(clips, prepared):
  with pytest.raises(UserError, match="holds another corpus"):
    run(clips[1:], prepared[0])
  with pytest.raises(UserError, match="prepared otherwise"):
    run(clips, prepared[0], pack_seconds=9.0)


@pytest.fixture
def odd(tmp_path):
  """A folder of what people have; {id: seconds} of what can be used."""
  folder = tmp_path / "odd folder, ü"
  folder.mkdir()
  tone = 0.1 * np.sin(np.arange(48_000) / 20)
  soundfile.write(folder / "good one.flac", tone[:32_000], 16_000)
  soundfile.write(folder / "größe.wav", tone, 48_000)
  many = np.repeat(np.resize(tone, 192_000)[:, None], 8, axis=1)
  soundfile.write(folder / "eight.wav", many, 192_000)
  soundfile.write(folder / "one sample.wav", tone[:1], 16_000)
  bad = tone.copy()
  bad[9] = np.nan
  soundfile.write(folder / "nan.wav", bad, 16_000, subtype="FLOAT")
  content = (folder / "good one.flac").read_bytes()
  (folder / "cut.flac").write_bytes(content[: len(content) // 2])
  (folder / "empty.wav").write_bytes(b"")
  (folder / "text.wav").write_text("not audio at all")
  (folder / "loop").symlink_to(folder)
  return folder, {"good one.flac": 2.0, "größe.wav": 1.0, "eight.wav": 1.0}


def test_what_cannot_be_used_is_listed(odd, tmp_path):
  folder, good = odd
  out = tmp_path / "out"
  header = run(manifest.find_clips(folder), out)
  source = opened(out)
  seconds = source.num_samples / 16_000
  assert dict(zip(source.ids, seconds)) == pytest.approx(good)
  lines = (out / "skipped.jsonl").read_text("utf-8").splitlines()
  skipped = {x["id"]: x["reason"] for x in map(json.loads, lines)}
  assert {*skipped} == {
    "one sample.wav",
    "nan.wav",
    "cut.flac",
    "empty.wav",
    "text.wav",
  }
  assert header["skipped"] == 5
  assert skipped["empty.wav"] == "empty file"
  assert "not finite" in skipped["nan.wav"]


def test_a_corpus_of_nothing_is_refused(odd, tmp_path):
  folder, good = odd
  for name in good:
    (folder / name).unlink()
  with pytest.raises(UserError, match="none of the clips could be read"):
    run(manifest.find_clips(folder), tmp_path / "out")
  with pytest.raises(UserError, match="all 5 clips were skipped"):
    run(manifest.find_clips(folder), tmp_path / "more", min_seconds=9.0)


def test_long_files_become_windows(tmp_path):
  noise = np.random.default_rng(0).integers(-999, 999, 700_001).astype(np.int16)
  soundfile.write(tmp_path / "long.wav", noise, 16_000)
  known = {"speaker": "a", "text": "of it all"}
  clip = manifest.Clip("long", str(tmp_path / "long.wav"), known)
  run([clip], tmp_path / "out", max_seconds=10.0)
  source = opened(tmp_path / "out")
  assert source.ids[0] == "long@0.000" and len(source.ids) == 5
  assert max(source.num_samples) <= 160_000
  assert np.ptp(source.num_samples) <= 1
  parts = [source.read(i, 0, 1 << 40) for i in range(5)]
  np.testing.assert_array_equal(np.concatenate(parts), noise)
  assert all(x["speaker"] == "a" and "text" not in x for x in source.metadata)


def test_short_clips_of_a_speaker_are_packed(clips, tmp_path):
  run(clips, tmp_path, pack_seconds=6.0)
  source = opened(tmp_path)
  by_id = {clip.id: clip for clip in clips}
  packed = []
  for i, known in enumerate(source.metadata):
    parts = known.get("packed", [known["id"]])
    packed += parts
    assert {by_id[p].metadata["speaker"] for p in parts} == {known["speaker"]}
    if len(parts) > 1:
      assert source.num_samples[i] <= 6 * 16_000
      texts = [by_id[p].metadata.get("text") for p in parts]
      assert known.get("text") == (" ".join(texts) if all(texts) else None)
    expected = np.concatenate([whole(by_id[p]) for p in parts])
    np.testing.assert_array_equal(source.read(i, 0, 1 << 40), expected)
  assert sorted(packed) == sorted(by_id)
  assert len(source.ids) < 100


def test_a_tree_like_librispeech_has_speakers_and_texts(tmp_path):
  chapter = tmp_path / "train-clean-5" / "103" / "1240"
  chapter.mkdir(parents=True)
  for i in range(2):
    name = chapter / f"103-1240-000{i}.flac"
    soundfile.write(name, np.zeros(8_000), 16_000)
  text = "103-1240-0000 CHAPTER ONE\n103-1240-0001 MISSUS RACHEL\n"
  (chapter / "103-1240.trans.txt").write_text(text)
  found = manifest.find_clips(tmp_path)
  assert [clip.id for clip in found] == [
    f"train-clean-5/103/1240/103-1240-000{i}.flac" for i in range(2)
  ]
  assert [clip.metadata for clip in found] == [
    {"speaker": "103", "text": "CHAPTER ONE"},
    {"speaker": "103", "text": "MISSUS RACHEL"},
  ]


def test_odd_clips_are_kept_and_named(tmp_path, caplog):
  folder, out = tmp_path / "in", tmp_path / "out"
  folder.mkdir()
  soundfile.write(folder / "zero.wav", np.zeros(16_000), 16_000)
  tone = np.sin(np.arange(16_000) / 9)
  soundfile.write(folder / "good.wav", 0.1 * tone, 16_000)
  both = np.stack([tone, -tone], axis=1) * 0.1
  soundfile.write(folder / "opposite.wav", both, 16_000)
  header = run(manifest.find_clips(folder), out)
  assert (header["clips"], header["skipped"]) == (3, 0)
  lines = map(json.loads, (out / "odd.jsonl").read_text().splitlines())
  assert {line["id"]: line["odd"] for line in lines} == dict.fromkeys(
    ["opposite.wav", "zero.wav"], "digital silence"
  )
  assert "2 clips are digital silence, and kept" in caplog.text


def test_manifests_say_the_same(clips, tmp_path):
  (tmp_path / "clips").symlink_to(CORPUS / "clips")
  some = clips[:5]
  rows = [
    {"path": clip.id, "speaker": clip.metadata["speaker"]} for clip in some
  ]
  with (tmp_path / "a.csv").open("w", newline="") as f:
    writer = csv.DictWriter(f, ["path", "speaker"])
    writer.writeheader()
    writer.writerows(rows)
  lines = "".join(json.dumps(row) + "\n" for row in rows)
  (tmp_path / "b.jsonl").write_text(lines)
  lines = "".join(f"{clip.id}\t16000\n" for clip in some)
  (tmp_path / "c.tsv").write_text(f"{tmp_path}\n{lines}")
  for name in ("a.csv", "b.jsonl", "c.tsv"):
    found = manifest.find_clips(tmp_path / name)
    assert [clip.id for clip in found] == [clip.id for clip in some]
    assert all(Path(clip.path).is_file() for clip in found)
    if name != "c.tsv":
      assert found[3].metadata == {"speaker": rows[3]["speaker"]}


@pytest.mark.parametrize(
  ("name", "content", "said"),
  [
    ("a.jsonl", '{"file": "x"}\n{"file": "x"}\n', "two clips have the id 'x'"),
    ("a.jsonl", '{"speaker": "x"}\n', "line 1: names no file"),
    ("a.jsonl", "{\n", "cannot be read"),
    ("a.jsonl", "[]\n", "no JSON object"),
    ("a.jsonl", "", "no audio in it"),
    ("a.csv", "text\nhello\n", "names no file"),
    ("a.txt", "", "expected a folder, a manifest"),
  ],
)
def test_bad_manifests_are_refused(tmp_path, name, content, said):
  (tmp_path / name).write_text(content)
  with pytest.raises(UserError, match=said):
    manifest.find_clips(tmp_path / name)


def prepare_door(*args):
  done = door("prepare", *args)
  lines = done.stdout.splitlines()
  return done.returncode, json.loads(lines[-1]) if lines else None, done.stderr


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_archives_are_what_they_hold(tmp_path, clips, kind):
  path = tmp_path / f"corpus.{kind}"
  names = ["metadata.jsonl", *(clip.id for clip in clips[:9])]
  lines = (CORPUS / "metadata.jsonl").read_text("utf-8").splitlines()
  some = [x for x in lines if json.loads(x)["file"] in names]
  (tmp_path / "metadata.jsonl").write_text("\n".join(some), "utf-8")
  if kind == "zip":
    with zipfile.ZipFile(path, "w") as archive:
      archive.write(tmp_path / "metadata.jsonl", "top/metadata.jsonl")
      for name in names[1:]:
        archive.write(CORPUS / name, f"top/{name}")
  else:
    with tarfile.open(path, "w:gz") as archive:
      archive.add(tmp_path / "metadata.jsonl", "top/metadata.jsonl")
      for name in names[1:]:
        archive.add(CORPUS / name, f"top/{name}")
  out = tmp_path / "out"
  status, found, err = prepare_door(f"--input={path}", f"--out={out}")
  assert status == 0, err
  assert found["clips"] == 9 and "9 clips" in err
  assert opened(out).metadata[0]["speaker"] == clips[0].metadata["speaker"]
  assert not (out / "unpacked").exists()
  status, found, _ = prepare_door(f"--out={out}", "--verify")
  assert status == 0 and found["verified"]


@pytest.mark.parametrize("name", ["../evil.wav", "/evil.wav", "a/../../evil"])
def test_archives_cannot_write_elsewhere(tmp_path, name):
  path = tmp_path / "evil.tar"
  (tmp_path / "x").write_text("x")
  with tarfile.open(path, "w") as archive:
    archive.addfile(tarfile.TarInfo("fine.wav"))
    member = tarfile.TarInfo(name)
    archive.addfile(member)
  with pytest.raises(UserError, match="would be written outside"):
    archives.unpack(path, tmp_path / "out" / "unpacked")
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
  ("args", "status", "said"),
  [
    ([], 2, "give --input and --out, or --out and --verify"),
    (["--input=docs"], 2, "give --input"),
    (["--input=nowhere", "--out={}"], 1, "--input=nowhere does not exist"),
    (["--input=docs", "--out={}"], 1, "no audio files"),
    (["--out={}", "--verify"], 1, "is no prepared corpus"),
    (["--input=README.md", "--out={}"], 1, "expected a folder"),
  ],
)
def test_wrong_usage_is_one_line_and_a_status(tmp_path, args, status, said):
  args = [arg.format(tmp_path / "out") for arg in args]
  found, result, err = prepare_door(*args)
  assert (found, result, len(err.splitlines())) == (status, None, 1)
  assert said in err


def test_a_folder_that_is_not_prepared_is_refused(tmp_path):
  config = config_lib.base().data
  config.source, config.dir = "records", str(tmp_path)
  with pytest.raises(UserError, match=r"--config\.data\.source=folder"):
    open_source(config, "train")


@pytest.mark.slow
def test_ten_hours_in_a_file_become_records(tmp_path):
  """Silence with a click a minute, of which none is lost or moved."""
  path = tmp_path / "long.flac"
  minute = np.zeros(60 * 16_000, np.int16)
  with soundfile.SoundFile(path, "w", 16_000, 1) as file:
    for i in range(600):
      minute[1_000] = i + 1
      file.write(minute)
  header = run([manifest.Clip("long", str(path), {})], tmp_path / "out")
  assert (header["clips"], header["hours"], header["skipped"]) == (600, 10, 0)
  source = opened(tmp_path / "out")
  for i in range(600):
    audio = source.read(i, 0, 1 << 40)
    assert np.flatnonzero(audio).tolist() == [1_000] and audio[1_000] == i + 1


def noise(path, seconds=0.5, seed=0):
  rng = np.random.default_rng(seed)
  samples = rng.integers(-99, 99, int(16_000 * seconds)).astype(np.int16)
  soundfile.write(path, samples, 16_000)
  return samples


def test_more_shards_than_a_process_may_open(tmp_path, monkeypatch):
  monkeypatch.setattr(prepare, "_SHARD_SECONDS", 0.5)
  monkeypatch.setattr(shards, "_most_open", lambda: 3)
  for i in range(8):
    noise(tmp_path / f"{i}.wav", seed=i)
  run(manifest.find_clips(tmp_path), tmp_path / "out")
  source = opened(tmp_path / "out")
  for i in [*range(8), *range(8)]:
    np.testing.assert_array_equal(
      source.read(i, 0, 1 << 40),
      audio.read(str(tmp_path / f"{i}.wav"), 0, 9_999),
    )
  assert source._files._reader.cache_info().currsize == 3


def test_a_kill_before_a_shards_list_of_the_skipped(clips, tmp_path):
  run(clips[:9], tmp_path / "out")
  first = (tmp_path / "out" / "dataset.json").read_text()
  (tmp_path / "out" / "dataset.json").unlink()
  (tmp_path / "out" / "shards" / "00000.skipped").unlink()
  run(clips[:9], tmp_path / "out")
  assert (tmp_path / "out" / "dataset.json").read_text() == first


def test_a_pack_loses_only_its_damaged_clip(tmp_path):
  kept = [noise(tmp_path / f"{i}.wav", seed=i) for i in range(4)]
  bad = np.zeros(8_000, np.float32)
  bad[7] = np.nan
  soundfile.write(tmp_path / "1.wav", bad, 16_000, subtype="FLOAT")
  packed = [
    manifest.Clip(
      f"{i}", str(tmp_path / f"{i}.wav"), {"speaker": "a", "text": "x"}
    )
    for i in range(4)
  ]
  run(packed, tmp_path / "out", pack_seconds=10.0)
  source = opened(tmp_path / "out")
  assert source.metadata[0]["packed"] == ["0", "2", "3"]
  assert "text" not in source.metadata[0]
  expected = np.concatenate([kept[i] for i in (0, 2, 3)])
  np.testing.assert_array_equal(source.read(0, 0, 1 << 40), expected)
  (line,) = (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()
  assert json.loads(line)["id"] == "1"


@pytest.mark.parametrize("mode", ["gz", "xz", "bz2", "zip"])
def test_a_damaged_archive_is_one_line(tmp_path, mode):
  noise(tmp_path / "a.wav")
  path = tmp_path / ("a.zip" if mode == "zip" else f"a.tar.{mode}")
  if mode == "zip":
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
      file.write(tmp_path / "a.wav", "a.wav")
  else:
    with tarfile.open(path, f"w:{mode}") as file:
      file.add(tmp_path / "a.wav", "a.wav")
  content = bytearray(path.read_bytes())
  for i in range(300, 340):
    content[i] ^= 0x5A
  path.write_bytes(content)
  with pytest.raises(UserError, match="cannot be unpacked") as error:
    archives.unpack(path, tmp_path / "out")
  assert "\n" not in str(error.value)


def test_links_in_an_archive_are_what_they_name(tmp_path):
  (tmp_path / "in").mkdir()
  noise(tmp_path / "in" / "0.wav")
  os.link(tmp_path / "in" / "0.wav", tmp_path / "in" / "1.wav")
  os.symlink("0.wav", tmp_path / "in" / "2.wav")
  with tarfile.open(tmp_path / "a.tar", "w") as file:
    file.add(tmp_path / "in", "in")
  archives.unpack(tmp_path / "a.tar", tmp_path / "out")
  found = [path.read_bytes() for path in (tmp_path / "out" / "in").iterdir()]
  assert len(found) == 3 and len({*found}) == 1


def test_archives_of_a_mac_and_upper_case(tmp_path):
  noise(tmp_path / "0.wav")
  with zipfile.ZipFile(tmp_path / "A.ZIP", "w") as file:
    file.write(tmp_path / "0.wav", "c/0.wav")
    file.writestr("c/m.jsonl", '{"file": "0.wav", "speaker": "s"}\n')
    file.writestr("__MACOSX/c/._0.wav", "x")
  assert archives.is_archive(tmp_path / "A.ZIP")
  archives.unpack(tmp_path / "A.ZIP", tmp_path / "out")
  (clip,) = manifest.find_clips(archives.root_of(tmp_path / "out"))
  assert clip.metadata == {"speaker": "s"}


def test_the_input_survives_wherever_it_is(tmp_path):
  (tmp_path / "unpacked").mkdir()
  noise(tmp_path / "unpacked" / "0.wav")
  status, _, err = prepare_door(
    f"--out={tmp_path}", f"--input={tmp_path / 'unpacked'}"
  )
  assert status == 0, err
  assert (tmp_path / "unpacked" / "0.wav").exists()


def test_odd_manifests(tmp_path):
  noise(tmp_path / "0.wav")
  (tmp_path / "x.raw").write_bytes(bytes(9_000))
  lines = [
    {"file": "0.wav", "id": "a", "text": "\ud83d", "extra": {"no": 1}},
    {"file": "x.raw"},
  ]
  text = "".join(json.dumps(line) + "\n" for line in lines)
  (tmp_path / "m.jsonl").write_text("\ufeff" + text, "utf-8")
  header = run(manifest.find_clips(tmp_path / "m.jsonl"), tmp_path / "out")
  assert (header["clips"], header["skipped"]) == (1, 1)
  twice = '{"file": "0.wav", "n": 1}\n{"file": "0.wav", "n": 2}\n'
  (tmp_path / "m.jsonl").write_text(twice)
  with pytest.raises(UserError, match="two clips have the id"):
    manifest.find_clips(tmp_path / "m.jsonl")
