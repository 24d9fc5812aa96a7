"""Sources of audio: one file each, and the table of them."""

import functools

from ml_collections import ConfigDict

from ssl_jax.data.sources import (
  embedded,
  folder,
  manifest,
  mixture,
  records,
  source,
  tfds,
)
from ssl_jax.data.sources.subset import take_hours

# A new source is one file with an `open_split`, and one line here.
SOURCES = {
  "embedded": embedded.open_split,
  "folder": folder.open_split,
  "manifest": manifest.open_split,
  "records": records.open_split,
  "tfds": tfds.open_split,
}
SOURCES["mixture"] = functools.partial(
  mixture.open_split, sources=dict(SOURCES)
)


def open_source(config: ConfigDict, split: str) -> source.Source:
  """Opens a split ("train", "valid"; some sources have more).

  Args:
    config: `config.data`.
    split: of the audio.

  Raises:
    UserError: naming what the source cannot use, and the remedy.
  """
  source.check_choice("--config.data.source", config.source, SOURCES)
  opened = SOURCES[config.source](config, split)
  if split == "train" and config.hours:
    opened = take_hours(opened, config.hours)
  return opened
