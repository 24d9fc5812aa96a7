"""Audio files: any part of any file libsndfile reads, as 16 kHz mono int16."""

import contextlib
import io
import math
import os
from collections.abc import Iterator

import numpy as np
import soundfile
import soxr

from ssl_jax import SAMPLE_RATE
from ssl_jax.data.sources import links
from ssl_jax.data.sources.streams import Stream, open_stream

# Headers may promise a little more than the file holds (MP3 lengths are
# sometimes estimates); what is missing beyond this counts as damage.
_TOLERANCE_SECONDS = 0.1

# Input on either side of a resampled part, in samples of the lower of the two
# rates. soxr's HQ filter reaches about 160; beyond it a part and the whole
# agree to rounding.
_MARGIN = 512

# Rates that anybody records at, Hz: others are of damaged headers, and would be
# resampled at any cost.
RATES = (1_000, 1_000_000)

# Values decoded at a time: headers may promise any number.
_BLOCK = 1 << 22

# A decoder hears so much before a part, for it to be the slice of the whole.
# An MPEG frame is at most 1,152 samples long and takes bits of earlier ones;
# Opus at low rates predicts from what it has put out, and forgets only slowly
# where it started.
_RUN_UP = {  # Frames, at a rate.
  "MPEG_LAYER_I": lambda rate: 12 * 1_152,
  "MPEG_LAYER_II": lambda rate: 12 * 1_152,
  "MPEG_LAYER_III": lambda rate: 12 * 1_152,
  "OPUS": lambda rate: 30 * rate,
}


# Bytes that files of other formats begin with, from a place on.
_FOREIGN = (
  (4, b"ftyp", "MPEG-4 audio (m4a, mp4)"),
  (0, b"\x1a\x45\xdf\xa3", "Matroska or WebM"),
  (0, b"\x30\x26\xb2\x75", "Windows Media audio"),
  (0, b"#!AMR", "AMR"),
  (0, b".ra\xfd", "RealAudio"),
  (0, b".RMF", "RealAudio"),
  (0, b"\x0b\x77", "AC-3"),
  (0, b"MAC ", "Monkey's Audio"),
  (0, b"TTA1", "True Audio"),
  (0, b"wvpk", "WavPack"),
  (28, b"\x7fFLAC", "FLAC in Ogg"),
  *((0, bytes((0xFF, byte)), "AAC") for byte in (0xF0, 0xF1, 0xF8, 0xF9)),
)
_START = 64
# Odd audio: the share of samples at full scale; the mean, of 32,768.
_CLIPPED, _OFFSET = 0.02, 3_277


class DamagedAudio(ValueError):
  """A file that cannot be used; the message says why, not which."""


def probe(path: str | bytes) -> int:
  """Length of a file (or of its content) in samples at 16 kHz, by its header.

  Also decodes a sample near the end where that is cheap, because a download
  cut short keeps the header of the whole.

  Raises:
    DamagedAudio: not audio, empty, cut short, or of unknown length.
  """
  return sum(_probe(stream) for stream in links.split(path) or [path])


def _probe(path: str | bytes | Stream) -> int:
  with _open(path) as file:
    if file.frames and file.format != "OGG":  # OGG: the last page says.
      tail = round(_TOLERANCE_SECONDS * file.samplerate)
      file.seek(max(0, file.frames - 1 - tail))
      if not len(file.read(1)):
        raise DamagedAudio("ends before the length its header gives")
    num_samples = length_at_16k(file.frames, file.samplerate)
  if not num_samples:
    raise DamagedAudio("no samples")
  return num_samples


def _length(stream: Stream) -> int:
  with _open(stream) as file:
    return length_at_16k(file.frames, file.samplerate)


def sample_rate(path: str | bytes) -> int:
  """Returns a file's own rate, in Hz.

  Raises:
    DamagedAudio: it cannot be opened.
  """
  with _open(path) as file:
    return file.samplerate


