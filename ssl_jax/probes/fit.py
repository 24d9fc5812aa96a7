"""Trains heads for all learning rates and seeds at once.

The learning rate decides what a probe says, so every one of a grid is tried:
heads of R learning rates and S seeds are one program (`jax.vmap` twice),
scanned over updates. A seed has its own batches, which its rates share.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from ml_collections import ConfigDict
from tqdm import tqdm

from ssl_jax.probes.features import Features
from ssl_jax.probes.tasks import Task

Batch = dict[str, np.ndarray]
_CHUNK_BYTES = 2**30  # Features on the device at once.


class Split(NamedTuple):
  """Features of a split's N clips, and what they should say.

  Attributes:
    features: of the clips.
    targets: {name: [N, ...]}, as the task's `loss` reads them.
  """

  features: Features
  targets: dict[str, np.ndarray]


class Fitted(NamedTuple):
  """Heads of the grid, each as it was when best on dev.

  Attributes:
    params: of the head, [S, R, ...].
    dev: [S, R], the task's metric.
    updates: int [S, R] at which that was.
    flops: of the training of one of them (its matrix products).
  """

  params: Any
  dev: np.ndarray
  updates: np.ndarray
  flops: float


def fit(
  config: ConfigDict,
  task: Task,
  head: nn.Module,
  train: Split,
  dev: Split,
  description: str,
) -> Fitted:
  """Trains the grid of `config.fit`; Adam at a constant rate, as SUPERB has it.

  Args:
    config: of the probe.
    task: what is learned.
    head: called as (features, length, key) -> what the task's loss takes.
    train: to learn from.
    dev: to choose by.
    description: of the progress bar.
  """
  settings = config.fit
  rates = jnp.asarray(settings.learning_rates)
  seeds = jnp.arange(settings.num_seeds)
  adam = optax.chain(
    optax.clip_by_global_norm(settings.clip_norm),
    optax.scale_by_adam(),
    optax.add_decayed_weights(task.weight_decay),
  )
  sampler = Sampler(config, task, train)
  example = jax.tree.map(lambda x: x[0, 0], sampler.chunk(0))

  def init(seed: jax.Array) -> Any:
    key = jax.random.fold_in(jax.random.key(config.seed), seed)
    inputs = example["features"], example["length"]
    params = {"head": head.init(key, *inputs, None)["params"]}
    if task.extra is not None:
      params["extra"] = task.extra(jax.random.fold_in(key, 1))
    return params

  def one_update(
    params: Any, state: Any, rate: jax.Array, batch: Batch, key: jax.Array
  ) -> tuple[Any, Any]:
    def loss(params: Any) -> jax.Array:
      outputs = head.apply(
        {"params": params["head"]}, batch["features"], batch["length"], key
      )
      return task.loss(outputs, batch, params.get("extra"))

    changes, state = adam.update(jax.grad(loss)(params), state, params)
    changes = jax.tree.map(lambda x: -rate * x, changes)
    return optax.apply_updates(params, changes), state

  of_rates = jax.vmap(one_update, (0, 0, 0, None, None))
  of_seeds = jax.vmap(of_rates, (0, 0, None, 0, 0))

  @jax.jit
  def train_chunk(params: Any, state: Any, first: jax.Array, chunk: Any) -> Any:
    def body(carry: Any, step: Any) -> Any:
      update, batch = step
      key = jax.random.fold_in(jax.random.key(config.seed + 1), update)
      keys = jax.vmap(jax.random.fold_in, (None, 0))(key, seeds)
      return of_seeds(*carry, rates, batch, keys), None

    updates = first + jnp.arange(len(chunk["length"]))
    return jax.lax.scan(body, (params, state), (updates, chunk))[0]

  grid = len(seeds), len(rates)
  params = jax.vmap(init)(seeds)
  params = jax.tree.map(
    lambda x: jnp.repeat(x[:, None], grid[1], axis=1), params
  )
  state = jax.vmap(jax.vmap(adam.init))(params)
  predict = make_predict(task, head)

  best, best_params = np.full(grid, -np.inf), params
  when = np.zeros(grid, np.int64)
  sign = 1 if task.higher_is_better else -1
  with tqdm(
    total=settings.updates, desc=description, unit="update", disable=None
  ) as bar:
    update = 0
    while update < settings.updates:
      done, chunk = update, sampler.chunk(update)
      params, state = train_chunk(params, state, done, chunk)
      update += len(chunk["length"])
      bar.update(update - done)
      every = settings.eval_every
      if done // every == update // every and update < settings.updates:
        continue
      now = sign * scores(task, predict, params, dev, settings.batch_size)
      better = now > best
      best, when = np.where(better, now, best), np.where(better, update, when)
      best_params = jax.tree.map(
        lambda new, old, b=better: jnp.where(
          b.reshape(b.shape + (1,) * (new.ndim - 2)), new, old
        ),
        params,
        best_params,
      )
      bar.set_postfix_str(f"dev {task.metric} {sign * best.max():.4f}")

  def flops_of(example: Batch) -> float:
    program = jax.make_jaxpr(one_update)(
      *jax.tree.map(lambda x: x[0, 0], (params, state)),
      rates[0],
      example,
      jax.random.key(0),
    )
    return product_flops(program.jaxpr)

  flops = settings.updates * sum(
    share * flops_of(batch) for share, batch in sampler.examples()
  )
  return Fitted(best_params, sign * best, when, flops)


def product_flops(jaxpr: Any) -> float:
  """Counts FLOPs of matrix products, those of loops as often as they run.

  XLA's own count has a loop's body once, whatever its length: an LSTM of 500
  frames would be one of 1.
  """
  total = 0.0
  for equation in jaxpr.eqns:
    if equation.primitive.name == "dot_general":
      (contracted, _), _ = equation.params["dimension_numbers"]
      shape = equation.invars[0].aval.shape
      depth = math.prod(shape[i] for i in contracted)
      total += 2.0 * depth * math.prod(equation.outvars[0].aval.shape)
    inner = sum(
      product_flops(getattr(part, "jaxpr", part))
      for part in jax.tree.leaves(
        [*equation.params.values()], is_leaf=lambda x: hasattr(x, "eqns")
      )
      if hasattr(part, "eqns")
    )
    total += equation.params.get("length", 1) * inner
  return total


def make_predict(
  task: Task, head: nn.Module
) -> Callable[[Any, jax.Array, jax.Array], Any]:
  """Returns predict(params [S, R, ...], features, length) -> [S, R, B, ...]."""

  def one(params: Any, features: jax.Array, length: jax.Array) -> Any:
    return task.predict(
      head.apply({"params": params["head"]}, features, length, None)
    )

  return jax.jit(jax.vmap(jax.vmap(one, (0, None, None)), (0, None, None)))


def scores(
  task: Task, predict: Any, params: Any, split: Split, batch_size: int
) -> np.ndarray:
  """Returns the task's metric of each head on all of a split. [S, R]."""
  predicted = predictions(task, predict, params, split, batch_size)
  (seeds, rates) = predicted[0].shape[:2]
  return np.array(
    [
      [
        task.score([p[s, r] for p in predicted], split.targets)
        for r in range(rates)
      ]
      for s in range(seeds)
    ]
  )


