"""The analytic FLOP counter: one formula a part, a multiply-add counts as 2.

Counts what the published update counts were matched with (paper.md, "FLOPs"):
convolutions and matmuls of stem, projection, positions, Transformer (with the
T x T products of attention) and head. Norms, activations, softmax and the
optimizer are left out: under 2 % of any size. Layers skipped by layerdrop are
counted as spent.
"""

import math
from dataclasses import dataclass

from ml_collections import ConfigDict

from ssl_jax import num_frames
from ssl_jax.models.frontends.waveform import STEM_LAYERS
from ssl_jax.signal import fbank

REFERENCE_CROP = 224_000  # Samples: the crop the paper's budgets refer to.


@dataclass(frozen=True)
class Forward:
  """FLOPs of one clip's forward pass, by part (log-mel counts as stem)."""

  stem: int
  projection: int
  positions: int
  attention: int
  ffn: int
  head: int
  targets: int  # Computed once per clip, without a backward pass.
  stem_is_learned: bool = True

  @property
  def total(self) -> int:
    """Of the learned parts: what the published budgets count."""
    return (
      self.stem
      + self.projection
      + self.positions
      + self.attention
      + self.ffn
      + self.head
    )

  @property
  def training(self) -> int:
    """Forward, backward (twice the forward) and the targets."""
    no_backward = 0 if self.stem_is_learned else 2 * self.stem
    return 3 * self.total - no_backward + self.targets


def forward_flops(
  config: ConfigDict, num_samples: int, head: int, targets: int = 0
) -> Forward:
  """Counts one clip of `num_samples` samples.

  Args:
    config: of the run.
    num_samples: of the clip as computed, padding included.
    head: FLOPs of the objective's head for such a clip.
    targets: FLOPs of its targets.
  """
  frames = num_frames(num_samples)
  width, ffn = config.encoder.hidden_size, config.encoder.ffn_size
  layers = config.encoder.num_layers
  if config.frontend.name == "waveform":
    stem, length, channels = 0, num_samples, 1
    for out, kernel, stride in STEM_LAYERS:
      length = (length - kernel) // stride + 1
      stem += 2 * length * kernel * channels * out
      channels = out
  else:
    channels = 2 * config.frontend.num_mel_bins
    stem = fbank.spectrum_flops(num_samples, config.frontend.num_mel_bins)
  return Forward(
    stem=stem,
    projection=2 * frames * channels * width,
    positions=2
    * frames
    * config.encoder.position_kernel
    * width
    * (width // config.encoder.position_groups),
    attention=layers * (8 * frames * width**2 + 4 * frames**2 * width),
    ffn=layers * 4 * frames * width * ffn,
    head=head,
    targets=targets,
    stem_is_learned=config.frontend.name == "waveform",
  )


def readable(value: float) -> str:
  """A count with a unit prefix to put before `FLOP`, as in `1.3 E`."""
  power = max(0, min(7, int(math.log10(value)) // 3)) if value >= 1 else 0
  return f"{value / 1000**power:.3g} {' kMGTPEZ'[power].strip()}"
