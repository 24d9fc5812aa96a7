"""The same seed twice: the same metrics and parameters, bit for bit."""

import json
import os
from pathlib import Path

import pytest
from tiny import SMALL, finish, reproducible, start_main

from ssl_jax.objectives import OBJECTIVES


def left(workdir: Path) -> tuple[list, dict]:
  """Metrics, and the checksums of parameters and of the optimizer's state."""
  newest = max((workdir / "checkpoints").iterdir(), key=lambda x: int(x.name))
  counters = json.loads((newest / "counters" / "metadata").read_text())
  return reproducible(workdir), counters["checksums"]


def run(workdir, objective, *args, **env):
  config = f"--config=configs/smoke.py:objective={objective}"
  args = [*SMALL[1:], "--config.budget.updates=12", *args]
  finish(start_main(workdir, config, *args, **env))
  return left(workdir)


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_same_seed_twice_is_the_same_run(tmp_path, objective):
  augmented = ["--config.augment.mix_prob=0.5", "--config.augment.speed_prob=1"]
  first = run(tmp_path / "first", objective, *augmented)
  # Other threads, workers and hash seeds, which decide who reads what when.
  second = run(
    tmp_path / "second",
    objective,
    *augmented,
    "--config.loader.num_workers=1",
    "--config.loader.num_threads=1",
    PYTHONHASHSEED="1",
    # Compiled anew, too.
    JAX_COMPILATION_CACHE_DIR=os.fspath(tmp_path / "cache"),
  )
  assert first == second
  other = run(tmp_path / "other", objective, *augmented, "--config.seed=1")
  assert other[1] != first[1]
