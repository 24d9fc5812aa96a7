"""Workdirs as finished runs leave them, for what reads them."""

import json

import numpy as np

from ssl_jax import config as config_lib
from ssl_jax import tally
from ssl_jax.config import override
from ssl_jax.objectives import OBJECTIVES

SIZES = {"30": 5.9e6, "50": 9.9e6, "100": 2.0e7, "200": 4.0e7, "base": 9.47e7}


def write_run(
  workdir, size="100", flops=1e18, loss=3.0, objective="hubert", **more
):
  workdir.mkdir(parents=True)
  config = config_lib.base()
  config_lib.set_size(config, size)
  config.objective.name = objective
  override(config, more.pop("config", ()))
  saved = json.loads(config_lib.to_json(config))
  saved["made_by"] = {"command": f"main --workdir={workdir}"}
  (workdir / "config.json").write_text(json.dumps(saved))
  result = {
    "params": int(SIZES.get(size, 2e7)),
    "updates": 100,
    "flops": flops,
    "trunk_flops": 0,
    "audio_seconds": 7200.0,
    "first_valid_loss": 6.0,
    "valid_loss": loss,
    "best_valid_loss": loss,
    "alarms": [],
    "wall_seconds": 4000.0,
    "train_seconds": 3600.0,
    "seconds": {"start": 100.0, "compile": 300.0, "train": 3600.0},
    "devices": 8,
    "device_kind": "TPU v5 lite",
  }
  (workdir / "result.json").write_text(json.dumps(result | more))
  main = OBJECTIVES[objective].main
  lines = [
    {"update": 0, "split": "valid", main: 6.0, "chance": 5.0, "loss": 6.0},
    {"update": 50, "split": "valid", main: 4.0, "chance": 5.0, "loss": 4.0},
    {"update": 100, "split": "train", "flops": flops, "epoch": 2.0},
    {"update": 100, "split": "valid", main: loss, "chance": 5.0, "loss": loss},
  ]
  text = "".join(json.dumps(line) + "\n" for line in lines)
  (workdir / "metrics.jsonl").write_text(text)


def measured(workdir, gains, task="phone", units=20, identity="one"):
  """Writes what a measure says of an encoder, with a gain for each seed."""
  names = [f"s{i}" for i in range(units)]
  ease = np.random.default_rng(0).uniform(0.2, 0.6, units)
  weights, tests, draws = tally.draw_weights(names), [], []
  for seed, gain in enumerate(gains):
    noise = np.random.default_rng(round(1e4 * gain) + seed).normal(
      0, 0.01, units
    )
    hits = (ease + gain + noise)[None]
    score = tally.mean_of_ratios(hits, np.ones((1, units)))
    tests.append(float(hits.mean()))
    draws.append(score(weights).tolist())
  result = {"task": task, "metric": "accuracy", "profile": "study"}
  result |= {"encoder": "model", "corpus": "study", "clips": {"test": 40}}
  result |= {"test": float(np.mean(tests)), "tests": tests, "draws": draws}
  result |= {"std": 0.02, "higher_is_better": True, "identity": identity}
  (workdir / "probes").mkdir()
  path = workdir / "probes" / f"{task}-study.json"
  path.write_text(json.dumps(result))
