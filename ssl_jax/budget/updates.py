"""Updates that a budget buys.

A budget is stated once: as updates, as training FLOPs, or as another config
("as many FLOPs as that run"). Away from any data, cost is counted in crops of
the length that the published budgets refer to (paper.md, "FLOPs").
"""

from pathlib import Path

import jax.numpy as jnp
from ml_collections import ConfigDict

from ssl_jax import FRAME_HOP, SAMPLE_RATE, optimizers
from ssl_jax import config as config_lib
from ssl_jax.budget.flops import (
  REFERENCE_CROP,
  Forward,
  forward_flops,
  readable,
)
from ssl_jax.errors import UserError
from ssl_jax.models.backbone import Backbone
from ssl_jax.objectives import make_objective
from ssl_jax.objectives.inputs import abstract_params
from ssl_jax.optimizers import schedule as schedule_lib

FIRST_STAGE = "first"  # Folder of a first stage, in the run's workdir.


def is_first_stage(workdir: Path) -> bool:
  """Tells whether a folder is a stage of the run above it."""
  in_run = (workdir.parent / "config.json").exists()
  return workdir.name == FIRST_STAGE and in_run


def clip_flops(config: ConfigDict, num_samples: int) -> Forward:
  """Counts FLOPs of one clip, all `num_samples` of which are computed."""
  objective = make_objective(config, jnp.float32)
  return forward_flops(
    config,
    num_samples,
    objective.head_flops(num_samples),
    objective.target_flops(num_samples),
    masked=True,
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


def first_stage(config: ConfigDict) -> ConfigDict | None:
  """Returns the config of the run that labels come from, with its budget.

  None: labels do not come from a stage of this run.
  """
  stage = make_objective(config).first_stage()
  if not stage:
    return None
  budget = {"updates": 0, "match": "", "trunk": ""}
  stage.config.budget.update(budget, flops=stage.share * config.budget.flops)
  return stage.config


def labelling_flops(config: ConfigDict, num_samples: int) -> int:
  """Counts what a first stage's labels take, up to the layer that is clustered.

  For each label set its encoder passes over all audio, and over the sample that
  the codebook is fitted on. k-means itself is left out, as it is for MFCC.

  Args:
    config: of the run.
    num_samples: of all its audio.
  """
  stage = make_objective(config).first_stage()
  if not stage:
    return 0
  stage.config.encoder.num_layers = stage.layer
  crop = sum(Backbone(stage.config).flops(REFERENCE_CROP).values())
  heard = num_samples + min(num_samples, config.kmeans.num_frames * FRAME_HOP)
  return round(len(stage.makes) * heard / REFERENCE_CROP * crop)


def before_flops(config: ConfigDict, num_samples: int) -> float:
  """Counts what a run spends before its own first update."""
  if not (first := first_stage(config)):
    return 0.0
  return first.budget.flops + labelling_flops(config, num_samples)


def check_first_stage(config: ConfigDict, mean_update_flops: float) -> None:
  """Checks that a first stage's share is enough for a run.

  Args:
    config: of the run.
    mean_update_flops: of the run, nearly the first stage's.

  Raises:
    UserError: it is not.
  """
  if first := first_stage(config):
    try:
      resolve(first, mean_update_flops)
    except UserError as error:
      share = make_objective(config).first_stage().share
      raise UserError(
        f"the first stage, {share:.0%} of the budget: {error}"
      ) from error


def resolve(
  config: ConfigDict,
  mean_update_flops: float | None = None,
  num_samples: int = 0,
) -> ConfigDict:
  """Returns the config with `budget.updates`, however its budget is stated.

  Args:
    config: of the run.
    mean_update_flops: of the run on its data, padding included, to divide
      `budget.flops` by; None: `update_flops`.
    num_samples: of the audio that a first stage labels, if there is one.

  Raises:
    UserError: the budget buys no more updates than the warm-up takes.
  """
  config = match(config)
  budget = config.budget
  cost = mean_update_flops or update_flops(config)
  before = before_flops(config, num_samples)
  if budget.flops:
    budget.updates = max(0, int((budget.flops - before) / cost))
  elif first_stage(config):
    raise UserError(
      "labels of a first stage (config.hubert.labels=self) need a budget to "
      "share: give config.budget.flops"
    )
  warmup = schedule_lib.warmup_updates(config)
  if budget.updates < 1 or warmup >= budget.updates > 1:
    stated = next(k for k in ("match", "flops", "updates") if budget[k])
    labels = f", {readable(before)}FLOP of it for labels," if before else ""
    raise UserError(
      f"config.budget.{stated}={budget[stated]}{labels} buys "
      f"{budget.updates:,} updates of {readable(cost)}FLOP, of which "
      f"{warmup:,} warm up: raise it, take a smaller model or batch, or lower "
      "config.optimizer.warmup_updates"
    )
  return config
