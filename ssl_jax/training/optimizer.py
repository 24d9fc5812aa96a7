"""AdamW with linear warm-up and linear decay to zero (paper.md, "Training").

Between the two the rate may stay at its peak, so that runs of several budgets
share all updates but those of their decay (Hu et al. 2024, "MiniCPM").
"""

import optax
from ml_collections import ConfigDict

from ssl_jax.config import decay_updates, warmup_updates


def make_schedule(config: ConfigDict) -> optax.Schedule:
  """Learning rate of each update, counted from 0.

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


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
  """Clip by global norm, then AdamW on every parameter."""
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
