"""Messages of tf.train.Example: their audio, and facts of it."""

import concurrent.futures
import errno
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2
from tqdm import tqdm

from ssl_jax.data import workers
from ssl_jax.data.sources import audio
from ssl_jax.data.sources.audio import DamagedAudio
from ssl_jax.data.sources.shards import Shards
from ssl_jax.errors import UserError
from ssl_jax.files import cache_folder, write_atomically

# Faults of the machine, after which an example may be whole.
_PASSING = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOMEM)
_FORMAT = 1  # Version of a cached index; increment when `_facts` changes.
# Metadata that are kept, and the names that datasets have for them.
_METADATA = {
  "id": ("id",),
  "speaker": ("speaker_id", "client_id", "speaker"),
  "text": ("text", "text_normalized", "sentence", "transcription"),
  "language": ("language", "locale", "lang_id"),
  "label": ("label",),
}


class Feature(NamedTuple):
  """The place of the audio in an example.

  Attributes:
    name: of the feature.
    rate: in Hz.
    channels: of its samples, one after the other.
    lazy: whether it is a file's content, to be decoded.
    labels: the names of the classes of other features.
    speaker: of which feature a speaker is the value, if not as usual.
  """

  name: str
  rate: int
  channels: int
  lazy: bool
  labels: dict[str, list[str]]
  speaker: str


def read(
  record: bytes, feature: Feature, start: int, num_samples: int
) -> np.ndarray:
  """Decodes int16 [<=num_samples] at 16 kHz of a serialized example's audio.

  Raises:
    DamagedAudio: it has none, or none that can be used.
  """
  example = _parse(record)
  if feature.lazy:
    return audio.read(_content(example, feature), start, num_samples)
  samples = audio.convert(_samples(example, feature), feature.rate)
  return samples[start : start + num_samples]


def indexes(files: list[str], feature: Feature) -> list[list[dict[str, Any]]]:
  """Returns facts of each example of each file: num_samples, or why damaged.

  Files are read once, in as many processes as there are cores; the facts are
  kept in ~/.cache/ssl_jax.
  """
  kept = [_index_path(file, feature) for file in files]
  todo = [i for i, path in enumerate(kept) if not path.exists()]
  if todo:
    with (
      workers.pool(min(len(todo), os.cpu_count() or 1)) as pool,
      tqdm(total=len(todo), desc="indexing", unit="file", disable=None) as bar,
    ):
      waiting = {
        pool.submit(_index, files[i], feature, kept[i]): i for i in todo
      }
      for done in concurrent.futures.as_completed(waiting):
        try:
          done.result()
        except OSError as error:
          raise UserError(
            f"lengths of clips cannot be kept in {kept[0].parent} ({error}): "
            "set XDG_CACHE_HOME to a folder that can be written to"
          ) from error
        except DamagedAudio as damage:
          file = files[waiting[done]]
          raise UserError(f"{file} {damage}: prepare it again") from damage
        bar.update()
  return list(map(_kept, kept))


def _kept(path: Path) -> list[dict[str, Any]]:
  try:
    lines = [*map(json.loads, path.read_bytes().splitlines())]
    for facts in lines:
      if not isinstance(facts.get("damaged", ""), str) or not (
        "damaged" in facts or 0 < facts["num_samples"] < 1 << 48
      ):
        raise ValueError("it lacks lengths")
  except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
    raise UserError(f"{path} is damaged ({error}): delete it") from error
  return lines


def _index_path(file: str, feature: Feature) -> Path:
  status = os.stat(file)
  file = os.path.realpath(file)
  identity = _FORMAT, file, status.st_size, status.st_mtime_ns, feature
  digest = hashlib.sha256(repr(identity).encode()).hexdigest()[:32]
  return cache_folder("tfds") / f"{digest}.jsonl"


def _index(file: str, feature: Feature, path: Path) -> None:
  """Reads a file of records, and writes a line for each."""
  shards = Shards([file])
  lines = []
  for place in range(shards.count(0)):
    try:
      facts = _facts(_parse(shards.read(0, place)), feature)
    except DamagedAudio as damage:
      message = str(damage.__cause__ or damage)
      if any(os.strerror(code) in message for code in _PASSING):
        raise UserError(
          f"{file} cannot be read now ({damage}); when it can, the same "
          "command goes on"
        ) from None
      facts = {"damaged": str(damage)}
    lines.append(json.dumps(facts) + "\n")
  path.parent.mkdir(parents=True, exist_ok=True)
  write_atomically(path, "".join(lines))


def _facts(example: Mapping[str, Any], feature: Feature) -> dict[str, Any]:
  facts: dict[str, Any] = {}
  for key, names in _METADATA.items():
    if key == "speaker" and feature.speaker:
      names = (feature.speaker,)
    for name in names:
      if name in example:
        value = example[name]
        number = value.int64_list.value
        if number and name in feature.labels:
          names_ = feature.labels[name]
          if 0 <= number[0] < len(names_):  # -1 stands for an unknown class.
            facts[key] = names_[number[0]]
        elif number:
          if key != "id":  # It is a sentence's as a rule, shared by clips.
            facts[key] = number[0]
        elif value.bytes_list.value:
          facts[key] = value.bytes_list.value[0].decode("utf-8", "replace")
        break
  if feature.lazy:
    facts["num_samples"] = audio.probe(_content(example, feature))
  else:
    count = len(_samples(example, feature))
    facts["num_samples"] = audio.length_at_16k(count, feature.rate)
  return facts


def _parse(record: bytes) -> Mapping[str, Any]:
  try:
    return tf_example_pb2.Example.FromString(record).features.feature
  except DecodeError as error:
    raise DamagedAudio("is no tf.train.Example") from error


def _content(example: Mapping[str, Any], feature: Feature) -> bytes:
  value = example[feature.name].bytes_list.value
  if len(value) != 1:
    raise DamagedAudio(f"has no file in {feature.name!r}")
  return value[0]


def _samples(example: Mapping[str, Any], feature: Feature) -> np.ndarray:
  """Int64 [S], or [S, channels] of more than one."""
  samples = np.array(example[feature.name].int64_list.value, np.int64)
  if not samples.size or samples.size % feature.channels:
    raise DamagedAudio(f"has {samples.size} samples in {feature.name!r}")
  if feature.channels == 1:
    return samples
  return samples.reshape(-1, feature.channels)
