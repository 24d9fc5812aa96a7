"""Attention over a clip's real frames.

Axes: B clips, T frames, H heads, D width of a head.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from ssl_jax.models import target
from ssl_jax.models.dropout import hash_bits, is_kept, row_and_column_bits


class Attention(nn.Module):
  """softmax(query key / sqrt(D)) value, with dropout of the softmax.

  Called as `plain`, without its rate. A module without parameters, so that it
  can be placed on a mesh of devices by its name.
  """

  rate: float

  def __call__(
    self,
    packed: jax.Array,
    frames: jax.Array,
    words: jax.Array,
    heads: jax.Array,
  ) -> jax.Array:
    arguments = packed, frames, words, heads, self.rate
    match target.kernels():
      case "gpu":
        from ssl_jax.models.kernels import attention_gpu

        return attention_gpu.attention(*arguments)
      case "tpu":
        from ssl_jax.models.kernels import attention_tpu

        if packed.shape[1] <= attention_tpu.MAX_FRAMES:
          return attention_tpu.attention(*arguments)
    return plain(*arguments)


def plain(
  packed: jax.Array,
  frames: jax.Array,
  words: jax.Array,
  heads: jax.Array,
  rate: float,
) -> jax.Array:
  """Attention as XLA has it.

  Args:
    packed: [B, T, 3, H, D], queries, keys and values.
    frames: int32 [B], of each clip that are real: others are not looked at.
    words: uint32 [B, 2], of the clips' dropout keys.
    heads: int32 [H], which heads of the layer these are.
    rate: of the dropout.

  Returns:
    [B, T, H, D].
  """
  time, width = packed.shape[1], packed.shape[-1]
  query, key, value = jnp.moveaxis(packed, 2, 0)
  logits = jnp.einsum("bthd,bshd->bhts", query * width**-0.5, key)
  real = (jnp.arange(time) < frames[:, None])[:, None, None]
  # A finite floor: rows without a real frame must not become NaN.
  logits = jnp.where(real, logits.astype(jnp.float32), -1e9)
  weights = nn.softmax(logits).astype(packed.dtype)
  if rate:
    rows, columns = weight_bits(words, heads, time)
    kept = is_kept(rows[..., None], columns[:, None, None], rate)
    weights = jnp.where(kept, weights * (1 / (1 - rate)), 0)
  return jnp.einsum("bhts,bshd->bthd", weights, value)


def weight_bits(
  words: jax.Array, heads: jax.Array, time: int
) -> tuple[jax.Array, jax.Array]:
  """Bits of the weights' rows [B, H, T] and columns [B, T], for `is_kept`."""
  # Heads follow each other.
  index = (heads[:, None] * time + jnp.arange(time)).astype(jnp.uint32)
  rows = hash_bits(index, *words.T[..., None, None])
  return rows, row_and_column_bits(words, 0, time)[1]
