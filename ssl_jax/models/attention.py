"""Attention over a clip's real frames.

Axes: B clips, T frames, H heads, D width of a head.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from ssl_jax.models import placement
from ssl_jax.models.dropout import is_kept, kernel_dropout, weight_bits


def attention(
  packed: jax.Array, frames: jax.Array, words: jax.Array | None, rate: float
) -> jax.Array:
  """softmax(query key / sqrt(D)) value, with dropout of the softmax.

  Args:
    packed: [B, T, 3, H, D], queries, keys and values.
    frames: int32 [B], the real frames of each clip: others are not looked at.
    words: uint32 [B, 2], of the clips' dropout keys; None for no dropout.
    rate: share of the weights that is dropped.

  Returns:
    [B, T, H, D].
  """
  words, rate = kernel_dropout(words, rate, packed.shape[0])
  heads = jnp.arange(packed.shape[3])
  place = placement.current()
  # Kernels are imported where they run: elsewhere Pallas is 0.2 s of imports.
  match place.kernels:
    case "gpu":
      from ssl_jax.models.kernels import attention_gpu as kernels

      own = ()
    case "tpu":
      from ssl_jax.models.kernels import attention_tpu as kernels

      if not kernels.fits(packed, place.vmem):
        return plain(packed, frames, words, heads, rate)
      own = (place.vmem,)
    case _:
      return plain(packed, frames, words, heads, rate)
  return place.kernel(
    lambda *arrays: kernels.attention(*arrays, rate, *own),
    *(packed, frames, words, heads),
    axes=(("rows", None, None, "heads"), ("rows",), ("rows",), ("heads",)),
    out=("rows", None, "heads"),
  )


def plain(
  packed: jax.Array,
  frames: jax.Array,
  words: jax.Array,
  heads: jax.Array,
  rate: float,
) -> jax.Array:
  """Attention as XLA has it; kernels compute the same.

  Args:
    packed: as `attention` takes it.
    frames: as `attention` takes it.
    words: uint32 [B, 2].
    heads: int32 [H], which heads of the layer these are.
    rate: as `attention` takes it.

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
