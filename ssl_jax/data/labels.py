"""Stored labels: a cluster for each frame of a corpus, checked against it.

A set of labels is a folder:

  header.json          what the labels are; written last: with it, it is whole
  codebook.npy         float32 [K, C], the centroids
  SPLIT.labels         little-endian uint16, one record after another in the
                       order of the source that was labelled
  SPLIT.jsonl          a line a record, in that order: {"id": ..., "frames": n}
  SPLIT.progress.json  how far the labelling is, and of what

A record has `ssl_jax.num_frames` labels, each a cluster or NO_LABEL.
"""

import functools
import hashlib
import io
import json
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ssl_jax import FRAME_HOP, SAMPLE_RATE, num_frames
from ssl_jax.data.sources.source import Source, heard
from ssl_jax.errors import UserError
from ssl_jax.files import write_atomically

NO_LABEL = 0xFFFF  # Stands for a frame that could not be read, or is none.

FORMAT = 1
BLOCK = 1 << 20  # Labels in memory while a whole file is gone through.
_NAMED = 3  # Records named in an error.

_LABEL_IT = "label this corpus with `python -m ssl_jax.label`"
_COPY_IT = "copy the folder again, or label again"


class LabelSet:
  """The labels of a source's records; made by `open_labels`.

  Threads share it, and processes: it is pickled as where its file lies.

  Attributes:
    header: of the set, as in header.json.
  """

  def __init__(
    self,
    path: Path,
    header: dict[str, Any],
    firsts: np.ndarray,
    frames: np.ndarray,
  ):
    self.header = header
    self._path = path
    self._firsts = firsts  # int64 [N], where each record begins in the file.
    self._frames = frames  # int64 [N]
    self._labels = np.memmap(path, "<u2", "r")

  def __reduce__(self):
    return LabelSet, (self._path, self.header, self._firsts, self._frames)

  def read(self, index: int, start_frame: int, num_frames: int) -> np.ndarray:
    """Uint16 [num_frames] of the source's `index`; NO_LABEL past its end."""
    labels = np.full(num_frames, NO_LABEL, np.uint16)
    count = min(num_frames, int(self._frames[index]) - start_frame)
    if count > 0:
      first = int(self._firsts[index]) + start_frame
      labels[:count] = self._labels[first : first + count]
    return labels


def open_labels(
  directory: Path,
  split: str,
  source: Source,
  clusters: int,
  knob: str = "hubert.clusters",
) -> LabelSet:
  """Opens the labels of a source, after checking all there is.

  Args:
    directory: of the set.
    split: of the set.
    source: of some or all of the records that were labelled, in any order.
    clusters: that the labels are to be of.
    knob: of the config, that says so.

  Raises:
    UserError: the set is unfinished, damaged, or not what is asked for.
  """
  header = read_header(directory)
  check = functools.partial(_check, directory)
  have = header["clusters"]
  check(
    have == clusters,
    f"has {have} clusters, but config.{knob}={clusters}",
    f"set config.{knob}={have}, or label with {clusters}",
  )
  codebook = read_codebook(directory)
  check(
    len(codebook) == have and codebook_id(codebook) == header.get("codebook"),
    "codebook.npy is not the codebook of the labels",
    _COPY_IT,
  )
  splits = header["splits"]
  check(split in splits, f"no split {split!r} (have: {_some([*splits])})")
  about = splits[split]
  records = _parse(
    directory, f"{split}.jsonl", lambda data: _parse_records(data, about)
  )
  lacking = [clip for clip in source.ids if clip not in records]
  check(
    not lacking,
    f"lacks {len(lacking)} of the source's {len(source.ids)} records: "
    + _some(lacking),
  )
  firsts, stored = np.array([records[clip] for clip in source.ids], np.int64).T
  frames = num_frames(np.asarray(source.num_samples, np.int64))
  row = np.argmax(stored != frames)  # 0 if they are all the same.
  check(
    stored[row] == frames[row],
    f"is of another corpus: {source.ids[row]!r} has {stored[row]} frames there "
    f"and {frames[row]} in the source",
  )
  path = directory / f"{split}.labels"
  _check_labels(directory, path, about, clusters)
  return LabelSet(path, header, firsts, frames)


def read_header(directory: Path) -> dict[str, Any]:
  """The header of a whole set.

  Raises:
    UserError: there is none, or none that can be used.
  """
  check = functools.partial(_check, directory)
  check(os.path.isdir(directory), "no such folder")
  check(
    os.path.exists(directory / "header.json"),
    "no header.json: labelling did not finish",
    "run the same `python -m ssl_jax.label` command again to continue it",
  )
  header = _parse(directory, "header.json", _parse_header)
  version = header["format"]
  check(version == FORMAT, f"is of format {version!r}, not {FORMAT}")
  hop = header["frame_hop"]
  check(
    hop == FRAME_HOP,
    f"is of another frame rate: frame_hop {hop!r} samples, not {FRAME_HOP}",
  )
  return header


