"""The Gumbel product quantizer of wav2vec 2.0 (Baevski et al. 2020, eq. 1)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict


class Quantized(NamedTuple):
  """The quantizer's result; G groups of V codes.

  vectors: [B, T, code_dim], the chosen codes' vectors side by side.
  codes: int32 [B, T, G], the likeliest code of each group, without noise.
  probabilities: [B, T, G, V], without noise or temperature.
  """

  vectors: jax.Array
  codes: jax.Array
  probabilities: jax.Array


class Quantizer(nn.Module):
  """x [B, T, C] -> `Quantized`, in float32.

  With keys [B] a code is drawn by Gumbel noise and gradients pass as of the
  softmax at `temperature` (straight through); with None the likeliest is taken.
  """

  config: ConfigDict  # config.wav2vec2

  @nn.compact
  def __call__(
    self, x: jax.Array, temperature: jax.Array, keys: jax.Array | None
  ) -> Quantized:
    groups, codes = self.config.num_groups, self.config.num_codes
    logits = nn.Dense(
      groups * codes,
      dtype=jnp.float32,
      kernel_init=nn.initializers.normal(1.0),
      name="logits",
    )(x)
    logits = logits.reshape(*x.shape[:2], groups, codes)  # [B, T, G, V]
    vectors = self.param(
      "vectors",
      nn.initializers.uniform(1.0),
      (groups, codes, self.config.code_dim // groups),
    )
    noisy = logits
    if keys is not None:
      shape = logits.shape[1:]
      noise = jax.vmap(lambda key: jax.random.gumbel(key, shape))(keys)
      noisy = (logits + noise) / temperature
    chosen = jax.nn.one_hot(jnp.argmax(noisy, axis=-1), codes)
    if keys is not None:
      soft = nn.softmax(noisy)
      chosen += soft - jax.lax.stop_gradient(soft)
    # As a product: a gather's gradient would be a scatter.
    taken = jnp.einsum(
      "btgv,gvd->btgd", chosen, vectors, precision=jax.lax.Precision.HIGHEST
    )
    return Quantized(
      taken.reshape(*x.shape[:2], -1),
      jnp.argmax(logits, axis=-1).astype(jnp.int32),
      nn.softmax(logits),
    )
