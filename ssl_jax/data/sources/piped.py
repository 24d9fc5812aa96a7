"""Files written to a pipe, where no writer could go back to fill in the length.

libsndfile reads WAV, AIFF and AU whose length is given as the greatest number,
but neither those that say 0, nor CAF that says -1, nor W64 out of memory; of
such FLAC it does not know the length, and of WAV no more than 4 GiB.
"""

import functools
from typing import BinaryIO, NamedTuple

from ssl_jax.data.sources import mpeg
from ssl_jax.data.sources.streams import Pieces

_BLOCK_SIZES = [0, 192, 576, 1_152, 2_304, 4_608, 0, 0]  # Samples, by field.
_BLOCK_SIZES += [256 << i for i in range(8)]
_ENDLESS = (1 << 31) - (1 << 12)  # Bytes, or more, that stand for no number.
_UNKNOWN = b"\xff" * 4


def streams(file: BinaryIO, size: int) -> list[Pieces]:
  """Returns a file's stream with its length filled in; [] if it has one.

  Args:
    file: of any format.
    size: in bytes.
  """
  start = _read(file, 0, 12)
  begin = mpeg.after_tag(start, 0) if start[:3] == b"ID3" else 0
  if begin:
    start = _read(file, begin, 12)
  finders = {
    b"fLaC": _flac,
    b"RIFF": _wave,
    b"RF64": _wave,
    b"riff": _w64,
    b"caff": _caf,
    b".snd": _au,
  }
  find = finders.get(start[:4])
  edits = find(file, begin, size) if find else []
  if not edits:
    return []
  pieces, at = [], 0
  for first, last, value in edits:
    pieces += [(at, first), value]
    at = last
  return [(*pieces, (at, size))]


# Bytes of a file, from one place to another, and what is to be there instead.
_Edit = tuple[int, int, bytes]


def _wave(file: BinaryIO, begin: int, size: int) -> list[_Edit]:
  head = _read(file, begin, 12)
  if head[8:] != b"WAVE":
    return []
  whole, large, place = int.from_bytes(head[4:8], "little"), 0, begin + 12
  while place < size and len(chunk := _read(file, place, 8)) == 8:
    place += 8
    length = int.from_bytes(chunk[4:], "little")
    if chunk[:4] == b"ds64":  # RF64 has its numbers here.
      large = place
      whole = int.from_bytes(_read(file, place, 8), "little")
      counted = int.from_bytes(_read(file, place + 8, 8), "little")
    if chunk[:4] == b"data":
      break
    place += length + length % 2
  else:
    return []
  left = size - place
  if large and chunk[4:] == _UNKNOWN:
    # A file that is empty has its chunks within the length of the whole.
    if counted or begin + 8 + whole > place or not left:
      return []
    return [(large + 8, large + 16, left.to_bytes(8, "little"))]
  if not length and begin + 8 + whole <= place and 0 < left < 1 << 32:
    return [(place - 4, place, _UNKNOWN)]
  if _is_beyond(file, place, length, left):
    facts = (size + 28, left, 0)
    ds64 = b"".join(value.to_bytes(8, "little") for value in facts) + bytes(4)
    head = b"RF64" + _UNKNOWN + b"WAVEds64\x1c\0\0\0" + ds64
    return [(begin, begin + 12, head), (place - 4, place, _UNKNOWN)]
  return []


def _is_beyond(file: BinaryIO, place: int, length: int, left: int) -> bool:
  """Tells whether audio goes on behind the length that a WAV gives.

  It has 32 bits. What is longer is said to be as long as modulo 4 GiB, and to a
  pipe sox writes 2 GiB less 4 KiB, arecord 2 GiB, others the greatest number.

  Args:
    file: WAV.
    place: of the audio.
    length: that the file gives, in bytes.
    left: bytes from `place` to the file's end.
  """
  rest = left - length
  if rest < (8 if length >= _ENDLESS else 1 << 30):
    return False
  name = _read(file, place + length + length % 2, 4)
  return not (name.isascii() and name.decode().isprintable())


def _w64(file: BinaryIO, begin: int, size: int) -> list[_Edit]:
  place = begin + 40  # A chunk has a name of 16 bytes, and counts its head.
  while place < size and len(chunk := _read(file, place, 24)) == 24:
    length = int.from_bytes(chunk[16:], "little")
    if chunk[:4] == b"data" and length > size:
      return [(place + 16, place + 24, (size - place).to_bytes(8, "little"))]
    place += max(24, length + 7 & ~7)
  return []


