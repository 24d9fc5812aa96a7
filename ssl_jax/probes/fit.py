"""Trains heads for all learning rates and seeds at once.

The learning rate decides what a probe says, so every one of a grid is tried:
heads of R learning rates and S seeds are one program (`jax.vmap` twice),
scanned over updates. A seed has its own batches, which its rates share.
"""

from collections.abc import Callable
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
    flops: of the training of one of them.
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
    optax.clip_by_global_norm(settings.clip_norm), optax.scale_by_adam()
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
    for done in range(0, settings.updates, sampler.chunk_size):
      chunk = sampler.chunk(done)
      params, state = train_chunk(params, state, done, chunk)
      update = done + sampler.chunk_size
      bar.update(sampler.chunk_size)
      every = settings.eval_every
      if done // every == update // every and update < settings.updates:
        continue
      found = sign * scores(task, predict, params, dev, settings.batch_size)
      better = found > best
      best, when = np.where(better, found, best), np.where(better, update, when)
      best_params = jax.tree.map(
        lambda new, old, b=better: jnp.where(
          b.reshape(b.shape + (1,) * (new.ndim - 2)), new, old
        ),
        params,
        best_params,
      )
      bar.set_postfix_str(f"dev {task.metric} {sign * best.max():.4f}")
  cost = jax.jit(one_update).lower(
    *jax.tree.map(lambda x: x[0, 0], (params, state)),
    rates[0],
    example,
    jax.random.key(0),
  )
  flops = float((cost.cost_analysis() or {}).get("flops", 0.0))
  return Fitted(best_params, sign * best, when, flops * settings.updates)


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
  """The task's metric of each head on all of a split. [S, R]."""
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
  """What each head says of each clip: N of [S, R, ...]."""
  lengths = np.diff(split.features.offsets)
  order = np.argsort(lengths, kind="stable")
  predicted: list[Any] = [None] * len(lengths)
  for first in range(0, len(order), batch_size):
    some = order[first : first + batch_size]
    # Of few shapes, for each is compiled.
    padded = _round_up(lengths[some].max())
    rows = np.resize(some, batch_size)
    features, length = gather(split.features, rows, padded)
    found = np.asarray(predict(params, features, length))
    for row, clip in enumerate(some.tolist()):
      said = found[:, :, row]
      predicted[clip] = said[:, :, : lengths[clip]] if task.framewise else said
  return predicted


def gather(
  features: Features, clips: np.ndarray, padded: int
) -> tuple[np.ndarray, np.ndarray]:
  """Float16 [B, padded, L + 1, D] and int32 [B] real frames."""
  shape = (len(clips), padded, *features.values.shape[1:])
  batch = np.zeros(shape, np.float16)
  length = np.zeros(len(clips), np.int32)
  for row, clip in enumerate(clips.tolist()):
    found = features.clip(clip)[:padded]
    batch[row, : len(found)] = found
    length[row] = len(found)
  return batch, length


class Sampler:
  """Batches of training clips, the same for the same seed and update.

  A chunk is so many updates whose clips are of one range of lengths; ranges are
  drawn as often as they have clips.
  """

  def __init__(self, config: ConfigDict, task: Task, split: Split):
    self._config, self._split = config, split
    lengths = np.diff(split.features.offsets)
    padded = np.array([_round_up(n) for n in lengths])
    self._ranges = [
      (int(size), np.flatnonzero(padded == size)) for size in np.unique(padded)
    ]
    self._weights = None
    if task.balanced:  # Every class alike, as s3prl draws them.
      classes = split.targets["slot0"]
      self._weights = 1 / np.bincount(classes)[classes]
    self.chunk_size = min(config.fit.chunk_size, config.fit.eval_every)

  def chunk(self, first_update: int) -> Batch:
    """Arrays [K, S, B, ...] of the updates from `first_update`."""
    settings = self._config.fit
    rng = np.random.default_rng([self._config.seed, first_update])
    share = np.array([len(clips) for _, clips in self._ranges], float)
    which = rng.choice(len(share), p=share / share.sum())
    padded, clips = self._ranges[which]
    size = self.chunk_size, settings.num_seeds, settings.batch_size
    chances = None
    if self._weights is not None:
      chances = self._weights[clips] / self._weights[clips].sum()
    drawn = rng.choice(clips, size, p=chances)
    features, length = gather(self._split.features, drawn.reshape(-1), padded)
    batch = {"features": features, "length": length}
    batch |= {k: v[drawn.reshape(-1)] for k, v in self._split.targets.items()}
    return {k: v.reshape(*size, *v.shape[1:]) for k, v in batch.items()}


def _round_up(frames: int) -> int:
  """To one of few lengths, at most a third longer: 1, 50, 66, 88 ..."""
  if frames <= 1:
    return 1
  size = 50
  while size < frames:
    size = -(-size * 4 // 3)
  return size
