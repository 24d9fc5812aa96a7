"""Crossings: a recipe needs N times fewer FLOPs than the control for a score.

The control is the recipe named `control` (`config.recipe`). Between the budgets
that were trained, scores are taken to be linear in the logarithm of the FLOPs.
"""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ssl_jax import tally
from ssl_jax.budget.flops import readable
from ssl_jax.reports.cells import Cell, group
from ssl_jax.reports.differences import measures, scored_cells
from ssl_jax.reports.runs import Run

CONTROL = "control"
_log = logging.getLogger("ssl_jax")
_INTERVAL = (0.05, 0.95)


class Curve(NamedTuple):
  """A recipe's scores in one measure over its budgets.

  Attributes:
    name: of the recipe.
    cells: a budget each, in ascending order; a cell's runs are its seeds.
    scored: of each cell: `tests`, `draws`, ... of all its seeds.
  """

  name: str
  cells: list[Cell]
  scored: list[dict[str, Any]]

  @property
  def flops(self) -> np.ndarray:
    """[N] FLOPs of the budgets."""
    return np.array([cell.values("flops")[0] for cell in self.cells])

  @property
  def scores(self) -> np.ndarray:
    """[N] means over seeds."""
    return np.array([np.mean(scored["tests"]) for scored in self.scored])

  @property
  def errors(self) -> np.ndarray:
    """[N] standard errors, over speakers and, where there are some, seeds."""
    spreads = [tally.spread(x["tests"], x["draws"]) for x in self.scored]
    return np.array([spread.error for spread in spreads])

  @property
  def draws(self) -> np.ndarray:
    """[N, R] means over seeds in each draw of the speakers."""
    # None of JSON is NaN: a draw in which nothing could be scored.
    return np.array(
      [np.nanmean(np.array(x["draws"], float), axis=0) for x in self.scored]
    )

  @property
  def seeds(self) -> int:
    """Seeds of the budget that has the fewest."""
    return min(len(cell.runs) for cell in self.cells)


class Crossing(NamedTuple):
  """A recipe's FLOPs for the score that the control has at a budget.

  Attributes:
    measure: its name.
    recipe, size: of the runs.
    budget: FLOPs of the control.
    score: of the control there.
    factor: FLOPs of the control over those of the recipe.
    interval: of it, 90 %, over speakers and seeds.
    limits: of what could be seen: budget over the recipe's largest and smallest
      FLOPs. A factor at a limit is there or beyond.
    seeds: of the recipe and of the control.
  """

  measure: str
  recipe: str
  size: str
  budget: float
  score: float
  factor: float
  interval: tuple[float, float]
  limits: tuple[float, float]
  seeds: tuple[int, int]


def curves(runs: Sequence[Run], measure: str) -> list[list[Curve]]:
  """Returns the curves that race each other: of one size and one data set.

  The control is the first of each list. Without it or a rival there is none,
  nor where recipes of several settings are named `control`.
  """
  scored = [
    (cell, joined)
    for cell, joined in scored_cells(runs, measure)
    if cell.one.called
  ]
  races = []
  for alike in group(scored, lambda pair: _raced_with(pair[0].one)).values():
    made = []
    for own in group(
      alike, lambda pair: (pair[0].one.called, pair[0].one.recipe)
    ).values():
      own.sort(key=lambda pair: pair[0].one.budget)
      made.append(Curve(own[0][0].one.called, *map(list, zip(*own))))
    made.sort(key=lambda curve: curve.name != CONTROL)
    if len(made) > 1 and [c.name == CONTROL for c in made[:2]] == [True, False]:
      races.append(made)
  return races


def _raced_with(run: Run) -> tuple:
  return run.size, run.corpus, run.data_hours


def crossings(runs: Sequence[Run]) -> list[Crossing]:
  """Compares each recipe with the control, in every measure of theirs."""
  _warn_of_controls(runs)
  found = []
  for measure in measures(runs):
    for race in curves(runs, measure):
      control, *others = race
      noise = _seed_noise(race)
      higher = control.scored[0]["higher_is_better"]
      for i, other in enumerate(others, 1):
        if len(other.cells) > 1:
          found += [
            _crossing(measure, higher, control, place, other, noise[[0, i]])
            for place in range(len(control.cells))
          ]
  return found