def _caf(file: BinaryIO, begin: int, size: int) -> list[_Edit]:
  place = begin + 8
  while place < size and len(chunk := _read(file, place, 12)) == 12:
    place += 12
    length = int.from_bytes(chunk[4:], "big", signed=True)
    if chunk[:4] == b"data" and length == -1:
      return [(place - 8, place, (size - place).to_bytes(8, "big"))]
    if length < 0:
      break
    place += length
  return []


def _au(file: BinaryIO, begin: int, size: int) -> list[_Edit]:
  head = _read(file, begin, 12)
  offset, length = (int.from_bytes(head[i : i + 4], "big") for i in (4, 8))
  if length or begin + offset >= size:
    return []
  return [(begin + 8, begin + 12, _UNKNOWN)]


def _flac(file: BinaryIO, begin: int, size: int) -> list[_Edit]:
  head = _read(file, begin, 42)
  if len(head) < 42 or head[4] & 0x7F or head[21] & 0xF or any(head[22:26]):
    return []
  place, last = begin + 4, False
  while not last:
    if len(block := _read(file, place, 4)) < 4:
      return []
    last = bool(block[0] & 0x80)
    place += 4 + int.from_bytes(block[1:], "big")
  first = _flac_frame(_read(file, place, 16))
  if not first:
    return []
  channels, bits = (head[20] >> 1 & 7) + 1, (head[20] & 1) << 4 | head[21] >> 4
  most = first.samples * channels * (bits // 8 + 2) + 32
  if first.by_sample:
    most = most // first.samples * int.from_bytes(head[10:12], "big")
  # Behind the last whole frame there may be a part of one, and a tag.
  place = max(place, size - 2 * most - 128)
  tail = _read(file, place, size - place)
  if tail[-128:-125] == b"TAG":
    tail = tail[:-128]
  at = len(tail)
  ends = [at]  # Among them may be chance: bytes that look like a header.
  while (at := tail.rfind(b"\xff", 0, at)) >= 0:
    frame = _flac_frame(tail[at : at + 16])
    if not frame or frame.by_sample != first.by_sample:
      continue
    if any(not _crc(tail[at:end], 16, 0x8005) for end in ends):
      before = frame.number * (1 if frame.by_sample else first.samples)
      total = before + frame.samples
      if total >= 1 << 36:
        return []
      value = (head[21] << 32 | total).to_bytes(5, "big")
      return [(begin + 21, begin + 26, value)]
    ends.append(at)
  return []


class _FlacFrame(NamedTuple):
  """A frame's header; with `by_sample` the number is of its first sample."""

  number: int
  samples: int
  by_sample: bool


def _flac_frame(head: bytes) -> _FlacFrame | None:
  """Reads a frame's header (RFC 9639, 9.1), if these bytes begin with one."""
  if len(head) < 6 or head[0] != 0xFF or head[1] & 0xFE != 0xF8 or head[3] & 1:
    return None
  # The number is written as UTF-8 writes a character, of up to 36 bits.
  ones = 8 - (head[4] ^ 0xFF).bit_length()
  if ones in (1, 8):
    return None
  number = head[4] & 0x7F >> ones
  place = 5 + max(0, ones - 1)
  for byte in head[5:place]:
    number = number << 6 | byte & 0x3F
  size, rate = head[2] >> 4, head[2] & 0xF
  samples = _BLOCK_SIZES[size]
  if size in (6, 7):
    samples = int.from_bytes(head[place : place + size - 5], "big") + 1
    place += size - 5
  place += {12: 1, 13: 2, 14: 2}.get(rate, 0)
  if not samples or len(head) <= place or _crc(head[: place + 1], 8, 0x07):
    return None
  return _FlacFrame(number, samples, bool(head[1] & 1))


def _crc(content: bytes, bits: int, polynomial: int) -> int:
  """Checksum; 0 of content that ends with its own."""
  table, mask, value = _crc_table(bits, polynomial), (1 << bits) - 1, 0
  for byte in content:
    value = value << 8 & mask ^ table[value >> bits - 8 ^ byte]
  return value


@functools.cache
def _crc_table(bits: int, polynomial: int) -> tuple[int, ...]:
  def entry(value: int) -> int:
    value <<= bits - 8
    for _ in range(8):
      value = value << 1 ^ (polynomial if value >> bits - 1 else 0)
      value &= (1 << bits) - 1
    return value

  return tuple(map(entry, range(256)))


def _read(file: BinaryIO, place: int, count: int) -> bytes:
  file.seek(place)
  return file.read(count)
