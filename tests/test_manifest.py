"""What lines of manifests mean, of whoever wrote them."""

import csv
import json

import numpy as np
import pytest
import soundfile

from ssl_jax.data import labels
from ssl_jax.data.sources import manifest
from ssl_jax.errors import UserError

RATE = 16_000


@pytest.fixture
def audio(tmp_path):
  """a.wav, 20 s of two channels; int16 [S, 2]."""
  rng = np.random.default_rng(0)
  samples = rng.integers(-9_000, 9_000, (20 * RATE, 2), np.int16)
  soundfile.write(tmp_path / "a.wav", samples, RATE)
  return samples


def lines(folder, *clips, name="m.jsonl"):
  path = folder / name
  path.write_text("".join(json.dumps(clip) + "\n" for clip in clips))
  return path


def read(path):
  """-> {id: (samples, metadata)}"""
  source = manifest.open_clips(manifest.find_clips(path))
  assert not source.skipped
  return {
    clip: (source.read(i, 0, int(source.num_samples[i])), source.metadata[i])
    for i, clip in enumerate(source.ids)
  }


@pytest.mark.parametrize(
  "one, other",
  [
    ({"offset": 0.0, "duration": 12.5}, {"offset": 12.5, "duration": 7.5}),
    ({"start": 0, "end": 12.5}, {"start": "12.5", "end": "20"}),
    ({"start": 0, "stop": 200_000}, {"start": 200_000, "stop": 320_000}),
  ],
)
def test_parts_of_a_file_are_its_slices(tmp_path, audio, one, other):
  path = lines(
    tmp_path,
    {"audio_filepath": "a.wav", "text": "one"} | one,
    {"audio_filepath": "a.wav", "text": "two"} | other,
  )
  found = read(path)
  assert len(found) == 2
  (first, known), (second, more) = sorted(
    found.values(), key=lambda clip: clip[1]["text"]
  )
  whole = audio.astype(np.float64).mean(axis=1)
  assert (len(first), len(second)) == (200_000, 120_000)
  assert abs(first - whole[:200_000]).max() <= 0.5
  assert abs(second - whole[200_000:]).max() <= 0.5
  assert (known["text"], more["text"]) == ("one", "two")


def test_a_channel_is_not_the_mean_of_them(tmp_path, audio):
  path = lines(
    tmp_path,
    *({"file": "a.wav", "channel": c, "start": 3, "end": 5} for c in (0, 1)),
  )
  for channel, (samples, _) in enumerate(read(path).values()):
    expected = audio[3 * RATE : 5 * RATE, channel]
    np.testing.assert_array_equal(samples, expected)


def test_reads_of_a_part_stay_in_it(tmp_path, audio):
  path = lines(tmp_path, {"file": "a.wav", "offset": 1, "duration": 2})
  source = manifest.open_clips(manifest.find_clips(path))
  assert len(source.read(0, RATE, 10**9)) == RATE
  kept = source.select([0])
  np.testing.assert_array_equal(kept.read(0, 9, 99), source.read(0, 9, 99))


def test_a_length_that_is_but_rounded_cuts_nothing(tmp_path, audio):
  path = lines(
    tmp_path,
    {"id": "x", "file": "a.wav", "duration": 19.96},
    {"id": "y", "file": "a.wav", "duration": 20_000},  # Milliseconds.
    {"id": "z", "file": "a.wav", "duration": 19.2, "channel": "A"},
    {"id": "zz", "file": "a.wav", "duration": 0},  # Unknown.
  )
  assert [len(samples) for samples, _ in read(path).values()] == [20 * RATE] * 4
  # But an end that is given is one.
  path = lines(tmp_path, {"file": "a.wav", "start": 0, "end": 19.2})
  ((samples, _),) = read(path).values()
  assert len(samples) == 19.2 * RATE


def test_what_is_not_in_the_file_is_skipped_and_named(tmp_path, audio):
  path = lines(
    tmp_path,
    {"id": "x", "file": "a.wav", "offset": 19, "duration": 5},
    {"id": "y", "file": "a.wav", "start": 5, "end": 4},
    {"id": "z", "file": "a.wav", "channel": 7},
    {"id": "good", "file": "a.wav"},
  )
  source = manifest.open_clips(manifest.find_clips(path))
  assert source.ids == ["good", "z"]
  assert [clip for clip, _ in source.skipped] == ["x", "y"]
  assert all("not in its file" in why for _, why in source.skipped)
  with pytest.raises(ValueError, match="has no channel 7, but 2"):
    source.read(1, 0, RATE)


@pytest.mark.parametrize(
  "line, said",
  [
    ({"offset": -1}, "offset=-1 is not a time"),
    ({"duration": "long"}, "duration='long' is not a time"),
    ({"duration": float("inf")}, "duration=inf is not a time"),
    ({"start": float("nan"), "end": 1}, "start=nan is not a time"),
    ({"stop": 99}, "has a stop, and no start"),
    ({"segments": [[0, 1]]}, "'segments' is not heeded"),
  ],
)
def test_lines_that_cannot_be_heeded_are_refused(tmp_path, audio, line, said):
  path = lines(tmp_path, {"file": "a.wav"}, {"file": "a.wav", "id": "x"} | line)
  with pytest.raises(UserError, match=f"line 2: {said}"):
    manifest.find_clips(path)