def write_header(directory: Path, header: dict[str, Any]) -> None:
  """Declares a set whole, after all else in it was written.

  Args:
    directory: of the set.
    header: `clusters`, `layer`, `checkpoint`, `codebook` (its id), `splits`
      ({split: what `LabelWriter.finish` returned}), and what else there is to
      say.
  """
  frames = {"frame_hop": FRAME_HOP, "frame_rate": SAMPLE_RATE // FRAME_HOP}
  content = json.dumps({"format": FORMAT} | frames | header, indent=2)
  write_atomically(directory / "header.json", content)


def read_codebook(directory: Path) -> np.ndarray:
  """Float32 [K, C].

  Raises:
    UserError: it is missing or damaged.
  """
  return _parse(directory, "codebook.npy", _parse_codebook)


def write_codebook(directory: Path, centroids: np.ndarray) -> str:
  """Writes the centroids [K, C]; returns their id."""
  directory.mkdir(parents=True, exist_ok=True)
  data = io.BytesIO()
  np.save(data, np.asarray(centroids, np.float32), allow_pickle=False)
  write_atomically(directory / "codebook.npy", data.getvalue())
  return codebook_id(centroids)


def codebook_id(centroids: np.ndarray) -> str:
  """16 hex digits of what [K, C] hashes to as float32."""
  data = np.asarray(centroids, "<f4").tobytes()
  return hashlib.sha256(data).hexdigest()[:16]


def corpus_hash(source: Source) -> str:
  """16 hex digits of what the ids and lengths hash to, in their order."""
  digest = hashlib.sha256()
  for clip, length in zip(source.ids, source.num_samples, strict=True):
    digest.update(json.dumps([clip, int(length)]).encode())
  for part in heard(source, range(len(source.ids))):
    digest.update(json.dumps(part).encode())
  return digest.hexdigest()[:16]


def _check(
  directory: Path, passed: bool, problem: str, remedy: str = _LABEL_IT
) -> None:
  if not passed:
    raise UserError(f"labels {str(directory)!r}: {problem}; {remedy}")


def _some(names: list[str]) -> str:
  more = ", ..." if len(names) > _NAMED else ""
  return ", ".join(map(repr, names[:_NAMED])) + more


def _parse(directory: Path, name: str, parse: Callable[[bytes], Any]) -> Any:
  """Returns `parse` of a file; whatever that raises is damage."""
  path = directory / name
  _check(directory, path.is_file(), f"{name} is missing", _COPY_IT)
  try:
    return parse(path.read_bytes())
  except Exception:  # JSON and NumPy raise many kinds.
    _check(directory, False, f"{name} is damaged", _COPY_IT)


def _parse_header(data: bytes) -> dict[str, Any]:
  header = json.loads(data)
  numbers = [header["format"]]
  if header["format"] == FORMAT:  # The content of another is unknown.
    numbers += [header["frame_hop"], header["clusters"]]
    for about in header["splits"].values():
      numbers += [about[key] for key in ("frames", "crc32", "records_crc32")]
      numbers += about["usage"]
  if {*map(type, numbers)} != {int}:
    raise ValueError
  return header


def _parse_codebook(data: bytes) -> np.ndarray:
  with np.errstate(all="ignore"):  # An absurd shape overflows, then is refused.
    codebook = np.load(io.BytesIO(data), allow_pickle=False)
  if codebook.dtype != np.float32 or codebook.ndim != 2:
    raise ValueError
  return codebook


def _parse_records(
  data: bytes, about: dict[str, Any]
) -> dict[str, tuple[int, int]]:
  """Id -> first label in the file, frames."""
  if zlib.crc32(data) != about["records_crc32"]:
    raise ValueError
  lines = [json.loads(line) for line in data.splitlines()]
  frames = np.array([line["frames"] for line in lines], np.int64)
  if frames.sum() != about["frames"]:
    raise ValueError
  firsts = np.cumsum(frames) - frames
  places = zip(firsts.tolist(), frames.tolist(), strict=True)
  return dict(zip([line["id"] for line in lines], places, strict=True))


def _check_labels(
  directory: Path, path: Path, about: dict[str, Any], clusters: int
) -> None:
  """Goes through the file of a split's labels."""
  size = path.stat().st_size if path.is_file() else 0
  expected = 2 * about["frames"]
  problem = f"{path.name} has {size} bytes, not {expected}"
  _check(directory, size == expected, problem, _COPY_IT)
  crc32, valid = 0, True
  for labels in blocks(path):
    crc32 = zlib.crc32(labels, crc32)
    valid = valid and are_valid(labels, clusters)
  problem = f"{path.name} is damaged: its crc32 is not the header's"
  _check(directory, crc32 == about["crc32"], problem, _COPY_IT)
  problem = f"{path.name} has labels that are not below {clusters}"
  _check(directory, valid, problem, _COPY_IT)


def blocks(path: Path) -> Iterator[np.ndarray]:
  """The labels of a file, uint16 [at most BLOCK] at a time."""
  with path.open("rb") as f:
    while data := f.read(2 * BLOCK):
      yield np.frombuffer(data, "<u2")


def are_valid(labels: np.ndarray, clusters: int) -> bool:
  """Tells whether all of uint16 [N] are below `clusters`, or NO_LABEL."""
  return bool(((labels < clusters) | (labels == NO_LABEL)).all())
