"""ArrayRecord files, read at random by threads and processes alike."""

import contextlib
import functools
import os
import resource
from collections.abc import Iterator

from array_record.python.array_record_module import ArrayRecordReader

from ssl_jax.data.sources.audio import DamagedAudio
from ssl_jax.errors import UserError, one_line


@functools.cache
def _most_open() -> int:
  """Returns how many files a `Shards` may hold open; raises the limit."""
  _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
  most = min(most if most > 0 else 1 << 16, 1 << 16)
  resource.setrlimit(
    resource.RLIMIT_NOFILE,
    (most, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),
  )
  return max(64, most // 4)


class Shards:
  """Files of records; opened when first read, and pickled unopened."""

  def __init__(self, paths: list[str]):
    self._paths = paths
    # One that is forgotten is closed once no thread reads from it.
    self._reader = functools.lru_cache(_most_open())(self._open)

  def __reduce__(self):
    return Shards, (self._paths,)

  def count(self, shard: int) -> int:
    """Returns the count of records of file `shard`.

    Raises:
      DamagedAudio: it cannot be read.
    """
    with self._explained(shard):
      return self._reader(shard).num_records()

  def read(self, shard: int, place: int) -> bytes:
    """Returns record `place` of file `shard`, both from 0.

    Raises:
      DamagedAudio: it cannot be read.
    """
    with self._explained(shard):
      (record,) = self._reader(shard).read([place])
      return record

  def _open(self, shard: int) -> ArrayRecordReader:
    if os.path.exists(path := self._paths[shard]) and not os.path.isfile(path):
      raise ValueError("is no file")  # A FIFO would be waited for.
    return ArrayRecordReader(path)

  @contextlib.contextmanager
  def _explained(self, shard: int) -> Iterator[None]:
    try:
      yield
    except (RuntimeError, IndexError, ValueError) as error:
      message = one_line(error, 120)
      if "Too many open files" in message:
        raise UserError(
          f"{self._paths[shard]}: too many open files; raise `ulimit -n`"
        ) from error
      raise DamagedAudio(
        f"cannot be read from shard {shard} ({message})"
      ) from error
