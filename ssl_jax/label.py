"""Labels a corpus by k-means on an encoder's states: HuBERT's next iteration.

  python -m ssl_jax.label --config=configs/slim.py --checkpoint=runs/first \\
      --config.data.dir=LibriSpeech --layer=6 --clusters=500
  python -m ssl_jax.main --config=configs/slim.py:iteration=2 \\
      --config.data.dir=LibriSpeech \\
      --config.hubert.labels=runs/first/labels-6-500

  python -m ssl_jax.label --config=configs/slim.py --out=labels \\
      --config.data.dir=LibriSpeech --from_km=fairseq/labels

Both splits of the config's data get labels of one codebook, fitted on a sample
of the training audio (config.kmeans). The folder holds uint16 labels at 50 Hz,
the codebook, a header with what they are of and how good they are, and a
picture. Killed, the same command goes on. The last line on stdout is a JSON
object.
"""

import functools
import logging
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from absl import flags

from ssl_jax import cli
from ssl_jax.errors import UsageError, UserError

_SPLITS = ("train", "valid")

_CHECKPOINT = flags.DEFINE_string(
  "checkpoint",
  None,
  "Encoder: a training run's workdir (its newest checkpoint), or "
  "WORKDIR/checkpoints/UPDATE.",
)
_LAYER = flags.DEFINE_string(
  "layer",
  "6",
  "Layer whose output is clustered; 0 is the first layer's input. mfcc: no "
  "encoder, but MFCC with deltas, every second frame; mfcc_clip: the same less "
  "each clip's mean and variance.",
)
_CLUSTERS = flags.DEFINE_integer(
  "clusters",
  None,
  "Number of clusters of k-means. Default: as many as the checkpoint's HuBERT "
  "was trained on, else 500.",
  lower_bound=2,
  upper_bound=2**16 - 2,
)
_OUT = flags.DEFINE_string(
  "out",
  None,
  "Folder of the labels; unfinished ones are completed. "
  "Default: labels-LAYER-CLUSTERS in the encoder's workdir.",
)
cli.rename_flag("workdir", "out")
_KM = flags.DEFINE_bool(
  "km",
  False,
  "Write the labels as fairseq and WavLM read them, too: train.tsv, train.km, "
  "valid.tsv, valid.km and dict.km.txt in --out.",
)
_FROM_KM = flags.DEFINE_string(
  "from_km",
  None,
  "Folder of labels in fairseq's format, to import in place of making some.",
)


def main() -> dict:
  """Labels the data of `--config`; returns the header, without the counts."""
  # Imported late: --help and usage errors need no JAX.
  from ssl_jax.config import validate
  from ssl_jax.devices import sharding
  from ssl_jax.files import alone
  from ssl_jax.labelling import corpus, fairseq
  from ssl_jax.objectives import mfcc
  from ssl_jax.pretrained.load import load_encoder

  config, layer, clusters = cli.FLAGS.config, _LAYER.value, _CLUSTERS.value
  if layer.isdecimal():
    layer = str(int(layer[:9]))  # 06 is 6.
  validate(config)
  if _FROM_KM.value:
    km = Path(_FROM_KM.value)
    folder = Path(_OUT.value or Path("runs") / f"labels-{km.name}")
    with alone(folder, f"--out={folder}"):
      return _reported(folder, fairseq.import_labels(_open(config), km, folder))
  as_trained: dict[str, Any] = {}
  if layer in mfcc.FRAMES:
    states = functools.partial(mfcc.at_frames, layer)
    origin, beside = None, Path("runs")
  elif not layer.isdecimal():
    raise UserError(
      f"--layer={layer}: expected a number, {' or '.join(mfcc.FRAMES)}"
    )
  elif _CHECKPOINT.value is None:
    raise UsageError(
      "--checkpoint is missing: give the workdir of a trained encoder, or "
      "--layer=mfcc"
    )
  else:
    encoder = load_encoder(_CHECKPOINT.value)
    states, origin = encoder.states(int(layer)), encoder.origin
    beside = encoder.workdir
    as_trained, trained_on = _as_trained(config, beside / "config.json")
    clusters = clusters or trained_on
  clusters = clusters or 500
  folder = Path(_OUT.value or beside / f"labels-{layer}-{clusters}")
  sources = _open(config)
  if _KM.value:
    fairseq.check_files(sources)
  by_row = sharding.by_row(sharding.make_mesh())
  with alone(folder, f"--out={folder}"):
    header = corpus.label_corpus(
      config,
      sources,
      sharding.suited(by_row, states),
      clusters,
      {"layer": layer, "checkpoint": origin},
      folder,
      by_row,
    )
    if _KM.value:
      fairseq.export_labels(folder, sources)
  _say_next(config, folder, clusters, as_trained)
  return _reported(folder, header)


