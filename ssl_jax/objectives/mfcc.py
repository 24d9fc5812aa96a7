"""Frames that labels are clusters of.

`mfcc` is the published recipe's. `mfcc_clip` takes each clip's mean and
variance off first, so that clusters tell less of voices and microphones and
more of phones. `dct_clip` does so with log-mel frames and keeps their slowest
changes over frequency and over 80 ms: its clusters know most of phones
(docs/results/race.md).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax import num_frames
from ssl_jax.models.norm import normalize_clip
from ssl_jax.signal import fbank

CHANNELS = 39  # 13 cepstra, their slopes, and the slopes of those.
# `dct_clip` keeps so many cosines of 80 mel channels, and of 8 frames of 10 ms.
_MELS, _CEPSTRA = 80, 13
_SPAN, _MODULATIONS = 8, 3


def standardised(waveform: jax.Array, length: jax.Array) -> jax.Array:
  """Returns MFCC with deltas, of mean 0 and variance 1 over each clip.

  Args:
    waveform: float [B, S].
    length: [B], real samples.

  Returns:
    [B, 10 ms frames, 39].
  """
  frames = fbank.mfcc_with_deltas(waveform, length)
  return normalize_clip(frames, _real(frames, length), hop=fbank.HOP)


def two_dimensional(waveform: jax.Array, length: jax.Array) -> jax.Array:
  """Returns the 2-D DCT of log-mel frames around each frame.

  Each mel channel has mean 0 and variance 1 over the clip, and is 0 outside of
  it. Of 80 channels and 8 frames (f - 3 to f + 4: those around the encoder's
  frame that begins at f) the 13 x 3 lowest orthonormal cosines are kept.

  Args:
    waveform: float [B, S].
    length: [B], real samples.

  Returns:
    [B, 10 ms frames, 39].
  """
  mels = fbank.log_mel(waveform, _MELS)
  count, real = mels.shape[1], _real(mels, length)
  mels = normalize_clip(mels, real, hop=fbank.HOP)
  mels = jnp.where(real[..., None], mels, 0)
  cepstra = fbank.product(mels, _cosines(_CEPSTRA, _MELS).T)
  before = _SPAN // 2 - 1
  cepstra = jnp.pad(cepstra, ((0, 0), (before, _SPAN - before), (0, 0)))
  around = [cepstra[:, i : i + count] for i in range(_SPAN)]
  around = jnp.stack(around, axis=-1)  # [B, F, 13, 8]
  kept = fbank.product(around, _cosines(_MODULATIONS, _SPAN).T)
  return kept.reshape(*kept.shape[:2], CHANNELS)


def _real(frames: jax.Array, length: jax.Array) -> jax.Array:
  """Tells which frames are of the clips, bool [B, 10 ms frames]."""
  count = fbank.num_fbank_frames(length)
  return jnp.arange(frames.shape[1]) < count[:, None]


def _cosines(kept: int, of: int) -> np.ndarray:
  """Returns the lowest rows of the orthonormal DCT-II, float32 [kept, of]."""
  angle = np.pi / of * np.outer(np.arange(kept), np.arange(of) + 0.5)
  rows = np.sqrt(2 / of) * np.cos(angle)
  rows[0] /= np.sqrt(2)
  return rows.astype(np.float32)


# (waveform [B, S], length [B]) -> [B, 10 ms frames, 39], by label set.
FRAMES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
  "mfcc": fbank.mfcc_with_deltas,
  "mfcc_clip": standardised,
  "dct_clip": two_dimensional,
}


def flops(name: str, num_samples: int) -> int:
  """Counts a label set's frames of a clip, a multiply-add as 2."""
  if name != "dct_clip":
    return fbank.mfcc_flops(num_samples)
  per_frame = 2 * _CEPSTRA * (_MELS + _SPAN * _MODULATIONS)
  frames = fbank.num_fbank_frames(num_samples)
  return fbank.spectrum_flops(num_samples, _MELS) + frames * per_frame


def at_frames(name: str, waveform: jax.Array, length: jax.Array) -> jax.Array:
  """Returns a label set's frames at an encoder's. [B, T, 39].

  Two of 10 ms lie in 20 ms: the first is taken, as published.
  """
  frames = num_frames(waveform.shape[1])
  return FRAMES[name](waveform, length)[:, : 2 * frames : 2]
