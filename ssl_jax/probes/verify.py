"""Speaker verification: an x-vector, AM-softmax, equal error rate."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from ssl_jax.data.source import Source
from ssl_jax.errors import UserError
from ssl_jax.probes.heads import XVector
from ssl_jax.probes.metrics import equal_error_rate
from ssl_jax.probes.tasks import Labelled, Task, values_of

_SCALE, _MARGIN = 30.0, 0.4
_WIDTH = 512  # Of what AM-softmax sees.


def make(
  config: ConfigDict, splits: dict[str, Source]
) -> tuple[Task, dict[str, Labelled]]:
  """The task and its clips: every pair of a split's clips is a trial.

  Where `config.within` names a key of the metadata, trials are pairs of equal
  values there: recording conditions give speakers of several corpora away.

  Raises:
    UserError: a clip without a speaker; trials of one kind only.
  """
  said = {
    split: values_of("asv", split, source, "speaker")
    for split, source in splits.items()
  }
  names = {name: i for i, name in enumerate(sorted({*said["train"]}))}
  labelled = {}
  for split, source in splits.items():
    everyone = {name: i for i, name in enumerate(sorted({*said[split]}))}
    who = names if split == "train" else everyone
    groups = [str(known.get(config.within)) for known in source.metadata]
    kinds = {name: i for i, name in enumerate(sorted({*groups}))}
    targets = {
      "speaker": np.array([who[name] for name in said[split]], np.int32),
      "group": np.array([kinds[group] for group in groups], np.int32),
    }
    if split != "train":
      same = _trials(targets)[2]
      if same.all() or not same.any():
        raise UserError(
          f"task asv: the {split} clips make trials of one kind only; give "
          "several clips of each of several speakers"
        )
    labelled[split] = Labelled(source, targets)
  task = Task(
    name="asv",
    metric="EER",
    higher_is_better=False,
    pooled=False,
    framewise=False,
    balanced=False,
    head=XVector(config.head.projector),
    loss=lambda embedded, batch, weights: am_softmax(
      embedded, weights, batch["speaker"]
    ).mean(),
    predict=lambda embedded: embedded,
    score=_eer,
    extra=lambda key: nn_xavier(key, (_WIDTH, len(names))),
  )
  return task, labelled


def am_softmax(
  embedded: jax.Array, weights: jax.Array, speaker: jax.Array
) -> jax.Array:
  """Wang et al. 2018, equation 6, with scale 30 and margin 0.4. [B].

  Args:
    embedded: [B, D].
    weights: [D, speakers].
    speaker: int [B].
  """

  def unit(x: jax.Array, axis: int) -> jax.Array:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=axis, keepdims=True), 1e-8)

  cosine = unit(embedded, 1) @ unit(weights, 0)
  mine = jax.nn.one_hot(speaker, weights.shape[1])
  logits = _SCALE * (cosine - _MARGIN * mine)
  return optax.softmax_cross_entropy_with_integer_labels(logits, speaker)


nn_xavier = jax.nn.initializers.xavier_normal()


def _trials(
  targets: dict[str, np.ndarray],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Every pair of clips of a group: (one, other, whether of one speaker)."""
  one, other = np.triu_indices(len(targets["speaker"]), 1)
  together = targets["group"][one] == targets["group"][other]
  one, other = one[together], other[together]
  return one, other, targets["speaker"][one] == targets["speaker"][other]


def _eer(embedded: list[np.ndarray], targets: dict[str, np.ndarray]) -> float:
  x = np.stack(embedded).astype(np.float64)
  x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-8)
  one, other, same = _trials(targets)
  return equal_error_rate((x[one] * x[other]).sum(axis=1), same)
