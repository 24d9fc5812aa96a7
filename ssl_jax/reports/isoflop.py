"""The best size of a budget: a parabola in the logarithm of the parameters.

Hoffmann et al. 2022, section 3.2 ("IsoFLOP profiles"). The interval of its
minimum is a bootstrap's; none is given where the curvature cannot be told from
none.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ssl_jax.reports.cells import Cell, best, cells, group, ranked_with
from ssl_jax.reports.runs import Run

CONFIDENCE = 0.9
_DRAWS = 2_000
_CHANCE = 0.98  # A main term of this share of chance is a guess.


class Optimum(NamedTuple):
  """The best size of a budget; losses in nats.

  Attributes:
    series: of the runs.
    objective: of the runs.
    data_hours: of their training audio; 0: all there was.
    budget: FLOPs.
    params: at the minimum, or at the edge of the sizes on its side.
    interval: 90 %, of the parameters; None where nothing is known of it.
    at_edge: whether the minimum is at or beyond the edge of the sizes.
    loss: of the parabola there.
    best: the runs of the size with the lowest loss.
    points: those fitted, one a size.
    fitted: highest power first, of ln(parameters / center).
    center: parameters.
    rmse: of the residuals; None where there are as many points as numbers.
  """

  series: str
  objective: str
  data_hours: float
  budget: float
  params: float
  interval: tuple[float, float] | None
  at_edge: bool
  loss: float
  best: Cell
  points: tuple[Cell, ...]
  fitted: np.ndarray
  center: float
  rmse: float | None

  def curve(self, params: np.ndarray) -> np.ndarray:
    """The parabola at sizes [N], in nats."""
    return np.polyval(self.fitted, np.log(params / self.center))


def optima(runs: Sequence[Run]) -> list[Optimum]:
  """The best size of each series, hours of data and budget with 3 sizes."""
  groups = group(cells(runs), ranked_with)
  return [made for each in groups.values() if (made := optimum(each))]


def optimum(candidates: Sequence[Cell]) -> Optimum | None:
  """The best size among runs of one budget.

  None of fewer than 3 sizes, or where none is better than guessing.

  Of several runs of a size the best counts (of a learning rate, say). The
  study's Small is of another shape, and no part of the curve.
  """
  sizes = group(
    (c for c in candidates if c.one.size != "small"), lambda c: c.one.params
  )
  if len(sizes) < 3:
    return None
  points = [best(sizes[n]) for n in sorted(sizes)]
  shares = [cell.values("share") for cell in points]
  if all(shares) and min(mean for mean, _, _ in shares) > _CHANCE:
    return None
  params = np.array([cell.one.params for cell in points], float)
  losses = np.array([cell.loss for cell in points])
  center = float(np.exp(np.log(params).mean()))
  x = np.log(params / center)
  fitted = np.polyfit(x, losses, 2)
  a, b, _ = fitted
  at_edge = not (a > 0 and x[0] < -b / (2 * a) < x[-1])
  minimum = -b / (2 * a) if a else 0.0
  if at_edge:
    minimum = min(x[0], x[-1], key=lambda end: np.polyval(fitted, end))
  free, interval, rmse = len(points) - 3, None, None
  if free:
    residuals = losses - np.polyval(fitted, x)
    rmse = float(np.sqrt(np.mean(residuals**2)))
    ends = None if at_edge else _interval(x, losses, fitted)
    interval = ends and (center * math.exp(ends[0]), center * math.exp(ends[1]))
  one = points[0].one
  return Optimum(
    series=one.series,
    objective=one.objective,
    data_hours=one.data_hours,
    budget=one.budget,
    params=round(center * math.exp(minimum)),
    interval=interval,
    at_edge=at_edge,
    loss=float(np.polyval(fitted, minimum)),
    best=best(points),
    points=tuple(points),
    fitted=fitted,
    center=center,
    rmse=rmse,
  )


def _interval(
  x: np.ndarray, losses: np.ndarray, fitted: np.ndarray
) -> tuple[float, float] | None:
  """Returns where 90 % of minima lie if the losses are drawn anew.

  A parametric bootstrap, always of the same draws: noise is normal, of a scale
  that is itself drawn, as so few residuals say little of it.

  Args:
    x: float [N] places of the losses, N above 3.
    losses: float [N].
    fitted: the parabola, highest power first.

  Returns:
    None where the curvature cannot be told from none.
  """
  design = np.vander(x, 3)
  squares = np.sum((losses - design @ fitted) ** 2)
  rng = np.random.default_rng(0)
  scale = np.sqrt(squares / rng.chisquare(len(x) - 3, (_DRAWS, 1)))
  noise = scale * rng.standard_normal((_DRAWS, len(x)))
  # [3, draws]: a fit is linear in the losses.
  a, b, _ = fitted[:, None] + np.linalg.pinv(design) @ noise.T
  if np.mean(a <= 0) > (1 - CONFIDENCE) / 2:
    return None
  tail = (1 - CONFIDENCE) / 2
  minima = np.where(a > 0, -b / (2 * a), np.inf)
  low, high = np.quantile(minima, (tail, 1 - tail), method="nearest")
  return float(low), float(high)
