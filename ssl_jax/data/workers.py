"""Waits for data: workers that may be lost, disks that may be gone."""

import concurrent.futures
import contextlib
import dataclasses
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from ssl_jax.errors import UserError

_TICKS = 20  # Ticks in `Patience.timeout_s`.


@dataclasses.dataclass(frozen=True)
class Patience:
  """The time that this process waits for data, and its words after that.

  Attributes:
    timeout_s: seconds that `waiting` waits.
    flag: that set them, as "--process_timeout="; "": none.
    remedy: how to go on, once the process has ended.
  """

  timeout_s: float = 300.0
  flag: str = ""
  remedy: str = "the same command goes on"


_patience = Patience()


def patience() -> Patience:
  """Returns the patience of this process."""
  return _patience


def set_patience(**changes: Any) -> Patience:
  """Changes fields of this process's `Patience`; returns the one before."""
  global _patience
  before, _patience = _patience, dataclasses.replace(_patience, **changes)
  return before


@contextlib.contextmanager
def waiting(problem: str, times: float = 1) -> Iterator[Callable[..., None]]:
  """Ends this process if the block takes `Patience.timeout_s`.

  It cannot fail instead: a read that never returns cannot be left, and the
  interpreter would wait for its thread.

  Args:
    problem: that there is then.
    times: the timeout, this process waits.

  Yields:
    A function to call when something has moved: the time counts from there, or
    not at all if it is given infinity.
  """
  most = round(times * _TICKS)
  now, end = 0, float(most)
  over = threading.Event()

  def moved(ticks: float = most) -> None:
    nonlocal end
    end = now + ticks

  def watch() -> None:
    # In ticks: while this process itself is stopped, no time passes.
    nonlocal now
    while not over.wait(_patience.timeout_s / _TICKS):
      now += 1
      if now >= end:
        waited = f"{_patience.flag}{_patience.timeout_s:g} s"
        give_up(
          f"nothing has moved for {waited}: {problem}; {_patience.remedy}"
        )

  threading.Thread(target=watch, daemon=True).start()
  try:
    yield moved
  finally:
    over.set()


def give_up(message: str) -> None:
  """Ends this process and its workers at once, with status 1."""
  print(f"error: {message}", file=sys.stderr, flush=True)
  for worker in multiprocessing.active_children():
    worker.kill()  # One that is stopped does nothing by itself.
  # sys.exit would wait for threads that never end.
  os._exit(1)


class Lost(UserError):
  """A process that read data is gone; others may be waiting for it."""


def lost(what: str) -> Lost:
  """Returns the error of a worker that did not end by itself."""
  return Lost(
    f"{what} was lost, killed perhaps for want of memory; {_patience.remedy}, "
    "and needs less with fewer workers"
  )


def end_with_parent() -> None:
  """Has this worker end with its parent, even one that is killed.

  Ctrl-C, which all processes get, is left to the parent.
  """
  signal.signal(signal.SIGINT, signal.SIG_IGN)

  def wait() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)

  threading.Thread(target=wait, daemon=True).start()


@contextlib.contextmanager
def pool(num_workers: int) -> Iterator[concurrent.futures.ProcessPoolExecutor]:
  """Starts processes that work for this one; an error ends them at once.

  Raises:
    UserError: one was lost.
  """
  others = multiprocessing.active_children()
  with concurrent.futures.ProcessPoolExecutor(
    num_workers,
    multiprocessing.get_context("spawn"),
    initializer=end_with_parent,
  ) as started:
    try:
      yield started
    except BaseException as error:
      started.shutdown(wait=False, cancel_futures=True)
      for worker in multiprocessing.active_children():
        if worker not in others:
          worker.kill()
      if isinstance(error, BrokenProcessPool):
        raise lost("a worker process") from error
      raise
