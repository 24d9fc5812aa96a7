"""Plans: the model, the data and the updates that a budget buys."""

import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from ssl_jax import objectives
from ssl_jax.budget import law as law_lib
from ssl_jax.budget.flops import readable
from ssl_jax.budget.law import Candidate, Law, Point
from ssl_jax.budget.updates import is_first_stage
from ssl_jax.data.sources import corpus_name
from ssl_jax.errors import UserError, one_line
from ssl_jax.files import read_object
from ssl_jax.text import two_columns

# So many own runs of one setting are fitted without the published ones.
_ENOUGH = 8
# Fewer updates are no training run; epochs of more are of few hours repeated,
# of which the law knows nothing (paper.md, "Data size").
_LEAST_UPDATES, _MOST_EPOCHS = 100, 100
_MOST_FLOPS = 1e30


def read_runs(folder: Path) -> list[Point]:
  """Reads the finished runs in a folder, at any depth, to fit the law to.

  Raises:
    UserError: there is none, or one cannot be read.
  """
  results = sorted(
    path
    for path in folder.rglob("result.json")
    if not is_first_stage(path.parent)
  )
  if not results:
    raise UserError(f"--runs={folder}: no finished run in it or below")
  return [_read_run(path.parent) for path in results]


def _read_run(workdir: Path) -> Point:
  try:
    result = read_object(workdir / "result.json")
    config = read_object(workdir / "config.json")
    point = Point(
      float(result["params"]),
      float(result["audio_seconds"]),
      float(result["valid_loss"]),
      setting_of(ConfigDict(config)),
    )
    if not all(0 < x < 1e30 for x in point[:3]):
      raise ValueError("params, audio_seconds or valid_loss is no such number")
    return point
  except Exception as error:  # The files may hold anything.
    raise UserError(
      f"--runs: {workdir} cannot be read as a run of this version "
      f"({one_line(error)}); leave it out"
    ) from error


def setting_of(config: ConfigDict) -> str:
  """Names the setting within which losses of a config's runs compare."""
  data, corpus = config.data, corpus_name(config.data)
  hours = f", {data.hours:g} h" if data.hours else ""
  objective = objectives.setting(config)
  return f"{objective}, {config.frontend.name}, {corpus}{hours}"


def enough(own: Sequence[Point]) -> bool:
  """Tells whether own runs are fitted without the published ones."""
  return len(own) >= _ENOUGH


def fit(
  objective: str, own: Sequence[Point]
) -> tuple[Law, list[Law], str, list[Point]]:
  """The law to plan with, those of its bootstrap, the setting, the points.

  Own runs of one setting decide where they are enough; fewer move only the
  floor of the published law.

  Raises:
    UserError: there are no runs, own runs of several settings, or runs of too
      few sizes and lengths.
  """
  settings = {point.setting for point in own}
  if len(settings) > 1:
    raise UserError(
      f"--runs are of {len(settings)} settings, whose losses are not "
      f"comparable: {'; '.join(sorted(settings))}"
    )
  points = list(own)
  if not enough(own):
    points += law_lib.published(objective)
  if not points:
    raise UserError(
      f"no runs of {objective} are published: give finished ones with --runs"
    )
  setting = settings.pop() if own else law_lib.PUBLISHED
  law = law_lib.fit(points)
  return law, law_lib.bootstrap(points, law), setting, points


