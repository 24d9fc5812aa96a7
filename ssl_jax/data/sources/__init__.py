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
from ssl_jax.errors import check_choice
from ssl_jax.knobs import Knob

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

_KNOBS = {
  "source": Knob(
    "folder",
    "`embedded`: the packaged clips; `folder`: a tree of wav, flac, ogg and "
    "mp3 files of any rate; `manifest`: files that a .jsonl, .csv or .tsv "
    "names; `records`: what ssl_jax.prepare wrote; `tfds`: a dataset of "
    "TensorFlow Datasets; `mixture`: several, as "
    "`records:ls960,folder:/my/audio`.",
    role="data",
    choices=lambda: SOURCES,
  ),
  "dir": Knob(
    "",
    "The audio's folder or file. tfds: the folder of datasets; empty: its own "
    "default. mixture: SOURCE:WHERE, separated by commas.",
    role="place",
  ),
  "weights": Knob(
    (),
    "mixture: each part's share of the audio; (): all clips alike.",
    role="data",
  ),
  "name": Knob(
    "", "tfds: the dataset, as `librispeech:2.1.1`, or a folder.", role="data"
  ),
  **{
    f"{split}_split": Knob(
      "",
      "tfds: the splits of this one, as `train_clean100+dev_other[:50%]`; "
      "empty: those that are named so.",
      role="data",
    )
    for split in ("train", "valid", "test")
  },
  "sample_rate": Knob(
    0,
    "tfds: Hz, where the dataset does not say.",
    role="data",
    high=1_000_000,
  ),
  "split_key": Knob(
    "", "manifest, records: the metadata key of a clip's split.", role="data"
  ),
  "valid_dir": Knob(
    "", "Where the validation audio is; empty: held out of `dir`.", role="place"
  ),
  "valid_fraction": Knob(
    0.01, "Share of the clips that is held out.", role="data", high=0.9
  ),
  "hours": Knob(
    0.0,
    "Hours of training audio, balanced over speakers; 0: all. Smaller subsets "
    "are contained in larger ones.",
    role="data",
    high=1e9,
  ),
  "min_seconds": Knob(
    2.0,
    "Shorter clips are skipped, seconds.",
    role="data",
    low=0.025,
    high=3_600.0,
  ),
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
  opened = SOURCES[config.source](config, split)
  if split == "train" and config.hours:
    opened = take_hours(opened, config.hours)
  return opened


def knobs() -> dict[str, Knob]:
  """Returns the knobs of `config.data` that sources read."""
  return _KNOBS
