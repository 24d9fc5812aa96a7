"""Frontends: a clip's samples to frames of 20 ms.

Both make the same number of frames, so that targets, masks and labels fit
either. Features of a clip's real frames never depend on the padding after it.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ssl_jax import FRAME_HOP, FRAME_WINDOW, num_frames
from ssl_jax.signal import fbank

# paper.md, "Architectures": (channels, kernel, stride). Total stride 320.
STEM_LAYERS = ((512, 10, 5),) + ((512, 3, 2),) * 4 + ((512, 2, 2),) * 2
_OVERLAP = FRAME_WINDOW - FRAME_HOP
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

  A clip may be computed as several `segments` in the batch, with the same
  result: TPUs want a multiple of 8 rows, or move ten times the memory.
  """

  norm: str
  bias: bool
  dtype: jnp.dtype

  @nn.compact
  def __call__(
    self, waveform: jax.Array, length: jax.Array, segments: int = 1
  ) -> jax.Array:
    frames = num_frames(waveform.shape[1])
    x = _segments(waveform.astype(self.dtype), segments)[..., None]  # [B, S, 1]
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
        whole = x.reshape(-1, segments, *x.shape[1:])
        real = jnp.maximum(0, (length - kernel) // stride + 1)
        real = _first_seen(*whole.shape[1:3]) < real[:, None, None]
        x = ClipNorm(self.dtype, name="norm0")(whole, real).reshape(x.shape)
      x = nn.gelu(x, approximate=False)
    if segments > 1:
      x = x.reshape(-1, segments * x.shape[1], x.shape[2])[:, :frames]
    return x


def _segments(waveform: jax.Array, segments: int) -> jax.Array:
  """Cuts clips into runs of frames. [B, S] -> [B segments, S']."""
  if segments == 1:
    return waveform
  rows, size = waveform.shape
  # Every sample, also those after the last frame: the norm's statistics are of
  # all.
  hop = -(-(size - _OVERLAP) // (segments * FRAME_HOP)) * FRAME_HOP
  padded = jnp.pad(waveform, ((0, 0), (0, (segments + 1) * hop - size)))
  runs = padded.reshape(rows, segments + 1, hop)
  runs = jnp.concatenate([runs[:, :-1], runs[:, 1:, :_OVERLAP]], axis=-1)
  return runs.reshape(rows * segments, hop + _OVERLAP)


def _first_seen(segments: int, frames: int) -> np.ndarray:
  """Places in the clip of the first convolution's frames, past its end for
  those that the next segment has as well. int32 [segments, frames]."""
  _, kernel, stride = STEM_LAYERS[0]
  own = frames - ((_OVERLAP - kernel) // stride + 1)
  place = own * np.arange(segments)[:, None] + np.arange(frames)
  again = np.arange(frames) >= own
  again = again & (np.arange(segments)[:, None] < segments - 1)
  return np.where(again, np.iinfo(np.int32).max, place).astype(np.int32)


class ClipNorm(nn.Module):
  """GroupNorm with a group a channel, over the real frames of each clip.

  x [B, ..., C], real bool [B, ...] -> as x. torch's GroupNorm pools over
  padding too, which leaks it into every frame.
  """

  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array, real: jax.Array) -> jax.Array:
    scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
    bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
    mean, variance = clip_moments(x.astype(jnp.float32), real)
    gain = jax.lax.rsqrt(variance + _EPSILON) * scale
    return ((x - mean) * gain + bias).astype(self.dtype)


def clip_moments(x: jax.Array, real: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Mean and variance over a clip's real positions.

  x [B, ..., C], real bool [B, ...] -> two of [B, 1 ..., C].
  """
  axes = tuple(range(1, x.ndim - 1))
  real = real[..., None]
  count = jnp.maximum(1, real.sum(axis=axes, keepdims=True))
  mean = jnp.where(real, x, 0).sum(axis=axes, keepdims=True) / count
  squares = jnp.where(real, jnp.square(x - mean), 0)
  return mean, squares.sum(axis=axes, keepdims=True) / count


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
