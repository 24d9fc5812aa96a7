"""An optimizer, as the table `OPTIMIZERS` holds it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import optax
from ml_collections import ConfigDict

from ssl_jax.knobs import Knob


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """Turns gradients, clipped before, into what is added to parameters.

  Attributes:
    make: of a run's config and its learning rate. State that ends in the path
      of a parameter, as moments do, is placed on devices as the parameter is.
    knobs: those of `config.optimizer` that it reads. One that another optimizer
      reads as well is the same declaration.
    flops: of an update beyond a few operations a parameter, a multiply-add as
      2; takes the config, and shapes of the parameters. None: there are none.
    check: knobs against each other; raises UserError.
  """

  make: Callable[[ConfigDict, optax.Schedule], optax.GradientTransformation]
  knobs: Mapping[str, Knob]
  flops: Callable[[ConfigDict, Any], float] | None = None
  check: Callable[[ConfigDict], None] = lambda config: None