def _warn_of_controls(runs: Sequence[Run]) -> None:
  named = [run for run in runs if run.called == CONTROL and run.measured]
  for alike in group(named, _raced_with).values():
    if len({run.recipe for run in alike}) > 1:
      _log.warning(
        "several recipes of size %s are named %s, and differ: nothing is "
        "compared with them",
        *(alike[0].size, CONTROL),
      )


def times(crossing: Crossing, factor: float) -> str:
  """Returns a factor as text: at a limit, that it may be beyond."""
  least, most = crossing.limits
  if factor <= least * (1 + 1e-9):
    return f"below {factor:.2f}"
  return ("above " if factor >= most * (1 - 1e-9) else "") + f"{factor:.2f}"


def sentence(crossing: Crossing) -> str:
  """Says what was found."""
  low, high = (times(crossing, factor) for factor in crossing.interval)
  return (
    f"{crossing.recipe} needs {times(crossing, crossing.factor)} times fewer "
    f"FLOPs than {CONTROL} at {readable(crossing.budget)}FLOP "
    f"({crossing.measure}; 90 % {low} to {high}; {crossing.seeds[0]} and "
    f"{crossing.seeds[1]} seeds)"
  )


def _crossing(
  measure: str,
  higher_is_better: bool,
  control: Curve,
  place: int,
  other: Curve,
  noise: np.ndarray,
) -> Crossing:
  sign = 1 if higher_is_better else -1

  def factor(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """FLOPs of the control over the recipe's. [N, R], [M, R] -> [R]."""
    target = ours[place]
    return reached(control.flops, sign * ours, sign * target) / reached(
      other.flops, sign * theirs, sign * target
    )

  budget, flops = control.flops[place], other.flops
  drawn = factor(control.draws + noise[0], other.draws + noise[1])
  return Crossing(
    measure,
    other.name,
    control.cells[place].one.size,
    float(budget),
    float(control.scores[place]),
    float(factor(control.scores[:, None], other.scores[:, None])[0]),
    tuple(np.nanquantile(drawn, _INTERVAL).tolist()),
    (float(budget / flops[-1]), float(budget / flops[0])),
    (other.seeds, control.seeds),
  )


def reached(
  flops: np.ndarray, scores: np.ndarray, target: np.ndarray
) -> np.ndarray:
  """Returns the FLOPs at which a curve first has a score.

  A curve that falls in between has it again later. As this is so of both curves
  that are compared, neither gains by noise.

  Args:
    flops: [N], ascending.
    scores: [N, R] of a curve in each of R draws; higher is better.
    target: [R].

  Returns:
    [R]; the first of `flops` where the curve begins above the target, the last
    where it never gets there.
  """
  x = np.log(flops)
  found = np.full(target.shape, x[-1])
  for i in range(len(x) - 1, 0, -1):
    low, high = scores[i - 1], scores[i]
    crosses = (low < target) & (target <= high)
    share = (target - low) / np.where(crosses, high - low, 1)
    found = np.where(crosses, x[i - 1] + share * (x[i] - x[i - 1]), found)
  return np.exp(np.where(scores[0] >= target, x[0], found))


def _seed_noise(race: Sequence[Curve]) -> np.ndarray:
  """Draws what other seeds would add to each curve. -> [curves, R].

  Seeds vary alike in every cell, as far as a few of them can tell: the variance
  is pooled. Budgets that branch off one trunk share its luck, so a curve's
  noise is one draw for all of its budgets, and they count once. With one seed
  each nothing is known of it, and it is 0.
  """
  count = race[0].draws.shape[1]
  repeated = [
    [np.array(x["tests"]) for x in curve.scored if len(x["tests"]) > 1]
    for curve in race
  ]
  freedoms = [max(map(len, cells), default=1) - 1 for cells in repeated]
  if not sum(freedoms):
    return np.zeros((len(race), count))
  variance = sum(
    freedom * np.mean([tests.var(ddof=1) for tests in cells])
    for freedom, cells in zip(freedoms, repeated)
    if cells
  ) / sum(freedoms)
  generator = np.random.default_rng(0)
  noise = generator.standard_t(sum(freedoms), (len(race), count))
  seeds = np.array([curve.seeds for curve in race])
  return noise * np.sqrt(variance / seeds)[:, None]
