"""A run's numbers: metrics.jsonl, TensorBoard, trackers and the screen."""

import contextlib
import json
import logging
import math
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.record_writer import RecordWriter
from tqdm import tqdm

from ssl_jax.budget.flops import readable
from ssl_jax.errors import UserError
from ssl_jax.files import named, read_jsonl, write_atomically
from ssl_jax.training import tracking

# Seconds after which the time of a run is known, and of which it is told.
_TIMED = 20.0, 86_400.0


class MetricsWriter:
  """Appends lines {update, split, ...} to metrics.jsonl and TensorBoard.

  Opened at the update a run resumes from: what an earlier process wrote after
  that update is dropped, as it will be computed again. One process of a run
  does so; the writers of the others are not `active`.

  Attributes:
    dropped: the last update of which a line was dropped; 0: there is none.
  """

  def __init__(
    self,
    workdir: Path,
    update: int,
    begin: int,
    active: bool,
    config: ConfigDict,
  ):
    """Opens them, and what `config.log.to` names.

    Args:
      workdir: of the run.
      update: of the run's checkpoint; 0: there is none.
      begin: update that the run goes on from: that, or a trunk's.
      active: whether this process writes.
      config: of the run.
    """
    self._active, self.dropped = active, 0
    if not active:
      return
    self._trackers = tracking.Trackers(config, workdir)
    path = workdir / "metrics.jsonl"
    kept = []
    if update:
      lines = read_jsonl(path)
      kept = [x for x in lines if x.get("update", math.inf) <= update]
      self.dropped = max((x.get("update", 0) for x in lines), default=0)
    else:
      _keep_lost(path, begin + 2 * config.checkpoint.every)
    text = "".join(json.dumps(line) + "\n" for line in kept)
    write_atomically(path, text)
    self._file = path.open("a", buffering=1)
    self._events = _Events(workdir / "tensorboard", update)

  def write(self, update: int, split: str, values: dict[str, Any]) -> None:
    """Writes one line; values are floats or ints, those not finite null."""
    if not self._active:
      return
    self._line(update, split, values)
    named = {f"{split}/{k}": v for k, v in values.items() if math.isfinite(v)}
    values = [Summary.Value(tag=k, simple_value=v) for k, v in named.items()]
    self._events.write(step=update, summary=Summary(value=values))
    self._trackers.log(update, named)

  def finish(self, result: dict[str, Any]) -> None:
    """Says elsewhere what a complete run returned; before `close`."""
    if self._active:
      self._trackers.finish(result)

  def event(
    self, update: int, split: str, values: dict[str, Any], text: str
  ) -> None:
    """Writes a line of what happened once: split alarm, skipped or spike."""
    if not self._active:
      return
    self._line(update, split, values | {"text": text})
    summary = text_pb(values.get("name", split), text)
    self._events.write(step=update, summary=summary)

  def _line(self, update: int, split: str, values: dict[str, Any]) -> None:
    known = {
      k: None if isinstance(v, float) and not math.isfinite(v) else v
      for k, v in values.items()
    }
    line = {"update": update, "split": split} | known
    with named(Path(self._file.name)):
      self._file.write(json.dumps(line, allow_nan=False) + "\n")

  def close(self) -> None:
    """Flushes all."""
    if not self._active:
      return
    self._trackers.finish(None)
    with contextlib.closing(self._events), named(Path(self._file.name)):
      self._file.close()


def _keep_lost(path: Path, most: int) -> None:
  """Keeps the lines of a run that begins anew though it had checkpoints.

  One killed before its first was complete, the next not begun, has none of
  updates above `most`.
  """
  updates = []
  with contextlib.suppress(UserError):  # Damaged lines say nothing.
    updates = [line.get("update") for line in read_jsonl(path)]
  last = max((x for x in updates if type(x) is int), default=0)
  if last > most:
    old = path.with_name("metrics.old.jsonl")
    path.replace(old)
    logging.getLogger("ssl_jax").warning(
      "%s goes to update %d, but there is no checkpoint: beginning anew; it is "
      "now %s",
      *(path, last, old.name),
    )


class _Events:
  """TensorBoard's events, each written and flushed at once.

  A writer with a thread, as TensorBoard's own, would not tell the run that the
  disk is full.
  """

  def __init__(self, folder: Path, update: int):
    folder.mkdir(parents=True, exist_ok=True)
    # TensorBoard reads a folder's files in the order of their names.
    started = f"{int(time.time()):010d}.{platform.node()}.{os.getpid()}"
    self._path = folder / f"events.out.tfevents.{started}"
    self._file = self._path.open("ab")
    self._records = RecordWriter(self._file)
    self.write(file_version="brain.Event:2")
    # Hides what an earlier process wrote of later updates.
    start = SessionLog(status=SessionLog.START)
    self.write(step=update + 1, session_log=start)

  def write(self, **fields: Any) -> None:
    event = Event(wall_time=time.time(), **fields)
    with named(self._path):
      self._records.write(event.SerializeToString())
      self._records.flush()

  def close(self) -> None:
    with named(self._path):
      self._records.close()


class Progress:
  """A bar on a terminal; elsewhere now and then a line; of one process."""

  def __init__(
    self, update: int, updates: int, flops_budget: float, active: bool = True
  ):
    self._active = active
    self._updates, self._budget = updates, flops_budget
    self._started, self._first = time.monotonic(), update
    self._bar, self._timed = None, False
    if active and sys.stderr.isatty():
      self._bar = tqdm(
        total=updates, initial=update, unit="update", dynamic_ncols=True
      )

  def show(
    self,
    update: int,
    loss: float,
    speed: float,
    flops: int,
    line: bool = False,
  ) -> None:
    """Shows the state after `update` updates; `line`: a line is due."""
    state = (
      f"loss {loss:.4f}, {speed:.0f}x real time, "
      f"{readable(flops)}/{readable(self._budget)}FLOP"
    )
    elapsed = time.monotonic() - self._started
    pace = elapsed / max(1, update - self._first)
    left = tqdm.format_interval(pace * (self._updates - update))
    if self._bar is not None:
      self._bar.set_postfix_str(state, refresh=False)
      self._bar.update(update - self._bar.n)
    elif line:
      self.print(f"update {update}/{self._updates}: {state}, {left} left")
    if not self._timed and elapsed > _TIMED[0] and update - self._first > 2:
      self._timed = True
      if pace * (self._updates - update) > _TIMED[1]:
        days = pace * (self._updates - update) / 86_400
        self.print(
          f"warning: {pace:.2g} s an update are {days:,.1f} days for the "
          f"{self._updates - update:,} left; --config.budget.updates=N or a "
          "smaller model would take less"
        )

  def print(self, message: str) -> None:
    """A line of its own, above the bar."""
    if self._bar is not None:
      self._bar.write(message, file=sys.stderr)
    elif self._active:
      with contextlib.suppress(OSError):  # A log's disk may be full.
        print(message, file=sys.stderr, flush=True)

  def close(self) -> None:
    """Leaves the bar where it is."""
    if self._bar is not None:
      self._bar.close()
