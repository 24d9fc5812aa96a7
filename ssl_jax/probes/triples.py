"""Triples (A, B, X) of segments: which are compared, and on how many one errs.

A cell is all triples of two phones, one speaker of A and B, one of X and, as
triphones, the same neighbours. Its errors are averaged over neighbours and
speakers of X: that average is a place of `Plan.counts`.

Axes: I segments, P phones, U speakers, N jobs, W the segments of B in a job.
"""

import functools
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# The mode's name: (X is of another speaker, all have the same neighbours).
MODES = {
  "abx_across": (True, False),
  "abx_within": (False, False),
  "abx_across_triphone": (True, True),
  "abx_within_triphone": (False, True),
}
MOST_ITEMS, MOST_SPEAKERS = 10, 5  # Items a group; speakers of X for one of A.
_WIDTHS = 16, 128  # Segments of B in a job.
_SHORTEST = 4  # Frames that shorter segments are padded to.
_BATCH = 2**20  # Numbers in the largest array of a call.
_ROUNDING = 1e-6  # Smaller differences of distances are rounding: a tie.


class Items(NamedTuple):
  """Segments of clips; int [I] each.

  Attributes:
    phone: its number.
    context: the number of its pair of neighbours.
    speaker: its number.
    first: row of its first frame, of the frames of all clips stacked.
    length: frames.
  """

  phone: np.ndarray
  context: np.ndarray
  speaker: np.ndarray
  first: np.ndarray
  length: np.ndarray


class Jobs(NamedTuple):
  """Comparisons of one shape; -1 stands for no segment.

  Attributes:
    x, a: int32 [N, most items] segments of one phone.
    b: int32 [N, W] segments of other phones, by the speaker of A.
    share: float64 [N, W]: an error with B adds this to its place's average.
    place: int64 [N, W]: index into the flat `Plan.counts`.
  """

  x: np.ndarray
  a: np.ndarray
  b: np.ndarray
  share: np.ndarray
  place: np.ndarray


class Plan(NamedTuple):
  """All comparisons, the same for every layer and encoder.

  Attributes:
    jobs: {(frames of A and X, of B; W): the jobs padded to these}.
    counts: float64 [modes, P P, U]: 1 where the speaker of A and B has triples
      of an ordered pair of phones.
    triples: how many are compared.
  """

  jobs: dict[tuple[int, int, int], Jobs]
  counts: np.ndarray
  triples: int


def plan(
  items: Items,
  num_phones: int,
  num_speakers: int,
  seed: int,
  pooled: bool,
  most_items: int = MOST_ITEMS,
  most_speakers: int = MOST_SPEAKERS,
) -> Plan:
  """Draws what is compared, and cuts it into jobs.

  Args:
    items: the segments.
    num_phones: P.
    num_speakers: U.
    seed: of the draws.
    pooled: segments are of one frame, their mean.
    most_items: segments of a phone, a speaker (and neighbours).
    most_speakers: speakers of X beside each of A and B.
  """
  shape = len(MODES), num_phones**2, num_speakers
  rows, triples = [], 0
  counts, length = np.zeros(shape).ravel(), items.length
  if pooled:
    length = np.ones_like(length)
  for mode, (across, triphone) in enumerate(MODES.values()):
    generator = np.random.default_rng((seed, mode))
    groups = _groups(items, triphone, generator, most_items)
    for x, a, b in _rows(groups, across, generator, most_speakers):
      first, others = a[0], items.phone[b]
      pair = items.phone[first] * num_phones + others
      place = np.ravel_multi_index((mode, pair, items.speaker[first]), shape)
      # A cell has one vote, however many segments of B it has.
      vote = 1 / np.bincount(others)[others]
      pairs = len(x) * len(a) - (0 if across else len(a))
      np.add.at(counts, place, vote)
      rows.append((x, a, b, vote / pairs, place))
      triples += pairs * len(b)
  lists = defaultdict(list)
  for x, a, b, share, place in rows:
    share = share / counts[place]
    # Segments of like length share a job, so that little is padded.
    order = np.argsort(length[b], kind="stable")
    width = next((w for w in _WIDTHS if len(b) <= w), _WIDTHS[-1])
    of_a = _padded(max(length[x].max(), length[a].max()))
    for part in np.split(order, range(width, len(b), width)):
      key = of_a, _padded(length[b[part]].max()), width
      lists[key].append((x, a, b[part], share[part], place[part]))
  jobs = {}
  for key, own in sorted(lists.items()):
    x, a, b, share, place = zip(*own)
    jobs[key] = Jobs(
      _stack(x, most_items, np.int32(-1)),
      _stack(a, most_items, np.int32(-1)),
      _stack(b, key[2], np.int32(-1)),
      _stack(share, key[2], np.float64(0)),
      _stack(place, key[2], np.int64(0)),
    )
  counts = (counts > 0).astype(np.float64).reshape(shape)
  return Plan(jobs, counts, triples)


