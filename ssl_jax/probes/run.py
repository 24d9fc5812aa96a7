"""A task, probed: the model's score beside those of what it should beat."""

import functools
import hashlib
import json
import logging
import math
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Sharding
from ml_collections import ConfigDict

from ssl_jax import tally
from ssl_jax.data.sources import corpus_name, open_source
from ssl_jax.data.sources.source import Source
from ssl_jax.errors import UserError, check_choice
from ssl_jax.files import write_atomically
from ssl_jax.probes import TASKS, trained, zero_shot
from ssl_jax.probes.config import validate
from ssl_jax.probes.encoders import Candidate
from ssl_jax.probes.picture import draw

SPLITS = ("train", "valid", "test")


def probe(
  config: ConfigDict,
  candidates: Sequence[Candidate],
  cache: Path,
  out: Path,
  by_row: Sharding,
) -> dict[str, Any]:
  """Probes one task with every encoder; writes TASK-PROFILE.json and .png.

  Args:
    config: of the probe.
    candidates: the model, then what it is compared with.
    cache: of features.
    out: where the results go.
    by_row: how a batch is placed on the devices.

  Returns:
    task, metric, profile, corpus, clips, guess, encoder; of the first encoder
    what `trained.score` or `zero_shot.score` says; `baselines`, the same of the
    others by name; of measures `comparisons`, the first with each of them.

  Raises:
    UserError: the corpus lacks what the task needs.
  """
  check_choice("task", config.task, TASKS)
  validate(config)
  try:
    out.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(f"--out={out} cannot be used ({error})") from error
  splits = {split: _open(config, split) for split in SPLITS}
  kind = TASKS[config.task]
  if isinstance(kind, zero_shot.MeasureKind):
    measure = kind.make(config, splits)
    clips, facts = measure.facts["clips"], measure
    score = functools.partial(zero_shot.score, config, measure)
  else:
    task, labelled = kind.make(config, splits)
    clips = {split: len(x.source.ids) for split, x in labelled.items()}
    facts = task
    score = functools.partial(trained.score, config, task, labelled)
  results = []
  for candidate in candidates:
    started = time.monotonic()
    scores = score(candidate.seeds, cache, by_row)
    scores["seconds"] = time.monotonic() - started
    scores["origin"] = candidate.seeds[0].origin
    scores["origins"] = [encoder.origin for encoder in candidate.seeds]
    results.append(scores)
    logging.getLogger("ssl_jax").info(
      "%14s  %s of %s: %s %% (dev %.2f)",
      *(candidate.name, facts.metric, config.task, _percent(scores)),
      100 * scores["dev"],
    )
  first, *others = results
  baselines = {c.name: x for c, x in zip(candidates[1:], others)}
  result = {
    "task": config.task,
    "metric": facts.metric,
    "higher_is_better": facts.higher_is_better,
    "profile": config.profile,
    "corpus": corpus_name(config.data),
    "clips": clips,
    "guess": facts.guess,
    "encoder": candidates[0].name,
    **first,
    "baselines": baselines,
    "config": json.loads(config.to_json()),
  }
  if "draws" in first:
    result["measured"] = measure.facts
    result["identity"] = _identity(config, measure)
    result["compared"] = measure.compared
  if "draws" in first and measure.compared:
    result["comparisons"] = {
      name: tally.compare(first, scores) for name, scores in baselines.items()
    }
  name = f"{config.task}-{config.profile}"
  seeds = len(candidates[0].seeds)
  if seeds > 1:  # The first one's own result stays.
    name += f"-{seeds}seeds"
  if candidates[0].name != "model":
    name += "-" + re.sub(r"[:/\\]+", "-", candidates[0].name)
  write_atomically(
    out / f"{name}.json", json.dumps(_finite(result), indent=2, allow_nan=False)
  )
  draw(result, out / f"{name}.png")
  return result


def _finite(value: Any) -> Any:
  """Returns a result for JSON, in which nothing is NaN."""
  if isinstance(value, dict):
    return {key: _finite(item) for key, item in value.items()}
  if isinstance(value, list):
    return [_finite(item) for item in value]
  return None if isinstance(value, float) and math.isnan(value) else value


