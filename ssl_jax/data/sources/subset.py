"""Subsets: some hours of a corpus, the same on every machine.

A clip's place in the order depends only on ids, lengths and speakers, so 1 h is
part of 10 h, and every process picks the same.
"""

from typing import Any

import numpy as np

from ssl_jax import SAMPLE_RATE
from ssl_jax.data.sources.source import Source, name_hash
from ssl_jax.errors import UserError
from ssl_jax.knobs import Knob

KNOBS = {
  "hours": Knob(
    0.0,
    "Hours of training audio, balanced over speakers; 0: all. Smaller subsets "
    "are contained in larger ones.",
    role="data",
    high=1e9,
  ),
}


def take_hours(source: Source, hours: float) -> Source:
  """Returns the first clips that together last `hours`, in the source's order.

  They are taken from whichever speaker has given least so far, so speakers give
  alike for as long as they have any. A clip without a `speaker` in its metadata
  counts its folder as one.

  Raises:
    UserError: the source is shorter.
  """
  seconds = source.num_samples / SAMPLE_RATE
  if seconds.sum() < hours * 3600:
    raise UserError(
      f"--config.data.hours={hours:g}: there are only "
      f"{seconds.sum() / 3600:.4g} h of training audio; lower it, or set it to "
      "0 for all"
    )
  given: dict[str, float] = {}
  place = {}
  for clip in sorted(
    range(len(source.ids)), key=lambda i: name_hash(source.ids[i])
  ):
    speaker = _speaker(source.ids[clip], source.metadata[clip])
    place[clip] = (
      given.get(speaker, 0.0),
      name_hash(speaker),
      name_hash(source.ids[clip]),
    )
    given[speaker] = place[clip][0] + seconds[clip]
  order = sorted(place, key=place.get)
  enough = np.searchsorted(np.cumsum(seconds[order]), hours * 3600) + 1
  return source.select(sorted(order[:enough]))


def _speaker(clip: str, metadata: dict[str, Any]) -> str:
  return str(metadata.get("speaker") or clip.rpartition("/")[0])
