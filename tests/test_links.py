"""Files of several streams, or without a true length, against ffmpeg."""

import av
import numpy as np
import pytest
import soundfile
import soxr
from ml_collections import ConfigDict

from ssl_jax.data.sources import audio, links, mpeg, open_source


@pytest.fixture(scope="module")
def speech():
  """Float32 [S], 17 s."""
  config = ConfigDict(dict(source="embedded", hours=0.0, min_seconds=0.5))
  source = open_source(config, "valid")
  some = np.argsort(abs(source.num_samples - 40_000))[:8]
  clips = [source.read(i, 0, source.num_samples[i]) for i in some]
  # Half of it is soft, so that variable bit rates vary.
  loud = np.concatenate(clips)[: 17 * 16_000].astype(np.float32) / 32768
  return loud * np.where(np.arange(len(loud)) < len(loud) // 2, 0.01, 0.9)


def mp3(path, samples, rate, xing="1", **options):
  """Writes an MP3 as ffmpeg does."""
  samples = soxr.resample(samples, 16_000, rate).astype(np.float32)
  with av.open(str(path), "w", "mp3", options={"write_xing": xing}) as out:
    stream = out.add_stream("libmp3lame", rate=rate, layout="mono")
    stream.codec_context.options = options
    stream.codec_context.format = "fltp"
    frame = av.AudioFrame.from_ndarray(samples[None], "fltp", "mono")
    frame.sample_rate, frame.pts = rate, 0
    for packet in [*stream.encode(frame), *stream.encode(None)]:
      out.mux(packet)
  return path


def heard(path):
  """What ffmpeg decodes, at 16 kHz. Float [S]."""
  with av.open(str(path)) as file:
    frames = [*file.decode(audio=0)]
  parts = [frame.to_ndarray().mean(axis=0) for frame in frames]
  return soxr.resample(np.concatenate(parts), frames[0].sample_rate, 16_000)


def agree(path, expected, tolerance_samples=0, least=0.999):
  length = audio.probe(path)
  assert abs(length - len(expected)) <= tolerance_samples
  got = audio.read(path, 0, 10**7)
  assert len(got) == length
  n = min(length, len(expected))
  assert np.corrcoef(got[:n], expected[:n])[0, 1] > least
  # And parts are the slices.
  for start in (1_000, length // 2, length - 9_000):
    part = audio.read(path, start, 8_000)
    assert abs(part.astype(int) - got[start : start + 8_000]).max() < 2
  assert (audio.read(path.read_bytes(), 0, 10**7) == got).all()


VARIABLE = {"q": "7", "flags": "+qscale", "global_quality": str(7 * 118)}


@pytest.mark.parametrize("rate", [16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("options", [VARIABLE, {"abr": "1", "b": "48k"}, {}])
def test_an_mp3_without_its_length_is_heard_whole(
  tmp_path, speech, rate, options
):
  path = mp3(tmp_path / "a.mp3", speech, rate, xing="0", **options)
  assert b"Xing" not in path.read_bytes() and b"Info" not in path.read_bytes()
  expected = heard(path)
  assert abs(len(expected) - len(speech)) < 2_500
  agree(path, expected)


def test_a_file_is_looked_through_once(tmp_path, speech, monkeypatch):
  path = mp3(tmp_path / "a.mp3", speech, 44_100, xing="0", **VARIABLE)
  length = audio.probe(path)
  whole = audio.read(path, 0, length)
  with monkeypatch.context() as patch:
    patch.setattr(mpeg, "streams", lambda *_: pytest.fail("looked again"))
    np.testing.assert_array_equal(audio.read(path, 0, length), whole)
  # Unless it has changed.
  mp3(path, speech[: len(speech) // 2], 44_100, xing="0", **VARIABLE)
  assert abs(audio.probe(path) - len(speech) // 2) < 2_500


def test_libsndfile_alone_cuts_it(tmp_path, speech):
  path = mp3(tmp_path / "a.mp3", speech, 44_100, xing="0", **VARIABLE)
  cut = soundfile.info(path).duration
  assert (
    abs(cut - len(speech) / 16_000) > 1
  )  # Else the test above tells nothing.


def test_an_mp3_with_its_length_is_left_to_libsndfile(tmp_path, speech):
  path = mp3(tmp_path / "a.mp3", speech, 44_100, **VARIABLE)
  assert not links.split(str(path))
  tagged = tmp_path / "tagged.mp3"
  tagged.write_bytes(path.read_bytes() + b"TAG".ljust(128, b"\xff"))
  assert not links.split(str(tagged))
  assert audio.probe(tagged) == audio.probe(path)


@pytest.mark.parametrize("xing", ["0", "1"])
def test_mp3s_one_after_the_other_are_heard_to_the_end(tmp_path, speech, xing):
  half = len(speech) // 2
  one = mp3(tmp_path / "1.mp3", speech[:half], 44_100, xing, **VARIABLE)
  two = mp3(tmp_path / "2.mp3", speech[half:], 44_100, xing, **VARIABLE)
  both = tmp_path / "both.mp3"
  both.write_bytes(one.read_bytes() + two.read_bytes())
  # With facts, ffmpeg takes the second's first frame, of those, for audio;
  # without, nothing tells that the second begins with no memory of the first.
  # Resampled apart, each rounds its length.
  tolerance, least = (1, 0.99) if xing == "0" else (1_000, 0.999)
  expected = np.concatenate([heard(one), heard(two)])
  agree(both, expected, tolerance, least)


def test_mp3s_of_two_rates_are_one_clip(tmp_path, speech):
  one = mp3(tmp_path / "1.mp3", speech, 44_100, "0")
  two = mp3(tmp_path / "2.mp3", speech, 16_000, "0")
  both = tmp_path / "both.mp3"
  both.write_bytes(one.read_bytes() + two.read_bytes())
  agree(both, np.concatenate([heard(one), heard(two)]))


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_chained_ogg_is_heard_to_the_end(tmp_path, speech, subtype):
  parts = []
  for i, part in enumerate(np.array_split(speech, 3)):
    path = tmp_path / f"{i}.ogg"
    soundfile.write(path, part, 16_000, format="OGG", subtype=subtype)
    parts.append(path)
  both = tmp_path / "both.ogg"
  both.write_bytes(b"".join(path.read_bytes() for path in parts))
  assert audio.probe(both) == sum(map(audio.probe, parts)) == len(speech)
  agree(both, np.concatenate([audio.read(p, 0, 10**7) for p in parts]))


def test_a_large_ogg_joined_to_itself_is_heard_twice(tmp_path, speech):
  one, both = tmp_path / "one.ogg", tmp_path / "both.ogg"
  with soundfile.SoundFile(one, "w", 16_000, 1, subtype="VORBIS") as file:
    file.comment = "OggS" * (5 << 19)  # As large as a picture.
    file.write(speech)
  content = one.read_bytes()
  assert len(content) > 8 << 20
  assert links.split(str(one)) == []
  assert len(heard(one)) == len(speech)
  # Bytes between streams are no page.
  both.write_bytes(content + b"Ogg" * 50_000 + content)
  assert audio.probe(both) == 2 * len(speech)
  joint = audio.read(both, len(speech) - 8_000, 16_000)
  whole = audio.read(one, 0, 10**7)
  expected = np.concatenate([whole[-8_000:], whole[:8_000]])
  np.testing.assert_array_equal(joint, expected)


def test_torn_and_foreign_bytes_are_no_streams(tmp_path, speech):
  path = mp3(tmp_path / "a.mp3", speech, 44_100, xing="0", **VARIABLE)
  whole = heard(path)
  content = path.read_bytes()
  # A tag before, torn bytes within, the last frame cut.
  tag = b"ID3\x04\0\0" + bytes([0, 0, 2, 0]) + b"\xff\xfb" * 128
  path.write_bytes(tag + content[: len(content) - 50])
  assert abs(audio.probe(path) - len(whole)) < 600
  for junk in (b"", b"OggS", b"ID3", b"\xff\xfb\x90\x00", b"OggS" * 99):
    assert links.split(junk) == []
