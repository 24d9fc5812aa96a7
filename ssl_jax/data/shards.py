"""ArrayRecord files, read at random by threads and processes alike."""

import contextlib
import functools
from collections.abc import Iterator

from array_record.python.array_record_module import ArrayRecordReader

from ssl_jax.data.audio import DamagedAudio

_MOST_OPEN = 256  # Systems allow a process 1,024 files, as a rule.


class Shards:
  """Files of records; opened when first read, and pickled unopened."""

  def __init__(self, paths: list[str]):
    self._paths = paths
    # One that is forgotten is closed once no thread reads from it.
    self._reader = functools.lru_cache(_MOST_OPEN)(self._open)

  def __reduce__(self):
    return Shards, (self._paths,)

  def count(self, shard: int) -> int:
    """How many records file `shard` has.

    Raises:
      DamagedAudio: it cannot be read.
    """
    with self._told(shard):
      return self._reader(shard).num_records()

  def read(self, shard: int, place: int) -> bytes:
    """Record `place` of file `shard`, both from 0.

    Raises:
      DamagedAudio: it cannot be read.
    """
    with self._told(shard):
      (record,) = self._reader(shard).read([place])
      return record

  def _open(self, shard: int) -> ArrayRecordReader:
    return ArrayRecordReader(self._paths[shard])

  @contextlib.contextmanager
  def _told(self, shard: int) -> Iterator[None]:
    try:
      yield
    except (RuntimeError, IndexError, ValueError) as error:
      said = " ".join(str(error).split())[:120]
      raise DamagedAudio(
        f"cannot be read from shard {shard} ({said})"
      ) from error
