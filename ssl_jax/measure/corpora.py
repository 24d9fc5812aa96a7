"""The same real speech in every form that training reads."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from ssl_jax import SAMPLE_RATE
from ssl_jax import config as config_lib
from ssl_jax.data import prepare
from ssl_jax.data.sources import manifest, open_source

PACK_SECONDS = 14.0  # As long as the utterances that people train on.
_TFDS_CLIPS = 200  # A split.
_OPTIONS = {"min_seconds": 0.1, "max_seconds": 60.0, "num_workers": 1}


def write(folder: Path, copies: int) -> None:
  """Writes `flac`, `records` and `tfds` under `folder`.

  Args:
    folder: empty.
    copies: of the packaged corpus, to be read at random.
  """
  corpus = Path(prepare.__file__).parent / "corpus" / "metadata.jsonl"
  clips = manifest.open_clips(manifest.find_clips(corpus))
  packed = folder / "packed"
  prepare.prepare(clips, packed, pack_seconds=PACK_SECONDS, **_OPTIONS)
  source = open_source(_data("records", packed), "train")
  speech = [source.read(i, 0, 1 << 40) for i in range(len(source.ids))]
  flac = folder / "flac"
  flac.mkdir()
  for i, audio in enumerate(speech):
    soundfile.write(flac / f"{i}.flac", audio, SAMPLE_RATE)
    for copy in range(1, copies):
      os.link(flac / f"{i}.flac", flac / f"{i}-{copy}.flac")
  found = manifest.open_clips(manifest.find_clips(flac))
  prepare.prepare(found, folder / "records", pack_seconds=0.0, **_OPTIONS)
  _write_tfds(folder / "tfds", speech * copies)


def config(kind: str, folder: Path) -> ConfigDict:
  """The base config, reading `kind` ("flac" ...) of what `write` wrote."""
  made = config_lib.base()
  made.data = _data(kind, folder / kind)
  return made


def _data(kind: str, folder: Path) -> ConfigDict:
  data = config_lib.base().data
  data.source = "folder" if kind == "flac" else kind
  data.min_seconds, data.dir = 0.1, str(folder)
  data.valid_dir = data.valid_split = "-"  # Nothing is held out.
  data.name, data.sample_rate = "speech", SAMPLE_RATE
  return data


def _write_tfds(folder: Path, speech: list[np.ndarray]) -> None:
  """As TFDS stores audio: lists of integers."""

  class Speech(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Clips of the packaged corpus."""

    # TFDS looks for a dataset's files where its module is: there are none.
    code_path = None
    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
      samples = tfds.features.Tensor(shape=(None,), dtype=np.int16)
      features = tfds.features.FeaturesDict({"speech": samples})
      return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, _: object) -> dict:
      # TFDS cannot write a split of more than 1 GB without TensorFlow.
      return {
        f"train{i}": self._generate_examples(speech[i : i + _TFDS_CLIPS])
        for i in range(0, len(speech), _TFDS_CLIPS)
      }

    def _generate_examples(
      self, clips: list[np.ndarray]
    ) -> Iterator[tuple[int, dict]]:
      for i, audio in enumerate(clips):
        yield i, {"speech": audio}

  builder = Speech(data_dir=str(folder), file_format="array_record")
  builder.download_and_prepare()
