"""The corpus packaged with the code: 51 minutes of speech, 22 voices.

Opus takes 5 s of a core to decode, so a process decodes a clip once.
"""

import dataclasses
import json
import pathlib

import soundfile
from ml_collections import ConfigDict

from ssl_jax.data.sources import source
from ssl_jax.errors import UserError, check_choice

SPLITS = ("train", "valid", "test")

_CORPUS = pathlib.Path(__file__).parents[1] / "corpus"
# Older ones read no Opus, or not at 16 kHz to the sample.
_LIBSNDFILE = (1, 1)


def open_split(config: ConfigDict, split: str) -> source.AudioFiles:
  """Opens a split; splits share speakers, not clips.

  Every clip is of one split, its `split_clip`: test and valid hold about a
  twentieth of a voice's clips each, of voices that have enough. (`split` keeps
  the voices of words apart instead, and leaves test without other clips.)

  Args:
    config: `config.data`; `min_seconds` is read.
    split: one of SPLITS.

  Raises:
    UserError: unknown split, every clip is too short, or libsndfile is too old
      to decode them.
  """
  check_choice("split", split, SPLITS)
  _check_decoder()
  lines = (_CORPUS / "metadata.jsonl").read_text("utf-8").splitlines()
  clips = [json.loads(line) for line in lines]
  clips = [clip for clip in clips if clip["split_clip"] == split]
  files = source.keep_usable(
    f"embedded corpus, {split}",
    ids=[clip["file"] for clip in clips],
    paths=[str(_CORPUS / clip["file"]) for clip in clips],
    lengths=[clip["num_samples"] for clip in clips],
    metadata=clips,
    min_seconds=config.min_seconds,
  )
  return dataclasses.replace(files, decode_once=True)


def _check_decoder() -> None:
  """Checks that libsndfile, which may be the system's own, decodes Opus.

  Raises:
    UserError: it does not.
  """
  version = soundfile.__libsndfile_version__
  numbers = tuple(int(x) for x in version.split(".")[:2])
  if numbers < _LIBSNDFILE or "OPUS" not in soundfile.available_subtypes("OGG"):
    raise UserError(
      f"data.source=embedded is Opus, which libsndfile {version} of this "
      "machine does not decode: install libsndfile 1.1 or newer, or a wheel of "
      "soundfile, which brings it"
    )


KIND = source.SourceKind(
  open_split,
  "the packaged clips",
  where="",
  corpus_name=lambda _: "embedded",
)
