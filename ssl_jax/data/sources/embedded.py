"""The corpus packaged with the code: five minutes of speech, eight voices."""

import json
import pathlib

from ml_collections import ConfigDict

from ssl_jax.data.sources import source
from ssl_jax.errors import check_choice

SPLITS = ("train", "valid", "test")

_CORPUS = pathlib.Path(__file__).parents[1] / "corpus"


def open_split(config: ConfigDict, split: str) -> source.AudioFiles:
  """Opens a split; splits share speakers, not clips.

  Args:
    config: `config.data`; `min_seconds` is read.
    split: one of SPLITS.

  Raises:
    UserError: unknown split, or every clip is too short.
  """
  check_choice("split", split, SPLITS)
  lines = (_CORPUS / "metadata.jsonl").read_text("utf-8").splitlines()
  clips = [json.loads(line) for line in lines]
  clips = [clip for clip in clips if clip["split_clip"] == split]
  return source.keep_usable(
    f"embedded corpus, {split}",
    ids=[clip["file"] for clip in clips],
    paths=[str(_CORPUS / clip["file"]) for clip in clips],
    lengths=[clip["num_samples"] for clip in clips],
    metadata=clips,
    min_seconds=config.min_seconds,
  )


KIND = source.SourceKind(
  open_split,
  "the packaged clips",
  where="",
  corpus_name=lambda _: "embedded",
)
