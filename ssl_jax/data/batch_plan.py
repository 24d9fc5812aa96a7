"""The plan of a run: the clips of each update's batch.

Everything is a function of (seed, update): nothing needs saving, and a run
continues from any update.
"""

import bisect
import fractions
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ssl_jax import FRAME_HOP, SAMPLE_RATE

# Purposes of random draws; the numbers are part of every run's identity.
_ORDER, _SCHEDULE, _CROP, _STREAM, _SPEED = 1, 2, 3, 4, 5

_VALID_SEED = 0  # Validation crops are the same in every run.


class Rows(NamedTuple):
  """A global batch before anything is read; B rows.

  Attributes:
    bucket_length: samples each row is padded to.
    clips: int64 [B] index in the source, -1 for an empty row.
    epochs: int64 [B] how often the clip was drawn before.
    starts: int64 [B] first sample of the crop, a multiple of FRAME_HOP.
    speeds: float64 [B] of the clip over that of its recording.
  """

  bucket_length: int
  clips: np.ndarray
  epochs: np.ndarray
  starts: np.ndarray
  speeds: np.ndarray


class _Stream(NamedTuple):
  """Clips that an epoch draws equally often, over and over in one order."""

  clips: np.ndarray  # int64 [N_c]
  per_epoch: fractions.Fraction  # Clips.

  def drawn_before(self, epoch: int) -> int:
    """Returns the count of clips that epochs before this one draw."""
    return math.floor(epoch * self.per_epoch)


