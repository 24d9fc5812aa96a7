"""Ours and theirs, each in a process of its own, measured in turn."""

import contextlib
import importlib
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from tqdm import tqdm

from ssl_jax.errors import UserError

OURS, THEIRS = "ours", "theirs"


class Subject(NamedTuple):
  """The subject that a side makes to be timed.

  run: does the work so many times, and waits until all is done.
  peak_memory: bytes of the accelerator's memory at most in use so far; None
    where it is the process's own memory.
  facts: finds what else is reported of the side.
  repeats: times that a measurement does the work: accelerators are given the
    next while they do one, as in training.
  """

  run: Callable[[int], Any]
  peak_memory: Callable[[], int] | None
  facts: Callable[[], dict[str, Any]]
  repeats: int


def compare(
  makers: dict[str, tuple[str, dict[str, Any]]], rounds: int
) -> dict[str, dict[str, Any]]:
  """Runs the sides in turn, `rounds` times.

  Args:
    makers: {side: (maker, arguments)}: a maker is "module:function" and
      returns a `Subject`; it runs in a new process.
    rounds: of which medians are reported.

  Returns:
    {side: {seconds, first_seconds (of the first run, with compilation),
    seconds_of_rounds, peak_memory_bytes, ...facts}}.

  Raises:
    UserError: a side failed.
  """
  with contextlib.ExitStack() as stack:
    # One after the other, so that none compiles while another does.
    ends = {}
    for side, maker in makers.items():
      _tell(f"{side}: starting, first run ...")
      ends[side] = stack.enter_context(_process(side, *maker))
    found = {side: _answer(side, end) for side, end in ends.items()}
    taken: dict[str, list[float]] = {side: [] for side in makers}
    with tqdm(total=rounds * len(makers), desc="measuring", disable=None) as t:
      for _ in range(rounds):
        for side, end in ends.items():
          end.send("run")
          taken[side].append(_answer(side, end))
          t.update()
    for side, end in ends.items():
      end.send("facts")
      found[side] |= _answer(side, end) | {
        "seconds": statistics.median(taken[side]),
        "seconds_of_rounds": taken[side],
      }
  return found


def first_seconds(side: str, maker: str, arguments: dict[str, Any]) -> float:
  """From the start of a process until it has done a side's work once."""
  before = time.monotonic()
  with _process(side, maker, arguments) as end:
    _answer(side, end)
    return time.monotonic() - before


@contextlib.contextmanager
def _process(
  side: str, maker: str, arguments: dict[str, Any]
) -> Iterator[Connection]:
  context = multiprocessing.get_context("spawn")
  ours, theirs = context.Pipe()
  process = context.Process(
    target=_serve, args=(theirs, maker, arguments), name=side, daemon=True
  )
  process.start()
  theirs.close()
  try:
    ours.poll(None)  # Its first run is done.
    yield ours
  finally:
    ours.close()
    process.join(10)
    process.kill()


def _answer(side: str, end: Connection) -> Any:
  try:
    kind, value = end.recv()
  except (EOFError, ConnectionError):
    kind, value = "failed", "its process ended; is there too little memory?"
  if kind == "failed":
    raise UserError(f"{side} could not be measured: {value}")
  return value


def _serve(end: Connection, maker: str, arguments: dict[str, Any]) -> None:
  module, function = maker.split(":")
  try:
    before = time.monotonic()
    make = getattr(importlib.import_module(module), function)
    subject: Subject = make(**arguments)
    middle = time.monotonic()
    subject.run(1)
    done = time.monotonic()
    times = {"make_seconds": middle - before, "first_seconds": done - middle}
    end.send(("done", times))
    while True:
      if end.recv() == "facts":
        peak = (subject.peak_memory or _resident)()
        end.send(("done", subject.facts() | {"peak_memory_bytes": peak}))
        continue
      before = time.monotonic()
      subject.run(subject.repeats)
      seconds = (time.monotonic() - before) / subject.repeats
      end.send(("done", seconds))
  except EOFError:
    pass
  except Exception as error:
    end.send(("failed", f"{type(error).__name__}: {error}"))
  finally:
    # Neither library's threads outlive what is measured.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _resident() -> int:
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak * (1 if sys.platform == "darwin" else 1024)


def _tell(text: str) -> None:
  print(text, file=sys.stderr, flush=True)