def _as_trained(config: Any, path: Path) -> tuple[dict[str, Any], int | None]:
  """Takes what is not given of the data from the encoder's run.

  Args:
    config: of the command; changed in place. Its corpus stays where a key, or
      its file, says which that is.
    path: of the run's config.json, if there is one.

  Returns:
    {key: value} of what was changed; the clusters the run was trained on.

  Raises:
    UserError: the file is damaged.
  """
  from ssl_jax.config import MADE_BY, knobs
  from ssl_jax.files import read_object

  if not path.exists():
    return {}, None
  try:
    saved = read_object(path)
    data, hubert = saved["data"], saved["hubert"]["clusters"]
    is_hubert = saved["objective"]["name"] == "hubert"
    command = saved.get(MADE_BY, {}).get("command", "")
    words = _config_words(shlex.split(command))
  except (
    *(OSError, ValueError, LookupError, TypeError),
    AttributeError,  # Something is no object.
  ) as error:
    raise UserError(f"{path} is damaged ({error}): bring it back") from error
  given = {*cli.FLAGS["config"].override_values}
  changed = {}
  where = {k for k, x in knobs().items() if x.role == "place"} | {"data.source"}
  if not given & where and _file_names_corpus(config, where, data, words):
    logging.getLogger("ssl_jax").info(
      "%14s  of %s, not the encoder's",
      "data",
      cli.FLAGS["config"].config_filename,
    )
  elif not given & where:
    for key, value in data.items():
      value = tuple(value) if isinstance(value, list) else value
      old = config.data.get(key)
      if f"data.{key}" not in given and old is not None and old != value:
        config.data[key] = changed[f"data.{key}"] = value
  if changed:
    logging.getLogger("ssl_jax").info(
      "%14s  as the encoder's: %s",
      "data",
      ", ".join(f"{key}={value}" for key, value in changed.items()),
    )
  return changed, hubert[0] if is_hubert and len(hubert) == 1 else None


def _file_names_corpus(
  config: Any, where: set[str], trained_on: dict[str, Any], words: list[str]
) -> bool:
  """Tells whether the file of --config is asked for another corpus.

  Args:
    config: of the file.
    where: keys that say which corpus it is.
    trained_on: the encoder's `data`.
    words: of the encoder's own config, as its command had them; [] if unknown.
  """
  from ssl_jax.config import base

  default = base().data
  names = [key.removeprefix("data.") for key in where if key[:5] == "data."]
  corpus, theirs, nothing = (
    [data.get(name) for name in names]
    for data in (config.data, trained_on, default)
  )
  files = [word[9:] for word in words if word.startswith("--config=")]
  if corpus in (theirs, nothing) or not files:
    return False
  # The file that was overridden there says nothing here.
  ours, last = (
    os.path.realpath(name.partition(":")[0])
    for name in (cli.FLAGS["config"].config_filename, files[-1])
  )
  return ours != last or not any(
    word[9:].partition("=")[0] in where for word in words
  )


def _config_words(words: list[str]) -> list[str]:
  """Returns the words of a command line that are of its config."""
  return [
    f"{word}={value}" if word == "--config" else word
    for word, value in zip(words, [*words[1:], ""])
    if word.startswith("--config")
  ]


def _say_next(
  config: Any, folder: Path, clusters: int, as_trained: dict[str, Any]
) -> None:
  """Tells the command that trains on the labels."""
  given = _config_words(sys.argv[1:])
  changed = as_trained | {
    "hubert.labels": str(folder),
    "hubert.clusters": (clusters,),
  }
  if config.objective.name != "hubert":
    changed["objective.name"] = "hubert"
  words = [f"--config.{key}={value}" for key, value in changed.items()]
  logging.getLogger("ssl_jax").info(
    "%14s  %s",
    "to train on it",
    shlex.join(["python", "-m", "ssl_jax.main", *given, *words]),
  )


def _open(config: Any) -> dict[str, Any]:
  from ssl_jax.data.sources import open_source

  return {split: open_source(config.data, split) for split in _SPLITS}


def _reported(folder: Path, header: dict) -> dict:
  for split in header["splits"].values():
    del split["usage"]
  return {"workdir": str(folder)} | header


if __name__ == "__main__":
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  cli.define_config()
  cli.run(main)
