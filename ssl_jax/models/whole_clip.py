"""Moments of a whole clip, where what a frontend is given is a piece of it.

Frontends norm by means and variances over a clip. A clip that is encoded in
pieces is to have those of all of it in each: a `Gatherer` takes them from its
parts, and within `use` frontends norm by them.

A frontend passes its moments through `settle`, one stage after the other: those
of a later stage are of what the earlier ones have normed.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax import FRAME_WINDOW

# Samples of a part, whose windows may reach beyond: 20, 30 and 60 s.
_PARTS = (320_000, 480_000, 960_000)


class Moments(NamedTuple):
  """A stage's [B, ...] means, and variances or [B, C, C] covariances."""

  mean: jax.Array | np.ndarray
  second: jax.Array | np.ndarray


class _Settling:
  """Knowledge of the clips while a frontend is traced."""

  def __init__(self, stages: Sequence[Moments], known: jax.Array, own: Any):
    self.stages, self.known, self.own = stages, known, own
    self.seen: list[tuple[jax.Array, Moments]] = []  # Counts [B] with them.


_current: contextvars.ContextVar[_Settling | None] = contextvars.ContextVar(
  "whole_clip", default=None
)


@contextlib.contextmanager
def use(
  stages: Sequence[Moments], known: jax.Array, own: jax.Array | None = None
) -> Iterator[list[tuple[jax.Array, Moments]]]:
  """Traces frontends with moments of whole clips.

  Args:
    stages: of the clips, as many as are known; others are those of the pieces.
    known: bool [B], of which clips they are: others are their own.
    own: int32 [B], samples of each piece that are no other's; None: all.

  Yields:
    What frontends pass through `settle`: (count [B], moments) of each stage.
  """
  settling = _Settling(stages, known, own)
  token = _current.set(settling)
  try:
    yield settling.seen
  finally:
    _current.reset(token)


def counted(real: jax.Array, hop: int) -> jax.Array:
  """Returns which of a piece's positions count: bool [B, N], `hop` apart."""
  settling = _current.get()
  if settling is None or settling.own is None:
    return real
  place = hop * jnp.arange(real.shape[1])
  return real & (place < settling.own[:, None])


def settle(
  count: jax.Array, moments: Moments, basis: np.ndarray | None = None
) -> Moments:
  """Returns the moments to norm by: of whole clips where they are known.

  Args:
    count: [B], of the positions that the piece's own moments are of.
    moments: the piece's own.
    basis: [C, C], orthonormal, which a covariance is in and its mean is not.
  """
  settling = _current.get()
  if settling is None:
    return moments
  own = moments
  if basis is not None:
    own = own._replace(mean=jnp.matmul(own.mean, basis, precision="highest"))
  stage = len(settling.seen)
  settling.seen.append((count, own))
  if stage >= len(settling.stages):
    return moments
  there = settling.stages[stage]
  if basis is not None:
    mean = jnp.matmul(there.mean, basis.T, precision="highest")
    there = there._replace(mean=mean)

  def choose(whole: jax.Array, piece: jax.Array) -> jax.Array:
    known = settling.known.reshape(-1, *(1,) * (piece.ndim - 1))
    return jnp.where(known, whole, piece)

  return Moments(*map(choose, there, moments))


class Gatherer:
  """Takes the moments of whole clips, by which frontends norm pieces of them.

  Attributes:
    shapes: of each stage's moments, [1, ...]; [] where a frontend uses none.
  """

  def __init__(
    self, frames_of: Callable[[jax.Array, jax.Array], Any], rows: int = 1
  ):
    """Makes it.

    Args:
      frames_of: (waveform [B, S] floats, length [B]) -> anything that a
        frontend has made.
      rows: that it must be given, as many as there are devices; all are the
        same clip.
    """
    self._rows = rows

    def seen(waveform: Any, length: Any, own: Any, stages: Any) -> Any:
      whole = jax.tree.map(self._repeat, stages)
      with use(whole, jnp.ones(rows, bool), self._repeat(own)) as found:
        frames_of(
          self._repeat(waveform).astype(jnp.float32) / 2**15,
          self._repeat(length),
        )
      return jax.tree.map(lambda x: x[:1], found)

    one = np.ones(1, np.int32)
    waveform = np.zeros((1, _PARTS[0] + FRAME_WINDOW), np.int16)
    found = jax.eval_shape(seen, waveform, one, one, [])
    self.shapes = [moments for _, moments in found]
    # XLA computes what the next stage needs, and no more.
    self._seen = jax.jit(lambda *args: seen(*args)[len(args[-1])])

  def _repeat(self, x: Any) -> Any:
    return jnp.broadcast_to(x, (self._rows, *x.shape[1:]))

  def __call__(self, samples: np.ndarray) -> list[Moments]:
    """Returns the moments of a clip, int16 [S], each [1, ...], by stages."""
    size = next((n for n in _PARTS if n >= len(samples)), _PARTS[-1])
    parts = []
    for start in range(0, len(samples), size):
      part = samples[start : start + size + FRAME_WINDOW]
      waveform = np.zeros((1, size + FRAME_WINDOW), np.int16)
      waveform[0, : len(part)] = part
      length = np.full(1, len(part), np.int32)
      parts.append((waveform, length, np.minimum(length, size)))
    stages: list[Moments] = []
    for _ in self.shapes:
      stages.append(_joined([self._seen(*part, stages) for part in parts]))
    return stages


def _joined(parts: Sequence[tuple[Any, Moments]]) -> Moments:
  """Moments of the parts together (Chan et al. 1979)."""
  count = np.array([int(n[0]) for n, _ in parts], np.float64)
  share = count / max(1.0, count.sum())
  means = np.stack([np.asarray(m.mean, np.float64) for _, m in parts])
  seconds = np.stack([np.asarray(m.second, np.float64) for _, m in parts])
  mean = np.tensordot(share, means, 1)
  rest = means - mean
  if seconds.ndim > means.ndim:
    between = rest[..., :, None] * rest[..., None, :]
  else:
    between = np.square(rest)
  second = np.tensordot(share, seconds + between, 1)
  return Moments(mean.astype(np.float32), second.astype(np.float32))