def predictions(
  task: Task, predict: Any, params: Any, split: Split, batch_size: int
) -> list[np.ndarray]:
  """Returns what each head says of each clip: N of [S, R, ...]."""
  lengths = np.diff(split.features.offsets)
  order = np.argsort(lengths, kind="stable")
  predicted: list[Any] = [None] * len(lengths)
  for first in range(0, len(order), batch_size):
    some = order[first : first + batch_size]
    # Lengths are rounded up to a few: each is compiled.
    padded = _round_up(lengths[some].max())
    rows = np.resize(some, batch_size)
    features, length = gather(split.features, rows, padded)
    outputs = np.asarray(predict(params, features, length))
    for row, clip in enumerate(some.tolist()):
      own = outputs[:, :, row]
      predicted[clip] = own[:, :, : lengths[clip]] if task.framewise else own
  return predicted


def gather(
  features: Features,
  clips: np.ndarray,
  padded: int,
  starts: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns float16 [B, padded, L + 1, D] and int32 [B] real frames.

  `starts` [B]: the first frame of each that is taken.
  """
  shape = (len(clips), padded, *features.values.shape[1:])
  batch = np.zeros(shape, np.float16)
  length = np.zeros(len(clips), np.int32)
  for row, clip in enumerate(clips.tolist()):
    first = 0 if starts is None else starts[row]
    frames = features.clip(clip)[first : first + padded]
    batch[row, : len(frames)] = frames
    length[row] = len(frames)
  return batch, length


class Sampler:
  """Batches of training clips, the same for the same seed and update.

  A chunk is so many updates whose clips are of one range of lengths, fewer
  where they would take too much memory or an evaluation is due; ranges are
  drawn as often as they have clips.
  """

  def __init__(self, config: ConfigDict, task: Task, split: Split):
    self._config, self._split, self._crop = config, split, task.crop
    lengths = np.diff(split.features.offsets)
    if task.crop:
      lengths = np.minimum(lengths, task.crop)
    padded = np.array([_round_up(n) for n in lengths])
    self._ranges = [
      (int(size), np.flatnonzero(padded == size)) for size in np.unique(padded)
    ]
    count = np.array([len(clips) for _, clips in self._ranges])
    self._shares = count / count.sum()
    self._weights = None
    if task.balanced:  # Every class alike, as s3prl draws them.
      classes = split.targets["slot0"]
      self._weights = 1 / np.bincount(classes)[classes]

  def examples(self) -> Iterator[tuple[float, Batch]]:
    """Yields each range of lengths: its share of the updates, and a batch."""
    for share, (padded, clips) in zip(self._shares, self._ranges):
      some = np.resize(clips, self._config.fit.batch_size)
      features, length = gather(self._split.features, some, padded)
      batch = {"features": features, "length": length}
      yield share, batch | {k: v[some] for k, v in self._split.targets.items()}

  def chunk(self, first_update: int) -> Batch:
    """Draws arrays [K, S, B, ...] of the updates from `first_update`."""
    settings = self._config.fit
    rng = np.random.default_rng([self._config.seed, first_update])
    padded, clips = self._ranges[rng.choice(len(self._shares), p=self._shares)]
    one = settings.num_seeds * settings.batch_size * padded
    one *= 2 * math.prod(self._split.features.values.shape[1:])  # Bytes.
    updates = min(
      settings.chunk_size,
      max(1, _CHUNK_BYTES // one),
      settings.eval_every - first_update % settings.eval_every,
      settings.updates - first_update,
    )
    size = updates, settings.num_seeds, settings.batch_size
    chances = None
    if self._weights is not None:
      chances = self._weights[clips] / self._weights[clips].sum()
    drawn = rng.choice(clips, size, p=chances)
    drawn_clips = drawn.reshape(-1)
    starts = None
    if self._crop:
      spare = np.diff(self._split.features.offsets)[drawn_clips] - self._crop
      starts = rng.integers(0, np.maximum(0, spare) + 1)
    features, length = gather(self._split.features, drawn_clips, padded, starts)
    batch = {"features": features, "length": length}
    batch |= {k: v[drawn_clips] for k, v in self._split.targets.items()}
    return {k: v.reshape(*size, *v.shape[1:]) for k, v in batch.items()}


def _round_up(frames: int) -> int:
  """Rounds up to one of few lengths, at most a third longer: 1, 50, 67 ..."""
  if frames <= 1:
    return 1
  size = 50
  while size < frames:
    size = -(-size * 4 // 3)
  return size
