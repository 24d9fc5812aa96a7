"""Sources of audio: one file each, and the table of them."""

from ml_collections import ConfigDict

from ssl_jax.data.sources import (
  embedded,
  folder,
  manifest,
  mixture,
  records,
  source,
  subset,
  tfds,
)
from ssl_jax.errors import check_choice
from ssl_jax.knobs import Knob

# A new source is one file with a `KIND`, and one line here.
SOURCES = {
  "embedded": embedded.KIND,
  "folder": folder.KIND,
  "manifest": manifest.KIND,
  "records": records.KIND,
  "tfds": tfds.KIND,
  "mixture": mixture.KIND,
}


def open_source(config: ConfigDict, split: str) -> source.Source:
  """Opens a split ("train", "valid"; some sources have more).

  Args:
    config: `config.data`.
    split: of the audio.

  Raises:
    UserError: naming what the source cannot use, and the remedy.
  """
  check_choice("--config.data.source", config.source, SOURCES)
  opened = SOURCES[config.source].open_split(config, split)
  if split == "train" and config.hours:
    opened = subset.take_hours(opened, config.hours)
  return opened


def corpus_name(config: ConfigDict) -> str:
  """Returns what the corpus of `config.data` is called.

  A source that is not in the table, as in a run of a user's own, goes by its
  folder.
  """
  kind = SOURCES.get(config.source)
  name = kind.corpus_name if kind else source.folder_name
  return name(config) or config.source


def knobs() -> dict[str, Knob]:
  """Returns the knobs of `config.data` that sources read."""
  meanings = "; ".join(
    f"`{name}`: {kind.meaning}" for name, kind in SOURCES.items()
  )
  declared = {
    "source": Knob(
      "folder", f"{meanings}.", role="data", choices=lambda: SOURCES
    ),
    **source.KNOBS,
    **subset.KNOBS,
  }
  for name, kind in SOURCES.items():
    for key, knob in kind.knobs.items():
      assert declared.setdefault(key, knob) == knob, (
        f"the source {name!r} declares data.{key} otherwise than another"
      )
  return declared
