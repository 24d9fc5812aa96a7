"""Sources: what is found, decoded, split, skipped and refused."""

import concurrent.futures
import json
import logging
import os
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import soxr
from ml_collections import ConfigDict

import ssl_jax
from ssl_jax import config as config_lib
from ssl_jax.data import sources
from ssl_jax.data.sources import audio, open_source
from ssl_jax.data.sources.source import SourceKind
from ssl_jax.errors import UserError
from ssl_jax.knobs import Knob

CORPUS = pathlib.Path(ssl_jax.__file__).parent / "data" / "corpus"


def config(**changes):
  values = dict(
    source="folder",
    dir="",
    valid_dir="",
    valid_fraction=0.2,
    split_key="",
    hours=0.0,
    min_seconds=0.5,
  )
  return ConfigDict(values | changes)


@pytest.fixture(scope="module")
def speech():
  """Float64 [S] of about 3 s, from the corpus."""
  source = open_source(config(source="embedded"), "valid")
  index = int(np.argmin(abs(source.num_samples - 50_000)))
  return source.read(index, 0, 48_000) / 32768


def write(path, samples, rate=16_000, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  soundfile.write(os.fsencode(path), samples, rate, **options)
  return path


def correlation(a, b):
  return np.corrcoef(a, b)[0, 1]


def test_embedded_splits_are_disjoint_and_complete():
  splits = {
    split: open_source(config(source="embedded", min_seconds=0.1), split)
    for split in ("train", "valid", "test")
  }
  sizes = {split: len(source.ids) for split, source in splits.items()}
  assert sizes == {"train": 1295, "valid": 84, "test": 78}
  ids = [clip for source in splits.values() for clip in source.ids]
  assert len(set(ids)) == len(list(CORPUS.glob("clips/**/*.opus")))
  for source in splits.values():
    assert source.skipped == []
    lengths = [audio.probe(path) for path in source.paths]
    assert lengths == source.num_samples.tolist()
    for index in range(0, len(source.ids), 40):
      clip = source.read(index, 0, 10**9)
      assert len(clip) == source.num_samples[index]
      assert clip.dtype == np.int16 and abs(clip).max() > 500
    assert {"speaker", "text", "label", "language"} <= {*source.metadata[0]}
  for key, kinds in (("speaker", (22, 15, 15)), ("label", (10, 4, 8))):
    found = [
      {
        clip[key]
        for clip in splits[split].metadata
        if key == "speaker" or clip["label_type"] == "digit"
      }
      for split in ("train", "valid", "test")
    ]
    assert tuple(map(len, found)) == kinds, key
    assert found[0] >= found[1] | found[2]


def test_words_of_the_embedded_corpus_are_said_by_two_voices():
  settings = config(source="embedded", min_seconds=0.1)
  clips = [
    clip
    for split in ("train", "valid", "test")
    for clip in open_source(settings, split).metadata
    if "word" in clip
  ]
  said = {"query": {}, "gallery": {}}
  for clip in clips:
    start, end = clip["speech"]
    assert 0 <= start < end <= clip["duration_s"] + 0.01
    said[clip["word_role"]].setdefault(clip["word"], set()).add(clip["speaker"])
  both = said["query"].keys() & said["gallery"].keys()
  assert len(both) == 503
  for word in both:
    assert not said["query"][word] & said["gallery"][word]


def test_a_clip_of_the_embedded_corpus_is_decoded_once(monkeypatch):
  source = open_source(config(source="embedded"), "test")
  whole = source.read(5, 0, 1 << 40)
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    read = list(pool.map(lambda _: source.read(7, 0, 1 << 40), range(8)))
  assert all((clip == read[0]).all() for clip in read)
  decoded = audio.read(source.paths[5], 0, 1 << 40)
  np.testing.assert_array_equal(whole, decoded)

  def refuse(*_):
    raise AssertionError("decoded again")

  monkeypatch.setattr(audio, "read", refuse)
  again = open_source(config(source="embedded"), "test").select([7, 5])
  np.testing.assert_array_equal(again.read(1, 999, 500), decoded[999:1_499])
  np.testing.assert_array_equal(again.read(0, 0, 1 << 40), read[0])
  copy = pickle.loads(pickle.dumps(again))  # As workers get it.
  np.testing.assert_array_equal(copy.read(1, 5, 9), decoded[5:14])
  with pytest.raises(ValueError, match="read-only"):
    again.read(1, 0, 10)[0] = 1


@pytest.mark.parametrize(
  "version, subtypes",
  [("1.0.31", {"OPUS": "Opus"}), ("1.2.2", {"VORBIS": "Vorbis"})],
)
def test_a_libsndfile_without_opus_is_said(monkeypatch, version, subtypes):
  monkeypatch.setattr(soundfile, "__libsndfile_version__", version)
  monkeypatch.setattr(soundfile, "available_subtypes", lambda _: subtypes)
  said = f"libsndfile {version} .*install libsndfile 1.1 or newer"
  with pytest.raises(UserError, match=said) as error:
    open_source(config(source="embedded"), "train")
  assert "\n" not in str(error.value)


def test_embedded_corpus_is_small_and_skips_short_clips():
  files = [f for f in CORPUS.rglob("*") if f.is_file()]
  assert sum(f.stat().st_size for f in files) < 10e6
  source = open_source(config(source="embedded", min_seconds=2.0), "train")
  assert min(source.num_samples) >= 32_000
  assert len(source.ids) + len(source.skipped) == 1295


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "mp3"])
def test_any_format_rate_and_channels_read_back(tmp_path, speech, kind, rate):
  there = soxr.resample(speech, 16_000, rate, quality="VHQ")
  expected = soxr.resample(there, rate, 16_000, quality="HQ")
  for channels in (1, 2):
    # Channels that differ, so that taking one of them is seen.
    scales = [1.0] if channels == 1 else [0.4, 1.6]
    samples = np.stack([scale * there for scale in scales], axis=1)
    path = write(tmp_path / f"{channels}.{kind}", samples / 2, rate)
    assert abs(audio.probe(path) - len(speech)) <= 1
    got = audio.read(path, 0, 10**6)
    assert got.dtype == np.int16
    assert len(got) == audio.probe(path)
    got = got / 16384
    n = min(len(got), len(expected))
    assert correlation(got[:n], speech[:n]) > 0.95
    if kind in ("wav", "flac"):
      assert abs(got[:n] - expected[:n]).max() < 3 / 16384
    else:
      assert correlation(got[:n], expected[:n]) > 0.97


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "mp3"])
def test_a_part_is_the_slice_of_the_whole(tmp_path, speech, kind, rate):
  there = soxr.resample(speech, 16_000, rate, quality="HQ")
  path = write(tmp_path / f"a.{kind}", there, rate)
  whole, _ = soundfile.read(path, dtype="float32")
  whole = soxr.resample(whole, rate, 16_000, quality="HQ") * 32768
  end = len(whole)
  assert audio.probe(path) == end
  for start in (0, 1, 777, 16_000, 24_001, end - 5_000, end - 3_001, end - 7):
    part = audio.read(path, start, 4_000)
    assert len(part) == min(4_000, end - start)
    assert abs(part - whole[start : start + 4_000]).max() < 2


