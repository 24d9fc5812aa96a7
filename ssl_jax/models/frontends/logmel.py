"""What surrounds the stem; and log-mel frames, the frontend without one.

Both frontends make the same number of frames, so that targets, masks and labels
fit either. Features of a clip's real frames never depend on the padding after.
"""

import math

import jax
import jax.numpy as jnp

from ssl_jax import num_frames
from ssl_jax.knobs import Knob
from ssl_jax.signal import fbank

_EPSILON = 1e-5
# Over 400 clips of eleven sources: -7.5, 5.1.
_MEL_MEAN, _MEL_STD = -7.5, 5.0

KNOBS = {
  "num_mel_bins": Knob(
    80, "logmel: filters.", role="architecture", low=4, high=128
  ),
  "mel_norm": Knob(
    "clip",
    "logmel: `clip` normalises each clip by its own mean and variance; `fixed` "
    "uses those of many clips, which keeps what tells speakers apart.",
    role="architecture",
    choices=("clip", "fixed"),
  ),
}


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
