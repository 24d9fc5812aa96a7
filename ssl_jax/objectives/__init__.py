"""One file an objective: its targets, head, loss terms and their weights.

Each file has a class `Objective(config, dtype)`, a Linen module with

  targets(waveform [B, S], length [B]) -> any pytree of [B, T, ...]: computed
    once a clip, without parameters or gradients;
  counts(mask [B, T], frame_mask [B, T]) -> {term: count}, over the clips given;
  __call__(inputs, key) -> {term: total}, with the same keys: sums over clips,
    so that totals of parts of a batch add up, and one division by the counts of
    the whole batch makes the mean whatever the split;
  weights: {term: factor in the loss}; terms without a factor are only reported;
  head_size and target_flops(num_samples), for the FLOP counter.

`inputs` holds waveform, length, rows, mask, frame_mask and targets.
"""

import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from ssl_jax.objectives import tera

OBJECTIVES = {"tera": tera.Objective}


def make_objective(config: ConfigDict, dtype: jnp.dtype) -> nn.Module:
  """The objective `config.objective.name`, with the backbone inside."""
  return OBJECTIVES[config.objective.name](config, dtype)
