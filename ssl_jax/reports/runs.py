"""Finished runs, read from their workdirs into rows."""

import dataclasses
import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ssl_jax import config as config_lib
from ssl_jax.config import SIZES
from ssl_jax.data import sources
from ssl_jax.errors import UserError, one_line
from ssl_jax.files import read_jsonl, read_object
from ssl_jax.knobs import ROLES, flatten
from ssl_jax.objectives import OBJECTIVES, title
from ssl_jax.reports import scores, workdirs

SAME_BUDGET = 1.03  # Runs whose FLOPs are closer than this have one budget.


@dataclasses.dataclass(frozen=True)
class Run:
  """A finished run; losses in nats, None is what it does not say.

  Attributes:
    name: of its workdir, below the folder that was given.
    series: name of what its losses are comparable within.
    size: a key of SIZES, or layers x width.
    called: name of its recipe (`config.recipe`); "": none.
    recipe: its config, less seed, budget and what cannot change the result.
    trunk_flops: of `flops`, those that another run spent for it.
    before_hours: of `audio_hours`, those of a first stage.
    corpus: its name.
    data_hours: of training audio, at most; 0: all there was.
    budget: FLOPs, the same for all runs within SAME_BUDGET.
    main: the objective's main term in validation, at the end.
    chance: the same for a guess that does not look at the clip.
    seconds: of wall time by what they went to; {} if it is not known.
    probes, measured: as of `scores.read`.
    curve: of each validation, (FLOPs, loss, share of chance or NaN).
  """

  name: str
  workdir: str
  objective: str
  series: str
  size: str
  frontend: str
  called: str
  recipe: str
  params: int
  updates: int
  flops: float
  trunk_flops: float
  audio_hours: float
  before_hours: float
  epochs: float | None
  corpus: str
  data_hours: float
  seed: int
  budget: float
  first_loss: float | None
  loss: float
  best_loss: float | None
  main: float | None
  chance: float | None
  accuracy: float | None
  alarms: tuple[str, ...]
  train_hours: float | None
  wall_hours: float | None
  seconds: dict[str, float]
  devices: int | None
  device_kind: str
  probes: dict[str, float]
  measured: dict[str, dict[str, Any]]
  curve: tuple[tuple[float, float, float], ...]

  @property
  def share(self) -> float | None:
    """Main term over chance: 1 is guessing."""
    return self.main / self.chance if self.main and self.chance else None

  @property
  def own_flops(self) -> float:
    """Less what a trunk spent for it."""
    return self.flops - self.trunk_flops

  @property
  def device_hours(self) -> float | None:
    """Hours of training, of all devices, less the trunk's."""
    if self.train_hours is None:
      return None
    return self.train_hours * (self.devices or 1) * self.own_flops / self.flops

  @property
  def hours(self) -> float | None:
    """Hours of training audio; where it was all, those seen an epoch."""
    own = self.audio_hours - self.before_hours
    return self.data_hours or (own / self.epochs if self.epochs else None)


def read(folders: Sequence[Path]) -> tuple[list[Run], dict[str, str]]:
  """The finished runs in folders, at any depth.

  Returns:
    Runs by series, budget and parameters; {workdir: why it is left out}.

  Raises:
    UserError: a folder is none, or there is no finished run in any.
  """
  found, broken = {}, {}
  for folder in folders:
    if not os.path.isdir(folder):
      raise UserError(f"{folder}: no such folder; give one that holds runs")
    for workdir in workdirs.find(folder):
      name = str(workdir.relative_to(folder))
      name = folder.resolve().name if name == "." else name
      taken = {run.name for run, _ in found.values()}
      if name in taken:
        name = f"{folder.resolve().name}/{name}"
      try:
        found.setdefault(workdir.resolve(), _read(workdir, name))
      except Exception as error:  # The files may hold anything.
        problem = one_line(error) or type(error).__name__
        broken[str(workdir)] = (
          f"no {problem} in metrics.jsonl"
          if isinstance(error, KeyError)
          else problem
        )
  if not found:
    where = ", ".join(map(str, folders))
    also = f" ({len(broken)} unfinished or unreadable)" if broken else ""
    raise UserError(
      f"no finished run in {where}{also}: give a folder in which `python -m "
      "ssl_jax.main` or ssl_jax.sweep left a result.json"
    )
  series = _series([setting for _, setting in found.values()])
  runs = [
    dataclasses.replace(run, series=series[setting])
    for run, setting in found.values()
  ]
  return sorted(_budgeted(runs), key=_order), broken


