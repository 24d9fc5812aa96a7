"""Optimizers: one file each, the table of them, and the learning rate."""

from collections.abc import Callable
from typing import Any

import optax
from ml_collections import ConfigDict

from ssl_jax.knobs import Knob
from ssl_jax.optimizers import schedule
from ssl_jax.optimizers.adamw import ADAMW
from ssl_jax.optimizers.muon import MUON
from ssl_jax.optimizers.optimizer import Optimizer
from ssl_jax.optimizers.schedule import make_schedule

OPTIMIZERS: dict[str, Optimizer] = {"adamw": ADAMW, "muon": MUON}

_KNOBS = {
  "name": Knob(
    "adamw",
    "`adamw`; `muon`: orthogonal updates of the layers' kernels, AdamW for all "
    "else.",
    choices=lambda: OPTIMIZERS,
  ),
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
  """Returns clipping by the global norm, then `config.optimizer.name`."""
  optimizer = OPTIMIZERS[config.optimizer.name]
  return optax.chain(
    optax.clip_by_global_norm(config.optimizer.clip_norm),
    optimizer.make(config, make_schedule(config)),
  )


def flops(
  config: ConfigDict, abstract_params: Callable[[ConfigDict], Any]
) -> float:
  """Counts FLOPs of the optimizer in an update, beyond a few a parameter.

  Args:
    config: of the run.
    abstract_params: gives the shapes of a config's parameters, as
      `objectives.inputs.abstract_params`; called where the count needs them.
  """
  optimizer = OPTIMIZERS[config.optimizer.name]
  if optimizer.flops is None:
    return 0.0
  return optimizer.flops(config, abstract_params(config))


def knobs() -> dict[str, Knob]:
  """Returns the knobs of `config.optimizer`."""
  declared = schedule.KNOBS | _KNOBS
  for optimizer in OPTIMIZERS.values():
    for name, knob in optimizer.knobs.items():
      # Optimizers share a knob, never a name with two meanings.
      assert declared.setdefault(name, knob) == knob, name
  return declared


def check(config: ConfigDict) -> None:
  """Checks the knobs of the config's optimizer against each other.

  Raises:
    UserError: naming the knobs that do not go together.
  """
  OPTIMIZERS[config.optimizer.name].check(config)
