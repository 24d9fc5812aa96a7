"""Parts of a file that are decoded as if they were a file of their own."""

import bisect
import contextlib
import io
import itertools
import os
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

_BUFFER = 1 << 16  # Bytes.

# Bytes that are not in the file, or from where to where it is read.
Piece = bytes | tuple[int, int]
Pieces = tuple[Piece, ...]


class Stream(NamedTuple):
  """A stream of audio, in pieces that follow one another.

  Attributes:
    file: a path, or as bytes a file's content.
    pieces: what the stream consists of.
  """

  file: str | bytes
  pieces: Pieces


@contextlib.contextmanager
def open_stream(stream: Stream) -> Iterator[BinaryIO]:
  """Opens a stream as a file, of which only what is asked for is read."""
  with (
    io.BytesIO(stream.file)
    if isinstance(stream.file, bytes)
    else open(os.fsencode(stream.file), "rb", buffering=0)
  ) as file:
    # libmpg123 asks for a few bytes at a time. And a decoder takes a short read
    # for the end, so reads go on across pieces.
    yield io.BufferedReader(_Joined(file, stream.pieces), _BUFFER)


class _Joined(io.RawIOBase):
  """A read-only file of the pieces of another."""

  def __init__(self, file: BinaryIO, pieces: Pieces):
    super().__init__()
    self._file, self._pieces, self._at = file, pieces, 0
    sizes = [len(p) if isinstance(p, bytes) else p[1] - p[0] for p in pieces]
    self._ends = [*itertools.accumulate(sizes)]

  def readable(self) -> bool:
    return True

  def seekable(self) -> bool:
    return True

  def tell(self) -> int:
    return self._at

  def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
    origin = (0, self._at, self._ends[-1])[whence]
    self._at = max(0, origin + offset)
    return self._at

  def readinto(self, buffer: memoryview) -> int:
    if self._at >= self._ends[-1]:
      return 0
    index = bisect.bisect_right(self._ends, self._at)
    piece, left = self._pieces[index], self._ends[index] - self._at
    view = buffer[:left]
    if isinstance(piece, bytes):
      begin, count = len(piece) - left, len(view)
      view[:] = piece[begin : begin + count]
    else:
      self._file.seek(piece[1] - left)
      count = self._file.readinto(view)
    self._at += count
    return count