def _read(workdir: Path, name: str) -> tuple[Run, tuple[str, ...]]:
  """A run without its series, and its setting."""
  lines = [x for x in read_jsonl(workdir / "metrics.jsonl") if "update" in x]
  if not (workdir / "result.json").exists():
    reached = max((line["update"] for line in lines), default=0)
    at = f" (at update {reached:,})" if reached else ""
    raise ValueError(f"not finished: no result.json{at}")
  result, config = _json(workdir, "result.json"), _json(workdir, "config.json")
  objective = str(_key(config, "objective.name"))
  shape = tuple(
    _key(config, f"encoder.{key}")
    for key in ("num_layers", "hidden_size", "ffn_size", "num_heads")
  )
  named = [size for size, known in SIZES.items() if known == shape]
  flops = _number(result, "flops")
  train = [x for x in lines if x.get("split") == "train" and "flops" in x]
  main = getattr(OBJECTIVES.get(objective), "main", "")
  valid = [x for x in lines if x.get("split") == "valid" and _known(x, "loss")]
  last = valid[-1] if valid else {}
  spent = np.interp(
    [line["update"] for line in valid],
    [0, *(line["update"] for line in train)],
    [_known(result, "before_flops") or 0, *(x["flops"] for x in train)],
  )
  seconds = _known(result, "train_seconds")
  wall_seconds = _known(result, "wall_seconds")
  parts = result["seconds"] if isinstance(result.get("seconds"), dict) else {}
  frontend = str(_key(config, "frontend.name", ""))
  probed, measured = scores.read(workdir)
  data = {name: knob.default for name, knob in sources.knobs().items()}
  corpus = sources.corpus_name(ConfigDict(data | _key(config, "data", {})))
  run = Run(
    name=name,
    workdir=str(workdir),
    objective=objective,
    series="",
    size=named[0] if named else f"{shape[0]}x{shape[1]}",
    frontend=frontend,
    called=str(_key(config, "recipe", "")),
    recipe=_recipe(config),
    params=int(_number(result, "params")),
    updates=int(_number(result, "updates")),
    flops=flops,
    trunk_flops=_known(result, "trunk_flops") or 0.0,
    audio_hours=_number(result, "audio_seconds") / 3600,
    before_hours=(_known(result, "before_audio_seconds") or 0) / 3600,
    epochs=_known(train[-1], "epoch") if train else None,
    corpus=corpus,
    data_hours=float(_key(config, "data.hours", 0) or 0),
    seed=int(_key(config, "seed", 0)),
    budget=float(_key(config, "budget.flops", 0) or 0),
    first_loss=_known(result, "first_valid_loss"),
    loss=_number(result, "valid_loss"),
    best_loss=_known(result, "best_valid_loss"),
    main=_known(last, main),
    chance=_known(last, "chance"),
    accuracy=_known(last, "accuracy"),
    alarms=tuple(map(str, result.get("alarms") or ())),
    train_hours=seconds and seconds / 3600,
    wall_hours=wall_seconds and wall_seconds / 3600,
    seconds={k: v for k in parts if (v := _known(parts, k))},
    devices=int(_known(result, "devices") or 0) or None,
    device_kind=str(result.get("device_kind") or ""),
    probes=probed,
    measured=measured,
    curve=tuple(
      (float(f), x["loss"], _share(x, main)) for f, x in zip(spent, valid)
    ),
  )
  return run, (objective, _targets(objective, config), frontend, corpus)


def _targets(objective: str, config: dict[str, Any]) -> str:
  """Returns the knobs of an objective that losses must share, as text."""
  if objective not in OBJECTIVES:
    return ""
  declared = OBJECTIVES[objective].knobs
  section = {name: knob.default for name, knob in declared.items()}
  section |= _key(config, objective, {})
  return OBJECTIVES[objective](ConfigDict({objective: section})).setting()


def _json(workdir: Path, name: str) -> dict[str, Any]:
  try:
    return read_object(workdir / name)
  except FileNotFoundError:
    raise ValueError(f"no {name}") from None
  except ValueError as error:
    raise ValueError(f"{name} is not readable JSON ({error})") from error


def _number(result: dict[str, Any], key: str) -> float:
  value = _known(result, key)
  if value is None or value <= 0:
    raise ValueError(
      f"result.json: {key!r} is {result.get(key)!r}, not a number above 0"
    )
  return value


def _key(config: dict[str, Any], path: str, *default: Any) -> Any:
  """`config.a.b`, where older or newer versions may lack it."""
  for key in path.split("."):
    if not isinstance(config, dict) or key not in config:
      if default:
        return default[0]
      raise ValueError(f"config.json has no {path!r}")
    config = config[key]
  return config


def _recipe(config: dict[str, Any]) -> str:
  """Returns what tells its experiment apart: runs alike in it are seeds."""
  knobs = config_lib.knobs()
  roles = {key: ROLES[knob.role] for key, knob in knobs.items()}
  # A knob that its version lacked has its default.
  flat = {key: knob.default for key, knob in knobs.items()}
  flat |= flatten(ConfigDict(config))
  kept = {
    key: value
    for key, value in flat.items()
    if not key.startswith(f"{config_lib.MADE_BY}.")
    and (key not in roles or roles[key].recipe)
  }
  return json.dumps(kept, sort_keys=True)


def _known(values: dict[str, Any], key: str) -> float | None:
  value = values.get(key)
  if not isinstance(value, int | float) or not math.isfinite(value):
    return None
  return value


def _share(line: dict[str, Any], main: str) -> float:
  value, chance = _known(line, main), _known(line, "chance")
  return value / chance if value is not None and chance else math.nan


def _series(settings: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
  """Names: the objective, and what differs among its settings."""
  names = {}
  for setting in settings:
    alike = [other for other in settings if other[0] == setting[0]]
    differing = [
      part for i, part in enumerate(setting) if len({x[i] for x in alike}) > 1
    ]
    name = title(setting[0])
    names[setting] = ", ".join([name, *filter(None, differing)])
  return names


def _budgeted(runs: list[Run]) -> list[Run]:
  """Gives runs that spent the same, or nearly, the same `budget`."""
  ordered = sorted(runs, key=lambda run: run.budget or run.flops)
  groups: list[list[Run]] = []
  for run in ordered:
    least = groups and (groups[-1][0].budget or groups[-1][0].flops)
    if not groups or (run.budget or run.flops) > SAME_BUDGET * least:
      groups.append([])
    groups[-1].append(run)
  made = []
  for alike in groups:
    stated = Counter(run.budget for run in alike if run.budget)
    spent = float(np.median([run.flops for run in alike]))
    budget = stated.most_common(1)[0][0] if stated else spent
    made += [dataclasses.replace(run, budget=budget) for run in alike]
  return made


def _order(run: Run) -> tuple:
  rank = [*OBJECTIVES, run.objective].index(run.objective)
  return (
    rank,
    run.series,
    run.data_hours,
    run.budget,
    run.params,
    run.seed,
    run.name,
  )