@pytest.mark.parametrize(
  "kind, rate, quality",
  [
    ("mp3", 44_100, 0.9),  # Few bits: a frame borrows from many before it.
    ("mp3", 48_000, 0.9),
    ("mp3", 16_000, 0.9),
    ("opus", 16_000, 1.0),
    ("opus", 48_000, 1.0),
  ],
)
def test_a_part_of_what_needs_its_past_is_the_slice(
  tmp_path, kind, rate, quality
):
  source = open_source(config(source="embedded"), "valid")
  some = np.argsort(abs(source.num_samples - 40_000))[:8]
  clips = [source.read(i, 0, source.num_samples[i]) for i in some]
  there = soxr.resample(np.concatenate(clips) / 32768, 16_000, rate)
  options = {"bitrate_mode": "VARIABLE"} if kind == "mp3" else {}
  if kind == "opus":
    options = {"format": "OGG", "subtype": "OPUS"}
  path = write(
    tmp_path / f"a.{kind}", there, rate, compression_level=quality, **options
  )
  whole, decoded_rate = soundfile.read(path, dtype="float32")
  whole = soxr.resample(whole, decoded_rate, 16_000, quality="HQ") * 32768
  whole = np.clip(np.rint(whole), -32768, 32767)
  for start in range(500, len(whole) - 4_000, 6_007):
    part = audio.read(path, start, 4_000)
    assert abs(part - whole[start : start + 4_000]).max() < 2, start