def read(
  path: str | bytes, start: int, num_samples: int, channel: int | None = None
) -> np.ndarray:
  """Decodes `num_samples` samples from sample `start`, both counted at 16 kHz.

  Channels are averaged, unless one is chosen, from 0. A part equals the same
  slice of the whole file to within rounding, at any rate. `path` may be the
  content of a file instead.

  Returns:
    int16 [S], S <= num_samples: shorter where the file ends.

  Raises:
    DamagedAudio: undecodable, non-finite, cut short, nothing at `start`, or no
      such channel.
  """
  streams = links.split(path)
  if not streams:
    return _read(path, start, num_samples, channel)
  parts, begin, end = [], 0, start + num_samples
  for stream in streams:
    length = _length(stream)
    first, last = max(start, begin), min(end, begin + length)
    if first < last:
      parts.append(_read(stream, first - begin, last - first, channel))
    begin += length
  if not parts:
    raise DamagedAudio(f"no samples at {start / SAMPLE_RATE:.2f} s")
  return np.concatenate(parts)


def _read(
  path: str | bytes | Stream, start: int, num_samples: int, channel: int | None
) -> np.ndarray:
  with _open(path) as file:
    if channel is not None and channel >= file.channels:
      raise DamagedAudio(f"has no channel {channel}, but {file.channels}")
    rate = file.samplerate
    expected = min(num_samples, length_at_16k(file.frames, rate) - start)
    if rate == SAMPLE_RATE:
      audio = _read_native(file, start, num_samples, channel)
    else:
      # Output sample n lies on an input sample only for n a multiple of `up`;
      # cutting there keeps the phase of the resampled whole.
      divisor = math.gcd(rate, SAMPLE_RATE)
      up, down = SAMPLE_RATE // divisor, rate // divisor
      margin = math.ceil(_MARGIN * max(1, SAMPLE_RATE / rate))
      block = max(0, start - margin) // up
      skip = start - block * up
      needed = math.ceil((skip + num_samples + margin) * rate / SAMPLE_RATE)
      audio = _read_native(file, block * down, needed, channel)
      audio = soxr.resample(audio, rate, SAMPLE_RATE, quality="HQ")
      audio = audio[skip : skip + num_samples]
  if not len(audio):
    raise DamagedAudio(f"no samples at {start / SAMPLE_RATE:.2f} s")
  if len(audio) < expected - _TOLERANCE_SECONDS * SAMPLE_RATE:
    raise DamagedAudio("ends before the length its header gives")
  if not np.isfinite(audio).all():
    raise DamagedAudio("has samples that are not finite numbers")
  return _to_int16(audio)


def convert(samples: np.ndarray, rate: int) -> np.ndarray:
  """Decoded audio at 16 kHz. Integers [S] or [S, channels] -> int16 [S'].

  Raises:
    DamagedAudio: samples that 16 bits do not hold.
  """
  if samples.min() < -32768 or samples.max() > 32767:
    raise DamagedAudio("has samples of more than 16 bits")
  if samples.ndim == 1 and rate == SAMPLE_RATE:
    return samples.astype(np.int16)
  audio = samples.reshape(len(samples), -1).mean(axis=1) / 32768
  return _to_int16(soxr.resample(audio, rate, SAMPLE_RATE, quality="HQ"))


def change_speed(audio: np.ndarray, speed: float) -> np.ndarray:
  """Int16 [S], played `speed` times as fast, pitch and all: [S / speed]."""
  changed = soxr.resample(
    audio.astype(np.float32) / 32768, SAMPLE_RATE * speed, SAMPLE_RATE, "HQ"
  )
  return _to_int16(changed)


def oddness(audio: np.ndarray) -> str:
  """Returns what is odd about decoded audio, int16 [S]; "" if nothing is."""
  low, high = int(audio.min()), int(audio.max())
  if low == high == 0:
    return "digital silence"
  if low <= -32767 or high == 32767:
    full = np.count_nonzero((audio == 32767) | (audio <= -32767))
    if full > _CLIPPED * len(audio):
      return "clipped"
  if abs(audio.mean(dtype=np.float64)) > _OFFSET:
    return "of one sign, by an offset (DC)"
  return ""


