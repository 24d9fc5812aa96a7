"""Prepared audio: int16 samples in ArrayRecord files, read at random.

A prepared corpus is a folder:

  dataset.json       what it is; written last: with it, it is whole
  shards/N.records   ArrayRecord, uncompressed, a record a clip: little-endian
                     int16 mono at 16 kHz
  shards/N.jsonl     a line a record, in that order: id, num_samples, crc32, and
                     speaker, text, language ... where known
  skipped.jsonl      what was left out: id, reason
"""

import errno
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from ml_collections import ConfigDict

from ssl_jax import SAMPLE_RATE
from ssl_jax.data.sources import skipped as skipped_lib
from ssl_jax.data.sources import source
from ssl_jax.data.sources.audio import DamagedAudio
from ssl_jax.data.sources.shards import Shards
from ssl_jax.errors import UserError
from ssl_jax.files import read_object, write_atomically

FORMAT = 1
# Errors that a write may meet; any other is reported as one of the disk.
_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)
_OPTIONS = "group_size:1,uncompressed"  # Any clip is one short read.


class Records:
  """A `Source` of prepared clips; see `source.Source`."""

  def __init__(
    self,
    files: Shards,
    clips: list[dict[str, Any]],
    shards: np.ndarray,
    places: np.ndarray,
  ):
    """Holds some clips of a folder.

    Args:
      files: of the corpus.
      clips: [N] lines of the shards' JSON.
      shards: int [N], the shard of each clip.
      places: int [N], where it is in it.
    """
    self._files, self._clips = files, clips
    self._shards, self._places = shards, places
    self.ids = [clip["id"] for clip in clips]
    self.num_samples = np.array([c["num_samples"] for c in clips], np.int64)
    self.metadata = clips
    self.skipped: list[tuple[str, str]] = []
    self.damaged: dict[str, str] = {}
    self.rates = None

  def read(self, index: int, start: int, num_samples: int) -> np.ndarray:
    """See `Source.read`."""
    audio = self._record(index)
    return audio[start : start + num_samples]

  def select(self, indices: Iterable[int]) -> "Records":
    """See `Source.select`."""
    kept = np.fromiter(indices, np.int64)
    clips = [self._clips[i] for i in kept]
    return Records(self._files, clips, self._shards[kept], self._places[kept])

  def verify(self, index: int) -> None:
    """Reads a clip whole.

    Raises:
      DamagedAudio: it is not what was written.
    """
    if zlib.crc32(self._record(index)) != self._clips[index]["crc32"]:
      raise DamagedAudio("its samples are not those that were written")

  def _record(self, index: int) -> np.ndarray:
    shard = int(self._shards[index])
    data = self._files.read(shard, int(self._places[index]))
    audio = np.frombuffer(data, "<i2")
    if len(audio) != self.num_samples[index]:
      raise DamagedAudio(f"has {len(audio)} samples in shard {shard}")
    return audio


def open_split(config: ConfigDict, split: str) -> Records:
  """Opens a split: clips of `dir`, or for valid those of `valid_dir`.

  Args:
    config: `config.data`; `dir`, `valid_dir`, `split_key`,
      `valid_fraction` and `min_seconds` are read.
    split: one that clips have under `split_key`; without that key, train or
      valid, held out.

  Raises:
    UserError: unknown split; a folder that is no prepared corpus; every clip is
      too short.
  """
  key = "valid_dir" if config.valid_dir and split == "valid" else "dir"
  name = f"--config.data.{key}={config[key]!r}"
  records = open_records(name, Path(config[key]).expanduser())
  seconds = records.num_samples / SAMPLE_RATE
  long = np.flatnonzero(seconds >= config.min_seconds)
  skipped_lib.report(
    name,
    len(long),
    [
      (clip, skipped_lib.too_short(length, config.min_seconds))
      for clip, length in zip(records.ids, records.num_samples)
      if length < config.min_seconds * SAMPLE_RATE
    ],
    float(1 - seconds[long].sum() / seconds.sum()),
  )
  records = records.select(long)
  if source.is_whole(config, split):
    return records
  return records.select(
    source.choose_split(name, records.ids, records.metadata, config, split)
  )


