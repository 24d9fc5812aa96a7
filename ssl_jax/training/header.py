"""The header of a run: what it is and will cost, before it starts."""

from typing import Any

import jax
from ml_collections import ConfigDict

from ssl_jax import SAMPLE_RATE
from ssl_jax.budget.flops import readable
from ssl_jax.data.batch_plan import BatchPlan
from ssl_jax.data.sources import corpus_name
from ssl_jax.optimizers import make_schedule
from ssl_jax.optimizers.schedule import warmup_updates
from ssl_jax.text import two_columns

# The study's 100 h at Slim's budget are repeated so often, and were worse than
# its 960 h (paper.md, "Data size").
_MOST_EPOCHS = 100


def facts(
  config: ConfigDict,
  plan: BatchPlan,
  params: int,
  mean_update_flops: float,
  before_flops: float = 0.0,
) -> dict[str, Any]:
  """Returns everything that the header states, as numbers.

  Args:
    config: of the run.
    plan: of the training data.
    params: of the model and its objective.
    mean_update_flops: padding included, on average over the buckets.
    before_flops: of a first stage, and of labelling by its encoder.
  """
  updates = config.budget.updates
  schedule = make_schedule(config)
  return {
    "params": params,
    "updates": updates,
    "warmup_updates": warmup_updates(config),
    "seconds_per_update": plan.seconds_per_update,
    "epochs": updates / plan.updates_per_epoch,
    "hours": plan.hours,
    "fill": plan.fill,
    "shapes": plan.shapes,
    "padded_flops_per_update": mean_update_flops,
    "before_flops": before_flops,
    "flops": before_flops + mean_update_flops * updates,
    "learning_rate": {
      f"{percent}%": float(schedule(percent * updates // 100))
      for percent in (0, 25, 50, 100)
    },
    "devices": jax.device_count(),
    "device_kind": jax.devices()[0].device_kind,
  }


def text(header: dict[str, Any], config: ConfigDict) -> str:
  """Returns the header as a person reads it."""
  rates = "  ".join(f"{p}: {r:.2g}" for p, r in header["learning_rate"].items())
  shapes = ", ".join(
    f"{rows} x {s / SAMPLE_RATE:g} s" for rows, s in header["shapes"]
  )
  rows = {
    "model": f"{config.objective.name}, {config.frontend.name} frontend, "
    f"{config.encoder.num_layers} x {config.encoder.hidden_size}, "
    f"{readable(header['params'])} parameters",
    "data": f"{corpus_name(config.data)} corpus, {header['hours']:.3g} h",
    "batch": f"{header['seconds_per_update']:.4g} s of audio an update "
    f"({header['fill']:.0%} of the padded {shapes})",
    "length": f"{header['updates']:,} updates, {header['epochs']:.4g} epochs",
    "cost": f"{readable(header['flops'])}FLOP, "
    f"{readable(header['padded_flops_per_update'])}FLOP an update",
    "first": f"{readable(header['before_flops'])}FLOP of it before these "
    "updates, for an encoder that makes the labels",
    "learning rate": f"{rates}  (warm-up {header['warmup_updates']:,} updates)",
    "devices": f"{header['devices']} x {header['device_kind']}",
  }
  if not header["before_flops"]:
    del rows["first"]
  if header["epochs"] > _MOST_EPOCHS:
    rows["beware"] = (
      f"{header['epochs']:,.0f} epochs: so often, the same audio teaches little"
      "; lower --config.budget.updates, or give more"
    )
  return two_columns(rows)
