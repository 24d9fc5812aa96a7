"""Files written to a pipe, whose headers lack the length, against ffmpeg."""

import contextlib
import io

import av
import numpy as np
import pytest
import soundfile

from ssl_jax.data.sources import audio, links


class Pipe:
  """A file in which no writer can go back."""

  def __init__(self):
    self.content = bytearray()

  def write(self, content):
    self.content += content
    return len(content)


def noise(rate=16_000, channels=1, seconds=5.3):
  """Int16 [S, channels], louder and softer."""
  random = np.random.default_rng(0)
  count = int(seconds * rate)
  loud = 9_000 * np.sin(np.arange(count) / rate)[:, None] ** 2
  return (random.standard_normal((count, channels)) * loud / 3).astype(np.int16)


def piped(format, codec, samples, rate=16_000, options=None):
  """Returns what ffmpeg writes to a pipe."""
  pipe, layout = Pipe(), "mono" if samples.shape[1] == 1 else "stereo"
  with av.open(pipe, "w", format, options=options or {}) as out:
    stream = out.add_stream(codec, rate=rate, layout=layout)
    for start in range(0, len(samples), 4_096):
      packed = samples[start : start + 4_096].reshape(1, -1)
      frame = av.AudioFrame.from_ndarray(packed, "s16", layout)
      frame.sample_rate, frame.pts = rate, start
      for packet in stream.encode(frame):
        out.mux(packet)
    for packet in stream.encode(None):
      out.mux(packet)
  return bytes(pipe.content)


def written(samples, format, rate=16_000, subtype="PCM_16"):
  """Returns a file of soundfile's, with its length."""
  file = io.BytesIO()
  soundfile.write(file, samples, rate, format=format, subtype=subtype)
  return file.getvalue()


def heard(path):
  """What ffmpeg decodes up to an error, int16 [S, channels]."""
  parts = []
  with av.open(str(path)) as file, contextlib.suppress(av.InvalidDataError):
    for f in file.decode(audio=0):
      parts.append(f.to_ndarray().reshape(-1, f.layout.nb_channels))
  return np.concatenate(parts)


def set_bytes(content, *fields):
  """Overwrites (place, bytes)s."""
  changed = bytearray(content)
  for place, value in fields:
    changed[place : place + len(value)] = value
  return bytes(changed)


