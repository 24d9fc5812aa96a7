"""Frontends: a clip's samples to frames of 20 ms.

Both make the same number of frames, so that targets, masks and labels fit
either. Features of a clip's real frames never depend on the padding after it.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from ssl_jax import num_frames
from ssl_jax.signal import fbank

# paper.md, "Architectures": (channels, kernel, stride). Total stride 320.
STEM_LAYERS = ((512, 10, 5),) + ((512, 3, 2),) * 4 + ((512, 2, 2),) * 2
_EPSILON = 1e-5
# Over 400 clips of eleven sources: -7.5, 5.1.
_MEL_MEAN, _MEL_STD = -7.5, 5.0


def layer_norm(dtype: jnp.dtype, name: str) -> nn.LayerNorm:
  """LayerNorm over channels with float32 statistics, as torch's."""
  return nn.LayerNorm(
    epsilon=_EPSILON, dtype=dtype, use_fast_variance=False, name=name
  )


class WaveformStem(nn.Module):
  """Waveform -> 7 x (convolution, norm, GELU) -> frames.

  [B, S] -> [B, T, 512]. `norm` is "group" (after the first convolution, a mean
  and variance per channel over the clip's own frames) or "layer" (after each
  convolution, over channels).
  """

  norm: str
  bias: bool
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, waveform: jax.Array, length: jax.Array) -> jax.Array:
    x = waveform[..., None].astype(self.dtype)  # [B, S, 1]
    for i, (channels, kernel, stride) in enumerate(STEM_LAYERS):
      x = nn.Conv(
        channels,
        (kernel,),
        strides=(stride,),
        padding="VALID",
        use_bias=self.bias,
        kernel_init=nn.initializers.he_normal(),
        dtype=self.dtype,
        name=f"conv{i}",
      )(x)  # [B, T_i, C]
      if self.norm == "layer":
        x = layer_norm(self.dtype, f"norm{i}")(x)
      elif i == 0:
        frames = jnp.maximum(0, (length - kernel) // stride + 1)
        x = ClipNorm(self.dtype, name="norm0")(x, frames)
      x = nn.gelu(x, approximate=False)
    return x


class ClipNorm(nn.Module):
  """GroupNorm with a group a channel, over the real frames of each clip.

  x [B, T, C], frames [B] -> [B, T, C]. torch's GroupNorm pools over padding
  too, which leaks it into every frame.
  """

  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array, frames: jax.Array) -> jax.Array:
    scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
    bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
    real = jnp.arange(x.shape[1]) < frames[:, None]  # [B, T]
    mean, variance = clip_moments(x.astype(jnp.float32), real)
    gain = jax.lax.rsqrt(variance + _EPSILON) * scale
    return ((x - mean) * gain + bias).astype(self.dtype)


def clip_moments(x: jax.Array, real: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Mean and variance over a clip's real positions.

  x [B, T, C], real bool [B, T] -> two of [B, 1, C].
  """
  real = real[..., None]
  count = jnp.maximum(1, real.sum(axis=1, keepdims=True))
  mean = jnp.where(real, x, 0).sum(axis=1, keepdims=True) / count
  squares = jnp.where(real, jnp.square(x - mean), 0)
  return mean, squares.sum(axis=1, keepdims=True) / count


def normalize_waveform(waveform: jax.Array, length: jax.Array) -> jax.Array:
  """Zero mean and unit variance over each clip's own samples. [B, S]."""
  x = waveform[..., None]
  real = jnp.arange(waveform.shape[1]) < length[:, None]
  mean, variance = clip_moments(x, real)
  return jnp.where(
    real, ((x - mean) * jax.lax.rsqrt(variance + 1e-7))[..., 0], 0
  )


def log_mel_frames(
  waveform: jax.Array, length: jax.Array, num_mel_bins: int, norm: str
) -> jax.Array:
  """Waveform -> log filterbanks -> normed -> pairs stacked.

  [B, S] -> [B, T, 2 F]. `norm` is "clip" (mean and variance of each bin over
  the clip) or "fixed" (those of speech at common levels, for all bins, which
  leaves in what tells speakers and microphones apart).
  """
  mels = fbank.log_mel(waveform, num_mel_bins)  # [B, 10 ms frames, F]
  count = fbank.num_fbank_frames(length)
  if norm == "clip":
    real = jnp.arange(mels.shape[1]) < count[:, None]
    mean, variance = clip_moments(mels, real)
    mels = (mels - mean) * jax.lax.rsqrt(variance + _EPSILON)
  else:
    mels = (mels - _MEL_MEAN) / _MEL_STD
  return fbank.stack_pairs(mels, count, num_frames(waveform.shape[1]))


def scale_gradient(x: jax.Array, factor: float) -> jax.Array:
  """The identity, whose gradient is multiplied by `factor`."""
  constant = jax.lax.stop_gradient(x)
  return constant + factor * (x - constant)


def torch_linear_init(
  key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32
) -> jax.Array:
  """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): the default of torch's Linear."""
  bound = 1 / math.sqrt(shape[0])
  return jax.random.uniform(key, shape, dtype, -bound, bound)
