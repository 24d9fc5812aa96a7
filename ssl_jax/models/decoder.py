"""The decoder of an encoder that sees visible frames only.

That of data2vec 2.0 (Baevski et al. 2022, arXiv 2212.07525, section 3.3): the
masked frames come back as one vector, and a few convolutions over time carry
what their neighbours know to them. It is dropped after pretraining.

Axes: B clips, T frames, V visible frames of them, D width.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from ssl_jax.models import placement
from ssl_jax.models.encoders.positions import grouped_conv
from ssl_jax.models.gelu import gelu
from ssl_jax.models.linear import torch_linear_init

_LAYERS, _TAPS = 4, 7
_EPSILON = 1e-5


class Decoder(nn.Module):
  """Visible frames -> projection -> places among all frames -> convolutions.

  A layer is x + GELU(norm(conv(x))); its norm has no parameters.
  """

  config: ConfigDict  # config.encoder
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self, x: jax.Array, seen: jax.Array, frames: jax.Array
  ) -> jax.Array:
    """Fills in all frames.

    Args:
      x: [B, V, D], the encoder's last state of the visible frames, in order.
      seen: bool [B, T], which frames those are.
      frames: bool [B, T], True on real frames.

    Returns:
      [B, T, D].
    """
    width = x.shape[-1]
    x = nn.Dense(
      width,
      dtype=self.dtype,
      kernel_init=torch_linear_init,
      name="projection",
    )(x)
    vector = self.param("mask_vector", nn.initializers.uniform(1.0), (width,))
    # Each frame's row among the visible: those before it are as many.
    row = jnp.clip(jnp.cumsum(seen, axis=1) - 1, 0, x.shape[1] - 1)
    x = jnp.take_along_axis(x, row[..., None], axis=1)
    x = jnp.where(seen[..., None], x, vector.astype(x.dtype))
    # As wide as the convolution for positions, in one or more channels.
    channels = width // self.config.position_groups
    std = (1 / (_TAPS * channels)) ** 0.5
    spread = placement.current().spread
    for i in range(_LAYERS):
      x = jnp.where(frames[..., None], x, 0)
      kernel = self.param(
        f"kernel_{i}", nn.initializers.normal(std), (_TAPS, channels, width)
      )
      bias = self.param(f"bias_{i}", nn.initializers.zeros, (width,))
      y = grouped_conv(spread(x), kernel.astype(self.dtype))
      x = x + spread(gelu(_norm(y + bias.astype(self.dtype))))
    return x

  def flops(self, frames: int, visible: int) -> int:
    """Counts a clip's forward pass, a multiply-add as 2."""
    width = self.config.hidden_size
    channels = width // self.config.position_groups
    convs = 2 * frames * _LAYERS * _TAPS * channels * width
    return 2 * visible * width**2 + convs


def _norm(x: jax.Array) -> jax.Array:
  """Layer norm without parameters, in float32."""
  y = x.astype(jnp.float32)
  mean = y.mean(axis=-1, keepdims=True)
  variance = y.var(axis=-1, keepdims=True)
  return ((y - mean) * jax.lax.rsqrt(variance + _EPSILON)).astype(x.dtype)