def test_samples_are_clipped_not_wrapped(tmp_path):
  loud = np.array([0.0, 1.5, -1.5, 0.5] * 4_000, np.float32)
  path = write(tmp_path / "a.wav", loud, subtype="FLOAT")
  assert audio.read(path, 0, 4).tolist() == [0, 32767, -32768, 16384]


def test_odd_audio_is_named_by_what_was_decoded(tmp_path, speech):
  def kind(samples, name="a.wav", **options):
    path = write(tmp_path / name, samples, **options)
    return audio.oddness(audio.read(path, 0, 10**6))

  assert kind(speech) == "" and kind(speech * 0.01) == ""
  assert kind(np.stack([speech, -speech], axis=1)) == "digital silence"
  assert kind(np.zeros(16_000)) == "digital silence"
  assert kind(np.float32(speech * 32768), subtype="FLOAT") == "clipped"
  assert kind(np.clip(speech * 1.05 / abs(speech).max(), -1, 1)) == ""
  assert "DC" in kind(speech * 0.1 + 0.4)
  assert {"digital silence", "clipped"} < audio.ODD.keys()


def test_non_finite_samples_are_damage(tmp_path):
  samples = np.zeros(16_000, np.float32)
  samples[8_000] = np.nan
  path = write(tmp_path / "a.wav", samples, subtype="FLOAT")
  assert len(audio.read(path, 0, 8_000)) == 8_000
  with pytest.raises(audio.DamagedAudio, match="finite"):
    audio.read(path, 0, 8_001)


def test_a_file_cut_after_the_scan_is_damage(tmp_path, speech):
  for kind in ("flac", "mp3"):
    path = write(tmp_path / f"a.{kind}", speech)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert len(audio.read(path, 0, 8_000)) == 8_000
    with pytest.raises(audio.DamagedAudio):
      audio.read(path, 0, len(speech))
    with pytest.raises(audio.DamagedAudio):
      audio.read(path, len(speech) - 8_000, 8_000)


def test_unusable_files_are_skipped_counted_and_named(tmp_path, speech, caplog):
  write(tmp_path / "good.wav", speech)
  write(tmp_path / "deep" / "er" / "GOOD.FLAC", speech)
  write(tmp_path / "short.wav", speech[:7_999])
  write(tmp_path / "no_samples.wav", speech[:0])
  (tmp_path / "empty.mp3").touch()
  (tmp_path / "empty.wav").touch()
  (tmp_path / "garbage.flac").write_bytes(b"garbage" * 99)
  (tmp_path / "text.ogg").write_text("not audio")
  (tmp_path / "broken_link.wav").symlink_to(tmp_path / "nowhere.wav")
  for kind in ("flac", "mp3"):
    path = write(tmp_path / f"cut.{kind}", speech)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  length_less = write(tmp_path / "length_less.flac", speech)
  header = bytearray(length_less.read_bytes())
  header[21] &= 0xF0  # STREAMINFO's 36 bits of total samples: 0 is unknown.
  header[22:26] = bytes(4)
  # Nor is there any audio to count.
  length_less.write_bytes(header[: header.index(b"\xff\xf8")])
  # Neither audio nor counted.
  (tmp_path / "notes.txt").write_text("hello")
  write(tmp_path / "._good.wav", speech)
  write(tmp_path / ".cache" / "hidden.wav", speech)
  with caplog.at_level(logging.WARNING, "ssl_jax"):
    settings = config(dir=str(tmp_path))
    train = open_source(settings, "train")
    valid = open_source(settings, "valid")
  assert sorted(train.ids + valid.ids) == ["deep/er/GOOD.FLAC", "good.wav"]
  reasons = dict(train.skipped)
  assert sorted(reasons) == [
    "broken_link.wav",
    "cut.flac",
    "cut.mp3",
    "empty.mp3",
    "empty.wav",
    "garbage.flac",
    "length_less.flac",
    "no_samples.wav",
    "short.wav",
    "text.ogg",
  ]
  assert "min_seconds=0.5" in reasons["short.wav"]
  assert reasons["empty.mp3"] == "empty file"
  assert "no length" in reasons["length_less.flac"]
  assert all(reasons.values())
  (record,) = caplog.records  # Once, though both splits scan the folder.
  message = record.getMessage()
  assert "skipped 10 of 12" in message and "'cut.mp3'" in message
  assert "\n" not in message


