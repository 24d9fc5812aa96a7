"""Labels by random projection, as in BEST-RQ (Chiu et al. 2022, section 3.1).

Normalised log-mel frames are projected by a random matrix; the label is the
nearest of random codes of unit length. Nothing is fitted: a set's number draws
its projection and its codes, which are the same in every run.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax import num_frames
from ssl_jax.models.norm import normalize_clip
from ssl_jax.signal import fbank

_NAME = re.compile(r"rq(?::([0-9]{1,6}))?")
_NUM_MEL_BINS = 80
_STACKED = 4  # Frames of 10 ms that a label is of, as published.
_CODE_DIM = 16  # As published.


def number(name: str) -> int | None:
  """Returns N of a label set `rq:N`, 0 of `rq`; None: it is another one's."""
  match = _NAME.fullmatch(name)
  return int(match[1] or 0) if match else None


def labels(
  waveform: jax.Array, length: jax.Array, clusters: int, seed: int
) -> jax.Array:
  """Returns the labels of clips at an encoder's frames, int32 [B, T].

  Args:
    waveform: float [B, S].
    length: [B], real samples.
    clusters: number of codes.
    seed: number of the set.
  """
  projection, codes = projection_and_codes(clusters, seed)
  # The nearest of unit vectors has the largest product, however long the frame.
  projected = jnp.matmul(
    stacked(waveform, length), projection, precision=jax.lax.Precision.HIGHEST
  )
  products = jnp.matmul(projected, codes.T, precision=jax.lax.Precision.HIGHEST)
  return jnp.argmax(products, axis=-1).astype(jnp.int32)


def projection_and_codes(
  clusters: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """Draws the projection [320, 16], Xavier's, and unit codes [clusters, 16]."""
  random = np.random.default_rng(seed)
  channels = _STACKED * _NUM_MEL_BINS
  bound = np.sqrt(6 / (channels + _CODE_DIM))
  projection = random.uniform(-bound, bound, (channels, _CODE_DIM))
  codes = random.standard_normal((clusters, _CODE_DIM))
  codes /= np.linalg.norm(codes, axis=1, keepdims=True)
  return projection.astype(np.float32), codes.astype(np.float32)


def stacked(waveform: jax.Array, length: jax.Array) -> jax.Array:
  """Returns the 10 ms frames around each encoder frame, [B, T, 320].

  Each mel channel has mean 0 and variance 1 over the clip. The encoder's frame
  t covers the frames 2 t and 2 t + 1; one before and one after are taken, too.
  """
  mels = fbank.log_mel(waveform, _NUM_MEL_BINS)  # [B, 10 ms frames, 80].
  real = jnp.arange(mels.shape[1]) < fbank.num_fbank_frames(length)[:, None]
  mels = normalize_clip(mels, real, hop=fbank.HOP)
  mels = jnp.where(real[..., None], mels, 0)
  frames = num_frames(waveform.shape[1])
  mels = jnp.pad(mels, ((0, 0), (1, _STACKED), (0, 0)))
  parts = [mels[:, i : i + 2 * frames : 2] for i in range(_STACKED)]
  return jnp.concatenate(parts, axis=-1)


def flops(num_samples: int, clusters: int) -> int:
  """Counts the labels of a clip, but for the log-mel frames that sets share."""
  per_frame = _CODE_DIM * (_STACKED * _NUM_MEL_BINS + clusters)
  return 2 * num_frames(num_samples) * per_frame


def mel_flops(num_samples: int) -> int:
  """Counts the log-mel frames that all sets are made of."""
  return fbank.spectrum_flops(num_samples, _NUM_MEL_BINS)
