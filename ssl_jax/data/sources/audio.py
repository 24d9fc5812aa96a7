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


class DamagedAudio(ValueError):
  """A file that cannot be used; the message says why, not which."""


def probe(path: str | bytes) -> int:
  """Length of a file (or of its content) in samples at 16 kHz, by its header.

  Also decodes a sample near the end where that is cheap, because a download
  cut short keeps the header of the whole.

  Raises:
    DamagedAudio: not audio, empty, cut short, or of unknown length.
  """
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


def read(path: str | bytes, start: int, num_samples: int) -> np.ndarray:
  """Decodes `num_samples` samples from sample `start`, both counted at 16 kHz.

  Channels are averaged. A part equals the same slice of the whole file to
  within rounding, at any rate. `path` may be the content of a file instead.

  Returns:
    int16 [S], S <= num_samples: shorter where the file ends.

  Raises:
    DamagedAudio: undecodable, non-finite, cut short, or nothing at `start`.
  """
  with _open(path) as file:
    rate = file.samplerate
    expected = min(num_samples, length_at_16k(file.frames, rate) - start)
    if rate == SAMPLE_RATE:
      audio = _read_native(file, start, num_samples)
    else:
      # Output sample n lies on an input sample only for n a multiple of `up`;
      # cutting there keeps the phase of the resampled whole.
      divisor = math.gcd(rate, SAMPLE_RATE)
      up, down = SAMPLE_RATE // divisor, rate // divisor
      margin = math.ceil(_MARGIN * max(1, SAMPLE_RATE / rate))
      block = max(0, start - margin) // up
      skip = start - block * up
      needed = math.ceil((skip + num_samples + margin) * rate / SAMPLE_RATE)
      audio = _read_native(file, block * down, needed)
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


def length_at_16k(frames: int, rate: int) -> int:
  """Returns the samples that soxr makes of `frames`: the nearest, halves up."""
  return (2 * frames * SAMPLE_RATE + rate) // (2 * rate)


def _to_int16(audio: np.ndarray) -> np.ndarray:
  return np.clip(np.rint(audio * 32768), -32768, 32767).astype(np.int16)


def _read_native(
  file: soundfile.SoundFile, start: int, frames: int
) -> np.ndarray:
  """Float32 mono [<=frames] at the file's own rate."""
  if file.subtype == "VORBIS":
    # libsndfile's Vorbis seek can land some hundred samples off (its issue
    # 885), so what comes before is decoded and dropped.
    block = _BLOCK // file.channels
    while start and len(dropped := file.read(min(start, block))):
      start -= len(dropped)
  else:
    file.seek(min(start, file.frames))
  blocks = []
  while frames > 0:
    asked = min(frames, _BLOCK // file.channels)
    block = file.read(asked, dtype="float32", always_2d=True)  # [S, channels]
    blocks.append(block.mean(axis=1))
    frames = frames - asked if len(block) == asked else 0
  return np.concatenate(blocks or [np.zeros(0, np.float32)])


@contextlib.contextmanager
def _open(path: str | bytes) -> Iterator[soundfile.SoundFile]:
  """The file, open; whatever fails inside is a `DamagedAudio`."""
  content = isinstance(path, bytes)
  try:
    # Maybe not UTF-8.
    name = io.BytesIO(path) if content else os.fsencode(path)
  except UnicodeEncodeError as error:
    raise DamagedAudio("no file has such a name") from error
  if not content and not os.path.isfile(name):  # A FIFO would be waited for.
    raise DamagedAudio(
      "no such file" if not os.path.exists(name) else "no file"
    )
  try:
    with soundfile.SoundFile(name) as file:
      if file.frames > 1 << 48:
        raise DamagedAudio("its header gives no length; encode it again")
      if not RATES[0] <= file.samplerate <= RATES[1]:
        raise DamagedAudio(f"a sample rate of {file.samplerate} Hz")
      yield file
  except TypeError as error:  # Headerless, by its name.
    raise DamagedAudio("raw samples, without a header") from error
  except soundfile.SoundFileError as error:
    reason = getattr(error, "error_string", "").rstrip(".")
    if not path or (not content and _is_empty(name)):
      reason = "empty file"  # libsndfile calls an empty MP3 "no such file".
    raise DamagedAudio(reason or "cannot be decoded") from error


def _is_empty(path: bytes) -> bool:
  return os.path.isfile(path) and not os.path.getsize(path)
