"""Programs compiled ahead of their use, a batch's shape each."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from jax.sharding import Sharding

from ssl_jax import SAMPLE_RATE
from ssl_jax.devices.sharding import abstract

_log = logging.getLogger("ssl_jax")


class Wanted(NamedTuple):
  """A program to be compiled.

  Attributes:
    jitted: the function, of a state, a batch and what all batches share.
    first: shapes and types of what it takes before the batch.
    rows: of the batch, of all processes.
    length: of a row, in samples.
  """

  jitted: Callable
  first: Any
  rows: int
  length: int


class Programs:
  """Compiles programs in order, in threads of its own; none twice.

  Compiling lets go of the interpreter: what was needed first can run while the
  rest compiles, once `begin` says that it may.
  """

  def __init__(
    self,
    wanted: Sequence[Wanted],
    abstract_batch: Callable[[int, int], dict],
    row_multiple: int,
    by_row: Sharding,
    *shared: Any,
  ):
    """Takes all that is wanted; compiles nothing yet.

    Args:
      wanted: what is needed first comes first.
      abstract_batch: of rows and length; gives shapes and types of a batch.
      row_multiple: that rows are rounded up to.
      by_row: how batches are placed.
      *shared: shapes and types of what the functions take after a batch.
    """
    self._began, self._count = time.monotonic(), 0
    self._lock, self._closed = threading.Lock(), False
    self._pool = ThreadPoolExecutor(2, "compile")
    self._pending: dict[tuple[Callable, int], Future] = {}
    self._waiting = list(wanted)

    def compile_one(program: Wanted) -> Callable:
      rows = -(-program.rows // row_multiple) * row_multiple
      batch = abstract(abstract_batch(rows, program.length), by_row)
      compiled = program.jitted.lower(program.first, batch, *shared).compile()
      with self._lock:
        self._count += 1
        if self._closed:  # The run has said its last word.
          return compiled
        _log.info(
          "compiled %d of %d programs: %s of %d x %.4g s, after %.1f s",
          *(self._count, len(wanted), program.jitted.__name__, rows),
          *(program.length / SAMPLE_RATE, time.monotonic() - self._began),
        )
      return compiled

    self._compile = compile_one

  def begin(self, count: int | None = None) -> None:
    """Begins to compile the next `count` programs; None: all that are left."""
    count = len(self._waiting) if count is None else count
    for program in self._waiting[:count]:
      key = program.jitted, program.length
      self._pending[key] = self._pool.submit(self._compile, program)
    del self._waiting[:count]

  def close(self) -> None:
    """Compiles nothing that has not begun, and says nothing of what has."""
    self._pool.shutdown(wait=False, cancel_futures=True)
    with self._lock:
      self._closed = True

  def get(self, jitted: Callable, length: int) -> Callable:
    """Returns a compiled program, once it is."""
    if (jitted, length) not in self._pending:
      self.begin()
    return self._pending[jitted, length].result()

  def wait(self) -> None:
    """Waits for all."""
    for done in self._pending.values():
      done.result()
