"""Phone ABX: how often a phone is nearer to another phone than to its own.

Of three segments, A and X are of one phone and B of another; an encoder errs
where X is nearer to B than to A (Schatz et al. 2013). Within speakers, all
three are of one speaker; across, A and B are of one and X of another. As
triphones, all three have the same neighbours too.

Distances, frames and averages are those of Libri-light (Kahn et al. 2020,
section 4.1) as fastabx (Poli et al. 2025) has them: errors are averaged over
neighbours and speakers of X, then over speakers of A and B, then over ordered
pairs of phones.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict

from ssl_jax import FRAME_HOP, SAMPLE_RATE, num_frames
from ssl_jax.data.sources.source import Source
from ssl_jax.errors import UserError
from ssl_jax.probes.segments import HELD_OUT, Aligned, aligned
from ssl_jax.probes.triples import MODES, Items, count_errors, plan
from ssl_jax.probes.zero_shot import Frames, Measure, MeasureKind
from ssl_jax.tally import Tally, mean_of_ratios

_METRIC = "abx_across"


def make(config: ConfigDict, splits: dict[str, Source]) -> Measure:
  """Returns the measure, on the phones of valid and test.

  Raises:
    UserError: the corpus has no phones, or no two speakers share any.
  """
  found = aligned(config, splits, HELD_OUT)
  units = sorted({s for x in found.values() for s in x.speakers})
  phones = sorted(
    {p.name for x in found.values() for y in x.alignments for p in y.phones}
  )
  items = read_items(found, units, phones, config.libri_light)
  pooled = config.distance == "pooled"
  planned = plan(items, len(phones), len(units), config.seed, pooled)
  modes = {
    mode: counts for mode, counts in zip(MODES, planned.counts) if counts.any()
  }
  if _METRIC not in modes:
    raise UserError(
      f"task {config.task} compares two phones of one speaker with one of "
      f"another: the {len(items.phone)} phones of {len(units)} speakers in "
      "valid and test have no such three; give longer clips, or more speakers"
    )

  def tally(frames: Mapping[str, Frames]) -> Tally:
    values = np.concatenate([frames[split].values for split in HELD_OUT])
    errors = count_errors(planned, items, values, pooled)
    by_mode = dict(zip(MODES, errors))
    return Tally(
      units,
      {
        mode: mean_of_ratios(by_mode[mode], counts)
        for mode, counts in modes.items()
      },
    )

  return Measure(
    _METRIC,
    False,
    {split: x.source for split, x in found.items()},
    tally,
    {
      "speakers": len(units),
      "clips": {split: len(x.source.ids) for split, x in found.items()},
      "phones": len(items.phone),
      "classes": len(phones),
      "triples": planned.triples,
      "distance": config.distance,
      "libri_light": config.libri_light,
    },
    0.5,
  )


def frame_range(
  start: float, end: float, frames: int, libri_light: bool = False
) -> tuple[int, int]:
  """Returns the frames of a segment, [ceil(s f - 1/2), floor(e f - 1/2) + 1).

  f is the frames a second. Libri-light leaves the last frame out.
  """
  rate = SAMPLE_RATE / FRAME_HOP
  # Times are decimal fractions: their binary error must not move a frame.
  first = math.ceil(round(start * rate - 0.5, 6))
  last = math.floor(round(end * rate - 0.5, 6)) + (not libri_light)
  return min(max(0, first), frames), min(max(0, last), frames)


def read_items(
  found: Mapping[str, Aligned],
  units: Sequence[str],
  phones: Sequence[str],
  libri_light: bool,
) -> Items:
  """Returns the phones that have a frame."""
  who = {name: i for i, name in enumerate(units)}
  what = {name: i for i, name in enumerate(phones)}
  contexts: dict[tuple[str, str], int] = {}
  rows, base = [], 0
  for split in HELD_OUT:
    own = found[split]
    counts = num_frames(np.asarray(own.source.num_samples, np.int64)).tolist()
    for alignment, speaker, count in zip(own.alignments, own.speakers, counts):
      for segment in alignment.phones:
        first, end = frame_range(segment.start, segment.end, count, libri_light)
        if first < end:
          beside = segment.before, segment.after
          context = contexts.setdefault(beside, len(contexts))
          phone, place = what[segment.name], base + first
          rows.append((phone, context, who[speaker], place, end - first))
      base += count
  return Items(*np.array(rows, np.int64).reshape(-1, 5).T)


ABX = MeasureKind(make, "phones nearer to another phone than to their own")
