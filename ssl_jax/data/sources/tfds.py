"""TensorFlow Datasets, read without TensorFlow.

A prepared dataset is tf.train.Example messages in ArrayRecord files, its audio
a list of integers or, where decoding is lazy, a file's content. TFDS's own code
reads its description; lengths are found by reading each file once, and kept in
~/.cache/ssl_jax.
"""

from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from ssl_jax.data.sources import source
from ssl_jax.errors import UserError, check_choice
from ssl_jax.knobs import Knob

if TYPE_CHECKING:
  from ssl_jax.data.sources import tfds_dataset

SPLITS = ("train", "valid", "test")

_VALID_SPLITS = ("dev_clean", "validation", "dev", "valid")
_TEST_SPLITS = ("test_clean", "test")


def open_split(config: ConfigDict, split: str) -> source.Source:
  """Opens `train_split`, or `valid_split`: without one, valid is held out.

  Args:
    config: `config.data`; `name`, `dir`, `train_split`, `valid_split`,
      `valid_fraction`, `sample_rate` and `min_seconds` are read.
    split: one of SPLITS.

  Raises:
    UserError: unknown split; no such dataset, or not one of audio, or not yet
      prepared: then it says how.
  """
  check_choice("split", split, SPLITS)
  key = f"--config.data.name={config.name!r}"
  dataset = _describe(key, config.name, config.dir, config.sample_rate)
  given = {"valid": config.valid_split, "test": config.test_split}
  usual = {"valid": _VALID_SPLITS, "test": _TEST_SPLITS}
  own = {
    name: given[name]
    or next((s for s in usual[name] if s in dataset.splits), "")
    for name in given
  }
  if own.get(split):
    return dataset.open(own[split], config.min_seconds)
  if split == "test":
    raise UserError(
      f"{key} has no test split: give one of {', '.join(dataset.splits)} as "
      "--config.data.test_split"
    )
  whole = dataset.open(config.train_split, config.min_seconds)
  if own["valid"]:
    return whole
  return whole.select(
    source.hold_out(key, whole.ids, config.valid_fraction, split)
  )


def open_all(name: str, split: str, sample_rate: int) -> source.Source:
  """Opens all examples of a split, short ones too.

  Args:
    name: as of `tfds_dataset.find`.
    split: as TFDS writes it; "": all that is named train...
    sample_rate: in Hz, where the dataset does not say it; else 0.

  Raises:
    UserError: as of `open_split`.
  """
  return _describe(f"--input=tfds:{name}", name, "", sample_rate).open(split, 0)


def _describe(*dataset: Any) -> "tfds_dataset.Dataset":
  # Imported late: tensorflow_datasets takes 0.35 s, and few runs read one.
  from ssl_jax.data.sources import tfds_dataset

  return tfds_dataset.Dataset(*dataset)


KIND = source.SourceKind(
  open_split,
  "a dataset of TensorFlow Datasets",
  {
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
      for split in SPLITS
    },
    "sample_rate": Knob(
      0,
      "tfds: Hz, where the dataset does not say.",
      role="data",
      high=1_000_000,
    ),
  },
  where="name",
  corpus_name=lambda config: config.name,
)
