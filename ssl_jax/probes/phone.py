"""Linear classification of single frames into phones, of unseen speakers."""

import functools
import logging
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from ssl_jax import num_frames
from ssl_jax.data import alignments
from ssl_jax.data.sources.source import Source
from ssl_jax.errors import UserError
from ssl_jax.probes.segments import HELD_OUT, Aligned, aligned, disjoint
from ssl_jax.probes.zero_shot import Frames, Measure, MeasureKind
from ssl_jax.tally import Tally, mean_of_ratios

_EPOCHS, _LEAST_UPDATES, _BATCH, _RATE = 12, 1_500, 1024, 1e-2
_MOST_FRAMES = 400_000  # More say nothing new to a linear head.


def make(config: ConfigDict, splits: dict[str, Source]) -> Measure:
  """Returns the measure: heads learn from train, valid and test are scored.

  Raises:
    UserError: the corpus has no phones.
  """
  found = aligned(config, splits, ("train", *HELD_OUT))
  disjoint(config.task, found)
  rows, classes = {}, sorted(phones(found["train"]))
  if len(classes) < 2:
    raise UserError(f"task {config.task}: train has the phones {classes} only")
  place = {phone: i for i, phone in enumerate(classes)}
  for split, own in found.items():
    for phone in sorted(phones(own) - {*place}):
      logging.getLogger("ssl_jax").warning(
        "%s: the phone %r of %s is never heard in train: its frames count as "
        "missed",
        *(config.task, phone, split),
      )
      place[phone] = len(place)
    rows[split] = labels(own, place)
  units = sorted({s for split in HELD_OUT for s in found[split].speakers})
  train, wanted = rows["train"]
  thinned = np.arange(len(train))
  if len(thinned) > _MOST_FRAMES:
    generator = np.random.default_rng(config.seed)
    thinned = np.sort(generator.choice(thinned, _MOST_FRAMES, replace=False))
  who = np.concatenate(
    [
      np.repeat(
        [units.index(s) for s in found[split].speakers],
        _counts(found[split]),
      )[rows[split][0]]
      for split in HELD_OUT
    ]
  )
  tested = np.concatenate([rows[split][1] for split in HELD_OUT])

  def tally(frames: Mapping[str, Frames]) -> Tally:
    fitted = fit(
      frames["train"].values[train[thinned]],
      wanted[thinned],
      len(classes),
      config.seed,
    )
    guessed = np.concatenate(
      [predict(fitted, frames[s].values[rows[s][0]]) for s in HELD_OUT]
    )
    shape = len(place), len(units)
    counts, hits = np.zeros(shape), np.zeros(shape)
    np.add.at(counts, (tested, who), 1)
    np.add.at(hits, (tested, who), guessed == tested)
    return Tally(
      units,
      {
        "accuracy": mean_of_ratios(hits.sum(0)[None], counts.sum(0)[None]),
        "balanced_accuracy": mean_of_ratios(hits, counts),
      },
    )

  common = np.bincount(wanted).argmax()
  return Measure(
    "accuracy",
    True,
    {split: x.source for split, x in found.items()},
    tally,
    {
      "speakers": len(units),
      "clips": {split: len(x.source.ids) for split, x in found.items()},
      "frames": len(tested),
      "classes": len(place),
    },
    float((tested == common).mean()),
  )


def phones(own: Aligned) -> set[str]:
  """Returns the phones that occur in a split."""
  return {segment.name for x in own.alignments for segment in x.phones}


def labels(
  own: Aligned, place: Mapping[str, int]
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the frames that are of a phone, and which. Two of int [M]."""
  names = [
    name
    for x, samples in zip(own.alignments, own.source.num_samples)
    for name in alignments.frame_names(x.phones, samples)
  ]
  ids = np.array([place.get(name, -1) for name in names])
  frames = np.flatnonzero(ids >= 0)
  return frames, ids[frames]


def fit(
  frames: np.ndarray, labels: np.ndarray, classes: int, seed: int
) -> dict[str, np.ndarray]:
  """Fits multinomial logistic regression on standardised frames.

  Adam over mini-batches at a rate that falls to zero: within a point of
  accuracy of a solver that runs to the end, in a tenth of the time.

  Args:
    frames: float32 [M, D].
    labels: int [M].
    classes: K.
    seed: of the order of frames.

  Returns:
    mean, scale [D]; kernel [D, K]; bias [K].
  """
  mean, scale = frames.mean(axis=0), frames.std(axis=0)
  scale = 1 / np.maximum(scale, 1e-5 * scale.max() + 1e-8)
  kernel, bias = _fit(
    jnp.asarray((frames - mean) * scale),
    jnp.asarray(labels),
    classes,
    jax.random.key(seed),
  )
  return {
    "mean": mean,
    "scale": scale,
    "kernel": np.asarray(kernel),
    "bias": np.asarray(bias),
  }


def predict(fitted: dict[str, np.ndarray], frames: np.ndarray) -> np.ndarray:
  """Returns the likeliest class of each frame. [M, D] -> int [M]."""
  frames = (frames - fitted["mean"]) * fitted["scale"]
  return (frames @ fitted["kernel"] + fitted["bias"]).argmax(axis=1)


@functools.partial(jax.jit, static_argnums=2)
def _fit(
  frames: jax.Array, labels: jax.Array, classes: int, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
  count, width = frames.shape
  size = min(_BATCH, count)
  updates = count // size  # An epoch.
  epochs = max(_EPOCHS, -(-_LEAST_UPDATES // updates))
  optimizer = optax.adam(
    optax.linear_schedule(_RATE, 0.0, epochs * updates), b2=0.99
  )
  params = jnp.zeros((width, classes)), jnp.zeros(classes)

  def loss(params: tuple, x: jax.Array, y: jax.Array) -> jax.Array:
    logits = x @ params[0] + params[1]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

  def update(carry: tuple, rows: jax.Array) -> tuple:
    params, state = carry
    gradient = jax.grad(loss)(params, frames[rows], labels[rows])
    changes, state = optimizer.update(gradient, state)
    return (optax.apply_updates(params, changes), state), None

  def epoch(carry: tuple, key: jax.Array) -> tuple:
    order = jax.random.permutation(key, count)[: updates * size]
    return jax.lax.scan(update, carry, order.reshape(updates, size))

  carry = params, optimizer.init(params)
  (params, _), _ = jax.lax.scan(epoch, carry, jax.random.split(key, epochs))
  return params


def _counts(own: Aligned) -> np.ndarray:
  return num_frames(np.asarray(own.source.num_samples, np.int64))


PHONES = MeasureKind(make, "phones of single frames, by a linear classifier")