def agree(path, content, expected):
  """Asserts that a file is heard as int16 [S], and its parts as slices."""
  path.write_bytes(content)
  assert audio.probe(path) == len(expected)
  assert audio.probe(content) == len(expected)
  whole = audio.read(path, 0, 10**7)
  np.testing.assert_array_equal(whole, expected)
  for start in (0, 1, 4_000, len(expected) // 2 + 77, len(expected) - 900):
    part = audio.read(path, start, 1_000)
    # A resampled part is the slice to within rounding.
    np.testing.assert_allclose(part, whole[start : start + 1_000], atol=1)
    np.testing.assert_array_equal(audio.read(content, start, 1_000), part)


def mean_at_16k(samples, rate):
  """The same audio through a WAV with its length: int16 [S]."""
  return audio.read(written(samples, "WAV", rate), 0, 10**7)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_flac_from_a_pipe_is_heard_whole(tmp_path, rate, channels):
  samples = noise(rate, channels)
  content = piped("flac", "flac", samples, rate)
  path = tmp_path / "a.flac"
  path.write_bytes(content)
  assert soundfile.info(path).frames != len(samples)  # It has no length.
  np.testing.assert_array_equal(heard(path), samples)
  agree(path, content, mean_at_16k(samples, rate))


@pytest.mark.parametrize("count", [100, 4_096, 4_097, 8_192, 80_001])
def test_flac_of_any_length_is_heard_whole(tmp_path, count):
  samples = noise(seconds=6)[:count, 0]
  content = written(samples, "FLAC")
  content = set_bytes(
    content, (21, bytes([content[21] & 0xF0])), (22, bytes(4))
  )
  assert audio.probe(content) == count
  np.testing.assert_array_equal(audio.read(content, 0, 10**7), samples)
  tags = b"ID3\x04\0\0\0\0\x02\0" + bytes(256), b"TAG" + bytes(125)
  tagged = tags[0] + content + tags[1]
  assert audio.probe(tagged) == count
  np.testing.assert_array_equal(audio.read(tagged, 0, 10**7), samples)


@pytest.mark.parametrize("subtype", ["PCM_S8", "PCM_24"])
def test_flac_of_other_depths_is_heard_whole(subtype):
  content = written(noise(seconds=2), "FLAC", subtype=subtype)
  unsized = set_bytes(
    content, (21, bytes([content[21] & 0xF0])), (22, bytes(4))
  )
  expected = audio.read(content, 0, 10**7)
  np.testing.assert_array_equal(audio.read(unsized, 0, 10**7), expected)


def test_flac_whose_pipe_broke_is_heard_up_to_there(tmp_path):
  samples = noise()
  content = piped("flac", "flac", samples)
  path = tmp_path / "a.flac"
  path.write_bytes(content[: len(content) * 2 // 3])
  count = audio.probe(path)
  assert len(samples) / 2 < count < len(samples)
  got = audio.read(path, 0, 10**7)
  np.testing.assert_array_equal(got, samples[:count, 0])
  assert len(heard(path)) - count in (0, 4_608)  # The last is a cut frame.


@pytest.mark.parametrize(
  ("format", "codec", "options"),
  [
    ("wav", "pcm_s16le", {}),
    ("wav", "pcm_s16le", {"rf64": "always"}),
    ("w64", "pcm_s16le", {}),
    ("caf", "pcm_s16be", {}),
    ("aiff", "pcm_s16be", {}),
    ("au", "pcm_s16be", {}),
  ],
)
def test_pcm_from_a_pipe_is_heard_whole(tmp_path, format, codec, options):
  samples = noise()
  content = piped(format, codec, samples, options=options)
  agree(tmp_path / f"a.{format}", content, samples[:, 0])


def test_headers_that_say_nothing_are_heard_whole(tmp_path):
  samples = noise()
  wav, au = written(samples, "WAV"), written(samples, "AU")
  assert wav[36:40] == b"data"
  for whole in (0, 36):  # Of recorders that were killed.
    content = set_bytes(wav, (4, whole.to_bytes(4, "little")), (40, bytes(4)))
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    np.testing.assert_array_equal(heard(path), samples)
    agree(path, content, samples[:, 0])
  agree(tmp_path / "a.au", set_bytes(au, (8, bytes(4))), samples[:, 0])


@pytest.mark.parametrize(
  ("said", "length"),
  [
    (0xFFFF_FFFF, (1 << 32) + 20_000_000),
    (20_000_000, (1 << 32) + 20_000_000),  # Modulo 4 GiB.
    (0, (1 << 32) + 20_000_000),
    (0x7FFF_F000, (1 << 31) + 20_000_000),  # As sox writes it to a pipe.
    (0x8000_0000, (1 << 31) + 20_000_000),  # As arecord.
  ],
)
def test_a_wav_too_long_for_its_header_is_heard_whole(tmp_path, said, length):
  path, end = tmp_path / "a.wav", noise(seconds=1)
  content = written(noise(seconds=0.1), "WAV")
  said = said.to_bytes(4, "little")
  with path.open("wb") as file:
    file.write(set_bytes(content[:44], (4, said), (40, said)))
    # Noise goes on where the length that is given ends, and is the end.
    for place in (
      int.from_bytes(said, "little") + 44 - 16_000,
      length + 12_044,
    ):
      file.seek(max(44, place))
      file.write(end.tobytes())
  count = (path.stat().st_size - 44) // 2
  assert audio.probe(path) == count
  got = audio.read(path, count - 16_000, 16_000)
  np.testing.assert_array_equal(got, end[:, 0])


def test_chunks_behind_a_long_wav_are_no_audio(tmp_path):
  path, length = tmp_path / "a.wav", (1 << 31) + 5_000
  with path.open("wb") as file:
    size = (length + 36).to_bytes(4, "little"), length.to_bytes(4, "little")
    content = written(noise(seconds=0.1), "WAV")[:44]
    file.write(set_bytes(content, (4, size[0]), (40, size[1])))
    file.seek(44 + length)
    file.write(b"LIST\x04\0\0\0INFO")
  assert audio.probe(path) == length // 2


@pytest.mark.parametrize("format", ["WAV", "RF64", "AU", "CAF", "FLAC"])
def test_empty_files_stay_empty(tmp_path, format):
  content = written(np.zeros((0, 1), np.int16), format)
  with pytest.raises(audio.DamagedAudio, match=r"no samples|empty file"):
    audio.probe(content)
  # Chunks behind the audio are none.
  if format == "WAV":
    size = int.from_bytes(content[4:8], "little") + 12
    content = set_bytes(content, (4, size.to_bytes(4, "little")))
    with pytest.raises(audio.DamagedAudio, match="no samples"):
      audio.probe(content + b"LIST\4\0\0\0INFO")


def test_torn_headers_are_left_to_libsndfile():
  samples = noise(seconds=1)
  made = [piped("flac", "flac", samples), written(samples, "WAV")]
  made += [piped("wav", "pcm_s16le", samples, options={"rf64": "always"})]
  made += [piped("caf", "pcm_s16be", samples), written(samples, "AU")]
  random = np.random.default_rng(0)
  for content in made:
    for end in range(100):
      links.split(content[:end])
    for _ in range(100):
      place, value = int(random.integers(4, 60)), random.bytes(8)
      links.split(set_bytes(content, (place, value)))


def test_flac_in_ogg_is_named():
  content = piped("ogg", "flac", noise())
  with pytest.raises(audio.DamagedAudio, match="FLAC in Ogg, which"):
    audio.probe(content)
