"""Clips without audio whose phones are known, and frames of them."""

import dataclasses
import itertools
import math
from fractions import Fraction

import numpy as np
from ml_collections import ConfigDict

from ssl_jax import num_frames
from ssl_jax.probes.zero_shot import Frames


@dataclasses.dataclass
class Clips:
  """A source without audio: ids, lengths, metadata."""

  ids: list
  num_samples: np.ndarray
  metadata: list

  def select(self, indices):
    rows = list(indices)
    return Clips(
      [self.ids[i] for i in rows],
      self.num_samples[rows],
      [self.metadata[i] for i in rows],
    )


def settings(**changes):
  return ConfigDict(
    {
      "task": "abx",
      "seed": 0,
      "alignments": "",
      "data": {"dir": "clips"},
      "distance": "pooled",
      "libri_light": False,
    }
    | changes
  )


def speech(seed=0, speakers=3, phones=3, clips=4, length=14, shift=0.0):
  """Clips of random phones: {split: clips}, with phones in the metadata."""
  generator = np.random.default_rng(seed)
  splits = {"train": Clips([], np.zeros(0, np.int64), [])}
  for split in ("valid", "test"):
    ids, samples, metadata = [], [], []
    for speaker, clip in itertools.product(range(speakers), range(clips)):
      at, own = 0.03, []
      for _ in range(length):
        end = round(at + 0.01 * generator.integers(3, 14), 2)
        name = "ABCDEFGH"[generator.integers(phones)]
        own.append([name, round(at + shift, 2), round(end + shift, 2)])
        at = end
      ids.append(f"{split}-{speaker}-{clip}")
      samples.append(math.ceil((at + 0.2) * 16_000))
      metadata.append({"speaker": f"s{speaker}", "phones": own})
    splits[split] = Clips(ids, np.array(samples, np.int64), metadata)
  return splits


def features(splits, width=6, seed=1, of=None):
  """Frames of each split; `of(segment name)`, where given, in each phone."""
  generator = np.random.default_rng(seed)
  frames = {}
  for split in ("valid", "test"):
    counts = num_frames(splits[split].num_samples)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    values = generator.normal(size=(offsets[-1], width)).astype(np.float32)
    if of:
      for first, count, metadata in zip(
        offsets, counts, splits[split].metadata
      ):
        for name, start, end in metadata["phones"]:
          a, b = span(start, end, count)
          values[first + a : first + b] = of(name, metadata["speaker"])
    frames[split] = Frames(values, offsets)
  return frames


def span(start, end, count, libri_light=False):
  start, end = (Fraction(str(x)) * 50 - Fraction(1, 2) for x in (start, end))
  end = math.floor(end) + (0 if libri_light else 1)
  return min(max(0, math.ceil(start)), count), min(max(0, end), count)
