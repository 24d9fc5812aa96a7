"""One class a clip: keyword spotting, speakers, emotions; or three: intents."""

import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from ssl_jax.data.sources.source import Source
from ssl_jax.errors import UserError
from ssl_jax.probes.heads import Classifier
from ssl_jax.probes.tasks import Labelled, Task, values_of

# Of each task: the metadata that name the classes.
_KEYS = {
  "ks": ("label",),
  "sid": ("speaker",),
  "er": ("label",),
  "ic": ("action", "object", "location"),
}


def make(
  config: ConfigDict, splits: dict[str, Source]
) -> tuple[Task, dict[str, Labelled]]:
  """The task and its clips; classes are those of the training clips.

  Raises:
    UserError: a clip without a class, or of one that training has not; one
      class only.
  """
  keys = (config.label,) if config.label else _KEYS[config.task]
  targets: dict[str, dict[str, np.ndarray]] = {split: {} for split in splits}
  classes = []
  for slot, key in enumerate(keys):
    said = {
      split: values_of(config.task, split, source, key)
      for split, source in splits.items()
    }
    names = {name: i for i, name in enumerate(sorted({*said["train"]}))}
    if len(names) < 2:
      raise UserError(
        f"task {config.task}: all training clips have the {key} "
        f"{next(iter(names))!r}, so there is nothing to tell apart"
      )
    for split, values in said.items():
      for clip, value in zip(splits[split].ids, values):
        if value not in names:
          raise UserError(
            f"task {config.task}: the {key} {value!r} of {clip!r} ({split}) is "
            "of no training clip"
          )
      ids = [names[value] for value in values]
      targets[split][f"slot{slot}"] = np.array(ids, np.int32)
    classes.append(len(names))
  task = Task(
    name=config.task,
    metric="accuracy",
    higher_is_better=True,
    pooled=True,
    framewise=False,
    balanced=config.task == "ks",
    head=Classifier(config.head.projector, tuple(classes)),
    loss=_loss,
    predict=lambda outputs: jnp.stack(
      [jnp.argmax(x, axis=-1) for x in outputs], axis=-1
    ),
    score=_accuracy,
  )
  return task, {k: Labelled(splits[k], targets[k]) for k in splits}


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
  """Share of the clips of which all slots are right."""
  wanted = np.stack([targets[k] for k in sorted(targets)], axis=-1)
  return float((np.stack(predicted) == wanted).all(axis=-1).mean())