class _Bucket(NamedTuple):
  length: int  # Samples.
  streams: list[_Stream]
  rows: int  # A batch.

  @property
  def per_epoch(self) -> fractions.Fraction:
    """Batches of an epoch."""
    return sum(stream.per_epoch for stream in self.streams) / self.rows

  def drawn_before(self, epoch: int) -> int:
    """Returns the count of clips that epochs before this one draw."""
    return sum(stream.drawn_before(epoch) for stream in self.streams)

  def batches_before(self, epoch: int) -> int:
    """Returns the count of batches that begin in epochs before this one."""
    return -(-self.drawn_before(epoch) // self.rows)


class BatchPlan:
  """The endless sequence of training batches.

  A clip is cropped to the longest bucket and goes to the shortest that holds
  it. Each bucket is a stream, epoch after epoch of its clips in a new order,
  cut into batches of a fixed number of rows: in each epoch of a bucket every
  clip comes once, and a batch may reach into the next epoch. The batches that
  begin in epoch e of any bucket form block e of updates, in random order.

  Where clips have rates, a clip of rate r comes r times an epoch on average:
  clips of the same rate form a stream that is gone through again and again,
  and an epoch of the bucket takes the next r N of each.
  """

  def __init__(
    self,
    num_samples: np.ndarray,
    bucket_lengths: Sequence[int],
    batch_seconds: float,
    seed: int,
    rates: np.ndarray | None = None,
    speed_prob: float = 0.0,
    speeds: Sequence[float] = (),
  ):
    """Plans batches of about `batch_seconds` of real audio in every bucket.

    Args:
      num_samples: int [N] lengths of the clips.
      bucket_lengths: ascending, in samples.
      batch_seconds: audio per update, over all devices.
      seed: 0 or above.
      rates: [N] how often an epoch draws each clip, above 0; None: once each.
      speed_prob: share of the clips whose speed is one of ...
      speeds: ... these, above 0.

    Raises:
      ValueError: no clips, or one without samples.
    """
    self._num_samples = np.asarray(num_samples, np.int64)
    self._seed = seed
    self._speed_prob, self._speeds = speed_prob, speeds
    if rates is None:
      rates = np.ones(len(self._num_samples))
    self._buckets = _fill_buckets(
      self._num_samples, bucket_lengths, batch_seconds, rates, seed
    )
    cropped = np.minimum(self._num_samples, bucket_lengths[-1])
    self._seconds_per_epoch = float((cropped * rates).sum() / SAMPLE_RATE)
    self._exact_updates_per_epoch = sum(b.per_epoch for b in self._buckets)

  @property
  def shapes(self) -> list[tuple[int, int]]:
    """(rows, samples) of each bucket that has clips, shortest first."""
    return [(bucket.rows, bucket.length) for bucket in self._buckets]

  @property
  def shares(self) -> list[float]:
    """Share of the updates that draw from each bucket, as in `shapes`."""
    return [
      float(bucket.per_epoch) / self.updates_per_epoch
      for bucket in self._buckets
    ]

  @property
  def updates_per_epoch(self) -> float:
    """Updates that draw every clip once, or at its rate."""
    return float(self._exact_updates_per_epoch)

  @property
  def seconds_per_update(self) -> float:
    """Real audio per update, on average, in seconds."""
    return self._seconds_per_epoch / self.updates_per_epoch

  @property
  def fill(self) -> float:
    """Share of the padded samples that is real audio."""
    padded = sum(b.length * b.rows * float(b.per_epoch) for b in self._buckets)
    return self._seconds_per_epoch / (padded / SAMPLE_RATE)

  @property
  def hours(self) -> float:
    """Hours of all clips, uncropped."""
    return float(self._num_samples.sum() / SAMPLE_RATE / 3600)

  def rows(self, bucket_length: int) -> int:
    """Rows of a batch of the bucket of this many samples."""
    return {length: rows for rows, length in self.shapes}[bucket_length]

  def batch(self, update: int) -> Rows:
    """Returns the batch of an update (from 0), at a cost independent of it."""
    epoch = self._block(update)
    firsts = [bucket.batches_before(epoch) for bucket in self._buckets]
    ends = [bucket.batches_before(epoch + 1) for bucket in self._buckets]
    size = sum(ends) - sum(firsts)
    order = _permutation(self._seed, _SCHEDULE, epoch, 0, size)
    place = int(order[update - sum(firsts)])
    for bucket, first, end in zip(self._buckets, firsts, ends, strict=True):
      if place < end - first:
        return self._rows(bucket, first + place)
      place -= end - first
    raise AssertionError("a place beyond its block")

  def _block(self, update: int) -> int:
    """Returns the last block that begins at or before `update`."""
    # Block e begins at the sum over K buckets of ceil(floor(e N_k) / b_k), a
    # floor for each of S streams: between e R - S and e R + K, for R updates an
    # epoch. That bounds e, and bisection over the exact sums finds it.
    per_epoch = self._exact_updates_per_epoch
    num_streams = sum(len(bucket.streams) for bucket in self._buckets)
    low = max(0, (update + 1 - len(self._buckets)) // per_epoch)
    begun = bisect.bisect_right(
      range(low, (update + num_streams) // per_epoch + 1),
      update,
      key=lambda epoch: sum(b.batches_before(epoch) for b in self._buckets),
    )
    return low + begun - 1

  def _rows(self, bucket: _Bucket, batch: int) -> Rows:
    """Batch number `batch` of a bucket's stream."""
    first, end = batch * bucket.rows, (batch + 1) * bucket.rows
    # No later than the epoch of the first row, and hardly earlier.
    epoch = math.floor(first / bucket.per_epoch / bucket.rows)
    drawn = []
    while (before := bucket.drawn_before(epoch)) < end:
      after = bucket.drawn_before(epoch + 1)
      if after > first:
        size = after - before
        order = _permutation(self._seed, _ORDER, epoch, bucket.length, size)
        mine = order[max(0, first - before) : end - before]
        drawn.append(_draw(bucket, epoch, mine))
      epoch += 1
    clips, epochs = np.concatenate(drawn, axis=1)
    speeds = _draw_speeds(
      self._seed, epochs, clips, self._speed_prob, self._speeds
    )
    # Faster playback consumes more samples of the source a row.
    read = np.ceil(bucket.length * speeds).astype(np.int64)
    starts = _crop_starts(
      self._seed, epochs, clips, self._num_samples[clips] - read
    )
    return Rows(bucket.length, clips, epochs, starts, speeds)


def valid_batches(
  num_samples: np.ndarray, bucket_lengths: Sequence[int], batch_seconds: float
) -> list[Rows]:
  """Every clip once, in a fixed order, with the same crops in every run.

  The arguments are the plan's. The last batch of a bucket is filled up with
  empty rows.
  """
  num_samples = np.asarray(num_samples, np.int64)
  batches = []
  rates = np.ones(len(num_samples))
  for length, streams, rows in _fill_buckets(
    num_samples, bucket_lengths, batch_seconds, rates, _VALID_SEED
  ):
    (clips, _), *_ = streams
    for first in range(0, len(clips), rows):
      some = clips[first : first + rows]
      batch = np.full((3, rows), [[-1], [0], [0]], np.int64)
      batch[0, : len(some)] = some
      batch[2, : len(some)] = _crop_starts(
        _VALID_SEED, batch[1], some, num_samples[some] - length
      )
      batches.append(Rows(length, *batch, np.ones(rows)))
  return batches


def _fill_buckets(
  num_samples: np.ndarray,
  bucket_lengths: Sequence[int],
  batch_seconds: float,
  rates: np.ndarray,
  seed: int,
) -> list[_Bucket]:
  """The buckets that have clips, each with its rows a batch."""
  if not len(num_samples) or num_samples.min() < 1:
    raise ValueError("no clips, or a clip without samples")
  cropped = np.minimum(num_samples, bucket_lengths[-1])
  shortest = np.searchsorted(bucket_lengths, cropped)
  buckets = []
  for index, length in enumerate(bucket_lengths):
    clips = np.flatnonzero(shortest == index)
    if len(clips):
      seconds = np.average(cropped[clips], weights=rates[clips]) / SAMPLE_RATE
      rows = max(1, round(batch_seconds / seconds))
      streams = [
        _stream(clips[rates[clips] == rate], float(rate), length, seed)
        for rate in np.unique(rates[clips])
      ]
      buckets.append(_Bucket(length, streams, rows))
  return buckets


def _stream(clips: np.ndarray, rate: float, length: int, seed: int) -> _Stream:
  if rate != 1:  # Neighbours in the source should not share an epoch.
    clips = clips[_permutation(seed, _STREAM, 0, length, len(clips))]
  # Exact, and of few digits, so that sums over epochs stay cheap.
  exact = fractions.Fraction(rate).limit_denominator(10**9)
  return _Stream(clips, len(clips) * exact)


def _draw(bucket: _Bucket, epoch: int, places: np.ndarray) -> np.ndarray:
  """Clips at places of an epoch, and how often each came before. [2, B]."""
  drawn = np.empty((2, len(places)), np.int64)
  begin = 0
  for stream in bucket.streams:
    clips = stream.clips
    first, end = stream.drawn_before(epoch), stream.drawn_before(epoch + 1)
    here = (places >= begin) & (places < begin + end - first)
    often, offset = np.divmod(
      places[here] + np.int64(first - begin), len(clips)
    )
    drawn[:, here] = clips[offset], often
    begin += end - first
  return drawn


def _random(*entropy: int) -> np.random.Philox:
  """A stream of its own for each (seed, purpose, ...)."""
  return np.random.Philox(np.random.SeedSequence(entropy))


# Holds two epochs of the usual handful of buckets.
@functools.lru_cache(maxsize=32)
def _permutation(
  seed: int, purpose: int, epoch: int, which: int, size: int
) -> np.ndarray:
  """Int32 [size], read-only: it is shared by threads."""
  # Sorting raw bits: unlike Generator.permutation, numpy promises these never
  # to change.
  bits = _random(seed, purpose, epoch, which).random_raw(size)
  order = np.argsort(bits, kind="stable").astype(np.int32)
  order.flags.writeable = False
  return order


def _draw_speeds(
  seed: int,
  epochs: np.ndarray,
  clips: np.ndarray,
  prob: float,
  speeds: Sequence[float],
) -> np.ndarray:
  """Float64 [B], each a function of (seed, epoch, clip)."""
  drawn = np.ones(len(clips))
  if prob and speeds:
    for row, (epoch, clip) in enumerate(zip(epochs.tolist(), clips.tolist())):
      draw = _random(seed, _SPEED, epoch, clip).random_raw(2)
      if draw[0] < prob * 2.0**64:
        drawn[row] = speeds[int(draw[1]) % len(speeds)]
  return drawn


def _crop_starts(
  seed: int, epochs: np.ndarray, clips: np.ndarray, room: np.ndarray
) -> np.ndarray:
  """Int64 [B] in [0, room], each a function of (seed, epoch, clip).

  They are multiples of FRAME_HOP, so that the frames of a crop are frames of
  the clip, and what is stored for these is good for those.
  """
  starts = np.zeros(len(clips), np.int64)
  for row in np.flatnonzero(room > 0):
    bits = _random(seed, _CROP, int(epochs[row]), int(clips[row])).random_raw()
    starts[row] = bits % (int(room[row]) // FRAME_HOP + 1) * FRAME_HOP
  return starts
