"""What data is waited for: workers that may be lost, disks that may be gone."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool

from ssl_jax.errors import UserError

timeout_s = 300.0  # Of `waiting`, set by who has a flag for it,
flag = ""  # which is this one.
goes_on = "the same command goes on"
_TICKS = 20  # In `timeout_s`.


@contextlib.contextmanager
def waiting(said: str, patience: float = 1) -> Iterator[Callable[..., None]]:
  """Ends this process if the block takes `timeout_s`.

  It cannot fail instead: a read that never returns cannot be left, and the
  interpreter would wait for its thread.

  Args:
    said: what is wrong then.
    patience: in `timeout_s`.

  Yields:
    What to call when something has moved: the time counts from there, or not
    at all if it is given infinity.
  """
  most = round(patience * _TICKS)
  now, end = 0, float(most)
  over = threading.Event()

  def moved(ticks: float = most) -> None:
    nonlocal end
    end = now + ticks

  def watch() -> None:
    # In ticks: while this process itself is stopped, no time passes.
    nonlocal now
    while not over.wait(timeout_s / _TICKS):
      now += 1
      if now >= end:
        give_up(
          f"nothing has moved for {flag}{timeout_s:g} s: {said}; {goes_on}"
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
  # Not sys.exit, which would wait for what never comes.
  os._exit(1)


class Lost(UserError):
  """What read the data is no longer there; others may be waiting for it."""


def lost(what: str) -> Lost:
  """The error of a worker that did not end by itself."""
  return Lost(
    f"{what} was lost, killed perhaps for want of memory; {goes_on}, and needs "
    "less with fewer workers"
  )


def end_with_parent() -> None:
  """To be called in a worker: else it would outlive a killed parent.

  Ctrl-C, which all processes get, is left to the parent.
  """
  signal.signal(signal.SIGINT, signal.SIG_IGN)

  def wait() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)

  threading.Thread(target=wait, daemon=True).start()


@contextlib.contextmanager
def pool(num_workers: int) -> Iterator[concurrent.futures.ProcessPoolExecutor]:
  """Processes that work for this one; an error ends them at once.

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
