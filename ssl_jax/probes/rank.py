"""Effective rank of the frames of a layer: an alarm, not a score.

RankMe (Garrido et al. 2023, equation 1): the exponential of the entropy of the
normalised singular values, here as a share of the width. Below a tenth, the
encoder wastes most of it.
"""

from collections.abc import Mapping

import numpy as np
from ml_collections import ConfigDict

from ssl_jax import num_frames
from ssl_jax.data.sources.source import Source
from ssl_jax.probes.segments import HELD_OUT, speakers
from ssl_jax.probes.zero_shot import Frames, Measure, MeasureKind
from ssl_jax.tally import Tally


def make(config: ConfigDict, splits: dict[str, Source]) -> Measure:
  """Returns the measure, on the frames of valid and test.

  Raises:
    UserError: a clip has no speaker.
  """
  sources = {split: splits[split] for split in HELD_OUT}
  spoken = [s for x in sources.values() for s in speakers(config.task, x)]
  units = sorted({*spoken})

  def tally(frames: Mapping[str, Frames]) -> Tally:
    products: dict[str, np.ndarray] = {}
    whose = iter(spoken)
    for split in HELD_OUT:
      values, offsets = frames[split]
      for first, end in zip(offsets, offsets[1:]):
        own, who = values[first:end], next(whose)
        products[who] = products.get(who, 0) + own.T @ own
    stacked = np.stack([products[unit] for unit in units])  # [U, D, D]

    def score(weights: np.ndarray) -> np.ndarray:
      mixed = (np.einsum("u,ude->de", w, stacked) for w in weights)
      ranks = np.array([effective_rank(x) / len(x) for x in mixed])
      return np.where(weights.any(axis=1), ranks, np.nan)

    return Tally(units, {"rank_share": score})

  return Measure(
    "rank_share",
    True,
    sources,
    tally,
    {
      "speakers": len(units),
      "clips": {split: len(x.ids) for split, x in sources.items()},
      "frames": int(
        sum(num_frames(x.num_samples).sum() for x in sources.values())
      ),
    },
    draws=20,
    compared=False,
  )


def effective_rank(product: np.ndarray) -> float:
  """Returns the effective rank of frames, of their product [D, D] (X' X)."""
  values = np.sqrt(np.maximum(0, np.linalg.eigvalsh(product)))
  share = values / max(values.sum(), 1e-12)
  return float(np.exp(-(share * np.log(np.maximum(share, 1e-12))).sum()))


RANK = MeasureKind(
  make, "effective rank of the frames, an alarm", packaged=True
)
