"""The learning rate: linear warm-up, then linear decay to zero (paper.md).

Between the two the rate may stay at its peak, so that runs of several budgets
share all updates but those of their decay (Hu et al. 2024, "MiniCPM").
"""

import optax
from ml_collections import ConfigDict

from ssl_jax.knobs import Knob

KNOBS = {
  "learning_rate": Knob(
    5e-4, "Learning rate at its peak: linear warm-up, linear decay.", high=1.0
  ),
  "warmup_fraction": Knob(
    0.08, "Warm-up, as a share of the updates.", high=1.0
  ),
  "warmup_updates": Knob(
    0, "Warm-up in updates; 0: by `warmup_fraction`.", high=10**12
  ),
  "decay_fraction": Knob(
    1.0,
    "Decay, as a share of the updates after the warm-up; the learning rate "
    "stays at its peak before.",
    high=1.0,
  ),
}


def warmup_updates(config: ConfigDict) -> int:
  """Returns the warm-up of the learning rate, in updates."""
  return config.optimizer.warmup_updates or round(
    config.optimizer.warmup_fraction * config.budget.updates
  )


def decay_updates(config: ConfigDict) -> int:
  """Returns the updates of the learning rate's decay, which ends the run."""
  after_warmup = config.budget.updates - warmup_updates(config)
  return round(config.optimizer.decay_fraction * after_warmup)


def make_schedule(config: ConfigDict) -> optax.Schedule:
  """Returns the learning rate of each update, counted from 0.

  Rises linearly to its peak over the warm-up, and falls linearly to 0 at
  `budget.updates` over the last `decay_updates`.
  """
  peak, warmup = config.optimizer.learning_rate, warmup_updates(config)
  decay = decay_updates(config)
  return optax.join_schedules(
    [
      optax.linear_schedule(0.0, peak, warmup),
      optax.constant_schedule(peak),
      optax.linear_schedule(peak, 0.0, decay),
    ],
    [warmup, config.budget.updates - decay],
  )
