"""Every frame of some clips once: what labelling reads.

Clips longer than the last bucket are cut into pieces whose frames follow on
one another.
"""

from collections.abc import Sequence

import numpy as np

from ssl_jax import FRAME_HOP, SAMPLE_RATE, num_frames
from ssl_jax.data.batch_plan import Rows


class Pieces:
  """Batches of pieces of clips, in a fixed order; `make_iterator` reads them.

  The last batch of a bucket is filled up with empty rows.
  """

  def __init__(
    self,
    num_samples: np.ndarray,
    clips: np.ndarray,
    bucket_lengths: Sequence[int],
    padded_seconds: float,
  ):
    """Cuts clips into pieces and those into batches.

    Args:
      num_samples: int [N] lengths of a source's clips.
      clips: int [n] those to read.
      bucket_lengths: ascending, in samples.
      padded_seconds: of a batch, padding counted.
    """
    samples = np.asarray(num_samples, np.int64)[clips]
    step = num_frames(bucket_lengths[-1])  # Frames of a whole piece.
    count = np.maximum(1, -(-num_frames(samples) // step))
    self._clips = np.repeat(np.asarray(clips, np.int64), count)
    place = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    self._starts = place * step * FRAME_HOP
    left = np.repeat(samples, count) - self._starts
    bucket = np.searchsorted(
      bucket_lengths, np.minimum(left, bucket_lengths[-1])
    )
    self._batches = []  # (bucket length, rows, pieces)
    for index, length in enumerate(bucket_lengths):
      pieces = np.flatnonzero(bucket == index)
      rows = max(1, round(padded_seconds * SAMPLE_RATE / length))
      self._batches += [
        (length, rows, pieces[first : first + rows])
        for first in range(0, len(pieces), rows)
      ]

  def __len__(self) -> int:
    return len(self._batches)

  def batch(self, index: int) -> Rows:
    """Batch number `index`."""
    length, rows, pieces = self._batches[index]
    batch = np.full((3, rows), [[-1], [0], [0]], np.int64)
    batch[0, : len(pieces)] = self._clips[pieces]
    batch[2, : len(pieces)] = self._starts[pieces]
    return Rows(length, *batch, np.ones(rows))
