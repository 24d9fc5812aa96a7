"""Units: k-means clusters of a layer against phones (Hsu et al. 2021, IV-C)."""

from collections.abc import Mapping

import jax
import numpy as np
from ml_collections import ConfigDict

from ssl_jax.data.sources.source import Source
from ssl_jax.labelling.quality import of_joint
from ssl_jax.probes.phone import labels, phones
from ssl_jax.probes.segments import HELD_OUT, aligned
from ssl_jax.probes.zero_shot import Frames, Measure, MeasureKind
from ssl_jax.signal import kmeans
from ssl_jax.tally import Tally

_MOST_FRAMES = 100_000  # Training frames that clusters are fitted on.
_BATCH_FRAMES, _PASSES = 10_000, 100  # Settings of k-means.


def make(config: ConfigDict, splits: dict[str, Source]) -> Measure:
  """Returns the measure: clusters of train, counted on valid and test.

  Raises:
    UserError: the corpus has no phones.
  """
  found = aligned(config, splits, ("train", *HELD_OUT))
  names = sorted({p for split in HELD_OUT for p in phones(found[split])})
  place = {name: i for i, name in enumerate(names)}
  rows = {split: labels(found[split], place) for split in HELD_OUT}
  units = sorted({s for split in HELD_OUT for s in found[split].speakers})
  clusters = config.clusters

  def tally(frames: Mapping[str, Frames]) -> Tally:
    sample = frames["train"].values
    if len(sample) > _MOST_FRAMES:
      generator = np.random.default_rng(config.seed)
      sample = sample[generator.choice(len(sample), _MOST_FRAMES, False)]
    fitted = kmeans.fit(
      jax.numpy.asarray(sample),
      clusters,
      config.seed,
      num_inits=1,
      num_restarts=1,
      batch_frames=_BATCH_FRAMES,
      max_iterations=_PASSES,
    )
    joint = np.zeros((len(units), len(place), clusters), np.int64)
    for split in HELD_OUT:
      who = np.repeat(
        [units.index(s) for s in found[split].speakers],
        np.diff(frames[split].offsets),
      )
      at, phone = rows[split]
      cluster = np.asarray(
        kmeans.nearest(frames[split].values[at], fitted.centroids)
      )
      np.add.at(joint, (who[at], phone, cluster), 1)

    def score(name: str, weights: np.ndarray) -> np.ndarray:
      return np.array(
        [of_joint(np.einsum("u,upk->pk", w, joint))[name] for w in weights]
      )

    return Tally(
      units,
      {
        "pnmi": lambda w: score("normalised_mutual_information", w),
        "purity": lambda w: score("purity", w),
        "cluster_purity": lambda w: score("cluster_purity", w),
      },
    )

  return Measure(
    "pnmi",
    True,
    {split: x.source for split, x in found.items()},
    tally,
    {
      "speakers": len(units),
      "clips": {split: len(x.source.ids) for split, x in found.items()},
      "frames": sum(len(at) for at, _ in rows.values()),
      "clusters": clusters,
      "classes": len(names),
    },
    0.0,
    draws=200,
  )


UNITS = MeasureKind(make, "clusters of a layer's frames against phones")
