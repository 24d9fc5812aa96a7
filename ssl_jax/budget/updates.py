"""Updates that a budget buys.

A budget is stated once: as updates, as training FLOPs, or as another config
("as many FLOPs as that run"). Away from any data, cost is counted in crops of
the length that the published budgets refer to (paper.md, "FLOPs").
"""

import jax.numpy as jnp
from ml_collections import ConfigDict

from ssl_jax import SAMPLE_RATE, optimizers
from ssl_jax import config as config_lib
from ssl_jax.budget.flops import (
  REFERENCE_CROP,
  Forward,
  forward_flops,
  readable,
)
from ssl_jax.errors import UserError
from ssl_jax.objectives import make_objective
from ssl_jax.objectives.inputs import abstract_params
from ssl_jax.optimizers import schedule as schedule_lib


def clip_flops(config: ConfigDict, num_samples: int) -> Forward:
  """Counts FLOPs of one clip, all `num_samples` of which are computed."""
  objective = make_objective(config, jnp.float32)
  return forward_flops(
    config,
    num_samples,
    objective.head_flops(num_samples),
    objective.target_flops(num_samples),
  )


def update_flops(config: ConfigDict) -> float:
  """Counts training FLOPs of an update without padding.

  They are those of `batch.seconds` of reference crops, and of the optimizer.
  """
  crops = config.batch.seconds * SAMPLE_RATE / REFERENCE_CROP
  return crops * clip_flops(config, REFERENCE_CROP).training + optimizers.flops(
    config, abstract_params
  )


def run_flops(config: ConfigDict) -> float:
  """Counts training FLOPs of a whole run, its budget stated in any way."""
  if config.budget.flops:
    return config.budget.flops
  if config.budget.match:
    return run_flops(config_lib.load(config.budget.match))
  return config.budget.updates * update_flops(config)


def matched(config: ConfigDict, other: ConfigDict) -> int:
  """Returns the updates of `config` that cost as much as `other`'s run."""
  return round(run_flops(other) / update_flops(config))


def match(config: ConfigDict) -> ConfigDict:
  """Returns the config with batch and updates of the run that it matches.

  It takes over `batch.seconds`: of runs of equal FLOPs, only those of one batch
  see the same audio an update.
  """
  config = config.copy_and_resolve_references()
  if config.budget.match:
    other = config_lib.load(config.budget.match)
    config.batch.seconds = other.batch.seconds
    config.budget.updates = matched(config, other)
  return config


def resolve(
  config: ConfigDict, mean_update_flops: float | None = None
) -> ConfigDict:
  """Returns the config with `budget.updates`, however its budget is stated.

  Args:
    config: of the run.
    mean_update_flops: of the run on its data, padding included, to divide
      `budget.flops` by; None: `update_flops`.

  Raises:
    UserError: the budget buys no more updates than the warm-up takes.
  """
  config = match(config)
  budget = config.budget
  cost = mean_update_flops or update_flops(config)
  if budget.flops:
    budget.updates = int(budget.flops / cost)
  warmup = schedule_lib.warmup_updates(config)
  if budget.updates < 1 or warmup >= budget.updates > 1:
    stated = next(k for k in ("match", "flops", "updates") if budget[k])
    raise UserError(
      f"config.budget.{stated}={budget[stated]} buys {budget.updates:,} "
      f"updates of {readable(cost)}FLOP, of which {warmup:,} warm up: raise "
      "it, take a smaller model or batch, or lower "
      "config.optimizer.warmup_updates"
    )
  return config