def plan(
  law: Law,
  laws: Sequence[Law],
  setting: str,
  flops: float,
  candidates: Sequence[Candidate],
  batch_seconds: float,
  hours: float,
  guess: float | None = None,
) -> dict[str, Any]:
  """Returns what to train for a budget.

  Args:
    law: to plan with.
    laws: of its bootstrap.
    setting: whose loss is predicted.
    flops: to spend on training.
    candidates: models.
    batch_seconds: of audio an update.
    hours: of the corpus.
    guess: loss of guessing, where it is known.

  Raises:
    UserError: the budget is too small for a model that is better than a guess.

  Returns:
    size, params, updates, flops, audio_hours, epochs, predicted_loss (nats),
    interval (90 %), runner_up (the same of the second), optimal_params with its
    interval, and outside: what lies outside the runs the law was fitted to.
  """
  ranked = law_lib.rank(law, setting, flops, candidates)
  least = batch_seconds * _LEAST_UPDATES
  if ranked[0].audio_seconds < least or ranked[0].loss >= (guess or math.inf):
    enough = flops
    while enough < _MOST_FLOPS:
      enough *= 1.1
      best = law_lib.rank(law, setting, enough, candidates)[0]
      if best.audio_seconds >= least and best.loss < (guess or math.inf):
        break
    else:
      raise UserError(
        "by these runs no budget buys a model better than a guess: give "
        "--runs that learned something"
      )
    raise UserError(
      f"a budget of {readable(flops)}FLOP buys no model that is better than a "
      f"guess: {readable(enough)}FLOP are the least; for less, try "
      "--config=configs/smoke.py of ssl_jax.main"
    )
  costs = {
    candidate.name: candidate.flops_per_second for candidate in candidates
  }

  def described(choice: law_lib.Choice) -> dict[str, Any]:
    updates = int(choice.audio_seconds / batch_seconds)
    epochs = choice.audio_seconds / 3600 / hours
    outside = law.outside(choice.params, choice.audio_seconds)
    if epochs > _MOST_EPOCHS:
      outside.append(
        f"{epochs:.3g} epochs of {hours:g} h: few hours repeated so often are "
        "worth less than the law, which is of more, expects"
      )
    band = law_lib.interval(
      law, laws, choice.params, choice.audio_seconds, setting
    )
    return {
      "size": choice.name,
      "params": choice.params,
      "updates": updates,
      "flops": updates * batch_seconds * costs[choice.name],
      "audio_hours": choice.audio_seconds / 3600,
      "epochs": epochs,
      "predicted_loss": choice.loss,
      "interval": band,
      "outside": outside,
    }

  best = law_lib.optimum(law, setting, flops, candidates)
  optima = sorted(
    law_lib.optimum(other, setting, flops, candidates).params for other in laws
  )
  return described(ranked[0]) | {
    "runner_up": described(ranked[1]),
    "optimal_params": best.params,
    "optimal_params_interval": (
      optima[round(0.05 * (len(optima) - 1))],
      optima[round(0.95 * (len(optima) - 1))],
    ),
    "ranked": [[c.name, c.loss] for c in ranked],
  }


def command(
  config: str, size: str, objective: str, flops: float, audio: str
) -> str:
  """The command that trains a plan on a folder of audio."""
  path = f"{config}:size={size},objective={objective}"
  return (
    f"python -m ssl_jax.main --config={shlex.quote(path)} "
    f"--config.budget.flops={flops:.4g} "
    f"--config.data.dir={shlex.quote(audio)}"
  )


def table(made: dict[str, Any], law: Law, setting: str, runs: int) -> str:
  """The plan as a person reads it; losses in nats and bits."""

  def loss(choice: dict[str, Any]) -> str:
    low, high = choice["interval"]
    bits = 1 / math.log(2)
    return (
      f"{choice['predicted_loss']:.3f} nats ({low:.3f} to {high:.3f}), "
      f"{choice['predicted_loss'] * bits:.3f} bits"
    )

  second = made["runner_up"]
  low, high = made["optimal_params_interval"]
  rows = {
    "train": f"size {made['size']}, {readable(made['params'])} parameters, "
    f"{made['updates']:,} updates",
    "spend": f"{readable(made['flops'])}FLOP",
    "data": f"{made['audio_hours']:,.4g} h seen, {made['epochs']:.3g} epochs",
    "expect": f"validation loss {loss(made)}",
    "runner-up": f"size {second['size']}, {loss(second)}",
    "best size": f"{readable(made['optimal_params'])} parameters "
    f"({readable(low)} to {readable(high)})",
    "law": f"{law.floors[setting]:.3f} + {law.a_scale:.3g} (N / 20 M)^-"
    f"{law.a:.2f} + {law.b_scale:.3g} (D / 17.3 kh)^-{law.b:.2f}, of {runs} "
    f"runs, residuals of {law.rmse:.3f} nats",
    "setting": setting,
  }
  if "hours" in made:
    rows["time"] = f"{made['hours']:.3g} h on {made['device']}, at " + (
      f"{readable(made['flops_per_second'])}FLOP/s ({made['basis']})"
    )
    if made["cost"] is not None:
      rows["time"] += f": {made['cost']:,.2f} at the price given"
  if made["outside"]:
    rows["beware"] = "a guess: " + "; ".join(made["outside"])
  rows["command"] = made["command"]
  return two_columns(rows)
