"""Datasets that TFDS prepared, described by TFDS's own code.

Only a run that reads such a dataset imports this: it costs 0.35 s.
"""

import functools
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets
from etils import epath
from google.protobuf import json_format
from tensorflow_datasets.core import constants, dataset_info, naming, splits
from tensorflow_datasets.core.proto import feature_pb2

from ssl_jax import SAMPLE_RATE
from ssl_jax.data.sources import audio, tfds_examples
from ssl_jax.data.sources import skipped as skipped_lib
from ssl_jax.data.sources.shards import Shards
from ssl_jax.data.sources.tfds_examples import Feature
from ssl_jax.errors import UserError, nearest, one_line

_SPEAKERS_ARE_LABELS = ("voxceleb",)
_PREPARE = (
  'python -c "import tensorflow_datasets as tfds; tfds.builder({name!r}, '
  "data_dir={dir!r}, file_format='array_record').download_and_prepare({how})\""
)
_ARCHIVES = "download_config=tfds.download.DownloadConfig(manual_dir='DIR')"
_CONVERT = (
  'python -c "from tensorflow_datasets.scripts.cli.convert_format_utils import '
  "convert_dataset as c; c(None, 'array_record', dataset_version_dir=[{0!r}], "
  'dataset_dir=None, root_data_dir=None, overwrite=False, use_beam=False)"'
)


class Examples:
  """A `Source` of a TFDS split; see `source.Source`."""

  def __init__(
    self,
    files: Shards,
    feature: Feature,
    clips: list[dict[str, Any]],
    places: np.ndarray,
    skipped: list[tuple[str, str]],
  ):
    """Holds some examples of a dataset.

    Args:
      files: of the dataset.
      feature: of the audio.
      clips: [N] facts of each: id, num_samples ...
      places: int [N, 2] file, and record in it.
      skipped: (id, reason) of what was left out.
    """
    self._files, self._feature = files, feature
    self._clips, self._places = clips, places
    self.ids = [clip["id"] for clip in clips]
    self.num_samples = np.array([c["num_samples"] for c in clips], np.int64)
    self.metadata = clips
    self.skipped = skipped
    self.damaged: dict[str, str] = {}
    self.rates = None

  def read(self, index: int, start: int, num_samples: int) -> np.ndarray:
    """See `Source.read`."""
    record = self._files.read(*self._places[index].tolist())
    return tfds_examples.read(record, self._feature, start, num_samples)

  def select(self, indices: Iterable[int]) -> "Examples":
    """See `Source.select`."""
    kept = np.fromiter(indices, np.int64)
    clips = [self._clips[i] for i in kept]
    return Examples(
      self._files, self._feature, clips, self._places[kept], self.skipped
    )


def find(key: str, name: str, data_dir: str) -> Path:
  """Finds the folder of a prepared dataset.

  Args:
    key: the flag and value that named it.
    name: as TFDS has it, "librispeech" or "librispeech/lazy_decode:2.1.2", or
      the folder itself.
    data_dir: where datasets are; "": where TFDS keeps them.

  Raises:
    UserError: it is not there.
  """
  root = Path(data_dir or constants.DATA_DIR).expanduser()
  if not name:
    raise UserError(f"{key}: give a dataset of TFDS")
  dataset, _, version = name.partition(":")
  for folder in (
    root / dataset / version,
    root / dataset / "default" / version,
    Path(name).expanduser(),
  ):
    if os.path.isfile(folder / "dataset_info.json"):
      return folder
    if not os.path.isdir(folder):
      continue
    versions = [
      path.parent
      for path in folder.glob("*/dataset_info.json")
      if re.fullmatch(r"\d+(\.\d+)*", path.parent.name)
    ]
    if versions:
      return max(versions, key=lambda p: list(map(int, p.name.split("."))))
  raise UserError(_how_to_prepare(key, name, dataset, root))


def _how_to_prepare(key: str, name: str, dataset: str, root: Path) -> str:
  known = tensorflow_datasets.list_builders(with_community_datasets=False)
  if (base := dataset.split("/")[0]) not in known:
    meant, question, _ = nearest(base, known).partition("? ")
    return f"{key}: there is no such folder, nor is it a dataset of TFDS" + (
      f"; {meant}?" if question else ""
    )
  command = functools.partial(_PREPARE.format, name=name, dir=str(root))
  archives = _archive_bytes(base)
  needs = f"{archives / 2**30:.3g} GiB of downloads, " if archives else ""
  configs = sorted(
    {
      path.parents[1].name
      for path in root.glob(f"{base}/*/*/dataset_info.json")
    }
  )
  there = f" (but {base}/{f', {base}/'.join(configs)})" if configs else ""
  return (
    f"{key} is not prepared in {str(root)!r}{there}. It needs {needs}room to "
    "unpack them and 0.12 GB an hour of audio, `pip install '.[tfds]'`, "
    "and ffmpeg unless files are kept as they are, as librispeech/lazy_decode "
    "does. "
    f"Run {command(how='')} or, with the "
    f"archives already in a folder DIR, {command(how=_ARCHIVES)}"
  )


def _archive_bytes(dataset: str) -> int:
  """Returns the size of a dataset's downloads; 0 where TFDS does not say."""
  root = Path(tensorflow_datasets.__file__).parent
  path = root / "datasets" / dataset / "checksums.tsv"
  if not path.is_file():
    return 0
  return sum(int(x.split("\t")[1]) for x in path.read_text().splitlines())


