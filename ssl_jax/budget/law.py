"""Loss as a law of model and data: L(N, D) = E + A / N^a + B / D^b.

N parameters, D seconds of audio seen (Hoffmann et al. 2022, eq. 2, with audio
in place of text). Fitted to published runs, the user's own, or both. Losses of
different settings (objective, frontend, corpus) are not comparable, so each has
its own E, while A, a, B and b are shared.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import optimize

from ssl_jax.errors import UserError

PUBLISHED = "LibriSpeech 960 h, published"
_POINTS = Path(__file__).with_name("published.json")
# Nats: beyond it a residual counts linearly, so that one odd run (a changed
# learning rate, say) does not bend the law.
_HUBER = 0.02
_UNITS = 20e6, 62.4e6  # Units of N and D in the fit: Slim's.
_EXPONENTS = 0.05, 3.0
_STARTS = (0.3, 0.3), (1.0, 0.8), (0.5, 1.5)


class Point(NamedTuple):
  """A finished run: parameters, seconds of audio seen, loss in nats.

  `setting` is what its loss is comparable within.
  """

  params: float
  audio_seconds: float
  loss: float
  setting: str


class Law(NamedTuple):
  """A fitted law; A and B are of N and D in units of 20 M and 62.4 Ms.

  Attributes:
    floors: E of each setting, in nats.
    a_scale: A.
    a: exponent of N.
    b_scale: B.
    b: exponent of D.
    residuals: of each point, loss - law, in nats.
    params_range: least and most of the points.
    audio_range: the same, seconds.
  """

  floors: dict[str, float]
  a_scale: float
  a: float
  b_scale: float
  b: float
  residuals: np.ndarray
  params_range: tuple[float, float]
  audio_range: tuple[float, float]

  def loss(self, params: float, audio_seconds: float, setting: str) -> float:
    """Expected validation loss, in nats."""
    return (
      self.floors[setting]
      + self.a_scale * (params / _UNITS[0]) ** -self.a
      + self.b_scale * (audio_seconds / _UNITS[1]) ** -self.b
    )

  @property
  def rmse(self) -> float:
    """Root mean square of the residuals, in nats."""
    return float(np.sqrt(np.mean(self.residuals**2)))

  def outside(self, params: float, audio_seconds: float) -> list[str]:
    """Describes what lies outside the fitted points; [] if nothing."""
    messages = []
    for name, value, (low, high) in (
      ("parameters", params, self.params_range),
      ("seconds of audio", audio_seconds, self.audio_range),
    ):
      if not low * 0.95 <= value <= high * 1.05:
        factor, side = max((low / value, "below"), (value / high, "above"))
        messages.append(
          f"{value:.3g} {name} are {factor:.2g} times {side} the fitted "
          f"{low:.3g} to {high:.3g}"
        )
    return messages


class Candidate(NamedTuple):
  """A model: name, parameters, training FLOPs a second of audio."""

  name: str
  params: float
  flops_per_second: float


class Choice(NamedTuple):
  """A candidate, and what a budget buys with it."""

  name: str
  params: float
  audio_seconds: float
  loss: float


def published(
  objective: str = "hubert", budgets: Sequence[str] = ("full", "half")
) -> list[Point]:
  """The study's validation losses over model size (paper.md)."""
  points = json.loads(_POINTS.read_text())["points"]
  return [
    Point(
      point["params"],
      point["updates"] * point["batch_seconds"],
      point["valid_loss"] * math.log(2),
      PUBLISHED,
    )
    for point in points
    if point["objective"] == objective and point["budget"] in budgets
  ]


