"""MP3: where its frames are, and lengths that it does not give.

It has no length but in a frame that most encoders put first (Xing's; pipes and
ffmpeg's `-write_xing 0` leave it out), without which libsndfile takes the first
frame's bit rate for that of all.
"""

import itertools
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from ssl_jax.data.sources.streams import Pieces

# MPEG layer III has kbit/s by version and field, and Hz by field.
_BIT_RATES = {
  1: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
  2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = (44_100, 48_000, 32_000)
_SLACK = 2  # Frames by which encoders differ in counting them.
_HIGHEST = 14 << 4  # A header's field for the highest bit rate.
_HEAD = 1 << 16  # Bytes in which a stream's first frame lies.
_DELAY = 529  # Samples that a decoder of layer III is late.


class _Frame(NamedTuple):
  """An MPEG frame: its place and bytes, and what is one in a whole stream."""

  place: int
  size: int
  kind: tuple[int, int, bool]  # Version (1, 2), Hz, mono.


class _Info(NamedTuple):
  """A stream as its first frame tells it: frames without it, bytes with it."""

  frames: int
  size: int


def streams(file: BinaryIO, size: int) -> list[Pieces]:
  """Returns a file's streams, each with a frame that tells its length.

  None are returned of a file that is none, or one stream with its length.

  Args:
    file: of any format.
    size: in bytes.
  """
  if _is_plain(file, size):
    return []
  file.seek(0)
  content = file.read()
  runs: list[list[_Frame]] = []
  for frame in _frames(content):
    if not runs or frame.kind != runs[-1][0].kind or _info(content, frame):
      runs.append([])
    runs[-1].append(frame)
  info = runs and _info(content, runs[0][0])
  if info and len(runs) == 1 and len(runs[0]) <= info.frames + _SLACK:
    return []
  return [_with_length(content, stream) for stream in runs]


def _is_plain(file: BinaryIO, size: int) -> bool:
  """Tells, from little of a file, that it is no MP3, or one with its length."""
  file.seek(0)
  start = file.read(10)
  tagged = start[:3] == b"ID3" and len(start) == 10
  if not tagged and not _header(start[:4]):
    return True
  file.seek(place := after_tag(start, 0) if tagged else 0)
  start = file.read(_HEAD)
  first = next(_frames(start), None)
  if start[:4] == b"fLaC" or not first:
    return True  # A tag before something that is no MP3.
  info = _info(start, first)
  if not info:
    return False
  # Behind a stream there is nothing, or a tag. Cut short, it has its length.
  end = place + first.place + info.size
  if end >= size:
    return True
  file.seek(end)
  return not _has_frames(file.read())


def _has_frames(content: bytes) -> bool:
  """Tells whether more MPEG frames are there than chance, or a torn end."""
  return len([*itertools.islice(_frames(content), _SLACK + 1)]) > _SLACK


def _with_length(content: bytes, stream: list[_Frame]) -> Pieces:
  """The stream, behind a first frame that tells its length."""
  info = _info(content, stream[0])
  if info and abs(info.frames + 1 - len(stream)) <= _SLACK:
    return _join(stream)
  if info and len(stream) > 1:
    stream = stream[1:]
  head = bytearray(content[stream[0].place : stream[0].place + 4])
  head[1] |= 1  # No checksum.
  head[2] = head[2] & ~0xF2 | _HIGHEST  # Room enough, and no padding.
  size = _header(bytes(head))[0]
  version, _, mono = stream[0].kind
  # libmpg123 drops its decoder's delay where the length is known. For no audio
  # to be lost, a silent frame is put before, and that is dropped.
  samples = 1_152 // version
  silence = bytes(head).ljust(size, b"\0")
  body = bytes(head) + bytes(_side(version, mono)) + b"Xing"
  total = 2 * size + sum(frame.size for frame in stream)
  for value in (3, len(stream) + 1, total):
    body += value.to_bytes(4, "big")
  # LAME's fields: the samples before and behind the audio, 12 bits each.
  body += b"LAME3.100".ljust(21, b"\0") + (
    samples - _DELAY << 12 | _DELAY
  ).to_bytes(3, "big")
  return body.ljust(size, b"\0") + silence, *_join(stream)


def _join(stream: list[_Frame]) -> Pieces:
  """The places of frames, in one where they follow one another."""
  ranges: list[tuple[int, int]] = []
  for frame in stream:
    end = frame.place + frame.size
    if ranges and ranges[-1][1] == frame.place:
      ranges[-1] = ranges[-1][0], end
    else:
      ranges.append((frame.place, end))
  return tuple(ranges)


def _frames(content: bytes, place: int = 0) -> Iterator[_Frame]:
  """Yields the MPEG frames from a place on, tags and torn bytes left out."""
  previous = None
  while place + 4 <= len(content):
    head = content[place : place + 10]
    if head[:3] == b"ID3" and len(head) == 10:
      place = after_tag(content, place)
      continue
    found = _header(head[:4])
    # Among other bytes, a header alone may be chance.
    if found and previous != place:
      after = content[place + found[0] : place + found[0] + 4]
      following = _header(after)
      if after and not (following and following[1] == found[1]):
        found = None
    if found and place + found[0] <= len(content):
      yield _Frame(place, *found)
      place += found[0]
      previous = place
      continue
    place = content.find(b"\xff", place + 1)
    if place < 0:
      return


def after_tag(content: bytes, place: int) -> int:
  """Returns where an ID3 tag ends, whose size is in bytes of seven bits."""
  sizes = [byte & 0x7F for byte in content[place + 6 : place + 10]]
  return place + 10 + sum(s << 7 * i for i, s in enumerate(reversed(sizes)))


def _header(head: bytes) -> tuple[int, tuple[int, int, bool]] | None:
  """Bytes and kind of the frame of layer III with this header, if it is one."""
  if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:
    return None
  division = {3: 1, 2: 2, 0: 4}.get(head[1] >> 3 & 3)
  bit_rate, rate = head[2] >> 4, head[2] >> 2 & 3
  if not division or bit_rate in (0, 15) or rate == 3:
    return None
  version = min(division, 2)
  hertz = _RATES[rate] // division
  size = 144_000 // version * _BIT_RATES[version][bit_rate] // hertz
  return size + (head[2] >> 1 & 1), (version, hertz, head[3] >> 6 == 3)


def _info(content: bytes, frame: _Frame) -> _Info | None:
  """Reads a frame of Xing's or VBRI's kind, if it is one with both numbers."""
  body = content[frame.place : frame.place + min(frame.size, 64)]
  version, _, mono = frame.kind
  checksum = 0 if body[1] & 1 else 2
  for start in {4 + _side(version, mono), 4 + _side(version, mono) + checksum}:
    if body[start : start + 4] in (b"Xing", b"Info"):
      says = body[start + 4 : start + 16]
      frames, size = says[4:8], says[8:12]
      break
  else:
    if body[36:40] != b"VBRI":
      return None
    says, frames, size = b"\0\0\0\3", body[50:54], body[46:50]
  if says[3] & 3 != 3:
    return None
  return _Info(int.from_bytes(frames, "big"), int.from_bytes(size, "big"))


def _side(version: int, mono: bool) -> int:
  """Bytes between a frame's header and Xing's name: its side information."""
  return {1: 32, 2: 17}[version] if not mono else {1: 17, 2: 9}[version]
