"""One class a clip: keyword spotting, speakers, emotions; or three: intents."""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from ssl_jax.data.sources.source import Source
from ssl_jax.errors import UserError
from ssl_jax.probes.heads import Classifier
from ssl_jax.probes.tasks import Labelled, Recipe, Task, TaskKind, values_of


def make(
  config: ConfigDict,
  splits: dict[str, Source],
  keys: Sequence[str],
  balanced: bool = False,
) -> tuple[Task, dict[str, Labelled]]:
  """Returns the task and its clips; classes are those of the training clips.

  Args:
    config: of the probe; its `label` takes the place of `keys`.
    splits: the clips of each.
    keys: of the metadata that name the classes, one a slot.
    balanced: training draws every class alike.

  Raises:
    UserError: a clip without a class, or of one that training has not; one
      class only.
  """
  keys = (config.label,) if config.label else keys
  targets: dict[str, dict[str, np.ndarray]] = {split: {} for split in splits}
  classes = []
  for slot, key in enumerate(keys):
    values = {
      split: values_of(config.task, split, source, key)
      for split, source in splits.items()
    }
    names = {name: i for i, name in enumerate(sorted({*values["train"]}))}
    if len(names) < 2:
      raise UserError(
        f"task {config.task}: all training clips have the {key} "
        f"{next(iter(names))!r}, so there is nothing to tell apart"
      )
    for split, own in values.items():
      for clip, value in zip(splits[split].ids, own):
        if value not in names:
          raise UserError(
            f"task {config.task}: the {key} {value!r} of {clip!r} ({split}) is "
            "of no training clip"
          )
      ids = [names[value] for value in own]
      targets[split][f"slot{slot}"] = np.array(ids, np.int32)
    classes.append(len(names))
  task = Task(
    name=config.task,
    metric="accuracy",
    higher_is_better=True,
    pooled=True,
    framewise=False,
    balanced=balanced,
    head=Classifier(config.head.projector, tuple(classes)),
    loss=_loss,
    predict=lambda outputs: jnp.stack(
      [jnp.argmax(x, axis=-1) for x in outputs], axis=-1
    ),
    score=_accuracy,
    guess=_guess(targets),
  )
  return task, {k: Labelled(splits[k], targets[k]) for k in splits}


def _guess(targets: dict[str, dict[str, np.ndarray]]) -> float:
  """The accuracy of naming what is most common in training."""
  slots = sorted(targets["train"])
  seen = np.stack([targets["train"][k] for k in slots], axis=-1)
  kinds, count = np.unique(seen, axis=0, return_counts=True)
  clips = len(targets["test"][slots[0]])
  return _accuracy([kinds[count.argmax()]] * clips, targets["test"])


def _loss(outputs: list, batch: dict, _: None) -> jnp.ndarray:
  losses = [
    optax.softmax_cross_entropy_with_integer_labels(
      logits, batch[f"slot{i}"]
    ).mean()
    for i, logits in enumerate(outputs)
  ]
  return sum(losses)


def _accuracy(
  predicted: list[np.ndarray], targets: dict[str, np.ndarray]
) -> float:
  """Returns the share of the clips of which all slots are right."""
  wanted = np.stack([targets[k] for k in sorted(targets)], axis=-1)
  return float((np.stack(predicted) == wanted).all(axis=-1).mean())


_RECIPE = Recipe(256, 200_000, 32, 5_000, 1.0)

KEYWORDS = TaskKind(
  functools.partial(make, keys=("label",), balanced=True),
  "keywords",
  _RECIPE,
  smoke={"where": ("label_type=digit",)},
  packaged=True,
)
SPEAKERS = TaskKind(
  functools.partial(make, keys=("speaker",)),
  "speakers",
  _RECIPE,
  packaged=True,
)
EMOTIONS = TaskKind(
  functools.partial(make, keys=("label",)),
  "emotions",
  _RECIPE._replace(updates=30_000, eval_every=1_000),
)
INTENTS = TaskKind(
  functools.partial(make, keys=("action", "object", "location")),
  "intents",
  _RECIPE,
)