def fit(
  points: Sequence[Point], starts: Sequence[tuple[float, float]] = _STARTS
) -> Law:
  """Fits by least squares with Huber's loss.

  Args:
    points: to fit to.
    starts: exponents (a, b) to begin at; the best fit is kept.

  Raises:
    UserError: too few points, or of one model size or length only.
  """
  settings = sorted({point.setting for point in points})
  needed = len(settings) + 5
  if len(points) < needed or any(
    len({point[i] for point in points}) < 2 for i in (0, 1)
  ):
    raise UserError(
      f"a law cannot be fitted to {len(points)} runs: at least {needed} are "
      "needed, of several sizes and lengths"
    )
  params, audio, losses = np.array([point[:3] for point in points]).T
  n, d = params / _UNITS[0], audio / _UNITS[1]
  which = np.array([settings.index(point.setting) for point in points])

  def residuals(x: np.ndarray) -> np.ndarray:
    log_a, a, log_b, b = x[-4:]
    return losses - (x[which] + np.exp(log_a) * n**-a + np.exp(log_b) * d**-b)

  lowest = [losses[which == i].min() for i in range(len(settings))]
  low = [0.0] * len(settings) + [-12.0, _EXPONENTS[0]] * 2
  high = [*lowest] + [4.0, _EXPONENTS[1]] * 2
  fits = [
    optimize.least_squares(
      residuals,
      [0.9 * loss for loss in lowest] + [-2.0, a, -2.0, b],
      bounds=(low, high),
      loss="huber",
      f_scale=_HUBER,
    )
    for a, b in starts
  ]
  best = min(fits, key=lambda result: result.cost)
  log_a, a, log_b, b = best.x[-4:].tolist()
  return Law(
    floors=dict(zip(settings, best.x[: len(settings)].tolist())),
    a_scale=math.exp(log_a),
    a=a,
    b_scale=math.exp(log_b),
    b=b,
    residuals=residuals(best.x),
    params_range=(params.min(), params.max()),
    audio_range=(audio.min(), audio.max()),
  )


def bootstrap(points: Sequence[Point], law: Law, num: int = 100) -> list[Law]:
  """Laws of the same points with residuals drawn anew, always the same ones."""
  rng = np.random.default_rng(0)
  laws = []
  for _ in range(num):
    drawn = rng.choice(law.residuals, len(points))
    laws.append(
      fit(
        [
          point._replace(loss=law.loss(*point[:2], point.setting) + residual)
          for point, residual in zip(points, drawn)
        ],
        [(law.a, law.b)],
      )
    )
  return laws


def interval(
  law: Law, laws: Sequence[Law], params: float, audio: float, setting: str
) -> tuple[float, float]:
  """Returns the 90 % interval of a run: doubt in the law, and its residual."""
  rng = np.random.default_rng(0)
  losses = [other.loss(params, audio, setting) for other in laws]
  losses += rng.choice(law.residuals, len(losses))
  low, high = np.quantile(losses, (0.05, 0.95))
  return float(low), float(high)


def leave_one_out(points: Sequence[Point]) -> np.ndarray:
  """Loss of each point less what a law of the others expects, in nats."""
  errors = []
  for i, point in enumerate(points):
    law = fit([*points[:i], *points[i + 1 :]])
    errors.append(point.loss - law.loss(*point[:2], point.setting))
  return np.array(errors)


def rank(
  law: Law, setting: str, flops: float, candidates: Sequence[Candidate]
) -> list[Choice]:
  """Returns what a budget buys with each candidate, the best first."""
  choices = []
  for candidate in candidates:
    audio = flops / candidate.flops_per_second
    loss = law.loss(candidate.params, audio, setting)
    choices.append(Choice(candidate.name, candidate.params, audio, loss))
  return sorted(choices, key=lambda choice: choice.loss)


def optimum(
  law: Law, setting: str, flops: float, candidates: Sequence[Candidate]
) -> Choice:
  """The best size between the candidates, whose costs are interpolated."""
  ordered = sorted(candidates, key=lambda candidate: candidate.params)
  known = np.log([candidate.params for candidate in ordered])
  grid = np.linspace(known[0], known[-1], 1_000)
  costs = np.log([candidate.flops_per_second for candidate in ordered])
  between = [
    Candidate("", math.exp(n), math.exp(cost))
    for n, cost in zip(grid, np.interp(grid, known, costs))
  ]
  return rank(law, setting, flops, between)[0]
