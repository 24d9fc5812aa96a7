"""A trace of some updates, that XProf and Perfetto open."""

import contextlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from ssl_jax.errors import UsageError

_log = logging.getLogger("ssl_jax")


class Profile:
  """Traces updates FIRST to FIRST + COUNT - 1 of a run, counted from 1."""

  def __init__(self, text: str, workdir: Path, active: bool = True):
    """Reads what is to be traced; nothing if `text` is empty.

    Args:
      text: FIRST:COUNT.
      workdir: of the run; the trace lies in its folder `profile`.
      active: whether this process traces.

    Raises:
      UsageError: `text` is not of that form.
    """
    self._folder, self._running = workdir / "profile", False
    self._updates = range(0)
    if not text:
      return
    numbers = re.fullmatch(r"([1-9]\d{0,11}):([1-9]\d{0,5})", text)
    if not numbers:
      raise UsageError(
        f"--profile={text}: expected FIRST:COUNT, the first update to trace "
        "and how many, as in 20:5"
      )
    if active:
      first, count = map(int, numbers.groups())
      self._updates = range(first, first + count)

  @contextlib.contextmanager
  def among(self, update: int, updates: int) -> Iterator[None]:
    """Around a run's updates after `update`, up to `updates`.

    Warns if none of them is to be traced; writes what an error cut short.
    """
    if self._updates and not update < self._updates[0] <= updates:
      _log.warning(
        "--profile: nothing is traced, as update %d is not among those left, "
        "%d to %d",
        *(self._updates[0], update + 1, updates),
      )
    try:
      yield
    finally:
      self._stop()

  @contextlib.contextmanager
  def update(self, number: int) -> Iterator[None]:
    """Traces the update that is dispatched inside, if it is to be traced."""
    if number not in self._updates:
      yield
      return
    if number == self._updates[0]:
      jax.profiler.start_trace(self._folder)
      self._running = True
    with jax.profiler.StepTraceAnnotation("update", step_num=number):
      yield

  def after(self, number: int, state: Any) -> None:
    """Ends the trace after its last update, once the devices have done it."""
    if self._running and number == self._updates[-1]:
      jax.block_until_ready(state)
      self._stop()

  def _stop(self) -> None:
    if self._running:
      self._running = False
      jax.profiler.stop_trace()
      _log.info(
        "profile of the updates: xprof --logdir %s, or *.trace.json.gz below "
        "it at ui.perfetto.dev",
        self._folder,
      )
