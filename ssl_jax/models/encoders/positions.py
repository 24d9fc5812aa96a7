"""Positions of frames: a convolution over time, added to its input.

Axes: B clips, T frames, D width, K taps.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from ssl_jax.errors import UserError
from ssl_jax.knobs import Knob
from ssl_jax.models import placement
from ssl_jax.models.gelu import gelu

_BLOCK = 8  # Frames of a block of the convolution's matrix products.

KNOBS = {
  "position_kernel": Knob(
    128,
    "Frames that the convolution for positions sees.",
    role="architecture",
    low=1,
    high=10_000,
  ),
  "position_groups": Knob(
    16,
    "Groups of channels of that convolution.",
    role="architecture",
    low=1,
    high=10_000,
  ),
}


class Positions(nn.Module):
  """x -> grouped convolution over time with weight norm -> GELU.

  [B, T, D] -> [B, T, D]. The kernel is `scale * direction / |direction|`, with
  the norm over all but the kernel's time axis. An even kernel makes one frame
  too many: the last is dropped.
  """

  config: ConfigDict  # config.encoder
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    taps, width = self.config.position_kernel, x.shape[-1]
    std = (4 / (taps * width)) ** 0.5
    shape = (taps, width // self.config.position_groups, width)
    direction = self.param("direction", nn.initializers.normal(std), shape)
    norm = jnp.sqrt(jnp.square(direction).sum(axis=(1, 2), keepdims=True))
    scale = self.param("scale", lambda _: norm)  # [K, 1, 1]
    bias = self.param("bias", nn.initializers.zeros, (width,))
    kernel = (direction * (scale / norm)).astype(self.dtype)
    place = placement.current()
    x = grouped_conv(place.spread(x).astype(self.dtype), kernel)
    return place.spread(gelu(x + bias.astype(self.dtype)))

  def flops(self, frames: int) -> int:
    """Counts the convolution for a clip, a multiply-add as 2."""
    taps, width = self.config.position_kernel, self.config.hidden_size
    return 2 * frames * taps * width * (width // self.config.position_groups)

  def check(self) -> None:
    """Checks the knobs against each other.

    Raises:
      UserError: the width does not divide into the groups.
    """
    width, groups = self.config.hidden_size, self.config.position_groups
    if width % groups:
      raise UserError(
        f"config.encoder.hidden_size={width} is not divisible by "
        f"config.encoder.position_groups={groups}"
      )


def grouped_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """A grouped convolution over time, as matrix products of whole blocks.

  x [B, T, D], kernel [K, D / groups, D] -> [B, T, D]; frame t sees frames
  t - K // 2 to t + (K - 1) // 2. `_BLOCK` frames in and out at a time, or the
  groups' few channels would leave a TPU's matrix unit idle; and XLA's own
  gradient of grouped kernels takes 15 times as long on CPUs.
  """
  taps, channels, width = kernel.shape
  groups = width // channels
  rows, frames, _ = x.shape
  out = -(-frames // _BLOCK)
  seen = (taps + _BLOCK - 2) // _BLOCK + 1  # Blocks an output block sees.
  size = (out + seen - 1) * _BLOCK
  left = taps // 2
  x = jnp.pad(x, ((0, 0), (left, max(0, size - left - frames)), (0, 0)))
  x = x[:, :size].reshape(rows, -1, _BLOCK, groups, channels)
  x = x.transpose(3, 0, 1, 2, 4).reshape(groups, rows, -1, _BLOCK * channels)
  x = jnp.concatenate([x[:, :, i : i + out] for i in range(seen)], axis=-1)
  # Frame p of a block finds tap k in the block's frame p + k.
  after = seen * _BLOCK - taps
  kernel = kernel.reshape(taps, channels, groups, channels)
  kernel = jnp.pad(kernel, ((_BLOCK - 1, after), (0, 0), (0, 0), (0, 0)))
  first = _BLOCK - 1
  kernel = jnp.stack(
    [kernel[first - p :][: seen * _BLOCK] for p in range(_BLOCK)], axis=-2
  )  # [seen * _BLOCK, channels, groups, _BLOCK, channels]
  kernel = kernel.transpose(2, 0, 1, 3, 4).reshape(
    groups, seen * _BLOCK * channels, _BLOCK * channels
  )
  y = jnp.einsum("gbti,gio->gbto", x, kernel)
  y = y.reshape(groups, rows, out, _BLOCK, channels)
  y = y.transpose(1, 2, 3, 0, 4).reshape(rows, out * _BLOCK, width)
  return y[:, :frames]