def test_a_cut_wav_or_ogg_is_as_long_as_what_is_left(tmp_path, speech):
  for kind in ("wav", "ogg"):
    path = write(tmp_path / f"a.{kind}", speech)
    whole = audio.read(path, 0, 10**6)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    length = audio.probe(path)
    assert 0.2 < length / len(whole) < 0.9
    part = audio.read(path, 0, 10**6)
    assert np.array_equal(part, whole[:length])


def test_links_and_names_that_are_not_utf8(tmp_path, speech):
  root = tmp_path / "root"
  write(root / "a" / "one.wav", speech)
  write(root / os.fsdecode(b"caf\xe9.wav"), speech)
  write(tmp_path / "elsewhere" / "two.wav", speech)
  (root / "loop").symlink_to(root)
  (root / "a" / "up").symlink_to(root)
  (root / "linked").symlink_to(tmp_path / "elsewhere")
  settings = config(dir=str(root) + "/", valid_dir=str(tmp_path / "elsewhere"))
  train = open_source(settings, "train")
  assert train.ids == ["a/one.wav", "caf\\xe9.wav", "linked/two.wav"]
  for index, clip in enumerate(train.ids):
    clip.encode()
    assert len(train.read(index, 0, 100)) == 100
  assert open_source(settings, "valid").ids == ["two.wav"]


def test_hold_out_is_stable_and_by_clip(tmp_path, speech):
  for i in range(20):
    write(tmp_path / f"{i}.wav", speech[:8_000])
  settings = config(dir=str(tmp_path))
  train = open_source(settings, "train")
  valid = open_source(settings, "valid")
  assert (len(train.ids), len(valid.ids)) == (16, 4)
  assert not {*train.ids} & {*valid.ids}
  assert train.ids == sorted(train.ids) and valid.ids == sorted(valid.ids)
  # On every machine, and wherever the folder lies.
  assert valid.ids == ["0.wav", "16.wav", "19.wav", "2.wav"]
  write(tmp_path / "new.wav", speech)
  again = open_source(settings, "valid")
  assert len({*again.ids} & {*valid.ids}) >= 3
  settings.valid_fraction = 0.0
  assert len(open_source(settings, "valid").ids) == 1
  settings.valid_fraction = 0.99
  assert len(open_source(settings, "train").ids) == 1


@pytest.mark.parametrize(
  "changes, split, said",
  [
    (dict(source="foldr"), "train", "did you mean 'folder'"),
    (dict(source="embedded"), "tets", "did you mean 'test'"),
    (dict(source="embedded", min_seconds=60.0), "train", "data.min_seconds"),
    (dict(dir="."), "test", "(have: train, valid)"),
    (dict(), "train", "--config.data.dir='': set it"),
    (dict(dir="nowhere"), "train", "'nowhere' does not exist"),
    (dict(dir="file.wav"), "train", "is not a folder"),
    (dict(dir="bare"), "train", "no audio files"),
    (dict(dir="one"), "train", "--config.data.valid_dir"),
    (dict(dir="one"), "valid", "--config.data.valid_dir"),
    (dict(dir="one", valid_dir="gone"), "valid", "data.valid_dir='gone'"),
    (dict(dir="one", min_seconds=9.0), "train", "all 1 clips"),
  ],
)
def test_what_cannot_be_opened_is_one_line_with_the_remedy(
  tmp_path, monkeypatch, speech, changes, split, said
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "bare").mkdir()
  write(tmp_path / "file.wav", speech)
  write(tmp_path / "one" / "one.wav", speech)
  with pytest.raises(UserError) as error:
    open_source(config(**changes), split)
  assert said in str(error.value) and "\n" not in str(error.value)


MANIFEST = [
  {"file": "a.wav", "speaker": "x", "part": "train", "text": "one"},
  {"file": "b.wav", "speaker": "y", "part": "train"},
  {"file": "sub/c.wav", "part": "dev", "label": 3},
  {"file": "gone.wav", "part": "dev"},
]


