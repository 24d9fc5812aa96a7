"""LayerNorm, keeping only its inputs for the backward pass.

Axes: B clips, T frames, D width.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from ssl_jax.models import target
from ssl_jax.models.dropout import dropout

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


class AddNorm(nn.Module):
  """layer_norm(x + dropout(y + y_bias)). [B, T, D] -> [B, T, D].

  A module without parameters, so that it can be placed on a mesh of devices by
  its name.

  Args of a call:
    x: [B, T, D].
    y: [B, T, D].
    y_bias: [D].
    scale: [D], of the norm.
    bias: [D], of the norm.
    words: uint32 [B, 2], of the clips' dropout keys.
  """

  rate: float
  site: int

  def __call__(
    self,
    x: jax.Array,
    y: jax.Array,
    y_bias: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    words: jax.Array,
  ) -> jax.Array:
    if target.kernels() == "gpu":
      from ssl_jax.models.kernels import norm_gpu

      return norm_gpu.add_norm(
        x, y, y_bias, scale, bias, words, self.rate, self.site
      )
    y = dropout(y + y_bias.astype(y.dtype), self.rate, words, self.site)
    return layer_norm(x + y, scale, bias)


# Outside of a larger program, one program instead of one an operation.
_jit = functools.partial(jax.jit, inline=True)


@jax.custom_vjp
@_jit
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
  """LayerNorm over channels in float32, as torch's. [..., D] -> [..., D]."""
  normed, _ = normalize(x.astype(jnp.float32))
  return (normed * scale + bias).astype(x.dtype)


def normalize(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Of mean 0 and variance 1 over channels, and what x was multiplied by."""
  x -= x.mean(axis=-1, keepdims=True)
  gain = jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + EPSILON)
  return x * gain, gain


def normalize_gradient(
  normed: jax.Array, gain: jax.Array, d_normed: jax.Array
) -> jax.Array:
  """What the gradient of `normalize`'s result is to its input."""
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