def _identity(config: ConfigDict, measure: zero_shot.Measure) -> str:
  """Returns what results share that may be compared: clips and settings."""
  elsewhere = {"alignments", "data", "loader", "encode", "fit", "head"}
  settings = {
    key: value
    for key, value in json.loads(config.to_json()).items()
    if key not in elsewhere
  }
  digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
  digest.update(json.dumps(measure.facts, sort_keys=True).encode())
  for source in measure.sources.values():
    digest.update("\0".join(source.ids).encode())
    digest.update(np.ascontiguousarray(source.num_samples))
  return digest.hexdigest()[:16]


def short(result: dict[str, Any]) -> dict[str, Any]:
  """Returns what a person compares: no grid, no config."""
  keys = (
    *("task", "metric", "profile", "corpus", "clips", "guess", "encoder"),
    *("measured", "comparisons"),
  )
  of_each = ("dev", "test", "std", "interval", "learning_rate", "seeds", "CER")
  of_each += ("more", "layers", "chosen")
  return (
    {key: result[key] for key in keys if key in result}
    | {key: result[key] for key in of_each if key in result}
    | {
      "baselines": {
        name: {key: x[key] for key in of_each if key in x}
        for name, x in result["baselines"].items()
      }
    }
  )


def table(results: Sequence[dict[str, Any]]) -> str:
  """Returns a line a task, a column an encoder."""
  names = [results[0]["encoder"], *results[0]["baselines"]]
  lines = [f"{'':14}" + "".join(f"{name:>20}" for name in names)]
  for result in results:
    cells = [result, *result["baselines"].values()]
    scores = [_percent(x) for x in cells]
    label = f"{result['task']}, {result['metric']}, %"
    lines.append(f"{label:14}" + "".join(f"{score:>20}" for score in scores))
  return "\n".join([*lines, *map(_worth, results)])


def _worth(result: dict[str, Any]) -> str:
  """Returns what the test clips of a task can tell, as a line."""
  if "interval" in result:
    low, high = (100 * x for x in result["interval"])
    line = f"{result['task']}: {result['encoder']} {low:.1f} to {high:.1f} %"
    compared = result.get("comparisons")
    return f"{line}, {_compared(result)}" if compared else line
  clips, score = result["clips"]["test"], min(0.95, max(0.05, result["test"]))
  # 95 % of the differences of two scores of equal encoders, each clip being
  # right or wrong by itself.
  noise = 1.96 * math.sqrt(2 * score * (1 - score) / clips)
  guess = result["guess"]
  return f"{result['task']}: {clips} test clips" + (
    ("" if guess is None else f", of which guessing has {100 * guess:.2f} %")
    + f"; differences below some {100 * noise:.0f} points are chance"
  )


def _compared(result: dict[str, Any]) -> str:
  """Returns how a measure ranks the first encoder with each of the others."""
  sign, parts = 1 if result["higher_is_better"] else -1, []
  for name, found in result["comparisons"].items():
    gain = 100 * sign * found["difference"]
    errors = abs(found["difference"]) / max(found["std"], 1e-12)
    if found["p"] > 0.05:
      parts.append(f"not told apart from {name} (p = {found['p']:.2g})")
    else:
      parts.append(
        f"{'better' if gain > 0 else 'worse'} than {name} by {abs(gain):.1f} "
        f"points ({errors:.1f} standard errors)"
      )
  return ", ".join(parts)


def _percent(scores: dict[str, Any]) -> str:
  spread = "" if scores["std"] is None else f" +- {100 * scores['std']:.2f}"
  return f"{100 * scores['test']:.2f}{spread}"


def _open(config: ConfigDict, split: str) -> Source:
  """Opens the clips of a split whose metadata are as `where` has them."""
  source = open_source(config.data, split)
  for condition in filter(None, config.where):
    key, equals, values = condition.partition("=")
    kept = [
      i
      for i, known in enumerate(source.metadata)
      if known.get(key) not in (None, "")
      and (not equals or str(known[key]) in values.split("|"))
    ]
    if not kept:
      raise UserError(
        f"config.where: no clip of {split} has {condition!r} in its metadata; "
        "--config.where='(\"\",)' takes all clips"
      )
    source = source.select(kept)
  return source
