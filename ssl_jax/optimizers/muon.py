"""Muon on the kernels of the encoder's layers, AdamW on all else.

The momentum of each kernel is replaced by the nearest orthogonal matrix, nearly
(Jordan et al. 2024, https://kellerjordan.github.io/posts/muon), and scaled to
the root mean square that AdamW's updates have (Liu et al. 2025, arXiv
2502.16982), so that both take one learning rate.
"""

from typing import Any

import jax
import optax
from ml_collections import ConfigDict
from optax.contrib import MuonDimensionNumbers

from ssl_jax.errors import UserError
from ssl_jax.knobs import Knob
from ssl_jax.optimizers import adamw
from ssl_jax.optimizers.optimizer import Optimizer

KNOBS = adamw.KNOBS | {
  "muon_beta": Knob(
    0.95, "Decay of a kernel's Nesterov momentum, an update.", high=0.9999999
  ),
  "muon_ns_steps": Knob(
    5, "Newton-Schulz steps, which make it orthogonal.", low=1, high=100
  ),
  "muon_rms": Knob(
    0.2,
    "Root mean square of a kernel's update, times the learning rate.",
    low=1e-6,
    high=1e3,
  ),
  "muon_weight_decay": Knob(
    0.05,
    "Decay of kernels, times the learning rate; `weight_decay`: of all else.",
  ),
}


def make(
  config: ConfigDict, schedule: optax.Schedule
) -> optax.GradientTransformation:
  """Returns Muon and AdamW, each on its parameters."""
  optimizer = config.optimizer
  muon = optax.contrib.muon(
    schedule,
    ns_steps=optimizer.muon_ns_steps,
    beta=optimizer.muon_beta,
    weight_decay=optimizer.muon_weight_decay,
    consistent_rms=optimizer.muon_rms,
    # A kernel is [L, in, out]: a matrix a layer.
    muon_weight_dimension_numbers=lambda kernels: jax.tree.map(
      lambda _: MuonDimensionNumbers(1, 2), kernels
    ),
  )
  # AdamW stands beside it: the one inside Muon has Nesterov momentum as well.
  return optax.partition(
    {"muon": muon, "adamw": adamw.make(config, schedule)}, assign
  )


def assign(params: Any) -> Any:
  """Returns the optimizer of each parameter, "muon" or "adamw".

  Raises:
    UserError: there is no kernel for Muon.
  """
  tree = jax.tree_util.tree_map_with_path(
    lambda path, x: "muon" if _is_kernel(path, x) else "adamw", params
  )
  if "muon" not in jax.tree.leaves(tree):
    raise UserError(
      "config.optimizer.name='muon': this encoder has no stacked kernels "
      "(layers/.../kernel, [L, in, out]); take 'adamw'"
    )
  return tree


def flops(config: ConfigDict, params: Any) -> float:
  """Counts the Newton-Schulz steps of an update: 4 m^2 n + 2 m^3 FLOPs each.

  m is a kernel's shorter side and n its longer: X X^T, its square, and the
  product of a polynomial of them with X.
  """
  total = 0
  for path, kernel in jax.tree_util.tree_leaves_with_path(params):
    if _is_kernel(path, kernel):
      layers, *sides = kernel.shape
      m, n = sorted(sides)
      total += layers * (4 * m**2 * n + 2 * m**3)
  return float(config.optimizer.muon_ns_steps * total)


def _is_kernel(path: tuple, x: Any) -> bool:
  """Tells a linear map's kernels, stacked [L, in, out], from all else."""
  names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
  return x.ndim == 3 and "layers" in names and names[-1] == "kernel"


MUON = Optimizer(make, KNOBS, flops)
