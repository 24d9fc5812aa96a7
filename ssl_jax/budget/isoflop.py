"""The bottom of a U: which size is best at a budget, by the runs alone."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ssl_jax.budget.runs import Row

_DRAWS = 500  # Of the minimum's bootstrap.


class Minimum(NamedTuple):
  """The bottom of a U over size, at one budget; of parameters.

  `interval` (90 %) is None where three points leave no residual; `edge` says
  that it is not between the measured sizes.
  """

  objective: str
  budget: float
  params: float
  loss: float
  interval: tuple[float, float] | None
  edge: bool


def minimum(rows: list[Row], objective: str, budget: float) -> Minimum | None:
  """Of a parabola in log N through the mean losses of at least three sizes."""
  sizes, losses = means(rows, lambda row: row.params)
  if len(sizes) < 3:
    return None
  x = np.log(sizes)
  fitted = np.polyfit(x, losses, 2)
  bottom = _bottom(fitted, x, losses)
  interval = None
  if len(sizes) > 3:
    rng = np.random.default_rng(0)
    left = losses - np.polyval(fitted, x)
    # Three parameters were fitted: residuals are too small by as much.
    left *= math.sqrt(len(x) / (len(x) - 3))
    drawn = []
    for _ in range(_DRAWS):
      again = np.polyval(fitted, x) + rng.choice(left, len(x))
      drawn.append(_bottom(np.polyfit(x, again, 2), x, again))
    low, high = np.exp(np.quantile(drawn, (0.05, 0.95)))
    interval = float(low), float(high)
  return Minimum(
    objective,
    budget,
    float(np.exp(bottom)),
    float(np.polyval(fitted, bottom)),
    interval,
    not x[0] < bottom < x[-1],
  )


def _bottom(fitted: np.ndarray, x: np.ndarray, losses: np.ndarray) -> float:
  if fitted[0] <= 0:  # No U: the better end.
    return float(x[np.argmin(losses)])
  return float(np.clip(-fitted[1] / (2 * fitted[0]), x[0], x[-1]))


def means(
  rows: list[Row], of: Callable[[Row], float]
) -> tuple[np.ndarray, np.ndarray]:
  """Distinct values of `of`, in order, and the mean loss over seeds of each."""
  values = sorted({of(row) for row in rows})
  losses = [np.mean([r.loss for r in rows if of(r) == v]) for v in values]
  return np.array(values, float), np.array(losses)