def count_errors(
  plan: Plan, items: Items, frames: np.ndarray, pooled: bool
) -> np.ndarray:
  """Returns the average errors of every place. [modes, P P, U].

  Args:
    plan: the comparisons.
    items: the segments it was made of.
    frames: float32 [M, D], of all clips stacked.
    pooled: compare the means of segments; else by dynamic time warping.
  """
  first, length = items.first, items.length
  if pooled:
    frames = np.stack(
      [frames[f : f + n].mean(0) for f, n in zip(first, length)]
    )
    first, length = np.arange(len(first)), np.ones_like(length)
  norm = np.linalg.norm(frames, axis=1, keepdims=True)
  bank = jnp.asarray(frames / np.maximum(norm, 1e-12), jnp.float32)
  first, length = (jnp.asarray(x, jnp.int32) for x in (first, length))
  calls = []
  for (of_a, of_b, width), jobs in plan.jobs.items():
    largest = of_b * width * max(bank.shape[1], of_a * jobs.x.shape[1])
    size = 2 ** int(np.log2(max(1, _BATCH // largest)))
    for start in range(0, len(jobs.x), size):
      batch = (
        _to_size(x[start : start + size], size)
        for x in (jobs.x, jobs.a, jobs.b)
      )
      errors = _errors(bank, first, length, *batch, of_a, of_b)
      calls.append((errors, jobs, slice(start, start + size)))
  total = np.zeros(plan.counts.size)
  for errors, jobs, rows in calls:
    share, place = jobs.share[rows], jobs.place[rows]
    sums = np.asarray(errors)[: len(share)] * share
    np.add.at(total, place, sums)
  return total.reshape(plan.counts.shape)


def warp(distances: jax.Array, of_x: jax.Array, of_y: jax.Array) -> jax.Array:
  """Returns the mean distance along the best path (dynamic time warping).

  The path is of the least sum; of equal ones it takes the diagonal, then the
  step in Y, as fastabx does.

  Args:
    distances: [T, S, ...] between the frames of X and of Y.
    of_x: [...] frames of X that are real, the first ones; at least 1.
    of_y: the same of Y, at most S.

  Returns:
    [...].
  """
  t, s = distances.shape[:2]
  rows, columns = (x.reshape(-1, *(1,) * of_x.ndim) for x in jnp.ogrid[:t, :s])
  real = (rows[:, None] < of_x) & (columns[None] < of_y)
  padded = jnp.where(real, distances, jnp.inf)
  # Diagonal k has at row i the pair (i, k - i): each is made of the two before.
  padded = jnp.pad(
    padded, ((0, 0), (t, t), *((0, 0),) * of_x.ndim), constant_values=jnp.inf
  )
  diagonals = jnp.arange(t + s - 1)[:, None] - jnp.arange(t)[None]
  skewed = padded[jnp.arange(t)[None], diagonals + t]  # [T + S - 1, T, ...]

  def shifted(x: jax.Array, fill: float) -> jax.Array:
    return jnp.concatenate([jnp.full_like(x[:1], fill), x[:-1]])

  def step(carry: tuple, here: tuple) -> tuple:
    (older, older_steps), (last, last_steps), result = carry
    k, costs = here
    up, up_steps = shifted(last, jnp.inf), shifted(last_steps, 0)
    across, across_steps = shifted(older, jnp.inf), shifted(older_steps, 0)
    diagonal = (across <= last) & (across <= up)
    best = jnp.minimum(jnp.minimum(up, last), across)
    steps = jnp.where(last <= up, last_steps, up_steps)
    steps = 1 + jnp.where(diagonal, across_steps, steps)
    # The first pair has none before it.
    total = costs + jnp.where(k == 0, 0, best)
    end = (rows == of_x - 1) & (k == of_x + of_y - 2)  # [T, ...]
    result += jnp.where(end, total / steps, 0).sum(axis=0)
    return ((last, last_steps), (total, steps), result), None

  nowhere = jnp.full_like(skewed[0], jnp.inf), jnp.zeros_like(skewed[0])
  carry = nowhere, nowhere, jnp.zeros_like(skewed[0, 0])
  (*_, result), _ = jax.lax.scan(step, carry, (jnp.arange(t + s - 1), skewed))
  return result


@functools.partial(jax.jit, static_argnames=("of_a", "of_b"))
def _errors(
  bank: jax.Array,
  first: jax.Array,
  length: jax.Array,
  x: jax.Array,
  a: jax.Array,
  b: jax.Array,
  of_a: int,
  of_b: int,
) -> jax.Array:
  """Counts the errors with each B, a tie as half of one. [N, W]."""

  def distances(other: jax.Array, frames: int) -> jax.Array:
    rows = [
      jnp.minimum(jnp.arange(t), length[y][..., None] - 1) + first[y][..., None]
      for y, t in ((x, of_a), (other, frames))
    ]  # [N, 10, T], [N, W, S]
    cosine = jnp.einsum(
      "nxtd,nwsd->tsnxw",
      *(bank[row] for row in rows),
      precision=jax.lax.Precision.HIGHEST,
    )
    if of_a == frames == 1:
      # Angles are in the order of their cosines, which round alike everywhere.
      return -cosine[0, 0]
    cosine = jnp.where(cosine > 1 - _ROUNDING, 1, jnp.maximum(cosine, -1))
    angle = jnp.arccos(cosine) / jnp.pi
    of_x, of_y = length[x][:, :, None], length[other][:, None]
    of_x, of_y = jnp.broadcast_arrays(of_x, of_y)
    return warp(angle, of_x, of_y)

  to_a, to_b = distances(a, of_a), distances(b, of_b)  # [N, 10, 10], [N, 10, W]
  x, a = x[:, :, None], a[:, None]
  counted = (x >= 0) & (a >= 0) & (x != a)
  wrong = jnp.zeros_like(to_b)
  for i in range(a.shape[2]):
    farther = to_a[:, :, i, None] - to_b
    tie = jnp.abs(farther) < _ROUNDING
    error = jnp.where(tie, 0.5, farther > 0)
    wrong += jnp.where(counted[:, :, i, None], error, 0)
  return wrong.sum(axis=1)


def _groups(
  items: Items, triphone: bool, generator: np.random.Generator, most: int
) -> dict[tuple[int, int], dict[int, np.ndarray]]:
  """Draws the segments: {(neighbours, speaker): {phone: segments}}."""
  groups = defaultdict(lambda: defaultdict(list))
  for i in generator.permutation(len(items.phone)).tolist():
    context = int(items.context[i]) if triphone else 0
    own = groups[context, int(items.speaker[i])][int(items.phone[i])]
    if len(own) < most:
      own.append(i)
  return {
    key: {phone: np.array(own[phone]) for phone in sorted(own)}
    for key, own in sorted(groups.items())
  }


def _rows(
  groups: dict[tuple[int, int], dict[int, np.ndarray]],
  across: bool,
  generator: np.random.Generator,
  most: int,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
  """Yields segments of X and A, of one phone, and of B, of all others."""
  speakers = defaultdict(list)
  for (context, speaker), own in groups.items():
    for phone in own:
      speakers[context, phone].append(speaker)
  for (context, speaker), own in groups.items():
    if len(own) < 2:
      continue
    for phone, a in own.items():
      others = [s for s in speakers[context, phone] if s != speaker]
      if across and len(others) > most:
        others = generator.choice(others, most, replace=False)
      b = np.concatenate([ids for name, ids in own.items() if name != phone])
      if across:
        for other in others:
          yield groups[context, int(other)][phone], a, b
      elif len(a) > 1:
        yield a, a, b


def _padded(length: int) -> int:
  """Returns the length that so many frames are padded to."""
  if length == 1:
    return 1
  return max(_SHORTEST, 2 ** int(np.ceil(np.log2(length))))


def _stack(
  rows: tuple[np.ndarray, ...], width: int, fill: np.generic
) -> np.ndarray:
  """Stacks rows [<= width] into [N, width], of the type of `fill`."""
  stack = np.full((len(rows), width), fill)
  for row, own in zip(stack, rows):
    row[: len(own)] = own
  return stack


def _to_size(rows: np.ndarray, size: int) -> np.ndarray:
  """Appends rows of no segment up to `size` rows."""
  return np.pad(rows, ((0, size - len(rows)), (0, 0)), constant_values=-1)
