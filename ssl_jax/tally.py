"""Scores with their spread: what each speaker contributes to a measure.

A measure keeps one contribution a speaker, so that its score over any draw of
the speakers is a sum. The bootstrap draws speakers with replacement (Efron and
Tibshirani 1993, chapter 6), and two encoders are compared over the same draws.

Axes: U units (speakers, or words where few people speak), G groups whose scores
are averaged, R draws.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.special

DRAWS = 2_000
LEAST_UNITS = 4  # Two a half: of one, no spread is seen.
_INTERVAL = 0.9  # Share of the draws that an interval holds.

# Weights of the units in each draw [R, U] -> the score in each [R].
Score = Callable[[np.ndarray], np.ndarray]


class Tally(NamedTuple):
  """A measure of one layer.

  Attributes:
    units: [U] names, the same for every encoder.
    scores: by metric, the first being the one that chooses a layer.
  """

  units: list[str]
  scores: Mapping[str, Score]


class Chosen(NamedTuple):
  """A measure's result over all layers.

  Attributes:
    layers: {metric: [L + 1] scores over all units}.
    halves: for each half of the units, the layer chosen on it, the score there
      (`dev`) and the score on the other half (`test`).
    scores: {metric: the mean of both halves' `test`}.
    draws: {metric: [R] the same in each draw of the units}.
  """

  layers: dict[str, list[float]]
  halves: list[dict[str, float]]
  scores: dict[str, float]
  draws: dict[str, np.ndarray]


class Spread(NamedTuple):
  """A standard error, and the degrees of freedom it is known to."""

  error: float
  freedom: float


def mean_of_ratios(hits: np.ndarray, counts: np.ndarray) -> Score:
  """Returns the score that averages hits / counts over groups.

  Args:
    hits: [G, U], the sum over a unit's items of a group.
    counts: [G, U], how many items those are. Groups without any in a draw are
      left out of its average.
  """

  def score(weights: np.ndarray) -> np.ndarray:
    total = counts @ weights.T  # [G, R]
    ratio = (hits @ weights.T) / np.where(total > 0, total, 1)
    groups = (total > 0).sum(axis=0)
    mean = np.where(total > 0, ratio, 0).sum(axis=0) / np.maximum(1, groups)
    return np.where(groups > 0, mean, np.nan)

  return score


def halves(units: Sequence[str]) -> np.ndarray:
  """Returns which half each unit is in, bool [U]; the same on every machine."""
  order = sorted(
    range(len(units)),
    key=lambda i: hashlib.blake2b(units[i].encode(), digest_size=8).digest(),
  )
  first = np.zeros(len(units), bool)
  first[order[::2]] = True
  return first


def draw_weights(units: Sequence[str], count: int = DRAWS) -> np.ndarray:
  """Returns how often each unit is in each draw, float [R, U].

  Each half of the units is drawn from by itself, so that none is ever empty.
  Draws depend on the names alone: encoders share them.
  """
  digest = hashlib.blake2b("\0".join(units).encode(), digest_size=8).digest()
  generator = np.random.default_rng(int.from_bytes(digest, "little"))
  first, weights = halves(units), np.zeros((count, len(units)))
  for half in (first, ~first):
    if half.any():
      size = int(half.sum())
      weights[:, half] = generator.multinomial(
        size, np.full(size, 1 / size), count
      )
  return weights


def choose(
  tallies: Sequence[Tally], higher_is_better: bool, count: int = DRAWS
) -> Chosen:
  """Chooses a layer on each half of the units, and scores it on the other.

  Args:
    tallies: [L + 1], of each layer; of the same units.
    higher_is_better: of the first metric.
    count: R, draws of the units.

  Raises:
    ValueError: fewer than LEAST_UNITS units.
  """
  units = tallies[0].units
  if len(units) < LEAST_UNITS:
    raise ValueError(
      f"{len(units)} speakers (or words, where few speak) are scored: give "
      f"clips of at least {LEAST_UNITS}"
    )
  metrics = list(tallies[0].scores)
  everyone = np.ones((1, len(units)))
  layers = {
    metric: [float(t.scores[metric](everyone)[0]) for t in tallies]
    for metric in metrics
  }
  sign = 1 if higher_is_better else -1
  first, weights = halves(units), draw_weights(units, count)
  tests: dict[str, list] = {metric: [] for metric in metrics}
  draws: dict[str, list] = {metric: [] for metric in metrics}
  found = []
  for chosen_on, scored_on in ((first, ~first), (~first, first)):
    dev = [
      float(t.scores[metrics[0]](everyone * chosen_on)[0]) for t in tallies
    ]
    # A half in which nothing can be scored chooses as little as any layer.
    layer = int(np.argmax(np.nan_to_num(sign * np.array(dev), nan=-np.inf)))
    for metric in metrics:
      score = tallies[layer].scores[metric]
      tests[metric].append(float(score(everyone * scored_on)[0]))
      drawn = score(weights * scored_on)
      # Draws of n units vary by n - 1 of n of what n other units would.
      n, mean = scored_on.sum(), np.nanmean(drawn)
      draws[metric].append(mean + (drawn - mean) * (n / (n - 1)) ** 0.5)
    found.append(
      {"layer": layer, "dev": dev[layer], "test": tests[metrics[0]][-1]}
    )
  return Chosen(
    layers,
    found,
    {metric: float(np.nanmean(values)) for metric, values in tests.items()},
    {metric: np.nanmean(values, axis=0) for metric, values in draws.items()},
  )


def spread(tests: Sequence[float], draws: Sequence[np.ndarray]) -> Spread:
  """Returns how sure a mean over pretraining seeds is.

  Args:
    tests: [S], the score of each seed.
    draws: [S] of [R], the same in each draw of the units.
  """
  return _spread(_mean(draws), tests)


def half_interval(spread: Spread) -> float:
  """Returns half the width of the 90 % interval."""
  quantile = scipy.special.stdtrit(spread.freedom, (1 + _INTERVAL) / 2)
  return float(quantile) * spread.error


def compare(
  one: Mapping[str, Any], other: Mapping[str, Any]
) -> dict[str, float | list[float]]:
  """Compares two encoders in pairs, over the same draws of the units.

  Args:
    one: `tests` and `draws`, as of `spread`.
    other: the same of the other encoder.

  Returns:
    difference: of one less other; std: its standard error; interval: of it,
    90 %; p: two-sided.
  """
  difference = float(np.mean(one["tests"]) - np.mean(other["tests"]))
  drawn = _mean(one["draws"]) - _mean(other["draws"])
  error, freedom = _spread(drawn, one["tests"], other["tests"])
  edge = half_interval(Spread(error, freedom))
  if error:
    # Student's t, by the part of SciPy that takes no second to import.
    p = 2 * float(scipy.special.stdtr(freedom, -abs(difference) / error))
  else:
    p = float(difference == 0)
  return {
    "difference": difference,
    "std": error,
    "interval": [difference - edge, difference + edge],
    "p": p,
  }


def _mean(draws: Sequence[np.ndarray]) -> np.ndarray:
  """Returns the mean over seeds in each draw. [S] of [R] -> [R]."""
  return np.nanmean(np.asarray(draws, float), axis=0)  # None of JSON is NaN.


def _spread(drawn: np.ndarray, *of_seeds: Sequence[float]) -> Spread:
  """Adds the variance over units to that of the means over seeds.

  Degrees of freedom are Satterthwaite's; those over units count as many. With
  one seed, what another would have changed is not known, and left out.
  """
  error = float(np.nanvar(drawn))
  seeds = [
    (float(np.var(tests, ddof=1)) / len(tests), len(tests) - 1)
    for tests in of_seeds
    if len(tests) > 1
  ]
  error += sum(variance for variance, _ in seeds)
  rest = sum(variance**2 / freedom for variance, freedom in seeds)
  return Spread(error**0.5, error**2 / rest if rest else math.inf)