class Dataset:
  """A prepared dataset, as TFDS describes it."""

  def __init__(self, key: str, name: str, data_dir: str, default_rate: int):
    self._key, self._folder = key, find(key, name, data_dir)
    folder = epath.Path(self._folder)
    try:
      described = (self._folder / "features.json").read_bytes()
      features = json_format.Parse(described, feature_pb2.Feature())
      info = dataset_info.read_proto_from_builder_dir(folder)
    except Exception as error:  # JSON and protobuf raise many kinds.
      raise UserError(
        f"{key}: {folder} is no dataset that TFDS prepared ({one_line(error)})"
      ) from error
    self._splits, self._name = info.splits, info.name
    self._feature = _audio_feature(
      key, self._folder, info.name, features, default_rate
    )

  @property
  def splits(self) -> list[str]:
    """The names of its splits."""
    return [split.name for split in self._splits]

  def open(self, spec: str, min_seconds: float) -> Examples:
    """Opens the examples of a split as TFDS writes it: "train[:10%]+test"."""
    spec = spec or "+".join(s for s in self.splits if s.startswith("train"))
    if not spec:
      raise UserError(
        f"{self._key} has no split named train..., but "
        f"{', '.join(self.splits)}: choose by --config.data.train_split"
      )
    files, ranges = self._ranges(spec)
    clips, places, skipped = [], [], []
    indexes = tfds_examples.indexes(files, self._feature)
    for shard, (index, some) in enumerate(zip(indexes, ranges)):
      if some.stop > len(index):
        raise UserError(
          f"{files[shard]} has {len(index)} records, not {some.stop}: prepare "
          "it again"
        )
      name = os.path.basename(files[shard]).partition("-")[2]
      for place in some:
        clip = {"id": f"{name.replace('.array_record', '')}/{place}"}
        clip |= index[place]
        length = clip.get("num_samples", 0)
        if "damaged" in clip:
          skipped.append((clip["id"], clip["damaged"]))
        elif length < min_seconds * SAMPLE_RATE:
          skipped.append(
            (clip["id"], skipped_lib.too_short(length, min_seconds))
          )
        else:
          clips.append(clip)
          places.append((shard, place))
    skipped_lib.report(f"{self._key}, {spec}", len(clips), skipped)
    if twice := len(clips) - len({clip["id"] for clip in clips}):
      raise UserError(f"{self._key}, {spec}: {twice} ids come twice")
    shards = Shards(files)
    return Examples(shards, self._feature, clips, np.array(places), skipped)

  def _ranges(self, spec: str) -> tuple[list[str], list[range]]:
    """Returns files, and which of the records of each."""
    template = naming.ShardedFileTemplate(
      data_dir=epath.Path(self._folder),
      dataset_name=self._name,
      filetype_suffix="array_record",
    )
    try:
      split = splits.SplitDict.from_proto(self._splits, template)[spec]
      parts = split.file_instructions
    except Exception as error:  # TFDS raises many kinds, RecursionError too.
      raise UserError(
        f"{self._key}: bad split {spec[:200]!r} ({one_line(error)}); "
        f"have {', '.join(self.splits)}"
      ) from error
    files = [str(part.filename) for part in parts]
    if missing := [file for file in files if not os.path.exists(file)]:
      raise UserError(
        f"{self._key}: {missing[0]} does not exist. If the dataset is in "
        "another format, convert it: pip install '.[tfds]', then run "
        + _CONVERT.format(str(self._folder))
      )
    ranges = [
      range(part.skip, part.skip + part.take)
      if part.take >= 0
      else range(part.skip, part.examples_in_shard)
      for part in parts
    ]
    return files, ranges


def _audio_feature(
  key: str,
  folder: Path,
  dataset: str,
  described: feature_pb2.Feature,
  default_rate: int,
) -> Feature:
  """Finds the audio among a dataset's features."""
  features = dict(described.features_dict.features)
  names = [name for name in features if features[name].HasField("audio")]
  # A dataset that was built without TensorFlow has lists of integers.
  names = names or [name for name in features if _is_list(features[name])]
  if len(names) != 1:
    raise UserError(
      f"{key}: expected one audio feature, found "
      f"{', '.join(names) or 'none'} (it has {', '.join(sorted(features))})"
    )
  (name,) = names
  facts = features[name].audio  # All unset in a plain list of samples.
  rate = facts.sample_rate or default_rate
  if not rate and not facts.lazy_decode:
    raise UserError(
      f"{key} does not say its sample rate: give it in Hz as "
      "--config.data.sample_rate, or --sample_rate of ssl_jax.prepare"
    )
  if not facts.lazy_decode and not audio.RATES[0] <= rate <= audio.RATES[1]:
    raise UserError(f"{key}: a sample rate of {rate} Hz")
  try:
    labels = {
      path.name.removesuffix(".labels.txt"): text.decode().splitlines()
      for path in folder.glob("*.labels.txt")
      for text in [path.read_bytes()]
    }
  except (OSError, ValueError) as error:
    raise UserError(f"{key}: labels cannot be read ({error})") from error
  if (channels := (*facts.shape.dimensions, 1, 1)[1]) < 1:
    raise UserError(f"{key}: {name} has {channels} channels")
  speaker = "label" if dataset in _SPEAKERS_ARE_LABELS else ""
  return Feature(name, rate, channels, facts.lazy_decode, labels, speaker)


def _is_list(feature: feature_pb2.Feature) -> bool:
  shape = feature.tensor.shape.dimensions
  return feature.tensor.dtype.startswith("int") and list(shape) == [-1]
