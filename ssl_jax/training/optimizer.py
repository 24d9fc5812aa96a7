"""AdamW with linear warm-up and linear decay to zero (paper.md, "Training")."""

import optax
from ml_collections import ConfigDict

from ssl_jax.config import warmup_updates


def make_schedule(config: ConfigDict) -> optax.Schedule:
  """Learning rate of each update, counted from 0.

  Rises linearly to its peak over the warm-up, then falls linearly to 0 at
  `budget.updates`.
  """
  peak, warmup = config.optimizer.learning_rate, warmup_updates(config)
  return optax.join_schedules(
    [
      optax.linear_schedule(0.0, peak, warmup),
      optax.linear_schedule(peak, 0.0, config.budget.updates - warmup),
    ],
    [warmup],
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
