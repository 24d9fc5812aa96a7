"""k-means: mini-batch search from the best of starts, then Lloyd on all frames.

Axes: M frames, C channels, K clusters, S frames of a sample, P parts that the
frames are shared out in, one a device. Distances are squared Euclidean.

The recipe is scikit-learn's MiniBatchKMeans(n_init=20, max_no_improvement=100):
of 20 starts the one of the lowest inertia on a sample is searched from. The
search is followed by passes over all frames. Nothing as large as [M, K], nor a
second copy of the frames, is ever in memory.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.knobs import Knob

# The default rounds to bfloat16 on TPU and to TF32 on GPU.
_EXACT = jax.lax.Precision.HIGHEST

_PATIENCE = 100  # Batches in a row without a new lowest smoothed inertia.
_REASSIGN = 0.01  # Clusters below this share of the largest one are too small.
_LLOYD_PASSES = 20
_TOLERANCE = 1e-4  # Improving the inertia by this share earns another pass.
_CHUNK = 1 << 22  # Largest number of distances held at once by a Lloyd pass.

KNOBS = {
  "num_frames": Knob(
    1_000_000,
    "Frames sampled from the training audio to fit a codebook on.",
    low=1,
    high=10**12,
  ),
  "batch_frames": Knob(10_000, "Frames of a mini-batch.", low=1, high=10**12),
  "max_iterations": Knob(
    100, "Passes over the sampled frames, at most.", low=1, high=10**12
  ),
  "num_inits": Knob(
    20,
    "Starts drawn for a search, which begins at the best of them; "
    "scikit-learn's `n_init`.",
    low=1,
    high=10_000,
  ),
  "num_restarts": Knob(
    1,
    "Searches, each from starts of its own; the best is kept.",
    low=1,
    high=10_000,
  ),
}


class Fit(NamedTuple):
  """The result of `fit`.

  Attributes:
    centroids: float32 [K, C].
    inertia: mean over the M frames of the squared distance to the nearest.
    usage: int64 [K], frames nearest to each.
  """

  centroids: np.ndarray
  inertia: float
  usage: np.ndarray


class Searched(NamedTuple):
  """Searches that are done, and the best result of them, [K, C]."""

  restarts: int
  score: float
  centroids: np.ndarray


def nearest(frames: jax.Array, centroids: jax.Array) -> jax.Array:
  """The closest centroid, of equals the first. [..., C], [K, C] -> int32 [...].

  The argmin of |c|^2 / 2 - x c, which is (|x - c|^2 - |x|^2) / 2.
  """
  # Near the origin, the two terms lose no digits to an offset common to all.
  origin = centroids.mean(axis=0)
  frames, centroids = frames.astype(jnp.float32) - origin, centroids - origin
  scores = jnp.square(centroids).sum(axis=1) / 2 - jnp.matmul(
    frames, centroids.T, precision=_EXACT
  )
  return jnp.argmin(scores, axis=-1).astype(jnp.int32)


def fit(
  frames: jax.Array | np.ndarray,
  num_clusters: int,
  seed: int,
  *,
  num_inits: int,
  num_restarts: int,
  batch_frames: int,
  max_iterations: int,
  begun: Searched | None = None,
  on_restart: Callable[[Searched], None] | None = None,
) -> Fit:
  """Clusters frames.

  Args:
    frames: float32 [M, C], on one device or shared out by rows over several.
    num_clusters: K.
    seed: of all draws.
    num_inits: 1 or more starts drawn for a search, on a random sample of
      3 max(batch_frames, K) frames; it begins at the best of them there.
    num_restarts: 1 or more searches, of which the best on that sample is kept.
    batch_frames: frames that a search sees at a time.
    max_iterations: bound on a search in passes, M / batch_frames batches each;
      most end before.
    begun: what an earlier call with the same arguments gave `on_restart`; those
      searches are not done again.
    on_restart: called after each search.

  Raises:
    ValueError: fewer frames than clusters, or frames that are not finite.
  """
  frames = jnp.asarray(frames, jnp.float32)
  num_frames = len(frames)
  if num_frames < num_clusters:
    raise ValueError(f"{num_frames} frames are too few: K = {num_clusters}")
  if not np.isfinite(_energy(frames)):
    raise ValueError("frames hold NaN, infinity or numbers too large to square")
  batch_frames = min(batch_frames, num_frames)
  max_batches = max(1, max_iterations * num_frames // batch_frames)
  sample_frames = min(num_frames, 3 * max(batch_frames, num_clusters))

  keys = jax.random.split(jax.random.key(seed), (num_restarts + 1, 2))
  # Through the host, starts and scores do not depend, even by rounding, on how
  # the frames are shared out.
  sample = np.asarray(_draw_frames(frames, keys[0, 0], sample_frames))
  best = begun or Searched(0, math.inf, np.zeros(0))
  for start_key, search_key in keys[1 + best.restarts :]:
    starts = (
      _start(sample, num_clusters, jax.random.fold_in(start_key, i))
      for i in range(num_inits)
    )
    start, _ = min(starts, key=lambda start: float(start[1]))
    start = np.asarray(start)
    found = _search(frames, start, search_key, batch_frames, max_batches)
    found = np.asarray(found)
    score = float(_improve(sample, found, 1)[0])
    best = best._replace(restarts=best.restarts + 1)
    if score < best.score:
      best = best._replace(score=score, centroids=found)
    if on_restart:
      on_restart(best)
  return _refine(frames, best.centroids)


@functools.partial(jax.jit, static_argnums=1)
def _start(
  sample: jax.Array, num_clusters: int, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Greedy k-means++ (Arthur & Vassilvitskii, 2007). [S, C] -> [K, C], inertia.

  A frame is drawn with probability proportional to its squared distance to the
  nearest one chosen before; of 2 + floor(ln K) such draws, the one that leaves
  the least inertia is chosen.
  """
  num_draws = 2 + int(math.log(num_clusters))
  size = len(sample)
  points = sample - sample.mean(axis=0)  # For the digits: see `nearest`.
  norms = jnp.square(points).sum(axis=1)

  def distances(chosen: jax.Array) -> jax.Array:
    """[N] -> [N, S]."""
    products = jnp.matmul(points[chosen], points.T, precision=_EXACT)
    return jnp.maximum(norms[chosen, None] - 2 * products + norms, 0)

  def choose(i: int, state: tuple) -> tuple:
    chosen, closest = state  # [K] indices, [S] distances to them.
    mass = jnp.cumsum(closest)
    draws = jax.random.uniform(jax.random.fold_in(key, i), (num_draws,))
    draws = jnp.searchsorted(mass, draws * mass[-1], side="right")
    draws = jnp.minimum(draws, size - 1)
    left = jnp.minimum(distances(draws), closest)
    best = jnp.argmin(left.sum(axis=1))
    return chosen.at[i].set(draws[best]), left[best]

  first = jax.random.randint(jax.random.fold_in(key, 0), (1,), 0, size)
  chosen = jnp.zeros(num_clusters, jnp.int32).at[0].set(first[0])
  state = chosen, distances(first)[0]
  chosen, closest = jax.lax.fori_loop(1, num_clusters, choose, state)
  return sample[chosen], closest.mean()


