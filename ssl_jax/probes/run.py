"""A task, probed: the model's score beside those of what it should beat."""

import json
import logging
import math
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding
from ml_collections import ConfigDict

from ssl_jax.data.sources import corpus_name, open_source
from ssl_jax.data.sources.source import Source
from ssl_jax.errors import UserError, check_choice
from ssl_jax.files import write_atomically
from ssl_jax.probes import TASKS, fit
from ssl_jax.probes.config import validate
from ssl_jax.probes.encoders import FrozenEncoder
from ssl_jax.probes.features import extract
from ssl_jax.probes.picture import draw
from ssl_jax.probes.tasks import Labelled, Task

SPLITS = ("train", "valid", "test")


def probe(
  config: ConfigDict,
  encoders: Sequence[FrozenEncoder],
  cache: Path,
  out: Path,
  by_row: Sharding,
) -> dict[str, Any]:
  """Probes one task with every encoder; writes TASK-PROFILE.json and .png.

  Args:
    config: of the probe.
    encoders: the model, then what it is compared with.
    cache: of features.
    out: where the results go.
    by_row: how a batch is placed on the devices.

  Returns:
    Of the first encoder: task, metric, profile, dev, test, std, learning_rate,
    seeds, updates, flops, layer_weights, grid; of the others `baselines`, the
    same by name.

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
  task, labelled = TASKS[config.task].make(config, splits)
  results = []
  for encoder in encoders:
    started = time.monotonic()
    scores = _probe_one(config, task, labelled, encoder, cache, by_row)
    scores["seconds"] = time.monotonic() - started
    scores["origin"] = encoder.origin
    results.append(scores)
    logging.getLogger("ssl_jax").info(
      "%14s  %s of %s: %s %% (dev %.2f, learning rate %g)",
      encoder.name,
      task.metric,
      task.name,
      _percent(scores),
      100 * scores["dev"],
      scores["learning_rate"],
    )
  first, *others = results
  result = {
    "task": task.name,
    "metric": task.metric,
    "profile": config.profile,
    "corpus": corpus_name(config.data),
    "clips": {split: len(x.source.ids) for split, x in labelled.items()},
    "guess": task.guess,
    "encoder": encoders[0].name,
    **first,
    "baselines": {
      encoder.name: scores for encoder, scores in zip(encoders[1:], others)
    },
    "config": json.loads(config.to_json()),
  }
  name = f"{task.name}-{config.profile}"
  if encoders[0].name != "model":
    name += "-" + re.sub(r"[:/\\]+", "-", encoders[0].name)
  write_atomically(out / f"{name}.json", json.dumps(result, indent=2))
  draw(result, out / f"{name}.png")
  return result


def short(result: dict[str, Any]) -> dict[str, Any]:
  """Returns what a person compares: no grid, no config."""
  keys = ("task", "metric", "profile", "corpus", "clips", "guess", "encoder")
  of_each = ("dev", "test", "std", "learning_rate", "seeds", "CER")
  return (
    {key: result[key] for key in keys}
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
  clips, score = result["clips"]["test"], min(0.95, max(0.05, result["test"]))
  # 95 % of the differences of two scores of equal encoders, each clip being
  # right or wrong by itself.
  noise = 1.96 * math.sqrt(2 * score * (1 - score) / clips)
  guess = result["guess"]
  return f"{result['task']}: {clips} test clips" + (
    ("" if guess is None else f", of which guessing has {100 * guess:.2f} %")
    + f"; differences below some {100 * noise:.0f} points are chance"
  )


def _percent(scores: dict[str, Any]) -> str:
  spread = "" if scores["std"] is None else f" +- {100 * scores['std']:.2f}"
  return f"{100 * scores['test']:.2f}{spread}"


def _probe_one(
  config: ConfigDict,
  task: Task,
  labelled: dict[str, Labelled],
  encoder: FrozenEncoder,
  cache: Path,
  by_row: Sharding,
) -> dict[str, Any]:
  split = {
    name: fit.Split(
      extract(encoder, x.source, config, task.pooled, cache, by_row), x.targets
    )
    for name, x in labelled.items()
  }
  fitted = fit.fit(
    config,
    task,
    task.head,
    split["train"],
    split["valid"],
    f"{task.name}, {encoder.name}",
  )
  mean = fitted.dev.mean(axis=0)  # Over seeds, [R].
  best = int(np.argmax(mean if task.higher_is_better else -mean))
  params = jax.tree.map(lambda x: x[:, best : best + 1], fitted.params)
  predicted = fit.predictions(
    task,
    fit.make_predict(task, task.head),
    params,
    split["test"],
    config.fit.batch_size,
  )
  targets = split["test"].targets
  seeds = range(config.fit.num_seeds)
  test = [task.score([x[s, 0] for x in predicted], targets) for s in seeds]
  more = [
    task.more([x[s, 0] for x in predicted], targets) if task.more else {}
    for s in seeds
  ]
  weights = jax.nn.softmax(params["head"]["weighted"]["layers"][:, 0], axis=-1)
  rates = config.fit.learning_rates
  forward = sum(
    encoder.flops(int(n))
    for x in labelled.values()
    for n in x.source.num_samples
  )
  return {
    "dev": float(mean[best]),
    "test": float(np.mean(test)),
    "std": float(np.std(test, ddof=1)) if len(test) > 1 else None,
    "tests": test,
    "learning_rate": rates[best],
    "seeds": config.fit.num_seeds,
    "updates": config.fit.updates,
    "normalized": config.features.normalize,
    "flops": {
      "features": float(forward),
      "heads": fitted.flops * fitted.dev.size,
    },
    "layer_weights": np.asarray(weights).mean(axis=0).tolist(),
    "grid": {
      f"{rate:g}": {
        "dev": fitted.dev[:, r].tolist(),
        "best_at": fitted.updates[:, r].tolist(),
      }
      for r, rate in enumerate(rates)
    },
  } | {key: float(np.mean([x[key] for x in more])) for key in more[0]}


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
