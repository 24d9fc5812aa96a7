"""Streams of a file that libsndfile would not read to their ends by itself.

Chained Ogg and `cat a.mp3 b.mp3` are good files, of which libsndfile reads the
first stream. MP3s may lack their length (`mpeg.py`), and so may whatever was
written to a pipe (`piped.py`).
"""

import functools
import io
import os
import stat
from collections.abc import Sequence
from typing import BinaryIO

from ssl_jax.data.sources import mpeg, piped
from ssl_jax.data.sources.streams import Pieces, Stream

_BLOCK = 1 << 16  # Bytes that are searched at a time.


def split(file: str | bytes) -> list[Stream]:
  """Returns the streams of a file, each to be decoded alone and then joined.

  Each has its true length in its header. None are returned of a file that is
  to be decoded as it is: one stream with its length.

  Args:
    file: a path, or as bytes a file's content.
  """
  layout: Sequence[Pieces]
  if isinstance(file, bytes):
    layout = _find(io.BytesIO(file), len(file))
  else:
    try:
      name = os.path.abspath(os.fsencode(file))
      facts = os.stat(name)
      if not stat.S_ISREG(facts.st_mode):  # A FIFO would be waited for.
        return []
      layout = _find_in(name, facts.st_size, facts.st_mtime_ns)
    except (OSError, ValueError):
      return []  # Whoever decodes it says what is wrong.
  return [Stream(file, pieces) for pieces in layout]


# Every crop asks, and for some files' answers they are read whole. An answer
# takes some 500 bytes, and each worker process has its own.
@functools.lru_cache(maxsize=1 << 14)
def _find_in(name: bytes, size: int, changed: int) -> tuple[Pieces, ...]:
  """The streams of a file, as it was when it `changed`."""
  with open(name, "rb") as file:
    return tuple(_find(file, size))


def _find(file: BinaryIO, size: int) -> list[Pieces]:
  start = file.read(4)
  if start == b"OggS":
    return _ogg(file, size)
  return piped.streams(file, size) or mpeg.streams(file, size)


def _ogg(file: BinaryIO, size: int) -> list[Pieces]:
  """Cuts where streams begin; only the heads of pages are looked at."""
  begins, place, beginning = [], 0, False
  while (place := _next_page(file, place)) < size:
    file.seek(place)
    head = file.read(27 + 255)
    if len(head) < 27:
      break
    # Streams that play at once begin with a page each, one after the other.
    first = bool(head[5] & 2)
    if first and not beginning:
      begins.append(place)
    beginning = first
    table = head[27 : 27 + head[26]]
    place += 27 + len(table) + sum(table)
  ends = [*begins[1:], size]
  return [((a, b),) for a, b in zip(begins, ends)] if ends[1:] else []


def _next_page(file: BinaryIO, place: int) -> int:
  """Returns where a page begins, from a place on, or else the file's end."""
  file.seek(place)
  block = file.read(4)
  while len(block) >= 4:
    if (offset := block.find(b"OggS")) >= 0:
      return place + offset
    # The name may lie across two blocks.
    place += len(block) - 3
    file.seek(place)
    block = file.read(_BLOCK)
  return place + len(block)
