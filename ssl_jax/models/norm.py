"""Norms over channels, and over a clip's real samples or frames.

LayerNorm keeps only its inputs for the backward pass.

Axes: B clips, S samples, T frames, C channels, D width.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from ssl_jax.models import placement, whole_clip
from ssl_jax.models.dropout import dropout, kernel_dropout

EPSILON = 1e-5


class Norm(nn.Module):
  """The parameters of a norm over channels: (scale, bias), two of [D]."""

  channels: int

  @nn.compact
  def __call__(self) -> tuple[jax.Array, jax.Array]:
    shape = (self.channels,)
    return (
      self.param("scale", nn.initializers.ones, shape),
      self.param("bias", nn.initializers.zeros, shape),
    )


def add_norm(
  x: jax.Array,
  y: jax.Array,
  y_bias: jax.Array,
  scale: jax.Array,
  bias: jax.Array,
  words: jax.Array | None,
  rate: float,
  site: int,
) -> jax.Array:
  """layer_norm(x + dropout(y + y_bias)).

  Args:
    x: [B, T, D].
    y: [B, T, D].
    y_bias: [D].
    scale: [D], of the norm.
    bias: [D], of the norm.
    words: uint32 [B, 2], of the clips' dropout keys; None for no dropout.
    rate: share of y that is dropped.
    site: which use of the keys this is.

  Returns:
    [B, T, D].
  """
  place = placement.current()
  if place.kernels == "gpu":
    # Imported where it runs: elsewhere Pallas is 0.2 s of imports.
    from ssl_jax.models.kernels import norm_gpu

    words, rate = kernel_dropout(words, rate, x.shape[0])
    return place.kernel(
      lambda *arrays: norm_gpu.add_norm(*arrays, rate, site, EPSILON),
      *(x, y, y_bias, scale, bias, words),
      axes=(("rows",), ("rows",), (), (), (), ("rows",)),
      out=("rows",),
    )
  y = dropout(y + y_bias.astype(y.dtype), rate, words, site)
  return layer_norm(x + y, scale, bias)


def clip_moments(x: jax.Array, real: jax.Array, hop: int) -> whole_clip.Moments:
  """Mean and variance over a clip's real positions, each [B, 1, C].

  Args:
    x: [B, N, C].
    real: bool [B, N].
    hop: samples between positions.
  """
  axes = tuple(range(1, x.ndim - 1))
  real = whole_clip.counted(real, hop)[..., None]
  count = jnp.maximum(1, real.sum(axis=axes, keepdims=True))
  mean = jnp.where(real, x, 0).sum(axis=axes, keepdims=True) / count
  # A sum of many float32 is some 1e-4 off; that of what is left of them is not.
  rest = jnp.where(real, x - mean, 0).sum(axis=axes, keepdims=True)
  mean += rest / count
  squares = jnp.where(real, jnp.square(x - mean), 0)
  variance = squares.sum(axis=axes, keepdims=True) / count
  own = whole_clip.Moments(mean, variance)
  return whole_clip.settle(real.sum(axis=(1, 2)), own)


def normalize_clip(x: jax.Array, real: jax.Array, hop: int) -> jax.Array:
  """Gives each channel of a clip mean 0 and variance 1 over real positions.

  Args:
    x: [B, N, C].
    real: bool [B, N].
    hop: samples between positions.

  Returns:
    [B, N, C].
  """
  mean, variance = clip_moments(x, real, hop)
  return (x - mean) * jax.lax.rsqrt(variance + EPSILON)


def normalize_waveform(waveform: jax.Array, length: jax.Array) -> jax.Array:
  """Gives each clip's real samples mean 0 and variance 1. [B, S] -> [B, S]."""
  x = waveform[..., None]
  real = jnp.arange(waveform.shape[1]) < length[:, None]
  mean, variance = clip_moments(x, real, hop=1)
  return jnp.where(
    real, ((x - mean) * jax.lax.rsqrt(variance + 1e-7))[..., 0], 0
  )


# Outside of a larger program, one program instead of one an operation.
_jit = functools.partial(jax.jit, inline=True)


@jax.custom_vjp
@_jit
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
  """LayerNorm over channels in float32, as torch's. [..., D] -> [..., D]."""
  normed, _ = normalize(x.astype(jnp.float32))
  return (normed * scale + bias).astype(x.dtype)


def normalize(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns x with mean 0 and variance 1 over channels, and the gain of it."""
  x -= x.mean(axis=-1, keepdims=True)
  gain = jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + EPSILON)
  return x * gain, gain


def normalize_gradient(
  normed: jax.Array, gain: jax.Array, d_normed: jax.Array
) -> jax.Array:
  """Takes the gradient of `normalize`'s result to that of its input."""
  along = (d_normed * normed).mean(axis=-1, keepdims=True)
  mean = d_normed.mean(axis=-1, keepdims=True)
  return gain * (d_normed - mean - normed * along)


def _forward(
  x: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[jax.Array, tuple]:
  return layer_norm(x, scale, bias), (x, scale)


@_jit
def _backward(saved: tuple, dy: jax.Array) -> tuple:
  x, scale = saved
  normed, gain = normalize(x.astype(jnp.float32))
  dy = dy.astype(jnp.float32)
  dx = normalize_gradient(normed, gain, dy * scale)
  rows = tuple(range(dy.ndim - 1))
  return dx.astype(x.dtype), (dy * normed).sum(rows), dy.sum(rows)


layer_norm.defvjp(_forward, _backward)
