"""Finished runs, read from their workdirs into rows."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from ssl_jax.config import SIZES
from ssl_jax.files import read_jsonl
from ssl_jax.objectives import OBJECTIVES

_SAME_BUDGET = 0.05  # Runs within such a share spent the same.


class Row(NamedTuple):
  """A finished run; NaN or None is what it does not say."""

  name: str
  objective: str
  size: str  # A key of SIZES, or layers x width.
  frontend: str
  seed: int
  params: int
  updates: int
  flops: float
  own_flops: float  # Less what a trunk spent for it.
  audio_hours: float
  data_hours: float
  epochs: float
  loss: float  # Of validation, in nats, at the end.
  main: float  # Its main term.
  chance: float
  accuracy: float
  alarms: list[str]
  train_hours: float
  devices: int
  device_kind: str
  probes: dict[str, float]
  curve: list[tuple[float, float, float]]  # (FLOPs, loss, main / chance).


def read_all(folders: list[Path]) -> tuple[list[Row], dict[str, str]]:
  """The finished runs in folders, at any depth, and why others were left out.

  Args:
    folders: workdirs, or folders of such.

  Returns:
    Rows, by objective, budget and size; {workdir: reason}.
  """
  rows, broken = [], {}
  for folder in folders:
    found = [
      path.parent
      for name in ("config.json", "result.json")
      for path in folder.rglob(name)
    ]
    for workdir in sorted({*found}):
      inside = str(workdir.relative_to(folder))
      name = folder.name if inside == "." else inside
      if len(folders) > 1 and inside != ".":
        name = f"{folder.name}/{inside}"
      if not (workdir / "result.json").exists():
        if (workdir / "metrics.jsonl").exists():
          broken[name] = "not finished: it has no result.json"
        continue
      try:
        rows.append(_read(workdir, name))
      except (OSError, ValueError, LookupError, TypeError) as error:
        said = " ".join(str(error).split())
        broken[name] = f"cannot be read: {type(error).__name__}: {said}"
  rows.sort(key=lambda row: (row.objective, row.flops, row.params, row.name))
  return rows, broken


def budgets(rows: list[Row]) -> list[float]:
  """The FLOPs that runs were given, those a few per cent apart taken as one."""
  found: list[list[float]] = []
  for flops in sorted(row.flops for row in rows):
    if found and flops <= found[-1][0] * (1 + _SAME_BUDGET):
      found[-1].append(flops)
    else:
      found.append([flops])
  return [sum(group) / len(group) for group in found]


def of_budget(rows: list[Row], budget: float) -> list[Row]:
  """Those that spent it."""
  return [row for row in rows if abs(row.flops / budget - 1) <= _SAME_BUDGET]


def _read(workdir: Path, name: str) -> Row:
  result = json.loads((workdir / "result.json").read_text())
  config = json.loads((workdir / "config.json").read_text())
  lines = read_jsonl(workdir / "metrics.jsonl")
  train = [line for line in lines if line["split"] == "train"]
  valid = [line for line in lines if line["split"] == "valid"]
  objective = config["objective"]["name"]
  main, last = OBJECTIVES[objective].main, valid[-1]
  shape = tuple(
    config["encoder"][key]
    for key in ("num_layers", "hidden_size", "ffn_size", "num_heads")
  )
  size = next((s for s, known in SIZES.items() if known == shape), None)
  spent = {line["update"]: line["flops"] for line in train}
  spent[valid[0]["update"]] = result.get("trunk_flops", 0)
  return Row(
    name=name,
    objective=objective,
    size=size or f"{shape[0]} x {shape[1]}",
    frontend=config["frontend"]["name"],
    seed=config["seed"],
    params=result["params"],
    updates=result["updates"],
    flops=result["flops"],
    own_flops=result["flops"] - result.get("trunk_flops", 0),
    audio_hours=result["audio_seconds"] / 3600,
    data_hours=config["data"].get("hours", 0.0),
    epochs=train[-1]["epoch"] if train else math.nan,
    loss=result["valid_loss"],
    main=last[main],
    chance=last["chance"],
    accuracy=last.get("accuracy", math.nan),
    alarms=result.get("alarms", []),
    train_hours=result["train_seconds"] / 3600,
    devices=result.get("devices", 1),
    device_kind=result.get("device_kind", ""),
    probes=_probes(workdir / "probes.json"),
    curve=[
      (spent[x["update"]], x["loss"], x[main] / (x["chance"] or math.nan))
      for x in valid
      if x["update"] in spent
    ],
  )


def _probes(path: Path) -> dict[str, float]:
  if not path.exists():
    return {}
  scores = json.loads(path.read_text())
  found: dict[str, Any] = {
    name: score.get("value") if isinstance(score, dict) else score
    for name, score in scores.items()
  }
  return {k: float(v) for k, v in found.items() if isinstance(v, int | float)}