def manifest(folder, speech, name="clips.jsonl"):
  for line in MANIFEST[:3]:
    write(folder / line["file"], speech)
  lines = [json.dumps(line) + "\n" for line in MANIFEST]
  (folder / name).write_text("".join(lines))
  return str(folder / name)


def test_a_manifest_says_what_clips_are_and_where(tmp_path, speech, caplog):
  path = manifest(tmp_path, speech)
  settings = config(source="manifest", dir=path, split_key="part")
  train = open_source(settings, "train")
  assert train.ids == ["a.wav", "b.wav"]
  assert train.metadata[0] == {"speaker": "x", "part": "train", "text": "one"}
  dev = open_source(settings, "dev")
  assert dev.ids == ["sub/c.wav"] and dev.metadata[0]["label"] == 3
  assert "gone.wav" in caplog.text
  np.testing.assert_array_equal(
    dev.read(0, 0, 1 << 40), train.read(0, 0, 1 << 40)
  )
  with pytest.raises(UserError, match="no clip has 'test' as its 'part'"):
    open_source(settings, "test")


def test_a_manifest_without_splits_holds_clips_out(tmp_path, speech):
  path = manifest(tmp_path, speech)
  settings = config(source="manifest", dir=path, valid_fraction=0.3)
  train = open_source(settings, "train")
  valid = open_source(settings, "valid")
  assert len(valid.ids) == 1 and len({*train.ids, *valid.ids}) == 3
  with pytest.raises(UserError, match="split_key"):
    open_source(settings, "test")
  settings.valid_dir = manifest(tmp_path / "other", speech)
  assert len(open_source(settings, "train").ids) == 3
  assert len(open_source(settings, "valid").ids) == 3


def test_a_corpus_has_one_name():
  for name, settings in {
    "embedded": dict(source="embedded", dir="left/over"),
    "ls960": dict(dir="/data/ls960/"),
    "clips.jsonl": dict(source="manifest", dir="~/clips.jsonl"),
    "librispeech:2.1.1": dict(source="tfds", name="librispeech:2.1.1"),
    "ls960+fleurs+embedded": dict(
      source="mixture", dir="records:/data/ls960, tfds:fleurs,embedded"
    ),
    "mine": dict(source="one of a user's own", dir="/data/mine"),
    "folder": dict(dir=""),
  }.items():
    assert sources.corpus_name(config(**settings)) == name


def test_a_source_from_outside_brings_its_knobs(monkeypatch):
  inner = sources.SOURCES["embedded"]
  louder = SourceKind(
    lambda config, split: inner.open_split(config, split),
    "the packaged clips, louder",
    {"gain": Knob(2.0, "Factor of the samples.", role="data", high=9.0)},
    where="",
    corpus_name=lambda config: f"louder {config.gain:g}",
  )
  monkeypatch.setitem(sources.SOURCES, "louder", louder)
  settings = config_lib.base()
  settings.data.source, settings.data.gain = "louder", 3.0
  config_lib.validate(settings)
  assert (
    "`louder`: the packaged clips, louder" in sources.knobs()["source"].meaning
  )
  assert len(open_source(settings.data, "train").ids) > 10
  assert sources.corpus_name(settings.data) == "louder 3"
  settings.data.gain = 10.0
  with pytest.raises(UserError, match=r"data.gain=10.0 is outside \[0.0, 9.0"):
    config_lib.validate(settings)


@pytest.mark.parametrize("key", ["name", "min_seconds", "source"])
def test_a_knob_that_two_sources_declare_is_one(monkeypatch, key):
  def add(knob):
    kind = SourceKind(None, "", {key: knob})
    monkeypatch.setitem(sources.SOURCES, "other", kind)
    return sources.knobs()

  before = sources.knobs()
  if key != "source":
    assert add(before[key])[key] == before[key]
  with pytest.raises(AssertionError, match=f"'other' declares data.{key}"):
    add(Knob("", "Something else."))


def test_only_what_is_used_is_imported():
  code = (
    "import sys; from ssl_jax import config; from ssl_jax.data import sources; "
    "sources.knobs(); print('tensorflow_datasets' in sys.modules)"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert done.stdout.split() == ["False"]
