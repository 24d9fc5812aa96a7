"""Tasks: an entry of their table, and a task on the clips at hand."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn

from ssl_jax.data.sources.source import Source
from ssl_jax.errors import UserError


class Task(NamedTuple):
  """A task on the clips at hand.

  Attributes:
    name: its key in TASKS.
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
    guess: the metric of who does not listen, on the test clips; None: unknown.
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
  guess: float | None = None


class Labelled(NamedTuple):
  """The clips of a split, and the targets of each: {name: [N, ...]}."""

  source: Source
  targets: dict[str, np.ndarray]


class Recipe(NamedTuple):
  """SUPERB's settings of a task: those of `profile=full`.

  Attributes:
    projector: width that the layers' sum is projected to.
    updates: of the head.
    batch_size: clips an update, over all accumulated batches.
    eval_every: updates between evaluations on dev.
    clip_norm: largest norm of the gradient.
  """

  projector: int
  updates: int
  batch_size: int
  eval_every: int
  clip_norm: float


@dataclasses.dataclass(frozen=True)
class TaskKind:
  """An entry of the table of tasks (`TASKS`).

  Attributes:
    make: (config, {split: clips}) -> the task, and {split: its clips with
      targets}; a UserError says what the corpus lacks.
    meaning: for people: what is told of a clip.
    recipe: of the full profile.
    mini: {config key: value} that the mini profile sets, beside what it sets
      for all tasks.
    smoke: the same of the smoke profile, on the packaged clips, which also sets
      all of `mini`.
    packaged: the packaged clips are enough for it: it is part of task=all.
  """

  make: Callable[..., tuple[Task, dict[str, Labelled]]]
  meaning: str
  recipe: Recipe
  mini: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  smoke: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  packaged: bool = False


def values_of(task: str, split: str, source: Source, key: str) -> list[str]:
  """Returns the metadata under `key` of every clip.

  Raises:
    UserError: a clip has nothing there.
  """
  values = []
  for clip, known in zip(source.ids, source.metadata):
    value = known.get(key)
    if value is None or not str(value).strip():
      raise UserError(
        f"task {task} needs {key!r} of every clip, and {clip!r} ({split}) has "
        "none: give a corpus with it, or choose clips with --config.where"
      )
    values.append(str(value))
  return values
