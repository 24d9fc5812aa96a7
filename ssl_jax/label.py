"""Labels a corpus by k-means on an encoder's states: HuBERT's next iteration.

  python -m ssl_jax.label --config=configs/slim.py --checkpoint=runs/first \\
      --config.data.dir=LibriSpeech --layer=6 --clusters=500
  python -m ssl_jax.main --config=configs/slim.py:iteration=2 \\
      --config.data.dir=LibriSpeech \\
      --config.hubert.labels=runs/first/labels-6-500

  python -m ssl_jax.label --config=configs/slim.py --workdir=labels \\
      --config.data.dir=LibriSpeech --from_km=fairseq/labels

Both splits of the config's data get labels of one codebook, fitted on a sample
of the training audio (config.kmeans). The folder holds uint16 labels at 50 Hz,
the codebook, a header with what they are of and how good they are, and a
picture. Killed, the same command goes on. The last line on stdout is a JSON
object.
"""

import os
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
  "encoder, but MFCC with deltas, every second frame.",
)
_CLUSTERS = flags.DEFINE_integer(
  "clusters",
  500,
  "Number of clusters of k-means.",
  lower_bound=2,
  upper_bound=2**16 - 2,
)
_WORKDIR = flags.DEFINE_string(
  "workdir",
  None,
  "Folder of the labels; unfinished ones are completed. "
  "Default: labels-LAYER-CLUSTERS in the encoder's workdir.",
)
_KM = flags.DEFINE_bool(
  "km",
  False,
  "Write the labels as fairseq and WavLM read them, too: train.tsv, train.km, "
  "valid.tsv, valid.km and dict.km.txt in --workdir.",
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
  from ssl_jax.pretrained.load import load_encoder
  from ssl_jax.signal import fbank

  config, layer = cli.FLAGS.config, _LAYER.value
  if layer.isdecimal():
    layer = str(int(layer[:9]))  # 06 is 6.
  validate(config)
  if _FROM_KM.value:
    km = Path(_FROM_KM.value)
    folder = Path(_WORKDIR.value or Path("runs") / f"labels-{km.name}")
    with alone(folder, f"--workdir={folder}"):
      return _reported(folder, fairseq.import_labels(_open(config), km, folder))
  if layer == "mfcc":
    states, origin, beside = fbank.mfcc_at_frames, None, Path("runs")
  elif not layer.isdecimal():
    raise UserError(f"--layer={layer}: expected a number, or mfcc")
  elif _CHECKPOINT.value is None:
    raise UsageError(
      "--checkpoint is missing: give the workdir of a trained encoder, or "
      "--layer=mfcc"
    )
  else:
    encoder = load_encoder(_CHECKPOINT.value)
    states, origin = encoder.states(int(layer)), encoder.origin
    beside = encoder.workdir
  folder = Path(_WORKDIR.value or beside / f"labels-{layer}-{_CLUSTERS.value}")
  sources = _open(config)
  if _KM.value:
    fairseq.check_files(sources)
  by_row = sharding.by_row(sharding.make_mesh())
  with alone(folder, f"--workdir={folder}"):
    header = corpus.label_corpus(
      config,
      sources,
      sharding.suited(by_row, states),
      _CLUSTERS.value,
      {"layer": layer, "checkpoint": origin},
      folder,
      by_row,
    )
    if _KM.value:
      fairseq.export_labels(folder, sources)
  return _reported(folder, header)


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
