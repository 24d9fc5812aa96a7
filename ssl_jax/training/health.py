"""Each update's loss, judged: whole, a leap, or not finite and so skipped."""

import math
import statistics
from typing import Any

from ssl_jax.errors import UserError

# A loss is a spike if above the median of the last _WINDOW by _SPREADS times
# their median absolute deviation, and by _SHARE of it.
_WINDOW, _SPREADS, _SHARE = 100, 10.0, 0.1
_LEAST = 20  # Losses before there is a usual one.


class Health:
  """Counts the updates that the step skipped, and finds spikes of the loss.

  Attributes:
    skipped: updates so far, of the run, whose loss or gradient was not finite.
    state: what `Health` goes on from after a resume, as JSON.
  """

  def __init__(self, max_skipped: int, state: dict[str, Any]):
    """Goes on from `state`; {}: begins.

    Args:
      max_skipped: updates in a row that may be skipped.
      state: of a checkpoint.
    """
    self._max_skipped = max_skipped
    self.skipped = state.get("skipped", 0)
    self._in_a_row = state.get("in_a_row", 0)
    self._recent = list(state.get("recent", ()))

  @property
  def state(self) -> dict[str, Any]:
    """See the class."""
    return {
      "skipped": self.skipped,
      "in_a_row": self._in_a_row,
      "recent": list(self._recent),
    }

  def check(self, update: int, values: dict[str, float]) -> tuple[str, str]:
    """Returns the problem with an update, in a word and in a line.

    Args:
      update: of the run, from 1.
      values: loss, grad_norm and param_norm.

    Returns:
      ("", "") if nothing; "skipped" or "spike", and what a person reads.

    Raises:
      UserError: too many in a row are not finite, or the parameters are not.
    """
    loss, norm = values["loss"], values["grad_norm"]
    said = f"loss {loss:.4g}, gradient norm {norm:.4g}"
    if not math.isfinite(values["param_norm"]):
      norm = values["param_norm"]
      raise UserError(f"update {update}: {said}, parameter norm {norm:.4g}")
    if not (math.isfinite(loss) and math.isfinite(norm)):
      self.skipped += 1
      self._in_a_row += 1
      if self._in_a_row > self._max_skipped:
        raise UserError(
          f"update {update}: {said}; {self._in_a_row} updates in a row are not "
          "finite (config.optimizer.max_skipped_updates="
          f"{self._max_skipped})"
        )
      return "skipped", f"{said}: the update is skipped"
    self._in_a_row = 0
    usual = statistics.median(self._recent) if self._recent else loss
    spread = statistics.median(abs(x - usual) for x in self._recent or [0.0])
    limit = usual + max(_SPREADS * spread, _SHARE * abs(usual))
    spike = len(self._recent) >= _LEAST and loss > limit
    self._recent = [*self._recent, loss][-_WINDOW:]
    return ("spike", f"{said}: usual is {usual:.4g}") if spike else ("", "")
