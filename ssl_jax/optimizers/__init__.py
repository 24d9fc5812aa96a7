"""Optimizers: one file each, the table of them, and the learning rate."""

import optax
from ml_collections import ConfigDict

from ssl_jax.knobs import Knob
from ssl_jax.optimizers import schedule
from ssl_jax.optimizers.schedule import make_schedule

_KNOBS = {
  "b1": Knob(0.9, "Decay of the mean of gradients, an update.", high=0.9999999),
  "b2": Knob(
    0.98, "Decay of the mean of their squares, an update.", high=0.9999999
  ),
  "eps": Knob(1e-6, "Added to the root of that mean.", low=1e-20, high=1.0),
  "weight_decay": Knob(0.01, "Decay of parameters, times the learning rate."),
  "clip_norm": Knob(
    10.0, "Largest norm of the gradient of all parameters.", low=1e-6
  ),
  "max_skipped_updates": Knob(
    10,
    "Updates in a row that are skipped because their loss or gradient is not "
    "finite; one more ends the run.",
    role="logging",
  ),
}


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
  """Returns clipping by the global norm, then AdamW on every parameter."""
  optimizer = config.optimizer
  return optax.chain(
    optax.clip_by_global_norm(optimizer.clip_norm),
    optax.adamw(
      make_schedule(config),
      b1=optimizer.b1,
      b2=optimizer.b2,
      eps=optimizer.eps,
      weight_decay=optimizer.weight_decay,
    ),
  )


def knobs() -> dict[str, Knob]:
  """Returns the knobs of `config.optimizer`."""
  return schedule.KNOBS | _KNOBS


def check(config: ConfigDict) -> None:
  """Checks the knobs of `config.optimizer` against each other."""
  del config