def test_names_of_other_libraries_are_known(tmp_path, audio):
  (tmp_path / "clips").mkdir()
  (tmp_path / "clips" / "cv_1.wav").symlink_to(tmp_path / "a.wav")
  (tmp_path / "cv.tsv").write_text(
    "client_id\tpath\tsentence\tup_votes\tlocale\n"
    'abc\tcv_1.wav\t"Hallo", sagt sie\t2\tde\n'
  )
  (tmp_path / "sb.csv").write_text(
    "ID,duration,wav,spk_id,wrd\nu1,20.0,a.wav,s1,HELLO THERE\n"
  )
  hf = lines(tmp_path, {"file_name": "a.wav", "transcription": "hi"})
  expected = {
    "cv.tsv": (
      "cv_1.wav",
      {
        "speaker": "abc",
        "client_id": "abc",
        "text": '"Hallo", sagt sie',
        "sentence": '"Hallo", sagt sie',
        "language": "de",
        "locale": "de",
        "up_votes": "2",
      },
    ),
    "sb.csv": (
      "u1",
      {
        "duration": "20.0",
        "speaker": "s1",
        "spk_id": "s1",
        "text": "HELLO THERE",
        "wrd": "HELLO THERE",
      },
    ),
    hf.name: ("a.wav", {"text": "hi", "transcription": "hi"}),
  }
  for name, (clip, known) in expected.items():
    found = read(tmp_path / name)
    assert {k: v for k, (_, v) in found.items()} == {clip: known}
    assert len(found[clip][0]) == 20 * RATE


def test_metadata_of_another_kind_are_left_alone(tmp_path, audio, caplog):
  (tmp_path / "metadata.csv").write_text("a|Said, so|said so\nb|x|x\n")
  assert [*read(tmp_path)] == ["a.wav"]
  assert "metadata.csv names no files" in caplog.text


def test_parts_at_late_times_have_names_of_their_own(tmp_path, audio):
  starts = (40_000.1, 40_000.2, 40_000.3)
  path = lines(
    tmp_path,
    *({"file": "a.wav", "start": s, "end": s + 0.1} for s in starts),
    {"file": "a.wav", "start": starts[0], "end": 50_000},
  )
  assert len({clip.id for clip in manifest.find_clips(path)}) == 4


def test_another_part_is_another_corpus(tmp_path, audio):
  hashes = set()
  for line in ({}, {"channel": 0}, {"channel": 1}, {"start": 1, "end": 21}):
    path = lines(tmp_path, {"id": "x", "file": "a.wav"} | line)
    source = manifest.open_clips(manifest.find_clips(path))
    if line.get("start"):
      assert source.skipped
      continue
    hashes.add(labels.corpus_hash(source))
  for start in (0, 1):
    path = lines(
      tmp_path,
      {"id": "x", "file": "a.wav", "start": start} | {"end": start + 9},
    )
    source = manifest.open_clips(manifest.find_clips(path))
    hashes.add(labels.corpus_hash(source))
  assert len(hashes) == 5


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_a_folders_metadata_are_its_clips(tmp_path, audio, name):
  (tmp_path / "sub").mkdir()
  (tmp_path / "sub" / "b.wav").write_bytes((tmp_path / "a.wav").read_bytes())
  if name.endswith("csv"):
    (tmp_path / name).write_text("file_name,text\nsub/b.wav,hello\n")
  else:
    lines(tmp_path, {"file_name": "sub/b.wav", "text": "hello"}, name=name)
  found = {clip: known for clip, (_, known) in read(tmp_path).items()}
  assert found == {"a.wav": {}, "sub/b.wav": {"text": "hello"}}


@pytest.mark.parametrize(
  "content, said",
  [
    ('file,text\na.wav,"un\nb.wav,two\nc.wav,three\n', "unexpected end"),
    ("file,text\na.wav,x\nb.wav,hello, you\n", "line 3 has 3 columns, not 2"),
    ("file,text\na.wav\n", "line 2 has 1 columns, not 2"),
    ('file,text\n"a.wav"x,y\n', "expected after"),
    ("file,text,text\na.wav,x,y\n", "two columns are named 'text'"),
  ],
)
def test_csv_is_read_strictly(tmp_path, content, said):
  (tmp_path / "m.csv").write_text(content)
  with pytest.raises(UserError, match=said):
    manifest.find_clips(tmp_path / "m.csv")


def test_csv_is_what_pythons_writer_wrote(tmp_path):
  rows = [["a,b.wav", 'a "text", of\ntwo lines'], ["c.wav", "é"], ["d.wav", ""]]
  with (tmp_path / "m.csv").open("w", newline="") as file:
    csv.writer(file).writerows([["file", "text"], *rows])
  found = manifest.find_clips(tmp_path / "m.csv")
  assert [[c.id, c.metadata.get("text", "")] for c in found] == rows
