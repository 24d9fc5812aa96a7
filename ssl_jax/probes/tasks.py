"""What a task is: what its head learns, and how it is judged."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn

from ssl_jax.data.sources.source import Source
from ssl_jax.errors import UserError


class Task(NamedTuple):
  """A task on the clips at hand.

  Attributes:
    name: pr, asr, ks, sid, asv, er or ic.
    metric: its name.
    higher_is_better: of the metric.
    pooled: the head sees the mean over a clip's frames.
    framewise: `predict` says something of each frame.
    balanced: training draws every class alike.
    head: called as (features, length, key) -> outputs.
    loss: (outputs, batch, extra parameters) -> scalar.
    predict: outputs -> array [B, ...].
    score: ([N] predictions of clips, targets) -> the metric.
    extra: parameters of the loss, of a key; None: it has none.
    more: ([N] predictions, targets) -> further metrics, by name.
    crop: training clips are cropped to so many frames; 0: none is.
    weight_decay: of all parameters, decoupled.
  """

  name: str
  metric: str
  higher_is_better: bool
  pooled: bool
  framewise: bool
  balanced: bool
  head: nn.Module
  loss: Callable[[Any, dict[str, jax.Array], Any], jax.Array]
  predict: Callable[[Any], jax.Array]
  score: Callable[[list[np.ndarray], dict[str, np.ndarray]], float]
  extra: Callable[[jax.Array], Any] | None = None
  more: Callable[[list[np.ndarray], dict[str, np.ndarray]], dict] | None = None
  crop: int = 0
  weight_decay: float = 0.0


class Labelled(NamedTuple):
  """The clips of a split, and what is to be said of each: {name: [N, ...]}."""

  source: Source
  targets: dict[str, np.ndarray]


def values_of(task: str, split: str, source: Source, key: str) -> list[str]:
  """What the metadata have under `key`, for every clip.

  Raises:
    UserError: a clip has nothing there.
  """
  found = []
  for clip, known in zip(source.ids, source.metadata):
    value = known.get(key)
    if value is None or not str(value).strip():
      raise UserError(
        f"task {task} needs {key!r} of every clip, and {clip!r} ({split}) has "
        "none: give a corpus with it, or choose clips with --config.where"
      )
    found.append(str(value))
  return found
