"""AdamW on every parameter (Loshchilov and Hutter 2019, arXiv 1711.05101)."""

import optax
from ml_collections import ConfigDict

from ssl_jax.knobs import Knob
from ssl_jax.optimizers.optimizer import Optimizer

KNOBS = {
  "b1": Knob(0.9, "Decay of the mean of gradients, an update.", high=0.9999999),
  "b2": Knob(
    0.98, "Decay of the mean of their squares, an update.", high=0.9999999
  ),
  "eps": Knob(1e-6, "Added to the root of that mean.", low=1e-20, high=1.0),
  "weight_decay": Knob(0.01, "Decay of parameters, times the learning rate."),
}


def make(
  config: ConfigDict, schedule: optax.Schedule
) -> optax.GradientTransformation:
  """Returns AdamW with the config's knobs."""
  optimizer = config.optimizer
  return optax.adamw(
    schedule,
    b1=optimizer.b1,
    b2=optimizer.b2,
    eps=optimizer.eps,
    weight_decay=optimizer.weight_decay,
  )


ADAMW = Optimizer(make, KNOBS)
