"""Passes over a source: frames of its clips, all or a sample."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from ml_collections import ConfigDict
from tqdm import tqdm

from ssl_jax import SAMPLE_RATE
from ssl_jax.data.batches import make_iterator
from ssl_jax.data.pieces import Pieces
from ssl_jax.data.sources.audio import DamagedAudio
from ssl_jax.data.sources.source import Source
from ssl_jax.models import whole_clip

# (waveform float [B, S], length [B]) -> any array [B, F, ...], and how many of
# each row's frames are real, [B].
FramesOf = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]

_SAMPLE = 4  # Purpose of the random draw; data/batch_plan.py has the others.


def make_pieces(
  config: ConfigDict, source: Source, clips: np.ndarray | None = None
) -> Pieces:
  """The pieces of a source's clips, or of some, in batches for evaluation."""
  clips = np.arange(len(source.ids)) if clips is None else clips
  buckets = [round(s * SAMPLE_RATE) for s in config.data.bucket_seconds]
  return Pieces(source.num_samples, clips, buckets, config.encode.batch_seconds)


def each_batch(
  config: ConfigDict,
  source: Source,
  pieces: Pieces,
  frames_of: FramesOf,
  by_row: Sharding,
  start: int = 0,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
  """Yields (clips [B], starts [B], frames [B, F, ...], real [B]) of each batch.

  Clips that come in pieces are normed by the moments of all of them, for which
  they are read once more.

  Args:
    config: of the run: how to read.
    source: of the clips.
    pieces: of the source, all to be read.
    frames_of: computed on the devices; jitted here.
    by_row: how a batch is placed on them.
    start: the first batch.
  """

  lengths = {pieces.batch(i).bucket_length for i in range(len(pieces))}
  cut = source.num_samples > max(lengths, default=0)
  rows = len(by_row.device_set)
  whole = _WholeClips(source, cut, frames_of, rows) if cut.any() else None

  @functools.partial(jax.jit, in_shardings=by_row)
  def compute(waveform: jax.Array, length: jax.Array, moments: Any) -> Any:
    waveform = waveform.astype(jnp.float32) / 2**15
    if moments is None:
      return frames_of(waveform, length)
    known, stages = moments
    with whole_clip.use(stages, known) as seen:
      frames = frames_of(waveform, length)
    # A function that was jitted before would not have asked for them.
    assert len(seen) == len(stages)
    return frames

  batches = make_iterator(
    source,
    pieces,
    start,
    len(pieces) - start,
    row_multiple=len(by_row.device_set),
    **config.loader,
  )
  waiting = None  # One batch is computed while the one before is used.
  try:
    for index, batch in enumerate(batches, start):
      moments = whole.of(batch["record"]) if whole else None
      placed = batch["waveform"], batch["length"], moments
      placed = jax.device_put(placed, by_row)
      starts = np.zeros(len(batch["record"]), np.int64)
      planned = pieces.batch(index).starts
      starts[: len(planned)] = planned
      current = batch["record"], starts, *compute(*placed)
      if waiting is not None:
        yield jax.device_get(waiting)
      waiting = current
    if waiting is not None:
      yield jax.device_get(waiting)
  finally:
    batches.close()


class _WholeClips:
  """Moments of clips that come in pieces, each taken when it is first met."""

  def __init__(
    self, source: Source, cut: np.ndarray, frames_of: FramesOf, rows: int
  ):
    self._source, self._cut = source, cut
    self._gather = whole_clip.Gatherer(frames_of, rows)
    self._known: dict[int, list[whole_clip.Moments]] = {}

  def of(self, clips: np.ndarray) -> tuple[np.ndarray, list] | None:
    """Returns (known [B], stages) of a batch; None where no norm needs them."""
    if not self._gather.shapes:
      return None
    rows = [self._moments(int(clip)) for clip in clips]
    known = np.array([row is not None for row in rows])
    zeros = jax.tree.map(
      lambda x: np.zeros(x.shape, x.dtype), self._gather.shapes
    )
    rows = [zeros if row is None else row for row in rows]
    return known, jax.tree.map(lambda *parts: np.concatenate(parts), *rows)

  def _moments(self, clip: int) -> list[whole_clip.Moments] | None:
    if clip < 0 or not self._cut[clip]:
      return None
    if clip not in self._known:
      size = int(self._source.num_samples[clip])
      try:
        self._known[clip] = self._gather(self._source.read(clip, 0, size))
      except DamagedAudio:
        return None  # Whoever reads its pieces says so.
    return self._known[clip]


def sample(
  config: ConfigDict,
  source: Source,
  frames_of: FramesOf,
  hop: int,
  by_row: Sharding,
) -> np.ndarray:
  """Frames of clips drawn at random: `kmeans.num_frames` or all. [M, C].

  Memory is bounded by that number (and one clip), however large the source.

  Args:
    config: of the run.
    source: of the clips.
    frames_of: as of `each_batch`.
    hop: samples between its frames.
    by_row: as of `each_batch`.
  """
  wanted = config.kmeans.num_frames
  draws = np.random.Philox(np.random.SeedSequence([config.seed, _SAMPLE]))
  order = np.argsort(draws.random_raw(len(source.ids)), kind="stable")
  count = np.cumsum(source.num_samples[order] // hop)
  clips = order[: np.searchsorted(count, wanted) + 1]
  parts = []
  pieces = make_pieces(config, source, clips)
  with tqdm(
    total=len(pieces), desc="sampling", unit="batch", delay=1, disable=None
  ) as bar:
    for _, _, frames, real in each_batch(
      config, source, pieces, frames_of, by_row
    ):
      parts += [row[:n] for row, n in zip(frames, real)]
      bar.update()
  return np.concatenate(parts)
