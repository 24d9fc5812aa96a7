"""Audio, manifests and archives of any bytes: refused in a line, or read."""

import functools
import io
import json
import os
import struct

import numpy as np
import pytest
import soundfile
from hostile import assault, changed, damaged, fuzzed, told
from hypothesis import given
from hypothesis import strategies as st
from odd_corpora import opened, settings

from ssl_jax.data.sources import audio, folder, open_source
from ssl_jax.data.sources.audio import DamagedAudio
from ssl_jax.errors import UserError

KINDS = ("wav", "flac", "ogg", "mp3")


@functools.cache
def encoded(kind, rate=16_000, channels=1):
  samples = np.sin(np.arange(rate * 3 // 10) / 9)[:, None] * 0.3
  file = io.BytesIO()
  soundfile.write(
    file, np.repeat(samples, channels, 1), rate, format=kind.upper()
  )
  return file.getvalue()


def heard(content):
  """Reads it as training does, and keeps it from what nobody asked for."""
  try:
    length = audio.probe(content)
    for start in (0, length // 2):
      assert len(audio.read(content, start, 4_000)) <= 4_000
  except DamagedAudio as damage:
    raise UserError(str(damage)) from damage


@fuzzed
@given(st.data())
def test_damaged_audio_is_damaged_audio(data):
  kind = data.draw(st.sampled_from(KINDS))
  rate = data.draw(st.sampled_from([16_000, 44_100]))
  told(heard, data.draw(damaged(encoded(kind, rate))))


def wav(rate=16_000, channels=1, bits=16, size=9_600, content=9_600, kind=1):
  align = channels * bits // 8
  form = struct.pack(
    "<HHIIHH",
    kind,
    channels % 2**16,
    rate,
    rate * align % 2**32,
    align % 2**16,
    bits,
  )
  return (
    b"RIFF"
    + struct.pack("<I", min(size + 36, 2**32 - 1))
    + b"WAVEfmt "
    + struct.pack("<I", 16)
    + form
    + b"data"
    + struct.pack("<I", size)
    + b"\1\0" * (content // 2)
  )


def flac(rate=16_000, channels=1, samples=4_800):
  """One whose STREAMINFO says so."""
  content = bytearray(encoded("flac"))
  facts = rate << 44 | (channels - 1) << 41 | 15 << 36 | samples
  content[18:26] = facts.to_bytes(8)
  return bytes(content)


@pytest.mark.parametrize("rate", [0, 1, 2, 7, 999, 2**20 - 1, 2**31, 2**32 - 1])
def test_absurd_rates(rate):
  said = told(heard, wav(rate))
  assert "rate" in said or not rate or rate >= 2**31
  assert said
  told(heard, flac(rate % 2**20))


@pytest.mark.parametrize("channels", [0, 2, 255, 1_024, 4_096, 65_535])
def test_absurd_channels(channels):
  told(heard, wav(channels=channels))
  told(heard, wav(channels=channels, content=1 << 20, size=1 << 20))


@pytest.mark.parametrize("size", [0, 1, 2**31, 2**32 - 1])
def test_absurd_lengths(size):
  told(heard, wav(size=size))
  told(heard, wav(size=size, rate=44_100, kind=3, bits=32))


@pytest.mark.parametrize("samples", [2**36 - 1, 2**34, 10**6])
@pytest.mark.parametrize("channels", [1, 8])
def test_a_header_of_terabytes_is_no_allocation(samples, channels):
  content = flac(samples=samples, channels=channels)
  assert told(heard, content)
  # Where the header was believed when the corpus was opened.
  with pytest.raises(DamagedAudio):
    audio.read(content, 0, 10**10)


@pytest.fixture
def clips(tmp_path):
  for name in ("a", "b", "c"):
    (tmp_path / f"{name}.wav").write_bytes(encoded("wav"))
  return tmp_path


LINES = [
  {"file": "a.wav", "id": "1", "speaker": "x", "text": "one"},
  {"file": "b.wav", "id": "2", "speaker": 7, "split": "train"},
  {"file": "c.wav", "split": "valid"},
]
MANIFESTS = {
  "m.jsonl": "".join(json.dumps(line) + "\n" for line in LINES),
  "m.csv": "file,id,speaker\na.wav,1,x\nb.wav,2,y\nc.wav,3,\n",
  "m.tsv": ".\na.wav\t4800\nb.wav\t4800\nc.wav\t4800\n",
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_no_manifest_is_in_a_manifests_place(clips, name):
  path = clips / name
  path.write_text(MANIFESTS[name])
  call = functools.partial(opened, settings(path))
  assert told(call) == ""
  assert assault(path, call) > 15


@fuzzed
@given(st.data())
def test_manifests_of_any_lines(tmp_path_factory, data):
  root = tmp_path_factory.getbasetemp() / "lines"
  root.mkdir(exist_ok=True)
  for name in ("a", "b", "c"):
    (root / f"{name}.wav").write_bytes(encoded("wav"))
  name = data.draw(st.sampled_from([*MANIFESTS]))
  if name == "m.jsonl" and data.draw(st.booleans()):
    lines = [data.draw(changed(line)) for line in LINES]
    content = b"\n".join(lines)
  else:
    content = data.draw(damaged(MANIFESTS[name].encode()))
  (root / name).write_bytes(content)
  key = data.draw(st.sampled_from(["", "split", "speaker"]))
  told(opened, settings(root / name, split_key=key))


@pytest.mark.parametrize(
  "file",
  [
    *("a\0.wav", "\ud800.wav", "x" * 5_000, "", ".", "..", "/dev/zero", "fifo"),
    *("loop", "a.wav/b", "~", "\n", "a.wav\n", "/proc/self/mem"),
  ],
)
def test_names_that_are_no_files(clips, file):
  os.mkfifo(clips / "fifo")
  (clips / "loop").symlink_to("loop")
  lines = [*LINES, {"file": file, "id": file, "speaker": file}]
  path = clips / "m.jsonl"
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  told(opened, settings(path))


def test_folders_of_what_waits_loops_or_is_unreadable(clips):
  os.mkfifo(clips / "wait.wav")
  (clips / "folder.wav").mkdir()
  (clips / "loop.wav").symlink_to("loop.wav")
  (clips / "zero.wav").symlink_to("/dev/zero")
  (clips / "up").symlink_to("..")
  (clips / "empty.flac").touch()
  (clips / os.fsdecode(b"\xff.wav")).write_bytes(encoded("wav"))
  (clips / "a\nb.wav").write_bytes(encoded("wav"))
  for source in ("folder", "manifest"):
    folder._scan.cache_clear()
    assert told(opened, settings(clips, source)) == ""


@pytest.mark.parametrize("name", ["\0", "a" * 5_000, "/dev/zero", ""])
@pytest.mark.parametrize(
  "source", ["folder", "manifest", "records", "tfds", "mixture"]
)
def test_folders_that_are_none(name, source):
  assert told(opened, settings(name, source, name=name))
  where = f"records:{name},folder:{name},tfds:{name}"
  assert told(opened, settings(where, "mixture", weights=(1.0, 2.0, 3.0)))


@fuzzed
@given(st.data())
def test_mixtures_of_any_words(tmp_path_factory, data):
  root = tmp_path_factory.getbasetemp() / "mixed"
  root.mkdir(exist_ok=True)
  for name in ("a", "b", "c"):
    (root / f"{name}.wav").write_bytes(encoded("wav"))
  words = [f"folder:{root}", "embedded", "records:x", "mixture:x", "tfds:"]
  words += [",", ":", "..", "\0", "folder:", " ", "\n", "embedded:x", "-"]
  entries = data.draw(st.lists(st.sampled_from(words), max_size=4))
  odd = st.sampled_from([1.0, 0.0, -1.0, 1e300, float("nan"), float("inf")])
  weights = tuple(data.draw(st.lists(odd, max_size=3)))
  config = settings(",".join(entries), "mixture", weights=weights)
  folder._scan.cache_clear()
  for split in ("train", "valid"):
    made = []
    told(
      lambda split, made: made.append(open_source(config, split)), split, made
    )
    if made and made[0].rates is not None:
      assert np.isfinite(made[0].rates).all() and made[0].rates.sum() > 0


def test_hours_of_clips_of_odd_speakers(clips):
  lines = [
    {"file": f"{x}.wav", "speaker": y}
    for x, y in zip("abc", (1e9, -0.0, "\ud800"))
  ]
  path = clips / "m.jsonl"
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  assert told(opened, settings(path, hours=1e-5)) == ""
