"""MFCC that labels are clusters of.

`mfcc` is the published recipe's. `mfcc_clip` takes each clip's mean and
variance off first, so that clusters tell less of voices and microphones and
more of phones.
"""

from collections.abc import Callable

import jax

from ssl_jax import num_frames
from ssl_jax.models.norm import clip_moments
from ssl_jax.signal import fbank

CHANNELS = 39  # 13 cepstra, their slopes, and the slopes of those.
_EPSILON = 1e-5


def standardised(waveform: jax.Array, length: jax.Array) -> jax.Array:
  """Returns MFCC with deltas, of mean 0 and variance 1 over each clip.

  Args:
    waveform: float [B, S].
    length: [B], real samples.

  Returns:
    [B, 10 ms frames, 39].
  """
  frames = fbank.mfcc_with_deltas(waveform, length)
  real = (
    jax.numpy.arange(frames.shape[1]) < fbank.num_fbank_frames(length)[:, None]
  )
  mean, variance = clip_moments(frames, real, hop=fbank.HOP)
  return (frames - mean) * jax.lax.rsqrt(variance + _EPSILON)


# (waveform [B, S], length [B]) -> [B, 10 ms frames, 39], by label set.
FRAMES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
  "mfcc": fbank.mfcc_with_deltas,
  "mfcc_clip": standardised,
}


def at_frames(name: str, waveform: jax.Array, length: jax.Array) -> jax.Array:
  """Returns a label set's MFCC at an encoder's frames. [B, T, 39].

  Two MFCC frames lie in 20 ms: the first is taken, as published.
  """
  frames = num_frames(waveform.shape[1])
  return FRAMES[name](waveform, length)[:, : 2 * frames : 2]
