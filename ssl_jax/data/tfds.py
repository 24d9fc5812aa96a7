"""TensorFlow Datasets, read without TensorFlow.

A prepared dataset is tf.train.Example messages in ArrayRecord files, its audio
a list of integers or, where decoding is lazy, a file's content. TFDS's own code
reads what describes it; lengths are found by reading each file once, and kept
in ~/.cache/ssl_jax.
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
from ml_collections import ConfigDict
from tensorflow_datasets.core import constants, dataset_info, naming, splits
from tensorflow_datasets.core.proto import feature_pb2

from ssl_jax import SAMPLE_RATE
from ssl_jax.data import examples, source
from ssl_jax.data.examples import Feature
from ssl_jax.data.shards import Shards
from ssl_jax.errors import UserError

SPLITS = ("train", "valid")

_SPEAKERS_ARE_LABELS = ("voxceleb",)
_VALID_SPLITS = ("dev_clean", "validation", "dev", "valid")
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
    """Of some examples of a dataset.

    Args:
      files: of the dataset.
      feature: of the audio.
      clips: [N] what is known of each: id, num_samples ...
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
    return examples.read(record, self._feature, start, num_samples)

  def select(self, indices: Iterable[int]) -> "Examples":
    """See `Source.select`."""
    kept = np.fromiter(indices, np.int64)
    clips = [self._clips[i] for i in kept]
    return Examples(
      self._files, self._feature, clips, self._places[kept], self.skipped
    )


def open_split(config: ConfigDict, split: str) -> Examples:
  """Train: `train_split`; valid: `valid_split`, else held out of the former.

  Args:
    config: `config.data`; `name`, `dir`, `train_split`, `valid_split`,
      `valid_fraction`, `sample_rate` and `min_seconds` are read.
    split: one of SPLITS.

  Raises:
    UserError: unknown split; no such dataset, or not one of audio, or not yet
      prepared: then it says how.
  """
  source.check_choice("split", split, SPLITS)
  folder = find(config.name, config.dir)
  info = dataset_info.read_proto_from_builder_dir(epath.Path(folder))
  names = [s.name for s in info.splits]
  train = config.train_split or "+".join(
    name for name in names if name.startswith("train")
  )
  valid = config.valid_split or next(
    (name for name in _VALID_SPLITS if name in names), ""
  )
  key = f"--config.data.name={config.name!r}"
  opened = functools.partial(
    _open, key, folder, info, config.sample_rate, config.min_seconds
  )
  if valid:
    return opened(valid if split == "valid" else train)
  whole = opened(train)
  return whole.select(
    source.hold_out(key, whole.ids, config.valid_fraction, split)
  )


def find(name: str, data_dir: str) -> Path:
  """The folder of a prepared dataset.

  Args:
    name: as TFDS has it, "librispeech" or "librispeech/lazy_decode:2.1.2", or
      the folder itself.
    data_dir: where datasets are; "": where TFDS keeps them.

  Raises:
    UserError: it is not there.
  """
  root = Path(data_dir or constants.DATA_DIR).expanduser()
  if not name:
    raise UserError("--config.data.name: give a dataset of TFDS")
  dataset, _, version = name.partition(":")
  for folder in (
    Path(name).expanduser(),
    root / dataset / version,
    root / dataset / "default" / version,
  ):
    if (folder / "dataset_info.json").is_file():
      return folder
    versions = [
      path.parent
      for path in folder.glob("*/dataset_info.json")
      if re.fullmatch(r"[\d.]+", path.parent.name)
    ]
    if versions:
      return max(versions, key=lambda p: list(map(int, p.name.split("."))))
  raise UserError(_how_to_prepare(name, dataset, root))


def _how_to_prepare(name: str, dataset: str, root: Path) -> str:
  key = f"--config.data.name={name!r}"
  known = tensorflow_datasets.list_builders(with_community_datasets=False)
  if (base := dataset.split("/")[0]) not in known:
    try:
      source.check_choice("dataset", base, known)
    except UserError as error:
      meant = str(error).partition(": ")[2].partition("? ")
      return f"{key}: there is no such folder, nor is it a dataset of TFDS" + (
        f"; {meant[0]}?" if meant[1] else ""
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
    "unpack them and 0.12 GB an hour of audio, `pip install 'ssl_jax[tfds]'`, "
    "and ffmpeg unless files are kept as they are, as librispeech/lazy_decode "
    "does. "
    f"Run {command(how='')} or, with the "
    f"archives already in a folder DIR, {command(how=_ARCHIVES)}"
  )