# Likely causes of what `oddness` finds.
ODD = {
  "digital silence": "opposite channels cancel each other: a manifest's "
  "`channel` chooses one",
  "clipped": "floats in units of int16 are to be divided by 32768",
  "of one sign, by an offset (DC)": "a high-pass filter removes it",
}


def length_at_16k(frames: int, rate: int) -> int:
  """Returns the samples that soxr makes of `frames`: the nearest, halves up."""
  return (2 * frames * SAMPLE_RATE + rate) // (2 * rate)


def _to_int16(audio: np.ndarray) -> np.ndarray:
  return np.clip(np.rint(audio * 32768), -32768, 32767).astype(np.int16)


class _File(soundfile.SoundFile):
  """A file that is read on where it stands.

  soundfile seeks after each read of a file that it takes for seekable, to where
  it is already, at which a decoder forgets what it has heard.
  """

  def seekable(self) -> bool:
    return False


def _read_native(
  file: soundfile.SoundFile, start: int, frames: int, channel: int | None
) -> np.ndarray:
  """Float32 mono [<=frames] at the file's own rate."""
  before = min(start, file.frames)
  # libsndfile's Vorbis seek can land some hundred samples off (its issue 885),
  # so all that comes before is decoded and dropped.
  if file.subtype != "VORBIS":
    run_up = _RUN_UP.get(file.subtype, lambda rate: 0)
    begin = max(0, before - run_up(file.samplerate))
    if begin:
      file.seek(begin)
    before -= begin
  block = _BLOCK // file.channels
  while before and len(dropped := file.read(min(before, block))):
    before -= len(dropped)
  blocks = []
  while frames > 0:
    asked = min(frames, _BLOCK // file.channels)
    block = file.read(asked, dtype="float32", always_2d=True)  # [S, channels]
    blocks.append(block.mean(axis=1) if channel is None else block[:, channel])
    frames = frames - asked if len(block) == asked else 0
  return np.concatenate(blocks or [np.zeros(0, np.float32)])


@contextlib.contextmanager
def _open(path: str | bytes | Stream) -> Iterator[soundfile.SoundFile]:
  """The file, open; whatever fails inside is a `DamagedAudio`."""
  file = path.file if isinstance(path, Stream) else path
  content = isinstance(file, bytes)
  try:
    # Maybe not UTF-8.
    name = io.BytesIO(file) if content else os.fsencode(file)
  except UnicodeEncodeError as error:
    raise DamagedAudio("no file has such a name") from error
  if not content and not os.path.isfile(name):  # A FIFO would be waited for.
    raise DamagedAudio(
      "no such file" if not os.path.exists(name) else "no file"
    )
  try:
    with contextlib.ExitStack() as stack:
      if isinstance(path, Stream):
        name = stack.enter_context(open_stream(path))
      opened = stack.enter_context(_File(name))
      if opened.frames > 1 << 48:
        raise DamagedAudio("its header gives no length; encode it again")
      if not RATES[0] <= opened.samplerate <= RATES[1]:
        raise DamagedAudio(f"a sample rate of {opened.samplerate} Hz")
      yield opened
  except TypeError as error:  # Headerless, by its name.
    raise DamagedAudio("raw samples, without a header") from error
  except soundfile.SoundFileError as error:
    reason = getattr(error, "error_string", "").rstrip(".")
    raise DamagedAudio(_why(file, reason)) from error


def _why(path: str | bytes, reason: str) -> str:
  """Returns why libsndfile cannot decode a file, `reason` being its words."""
  start = path[:_START] if isinstance(path, bytes) else b"?"
  if not isinstance(path, bytes):
    with contextlib.suppress(OSError), open(os.fsencode(path), "rb") as file:
      start = file.read(_START)
  if not start:
    return "empty file"
  for place, magic, kind in _FOREIGN:
    if start[place : place + len(magic)] == magic:
      return f"{kind}, which libsndfile does not read: ffmpeg -i FILE FILE.flac"
  if "exist" in reason:  # So it says of an MP3 that is none.
    return "not audio"
  return reason or "cannot be decoded"
