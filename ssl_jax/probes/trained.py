"""Tasks whose head is trained: probed with one encoder, or several seeds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding
from ml_collections import ConfigDict

from ssl_jax.probes import fit
from ssl_jax.probes.encoders import FrozenEncoder
from ssl_jax.probes.features import extract
from ssl_jax.probes.tasks import Labelled, Task


def score(
  config: ConfigDict,
  task: Task,
  labelled: dict[str, Labelled],
  seeds: Sequence[FrozenEncoder],
  cache: Path,
  by_row: Sharding,
) -> dict[str, Any]:
  """Trains heads on an encoder, or on each of its pretraining seeds.

  Returns:
    Of one seed all that `_probe_one` says; of several the means of their
    scores, with `tests` and `std` over all of their heads.
  """
  found = [
    _probe_one(config, task, labelled, encoder, cache, by_row)
    for encoder in seeds
  ]
  first = found[0]
  tests = [test for one in found for test in one["tests"]]
  scores = {
    "dev": float(np.mean([one["dev"] for one in found])),
    "test": float(np.mean(tests)),
    "std": float(np.std(tests, ddof=1)) if len(tests) > 1 else None,
    "tests": tests,
    "seeds": len(tests),
  }
  more = {
    key: float(np.mean([one["more"][key] for one in found]))
    for key in first["more"]
  }
  del first["more"]
  return first | scores | more


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
    "more": {key: float(np.mean([x[key] for x in more])) for key in more[0]},
  }