def _archive_bytes(dataset: str) -> int:
  """What TFDS downloads for a dataset; 0 where its package does not say."""
  root = Path(tensorflow_datasets.__file__).parent
  path = root / "datasets" / dataset / "checksums.tsv"
  if not path.is_file():
    return 0
  return sum(int(x.split("\t")[1]) for x in path.read_text().splitlines())


def _open(
  key: str,
  folder: Path,
  info: Any,
  default_rate: int,
  min_seconds: float,
  spec: str,
) -> Examples:
  """The examples of a split as TFDS writes it: "train[:10%]+test"."""
  template = naming.ShardedFileTemplate(
    data_dir=epath.Path(folder),
    dataset_name=info.name,
    filetype_suffix="array_record",
  )
  try:
    parts = splits.SplitDict.from_proto(info.splits, template)[spec]
    parts = parts.file_instructions
  except (ValueError, KeyError, AssertionError) as error:
    names = ", ".join(s.name for s in info.splits)
    raise UserError(
      f"{key}: bad split {spec!r} "
      f"({' '.join(str(error).split())}); have {names}"
    ) from error
  if missing := [p.filename for p in parts if not os.path.exists(p.filename)]:
    raise UserError(
      f"{key}: {missing[0]} does not exist. If the dataset is in another "
      "format, convert it: pip install 'ssl_jax[tfds]', then run "
      + _CONVERT.format(str(folder))
    )
  feature = _audio_feature(key, folder, info.name, default_rate)
  files = [str(part.filename) for part in parts]
  clips, places, skipped = [], [], []
  indexes = examples.indexes(files, feature)
  for shard, (part, index) in enumerate(zip(parts, indexes)):
    name = os.path.basename(files[shard]).partition("-")[2]
    for place in range(part.skip, part.skip + part.examples_in_shard)[
      : part.take if part.take >= 0 else None
    ]:
      clip = {"id": f"{name.replace('.array_record', '')}/{place}"}
      clip |= index[place]
      length = clip.get("num_samples", 0)
      if "damaged" in clip:
        skipped.append((clip["id"], clip["damaged"]))
      elif length < min_seconds * SAMPLE_RATE:
        seconds = f"{length / SAMPLE_RATE:.3f} s"
        reason = f"{seconds} < data.min_seconds={min_seconds}"
        skipped.append((clip["id"], reason))
      else:
        clips.append(clip)
        places.append((shard, place))
  source.report_skipped(f"{key}, {spec}", len(clips), skipped)
  ids = {clip["id"] for clip in clips}
  if len(ids) < len(clips):
    raise UserError(f"{key}, {spec}: {len(clips) - len(ids)} ids come twice")
  return Examples(Shards(files), feature, clips, np.array(places), skipped)


def _audio_feature(
  key: str, folder: Path, dataset: str, default_rate: int
) -> Feature:
  """Finds the audio among a dataset's features."""
  text = (folder / "features.json").read_text()
  features = json_format.Parse(text, feature_pb2.Feature())
  features = dict(features.features_dict.features)
  found = [name for name in features if features[name].HasField("audio")]
  # Who builds a dataset without TensorFlow has no other choice than these.
  found = found or [name for name in features if _is_list(features[name])]
  if len(found) != 1:
    raise UserError(
      f"{key}: expected one audio feature, found "
      f"{', '.join(found) or 'none'} (it has {', '.join(sorted(features))})"
    )
  facts = features[found[0]].audio  # All unset in a plain list of samples.
  rate = facts.sample_rate or default_rate
  if not rate and not facts.lazy_decode:
    raise UserError(
      f"{key} does not say its sample rate: give it as "
      "--config.data.sample_rate, in Hz"
    )
  shape = facts.shape.dimensions
  labels = {
    path.name.removesuffix(".labels.txt"): path.read_text().splitlines()
    for path in folder.glob("*.labels.txt")
  }
  speaker = "label" if dataset in _SPEAKERS_ARE_LABELS else ""
  channels = shape[1] if len(shape) > 1 else 1
  return Feature(found[0], rate, channels, facts.lazy_decode, labels, speaker)


def _is_list(feature: feature_pb2.Feature) -> bool:
  shape = feature.tensor.shape.dimensions
  return feature.tensor.dtype.startswith("int") and list(shape) == [-1]
