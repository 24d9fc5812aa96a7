"""A short measurement of the training FLOPs a second of this machine."""

import functools
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ssl_jax import SAMPLE_RATE
from ssl_jax.budget.updates import clip_flops
from ssl_jax.devices import sharding
from ssl_jax.models.backbone import compute_dtype
from ssl_jax.objectives import inputs as inputs_lib
from ssl_jax.objectives import make_objective
from ssl_jax.optimizers import make_optimizer
from ssl_jax.training import step as step_lib

_UPDATES = 4  # Timed, after one that is not.
_CPU_SECONDS = 8.0  # Audio an update: a CPU gains nothing from more.


def flops_per_second(config: ConfigDict) -> float:
  """Times the training step on noise, over all devices: a few updates' median.

  On a CPU with a small batch; reading audio is not part of it.

  Args:
    config: of a run; clips have the length of its last bucket.
  """
  seconds = config.batch.seconds
  if jax.default_backend() == "cpu":
    seconds = min(seconds, _CPU_SECONDS)
  length = round(min(config.data.bucket_seconds[-1], seconds) * SAMPLE_RATE)
  mesh = sharding.make_mesh(config.mesh)
  multiple = sharding.row_shards(mesh) * config.batch.microbatches
  rows = round(seconds * SAMPLE_RATE / length)
  rows = -(-rows // multiple) * multiple
  update = noise_step(config, mesh, rows, length)
  taken = []
  for _ in range(1 + _UPDATES):
    before = time.monotonic()
    jax.block_until_ready(update())
    taken.append(time.monotonic() - before)
  cost = rows * clip_flops(config, length).training
  return cost / statistics.median(taken[1:])


def noise_step(
  config: ConfigDict, mesh: Mesh, rows: int, length: int
) -> Callable[[], dict[str, jax.Array]]:
  """A function that starts one more update on noise, and returns its metrics.

  Args:
    config: of a run.
    mesh: where it runs.
    rows: of the batch, a multiple of what the mesh and microbatches ask for.
    length: samples of every clip.
  """
  objective = make_objective(config, compute_dtype(config))
  optimizer = make_optimizer(config)
  init = functools.partial(step_lib.init_state, objective, optimizer, config)
  placed = sharding.of_state(config, mesh, jax.eval_shape(init))
  by_row = sharding.by_row(mesh)
  step = jax.jit(
    step_lib.make_train_step(objective, optimizer, config, mesh),
    in_shardings=(placed, by_row),
    out_shardings=(placed, sharding.replicated(mesh)),
    donate_argnums=0,
  )
  rng = np.random.default_rng(0)
  made = {
    "waveform": rng.integers(-3000, 3000, (rows, length)),
    "length": np.full(rows, length),
    "draw_id": np.arange(rows),
  }
  shapes = inputs_lib.abstract_batch(config, rows, length)
  if "labels" in shapes:
    clusters = min(clusters for _, clusters in objective.stored_labels())
    made["labels"] = rng.integers(clusters, size=shapes["labels"].shape)
  batch = {name: made[name].astype(shapes[name].dtype) for name in shapes}
  batch = jax.device_put(batch, by_row)
  state = jax.jit(init, out_shardings=placed)()

  def update() -> dict[str, jax.Array]:
    nonlocal state
    state, current = step(state, batch)
    return current

  return update
