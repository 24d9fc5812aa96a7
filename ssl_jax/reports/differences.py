"""Differences between encoders, compared in pairs: those that are real."""

import collections
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ssl_jax import tally
from ssl_jax.reports.cells import Cell, cells
from ssl_jax.reports.runs import Run

_LEVEL = 0.05  # Chance that any pair of a measure is called real by accident.
_MOST_PAIRS = 15  # With more pairs, all are compared with the best.


class Difference(NamedTuple):
  """Two encoders in one measure.

  Attributes:
    measure: its name.
    one, other: names of the runs, the better one first.
    seeds: pretraining seeds of each.
    difference, std, interval, p: as of `tally.compare`, of the better one less
      the other.
    real: by Holm's step-down test over all pairs of the measure.
  """

  measure: str
  one: str
  other: str
  seeds: tuple[int, int]
  difference: float
  std: float
  interval: list[float]
  p: float
  real: bool


def differences(runs: Sequence[Run]) -> list[Difference]:
  """Compares the encoders of a report in every measure they share."""
  found = []
  for measure in measures(runs):
    scored = scored_cells(runs, measure)
    higher = scored[0][1]["higher_is_better"]
    scored.sort(key=lambda x: np.mean(x[1]["tests"]) * (-1 if higher else 1))
    pairs = list(itertools.combinations(scored, 2))
    if len(pairs) > _MOST_PAIRS:
      pairs = [(scored[0], other) for other in scored[1:]]
    compared = [tally.compare(one, other) for (_, one), (_, other) in pairs]
    real = _holm([each["p"] for each in compared])
    found += [
      Difference(
        measure,
        one.one.name,
        other.one.name,
        (len(theirs["tests"]), len(others["tests"])),
        **each,
        real=sure,
      )
      for ((one, theirs), (other, others)), each, sure in zip(
        pairs, compared, real
      )
    ]
  return found


def measures(runs: Sequence[Run]) -> list[str]:
  """Returns the measures that any of the runs has."""
  return sorted({name for run in runs for name in run.measured})


def scored_cells(
  runs: Sequence[Run], measure: str
) -> list[tuple[Cell, dict[str, Any]]]:
  """Returns the cells that have a measure, and all their seeds' scores."""
  measured = [run for run in runs if measure in run.measured]
  # Results of other clips or settings, most often older, do not compare.
  usual = collections.Counter(
    run.measured[measure]["identity"] for run in measured
  ).most_common(1)[0][0]
  return [
    (cell, _joined(cell, measure))
    for cell in cells(
      run for run in measured if run.measured[measure]["identity"] == usual
    )
  ]


def _joined(cell: Cell, measure: str) -> dict[str, Any]:
  """Returns the scores of a cell's runs, which are seeds of one recipe."""
  own = [run.measured[measure] for run in cell.runs]
  return own[0] | {
    key: [value for one in own for value in one[key]]
    for key in ("tests", "draws")
  }


def _holm(values: Sequence[float]) -> list[bool]:
  """Tells which p-values are significant together (Holm 1979)."""
  order = np.argsort(values, kind="stable")
  significant = [False] * len(values)
  for rank, place in enumerate(order.tolist()):
    if values[place] > _LEVEL / (len(values) - rank):
      break
    significant[place] = True
  return significant
