"""Phones and words of a corpus, and the frames of each."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from ssl_jax.data import alignments
from ssl_jax.data.alignments import Alignment
from ssl_jax.data.sources.source import Source
from ssl_jax.errors import UserError

HELD_OUT = ("valid", "test")


class Aligned(NamedTuple):
  """The clips of a split that have phones, their speakers, their phones."""

  source: Source
  speakers: list[str]
  alignments: list[Alignment]


def aligned(
  config: ConfigDict, splits: dict[str, Source], names: Sequence[str]
) -> dict[str, Aligned]:
  """Returns the clips of the splits in `names` that have phones.

  Raises:
    UserError: there are none, or a clip has no speaker.
  """
  path = alignment_path(config)
  name = f"--config.data.dir={config.data.dir}"
  if config.alignments:
    name = f"--config.alignments={config.alignments}"
    if not path.exists():
      raise UserError(f"{name} does not exist")
  found = {}
  for split in names:
    source, own = alignments.attach(splits[split], path, name)
    found[split] = Aligned(source, speakers(config.task, source), own)
  return found


def alignment_path(config: ConfigDict) -> Path | None:
  """Returns where the phones are: as given, or phones.jsonl beside the clips.

  None: only the metadata of clips may have them.
  """
  if config.alignments:
    return Path(config.alignments).expanduser()
  beside = Path(config.data.dir).expanduser()
  beside = (beside if beside.is_dir() else beside.parent) / "phones.jsonl"
  return beside if config.data.dir and beside.is_file() else None


def speakers(task: str, source: Source) -> list[str]:
  """Returns each clip's speaker.

  Raises:
    UserError: a clip has none.
  """
  names = []
  for clip, metadata in zip(source.ids, source.metadata):
    if not metadata.get("speaker"):
      raise UserError(
        f"task {task} needs the speaker of every clip, and {clip!r} has none: "
        "give them in the metadata, or choose clips with --config.where"
      )
    names.append(str(metadata["speaker"]))
  return names


def disjoint(
  task: str, found: dict[str, Aligned], train: str = "train"
) -> None:
  """Warns of speakers that are both trained on and scored."""
  known = {*found[train].speakers}
  others = {s for k, x in found.items() if k != train for s in x.speakers}
  if both := sorted(known & others):
    logging.getLogger("ssl_jax").warning(
      "%s: %d of %d speakers are heard in training as well (%s ...): their "
      "scores are not of unseen speakers",
      *(task, len(both), len(others), both[0]),
    )
