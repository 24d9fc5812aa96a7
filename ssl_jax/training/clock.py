"""A run's wall time by what it goes to, and its speed meanwhile."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

from ssl_jax import SAMPLE_RATE

# The parts of a run's time.
PARTS = {
  "start": "imports, opening the data, reading a checkpoint",
  "codebook": "fitting the objective's labels",
  "compile": "waiting for programs to be compiled",
  "data": "waiting for batches",
  "train": "updates",
  "redone": "updates that a killed process had done after its last checkpoint",
  "eval": "validation, words and pictures",
  "checkpoint": "saving",
}
_TRAINING = ("data", "train", "redone")


class Clock:
  """Sums a run's seconds by what they are spent on.

  Attributes:
    seconds: {part: seconds}, without those of the running part since `switch`.
  """

  def __init__(self, began: float | None = None):
    """Begins with `start`, at a time of `time.monotonic`; None: now."""
    self.seconds = dict.fromkeys(PARTS, 0.0)
    self._began = time.monotonic() if began is None else began
    self._part, self._since = "start", self._began

  def go_on(self, counters: Mapping[str, Any]) -> None:
    """Adds what earlier processes spent, from the counters of a checkpoint."""
    training = counters.get("train_seconds", 0.0)
    other = counters.get("wall_seconds", 0.0) - training
    # Checkpoints of older versions do not have the parts.
    earlier = counters.get("seconds") or {"train": training, "start": other}
    for part, seconds in earlier.items():
      self.seconds[part] = self.seconds.get(part, 0.0) + seconds

  def counters(self) -> dict[str, Any]:
    """Returns what a checkpoint keeps for `go_on`."""
    training = self.training()
    return {
      "seconds": dict(self.seconds),
      "train_seconds": training,
      "wall_seconds": sum(self.seconds.values()),
    }

  def of_process(self) -> float:
    """Returns the seconds of this process so far."""
    return time.monotonic() - self._began

  def switch(self, part: str) -> str:
    """Ends the running part and begins another; returns the one that ended."""
    now = time.monotonic()
    self.seconds[self._part] += now - self._since
    before, self._part, self._since = self._part, part, now
    return before

  def skip(self) -> None:
    """Leaves out the time since the last switch, which another clock has."""
    self._since = time.monotonic()

  @contextlib.contextmanager
  def during(self, part: str) -> Iterator[None]:
    """Counts what happens inside as `part`."""
    before = self.switch(part)
    try:
      yield
    finally:
      self.switch(before)

  def training(self) -> float:
    """Returns the seconds of training so far, waits for data among them."""
    self.switch(self._part)
    return sum(self.seconds[part] for part in _TRAINING)


class Meter:
  """Measures training since the last line of metrics."""

  def __init__(self, clock: Clock, spent: dict[str, Any], update: int):
    self._clock, self._spent = clock, spent
    self.restart(update)

  def restart(self, update: int) -> None:
    """Begins a new line after `update`."""
    self._update, self._seconds = update, self._clock.training()
    self._waited = self._clock.seconds["data"]
    self._before = dict(self._spent)

  def speed(self) -> float:
    """Seconds of audio trained on a second."""
    samples = self._spent["audio_samples"] - self._before["audio_samples"]
    return samples / SAMPLE_RATE / (self._clock.training() - self._seconds)

  def read(self, update: int) -> dict[str, float]:
    """Returns the timing fields of a line of metrics after `update`."""
    seconds = self._clock.training() - self._seconds
    flops = self._spent["flops"] - self._before["flops"]
    return {
      "audio_seconds_per_second": self.speed(),
      "flops_per_second": flops / seconds,
      "update_seconds": seconds / (update - self._update),
      "data_wait_fraction": (self._clock.seconds["data"] - self._waited)
      / seconds,
    }
