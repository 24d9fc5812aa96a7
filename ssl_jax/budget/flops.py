"""The analytic FLOP counter: a multiply-add counts as 2.

Each part of a model counts itself, in a method `flops` beside its layers; this
adds them up.

Counts what the published update counts were matched with (paper.md, "FLOPs"):
convolutions and matmuls of stem, projection, positions, layers (with the T x T
products of attention) and head. Norms, activations, softmax and the
optimizer are left out: under 2 % of any size. Layers skipped by layerdrop are
counted as spent.
"""

import math
from dataclasses import dataclass

from ml_collections import ConfigDict

from ssl_jax.models import frontends
from ssl_jax.models.backbone import Backbone

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
  decoder: int = 0  # Only `encoder.visible_only` has one.

  @property
  def total(self) -> int:
    """The sum of the learned parts: what the published budgets count."""
    return (
      self.stem
      + self.projection
      + self.positions
      + self.attention
      + self.ffn
      + self.head
      + self.decoder
    )

  @property
  def training(self) -> int:
    """Forward, backward (twice the forward) and the targets."""
    no_backward = 0 if self.stem_is_learned else 2 * self.stem
    return 3 * self.total - no_backward + self.targets


def forward_flops(
  config: ConfigDict,
  num_samples: int,
  head: int,
  targets: int = 0,
  masked: bool = False,
) -> Forward:
  """Counts one clip of `num_samples` samples.

  Args:
    config: of the run.
    num_samples: of the clip as computed, padding included.
    head: FLOPs of the objective's head for such a clip.
    targets: FLOPs of its targets.
    masked: as in training, where some frames may not pass the encoder.
  """
  return Forward(
    **Backbone(config).flops(num_samples, masked),
    head=head,
    targets=targets,
    stem_is_learned=frontends.make(config.frontend).is_learned,
  )


def readable(value: float) -> str:
  """A count with a unit prefix to put before `FLOP`, as in `1.3 E`."""
  power = max(0, min(7, int(math.log10(value)) // 3)) if value >= 1 else 0
  return f"{value / 1000**power:.3g} {' kMGTPEZ'[power].strip()}"
