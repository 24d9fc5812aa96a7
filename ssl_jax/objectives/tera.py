"""TERA as the study has it: predict the MFCC of masked frames.

Targets are Kaldi MFCC with deltas and delta-deltas (39 dimensions, 10 ms), two
frames stacked (78 dimensions, 20 ms); the loss is the mean absolute error over
masked frames, plus the penalty on the stem's output (paper.md, "TERA").
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from ssl_jax import num_frames
from ssl_jax.models.backbone import Backbone
from ssl_jax.models.frontend import torch_linear_init
from ssl_jax.signal import fbank

_NUM_CEPS, _NUM_MEL_BINS = 13, 23  # Kaldi's defaults.


class Objective(nn.Module):
  """The contract is described in `ssl_jax.objectives`."""

  config: ConfigDict
  dtype: jnp.dtype

  head_size = 2 * 3 * _NUM_CEPS

  @property
  def weights(self) -> dict[str, float]:
    weights = {"l1": 1.0}
    if self.config.frontend.name == "waveform":
      weights["feature_penalty"] = self.config.objective.feature_penalty
    return weights

  def targets(self, waveform: jax.Array, length: jax.Array) -> jax.Array:
    """[B, S], [B] -> [B, T, 78], from the clean waveform."""
    count = fbank.num_fbank_frames(length)
    ceps = fbank.mfcc(waveform, _NUM_CEPS, _NUM_MEL_BINS)
    frames = fbank.add_deltas(ceps, count)
    return fbank.stack_pairs(frames, count, num_frames(waveform.shape[1]))

  def counts(self, mask: jax.Array, frame_mask: jax.Array) -> dict:
    return {"l1": mask.sum(), "feature_penalty": frame_mask.sum()}

  @nn.compact
  def __call__(self, inputs: dict, key: jax.Array | None) -> dict:
    hidden, features = Backbone(self.config, self.dtype, name="backbone")(
      inputs["waveform"], inputs["length"], inputs["mask"], key, inputs["rows"]
    )
    predicted = nn.Dense(
      self.head_size,
      dtype=jnp.float32,
      kernel_init=torch_linear_init,
      name="head",
    )(hidden)  # [B, T, 78]
    error = jnp.abs(predicted - inputs["targets"]).mean(axis=-1)
    penalty = jnp.square(features.astype(jnp.float32)).mean(axis=-1)
    return {
      "l1": jnp.where(inputs["mask"], error, 0).sum(),
      "feature_penalty": jnp.where(inputs["frame_mask"], penalty, 0).sum(),
    }

  @staticmethod
  def target_flops(num_samples: int) -> int:
    """FLOPs of one clip's targets: spectrum, mel bins and DCT."""
    frames = fbank.num_fbank_frames(num_samples)
    dct = 2 * frames * _NUM_MEL_BINS * _NUM_CEPS
    return fbank.spectrum_flops(num_samples, _NUM_MEL_BINS) + dct
