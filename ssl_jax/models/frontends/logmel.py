"""Log-mel frames: a frontend without parameters."""

import jax
import jax.numpy as jnp

from ssl_jax import num_frames
from ssl_jax.knobs import Knob
from ssl_jax.models.frontends import frontend
from ssl_jax.models.norm import normalize_clip
from ssl_jax.signal import fbank

# Over 400 clips of eleven sources: -7.5, 5.1.
_MEL_MEAN, _MEL_STD = -7.5, 5.0

KNOBS = {
  "num_mel_bins": Knob(
    80, "logmel: filters.", role="architecture", low=4, high=128
  ),
  "mel_norm": Knob(
    "clip",
    "logmel: `clip` normalises each clip by its own mean and variance; "
    "`fixed` uses those of many clips, which keeps what tells speakers apart.",
    role="architecture",
    choices=("clip", "fixed"),
  ),
}


class Frontend(frontend.Frontend):
  """Waveform -> log filterbanks of 10 ms -> normed -> pairs stacked.

  [B, S] -> [B, T, 2 F], F `num_mel_bins`. `mel_norm` is "clip" (mean and
  variance of each bin over the clip) or "fixed" (those of speech at common
  levels, for all bins, which leaves in what tells speakers and microphones
  apart).
  """

  knobs = KNOBS

  def __call__(self, waveform: jax.Array, length: jax.Array) -> jax.Array:
    mels = fbank.log_mel(waveform, self.config.num_mel_bins)
    count = fbank.num_fbank_frames(length)  # mels: [B, 10 ms frames, F].
    if self.config.mel_norm == "clip":
      real = jnp.arange(mels.shape[1]) < count[:, None]
      mels = normalize_clip(mels, real, hop=fbank.HOP)
    else:
      mels = (mels - _MEL_MEAN) / _MEL_STD
    return fbank.stack_pairs(mels, count, num_frames(waveform.shape[1]))

  @property
  def channels(self) -> int:
    return 2 * self.config.num_mel_bins

  def flops(self, num_samples: int) -> int:
    return fbank.spectrum_flops(num_samples, self.config.num_mel_bins)