def open_records(name: str, folder: Path) -> Records:
  """Opens all clips of a prepared corpus.

  Args:
    name: of the folder, as the user gave it.
    folder: of the corpus.

  Raises:
    UserError: it is none, or unfinished, or damaged.
  """
  header = read_header(name, folder)
  clips, shards, places = [], [], []
  try:
    for shard, crc32 in enumerate(header["crc32"]):
      lines = shard_lines(folder, shard)
      if zlib.crc32(lines) != crc32:
        raise ValueError(f"shard {shard} is not the one that was written")
      new = [parse_line(line) for line in lines.splitlines()]
      clips += new
      shards += [shard] * len(new)
      places += range(len(new))
    if len({clip["id"] for clip in clips}) < len(clips):
      raise ValueError("two clips have one id")
  except (OSError, ValueError) as error:
    raise UserError(
      f"{name} is damaged ({error}): copy it again, or prepare it anew in "
      "another folder"
    ) from error
  paths = [str(_shard(folder, i, "records")) for i in range(header["shards"])]
  return Records(
    Shards(paths), clips, np.array(shards, int), np.array(places, int)
  )


def read_header(name: str, folder: Path) -> dict[str, Any]:
  """Reads dataset.json.

  Raises:
    UserError: it is missing, or of another version.
  """
  path = folder / "dataset.json"
  if not os.path.exists(path):
    raise UserError(
      f"{name} is no prepared corpus (no dataset.json): make one with `python "
      "-m ssl_jax.prepare`, or run it again if it did not finish; for plain "
      "audio files set --config.data.source=folder"
    )
  try:
    header = read_object(path)
    if header.get("format") != FORMAT:
      raise ValueError(f"format {header.get('format')!r}, not {FORMAT}")
    crc32 = header.get("crc32")
    counts = [header.get(x) for x in ("shards", "clips", "speakers", "skipped")]
    if (
      not isinstance(crc32, list)
      or {*map(type, counts + crc32)} != {int}
      or not isinstance(header.get("hours"), int | float)
      or min(counts) < 0
      or len(crc32) != header["shards"]
    ):
      raise ValueError("it lacks counts or checksums")
  except (OSError, ValueError) as error:
    raise UserError(f"{name}: dataset.json cannot be read ({error})") from error
  return header


def parse_line(line: bytes) -> dict[str, Any]:
  """Parses a line of a shard: everything known of a clip.

  Raises:
    ValueError: it is no line of a shard.
  """
  clip = json.loads(line)
  if (
    not isinstance(clip, dict)
    or not isinstance(clip.get("id"), str)
    or type(clip.get("num_samples")) is not int
    or not 0 < clip["num_samples"] < 1 << 48
    or type(clip.get("crc32")) is not int
    or any(
      isinstance(x, dict | list)
      for key, x in clip.items()
      if key != "packed" and key not in source.LISTS
    )
  ):
    raise ValueError(f"no clip: {line[:80]!r}")
  return clip


def write_shard(
  folder: Path, shard: int, clips: Iterator[tuple[dict[str, Any], np.ndarray]]
) -> None:
  """Writes the records, then their lines: with these, the shard is whole.

  Args:
    folder: of the corpus.
    shard: its number.
    clips: (id and what is known, int16 [S]), one after the other.
  """
  path = _shard(folder, shard, "records")
  path.parent.mkdir(parents=True, exist_ok=True)
  # Each process has its own: one that a kill left running may still write.
  part = path.with_suffix(f".{os.getpid()}.part")
  lines = []
  try:
    writer = ArrayRecordWriter(str(part), _OPTIONS)
    for about, audio in clips:
      data = np.ascontiguousarray(audio, "<i2").tobytes()
      writer.write(data)
      facts = {"num_samples": len(audio), "crc32": zlib.crc32(data)}
      lines.append(json.dumps(about | facts) + "\n")
    writer.close()
  except RuntimeError as error:  # The system's words are in ArrayRecord's.
    code = next((n for n in _FAULTS if os.strerror(n) in str(error)), errno.EIO)
    raise OSError(code, os.strerror(code), str(path)) from error
  with part.open("rb") as file:  # A power failure might leave it empty.
    os.fsync(file.fileno())
  part.replace(path)
  write_atomically(_shard(folder, shard, "jsonl"), "".join(lines))


def is_written(folder: Path, shard: int) -> bool:
  """Tells whether a shard is whole."""
  return _shard(folder, shard, "jsonl").exists()


def shard_lines(folder: Path, shard: int) -> bytes:
  """Returns the lines of a whole shard."""
  return _shard(folder, shard, "jsonl").read_bytes()


def _shard(folder: Path, shard: int, kind: str) -> Path:
  return folder / "shards" / f"{shard:05}.{kind}"


KIND = source.SourceKind(
  open_split, "what ssl_jax.prepare wrote", source.SPLIT_KEY
)