@functools.partial(jax.jit, static_argnums=(3, 4))
def _search(
  frames: jax.Array,
  centroids: jax.Array,
  key: jax.Array,
  batch_frames: int,
  max_batches: int,
) -> jax.Array:
  """Mini-batch k-means (Sculley, 2010). [M, C], [K, C] -> [K, C].

  A centroid is the mean of the frames assigned to it so far, so a batch moves
  it by its share of them. Centroids with few frames move to random frames.
  """
  # scikit-learn's: the moving average looks back over about half a pass.
  weight = min(1.0, 2 * batch_frames / (len(frames) + 1))

  def go_on(state: tuple) -> jax.Array:
    index, *_, stalled = state
    return (index < max_batches) & (stalled < _PATIENCE)

  def step(state: tuple) -> tuple:
    # Batches before this one, frames seen by each centroid [K], moving average
    # of the inertia, its lowest value, batches since.
    index, centroids, seen, average, lowest, stalled = state
    batch_key, seed_key = jax.random.split(jax.random.fold_in(key, index))
    batch = _draw_frames(frames, batch_key, batch_frames)
    usage, shift, distance = _assign(batch, centroids)
    seen += usage
    centroids += shift / jnp.maximum(seen, 1)[:, None]

    # When the search may be about to end, what has moved settles.
    settling = (stalled >= _PATIENCE // 2) | (index >= max_batches // 2)
    few = (seen < _REASSIGN * seen.max()) & ~settling
    seeds = _draw_frames(batch, seed_key, len(centroids))
    centroids = jnp.where(few[:, None], seeds, centroids)
    # As in scikit-learn: enough not to move again at once.
    seen = jnp.where(few, seen.min(where=~few, initial=jnp.inf), seen)

    inertia = distance.mean()
    average += weight * (inertia - average)
    # The first batch's tells of the start, not of the search.
    average = jnp.where(index <= 1, inertia, average)
    stalled = jnp.where(average < lowest, 0, stalled + 1)
    lowest = jnp.minimum(average, lowest)
    return index + 1, centroids, seen, average, lowest, stalled

  state = (0, centroids, jnp.zeros(len(centroids)), jnp.inf, jnp.inf, 0)
  return jax.lax.while_loop(go_on, step, state)[1]


def _refine(frames: jax.Array, centroids: jax.Array) -> Fit:
  """Lloyd's algorithm, for as long as it pays."""
  parts = len(frames) // frames.sharding.shard_shape(frames.shape)[0]
  inertia, usage, better = _improve(frames, centroids, parts)
  for _ in range(_LLOYD_PASSES):
    result = _improve(frames, better, parts)
    gain = inertia - result[0]
    if gain >= 0:
      centroids = better
      inertia, usage, better = result
    if gain <= _TOLERANCE * inertia:
      break
  return Fit(np.asarray(centroids), float(inertia), np.asarray(usage, np.int64))


@functools.partial(jax.jit, static_argnums=2)
def _improve(
  frames: jax.Array, centroids: jax.Array, parts: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """A pass of Lloyd's algorithm, in chunks of frames.

  Args:
    frames: [M, C].
    centroids: [K, C].
    parts: P; a chunk takes as many frames of each.

  Returns:
    (mean distance, usage [K], better centroids [K, C]), the first two of the
    centroids given. The better ones are the means of the clusters and, for
    those that are empty, the frames farthest from their centroid.
  """
  num_frames, channels = frames.shape
  num_clusters = len(centroids)
  rows = num_frames // parts
  chunk = _CHUNK // (parts * max(num_clusters, channels))
  chunk = min(rows, max(1, chunk))
  shared = frames.reshape(parts, rows, channels)
  first = rows * jnp.arange(parts)[:, None]  # Frame of each part.

  def add_chunk(i: int, totals: tuple) -> tuple:
    usage, shift, inertia, far_distance, far_frame = totals
    # The last chunk begins early, to be as long as the others.
    start = jnp.minimum(i * chunk, rows - chunk)
    row = start + jnp.arange(chunk)
    new = row >= i * chunk
    part = jax.lax.dynamic_slice_in_dim(shared, start, chunk, axis=1)
    more_usage, more_shift, distance = _assign(part, centroids, new[:, None])
    distance = jnp.where(new, distance, 0)
    far_distance, which = jax.lax.top_k(
      jnp.concatenate([far_distance, distance.ravel()]), num_clusters
    )
    far_frame = jnp.concatenate([far_frame, (first + row).ravel()])[which]
    usage += more_usage.astype(jnp.int32)
    inertia += distance.sum()
    return usage, shift + more_shift, inertia, far_distance, far_frame

  nothing = jnp.zeros(num_clusters)
  nobody = jnp.zeros(num_clusters, jnp.int32)
  totals = (nobody, jnp.zeros_like(centroids), 0.0, nothing, nobody)
  num_chunks = -(-rows // chunk)
  totals = jax.lax.fori_loop(0, num_chunks, add_chunk, totals)
  usage, shift, inertia, _, far_frame = totals
  means = centroids + shift / jnp.maximum(usage, 1)[:, None]
  empty = usage == 0
  farthest = frames[far_frame[jnp.cumsum(empty) - 1]]
  better = jnp.where(empty[:, None], farthest, means)
  return inertia / num_frames, usage, better


def _assign(
  frames: jax.Array, centroids: jax.Array, weight: jax.Array | float = 1.0
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Assigns frames [..., C] to clusters; `weight` [..., 1] is what each counts.

  Returns:
    (frames of each cluster [K], sum of their differences from the centroid
    [K, C], distance of every frame [...]). Sums of differences keep digits that
    sums of frames would lose.
  """
  cluster = nearest(frames, centroids)
  difference = frames - centroids[cluster]
  member = jax.nn.one_hot(cluster, len(centroids)) * weight
  axes = tuple(range(cluster.ndim))
  shift = jnp.tensordot(member, difference, (axes, axes), precision=_EXACT)
  return member.sum(axis=axes), shift, jnp.square(difference).sum(axis=-1)


@functools.partial(jax.jit, static_argnums=2)
def _draw_frames(frames: jax.Array, key: jax.Array, count: int) -> jax.Array:
  """A random frame of each of `count` equal stretches. [M, C] -> [count, C]."""
  edges = np.arange(count + 1) * len(frames) // count
  return frames[jax.random.randint(key, (count,), edges[:-1], edges[1:])]


@jax.jit
def _energy(frames: jax.Array) -> jax.Array:
  return jnp.square(frames).sum()
