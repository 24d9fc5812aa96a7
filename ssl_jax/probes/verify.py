"""Speaker verification: an x-vector, AM-softmax, equal error rate."""

import logging
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from ssl_jax import SAMPLE_RATE, num_frames
from ssl_jax.data.sources.source import Source
from ssl_jax.errors import UserError
from ssl_jax.probes.heads import XVector
from ssl_jax.probes.metrics import equal_error_rate
from ssl_jax.probes.tasks import Labelled, Recipe, Task, TaskKind, values_of

_SCALE, _MARGIN = 30.0, 0.4
_WIDTH = 512  # Width of the embeddings that AM-softmax sees.
_MOST_PAIRS = 1_000_000
_TRIALS_AT_ONCE = 2**14
_CROP_SECONDS = 8.0  # Longest training clip.
_WEIGHT_DECAY = 0.01
_log = logging.getLogger("ssl_jax")


def make(
  config: ConfigDict, splits: dict[str, Source]
) -> tuple[Task, dict[str, Labelled]]:
  """Returns the task and its clips: every pair of a split is a trial.

  Where `config.within` names a key of the metadata, trials are pairs of equal
  values there: recording conditions give speakers of several corpora away.
  Where `config.trials` names a list, the trials of test are those of the list.

  Raises:
    UserError: a clip without a speaker; trials of one kind only; a list that
      cannot be read or has other clips.
  """
  speakers = {
    split: values_of(config.task, split, source, "speaker")
    for split, source in splits.items()
  }
  names = {name: i for i, name in enumerate(sorted({*speakers["train"]}))}
  who = np.array([names[name] for name in speakers["train"]], np.int32)
  labelled = {"train": Labelled(splits["train"], {"speaker": who})}
  for split in ("valid", "test"):
    source = splits[split]
    if split == "test" and config.trials:
      trials, used = _listed(Path(config.trials).expanduser(), source.ids)
      source = source.select(used)
    else:
      groups = [""] * len(source.ids)
      if config.within:
        groups = values_of(config.task, split, source, config.within)
      trials = pairs(speakers[split], groups)
    same = trials["same"]
    if same.all() or not same.any():
      raise UserError(
        f"task {config.task}: the {split} clips make trials of one kind only; "
        "give several clips of each of several speakers"
      )
    if known := {*speakers[split]} & {*names}:
      _log.warning(
        "task %s, %s: %d of %d speakers are also trained on, so its EER is "
        "lower than of strangers",
        config.task,
        split,
        len(known),
        len({*speakers[split]}),
      )
    labelled[split] = Labelled(source, trials)
  task = Task(
    name=config.task,
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
    guess=0.5,
    extra=lambda key: nn_xavier(key, (_WIDTH, len(names))),
    crop=num_frames(round(_CROP_SECONDS * SAMPLE_RATE)),
    weight_decay=_WEIGHT_DECAY,
  )
  return task, labelled


def am_softmax(
  embedded: jax.Array, weights: jax.Array, speaker: jax.Array
) -> jax.Array:
  """Returns AM-softmax, with scale 30 and margin 0.4. [B].

  Wang et al. 2018, equation 6.

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


def pairs(
  speakers: Sequence[str], groups: Sequence[Any]
) -> dict[str, np.ndarray]:
  """Returns all pairs of clips of a group, of very many a million at random.

  Returns:
    `one`, `other`: int [T] clips; `same`: bool [T], whether of one speaker.
  """
  count = len(speakers)
  if count * (count - 1) // 2 <= _MOST_PAIRS:
    one, other = np.triu_indices(count, 1)
  else:
    drawn = np.random.default_rng(0).integers(count, size=(2, _MOST_PAIRS))
    one, other = drawn[:, drawn[0] != drawn[1]]
  who, group = (
    np.unique([str(x) for x in values], return_inverse=True)[1]
    for values in (speakers, groups)
  )
  together = group[one] == group[other]
  one, other = one[together], other[together]
  return {"one": one, "other": other, "same": who[one] == who[other]}


def _listed(
  path: Path, ids: Sequence[str]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
  """Reads trials of a file in the form of Vox1-O's, and the clips they are of.

  Returns:
    As of `pairs`, of the clips used; int [N], which they are of `ids`.

  Raises:
    UserError: it cannot be read, or names a clip that `ids` has not.
  """
  name = f"--config.trials={path}"
  try:
    lines = [line.split() for line in path.read_text().splitlines() if line]
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"{name} cannot be read ({error})") from error
  for number, line in enumerate(lines, 1):
    if len(line) != 3 or line[0] not in ("0", "1"):
      raise UserError(
        f"{name}: line {number} is not `1 ONE OTHER` or `0 ONE OTHER`"
      )
  if not lines:
    raise UserError(f"{name} is empty")
  # As the list has them, id10270/x6uY/00008.wav; our ids may have folders
  # before that, and no suffix.
  depth = max(len(PurePosixPath(x).parts) for line in lines for x in line[1:])
  places = {_tail(clip, depth): i for i, clip in enumerate(ids)}
  named = [[_tail(clip, depth) for clip in line[1:]] for line in lines]
  for pair in named:
    for clip in pair:
      if clip not in places:
        raise UserError(f"{name}: no clip of test is {clip!r}")
  used, row = np.unique(
    [places[clip] for pair in named for clip in pair], return_inverse=True
  )
  one, other = row.reshape(-1, 2).T
  same = np.array([line[0] == "1" for line in lines])
  return {"one": one, "other": other, "same": same}, used


def _tail(clip: str, depth: int) -> str:
  path = PurePosixPath(clip)
  known = path.suffix.lower() in (".wav", ".flac", ".m4a", ".mp3", ".ogg")
  return "/".join((path.with_suffix("") if known else path).parts[-depth:])


def _eer(embedded: list[np.ndarray], targets: dict[str, np.ndarray]) -> float:
  x = np.stack(embedded).astype(np.float64)
  x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-8)
  if not np.isfinite(x).all():
    return 1.0
  parts = 1 + len(targets["one"]) // _TRIALS_AT_ONCE
  score = np.concatenate(
    [
      np.einsum("td,td->t", x[one], x[other])
      for one, other in zip(
        np.array_split(targets["one"], parts),
        np.array_split(targets["other"], parts),
      )
    ]
  )
  return equal_error_rate(score, targets["same"])


VERIFICATION = TaskKind(
  make, "speaker verification", Recipe(512, 200_000, 50, 20_000, 1_000.0)
)
