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
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ssl_jax import FRAME_HOP, SAMPLE_RATE, num_frames
from ssl_jax.data.source import Source
from ssl_jax.errors import UserError
from ssl_jax.files import write_atomically

NO_LABEL = 0xFFFF  # Of a frame that could not be read, or is none.

_FORMAT = 1
_BLOCK = 1 << 20  # Labels in memory while a whole file is gone through.
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
  directory: Path, split: str, source: Source, clusters: int
) -> LabelSet:
  """Opens the labels of a source, after checking all there is.

  Args:
    directory: of the set.
    split: of the set.
    source: of some or all of the records that were labelled, in any order.
    clusters: that the labels are to be of.

  Raises:
    UserError: the set is unfinished, damaged, or not what is asked for.
  """
  header = read_header(directory)
  check = functools.partial(_check, directory)
  have = header["clusters"]
  check(
    have == clusters,
    f"has {have} clusters, but config.hubert.clusters={clusters}",
    f"set config.hubert.clusters={have}, or label with {clusters}",
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
  check(directory.is_dir(), "no such folder")
  check(
    (directory / "header.json").is_file(),
    "no header.json: labelling did not finish",
    "run the same `python -m ssl_jax.label` command again to continue it",
  )
  header = _parse(directory, "header.json", _parse_header)
  found = header["format"]
  check(found == _FORMAT, f"is of format {found!r}, not {_FORMAT}")
  found = header["frame_hop"]
  check(
    found == FRAME_HOP,
    f"is of another frame rate: frame_hop {found!r} samples, not {FRAME_HOP}",
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
  content = json.dumps({"format": _FORMAT} | frames | header, indent=2)
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
  return digest.hexdigest()[:16]


class LabelWriter:
  """Writes the labels of a split, from where a killed process left it.

  Whatever was whole in the folder is not, until `write_header` says so again.

  Attributes:
    done: units of work (batches, say) that no kill undoes any more.
  """

  def __init__(
    self,
    directory: Path,
    split: str,
    source: Source,
    identity: dict[str, Any],
  ):
    """Goes on with the labels of `source`, or starts over.

    Args:
      directory: of the set; made if there is none.
      split: of the set.
      source: all that is labelled.
      identity: of the work, as JSON: `clusters`, the codebook's id, the
        batching ...; the source is added to it. Work of another starts over.

    Raises:
      ValueError: records share an id, or there are too many clusters.
    """
    self._clusters = identity["clusters"]
    if not 0 < self._clusters <= NO_LABEL:
      raise ValueError(f"{self._clusters} clusters are not 1 to {NO_LABEL}")
    if len({*source.ids}) < len(source.ids):
      raise ValueError("several records have the same id")
    identity = identity | {"format": _FORMAT, "corpus": corpus_hash(source)}
    self._identity = json.loads(json.dumps(identity))
    self._ids = source.ids
    self._frames = num_frames(np.asarray(source.num_samples, np.int64))
    self._ends = np.cumsum(self._frames)
    self._records = directory / f"{split}.jsonl"
    self._whole = directory / f"{split}.labels"
    self._part = directory / f"{split}.labels.part"
    self._progress = directory / f"{split}.progress.json"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "header.json").unlink(missing_ok=True)
    self.done = self._earlier()
    if not self.done:
      self._start()
    self._labels = np.memmap(self._part, "<u2", "r+")

  def write(self, record: int, start_frame: int, labels: np.ndarray) -> None:
    """Puts down uint16 [T] from a frame of the source's `record` on.

    Raises:
      ValueError: it has no such frames, or there are no such clusters.
    """
    end = start_frame + len(labels)
    if not 0 <= start_frame <= end <= self._frames[record]:
      raise ValueError(
        f"frames {start_frame} to {end} of {self._ids[record]!r}, which has "
        f"{self._frames[record]}"
      )
    if labels.dtype != np.uint16 or not _valid(labels, self._clusters):
      raise ValueError(f"labels are not uint16 below {self._clusters}")
    first = int(self._ends[record] - self._frames[record])
    self._labels[first + start_frame : first + end] = labels

  def checkpoint(self, done: int) -> None:
    """Brings to disk what was written: `done` units of work in all."""
    self._labels.flush()
    progress = {"done": done, "identity": self._identity}
    write_atomically(self._progress, json.dumps(progress))
    self.done = done

  def finish(self) -> dict[str, Any]:
    """Ends the split, whether or not every frame was written.

    Returns:
      The split's part of the header. corpus: its hash; records; frames;
      damaged: records with a frame that has no label; usage: [K] frames of
      each cluster; crc32 of the labels; records_crc32 of the JSON lines.
    """
    self._labels.flush()
    usage = np.zeros(self._clusters, np.int64)
    damaged = np.zeros(len(self._ids), bool)
    crc32 = position = 0
    for labels in _blocks(self._part):
      crc32 = zlib.crc32(labels, crc32)
      none = labels == NO_LABEL
      usage += np.bincount(labels[~none], minlength=self._clusters)
      places = position + np.flatnonzero(none)
      damaged[np.searchsorted(self._ends, places, side="right")] = True
      position += len(labels)
    records = "".join(
      json.dumps({"id": clip, "frames": frames}) + "\n"
      for clip, frames in zip(self._ids, self._frames.tolist(), strict=True)
    ).encode()
    write_atomically(self._records, records)
    self._part.replace(self._whole)
    return {
      "corpus": self._identity["corpus"],
      "records": len(self._ids),
      "frames": position,
      "damaged": int(damaged.sum()),
      "usage": usage.tolist(),
      "crc32": crc32,
      "records_crc32": zlib.crc32(records),
    }

  def _earlier(self) -> int:
    """The units that are done in the file to go on with; 0: none is."""
    try:
      progress = json.loads(self._progress.read_bytes())
      if progress["identity"] != self._identity:
        return 0
      if not self._part.exists():
        self._whole.replace(self._part)  # Finished, but then no header.
      size = self._part.stat().st_size
      return progress["done"] if size == 2 * self._ends[-1] else 0
    except (OSError, ValueError, LookupError, TypeError):
      return 0

  def _start(self) -> None:
    """Makes a file without labels."""
    # In this order, that progress may never be taken for that of another file.
    self._progress.unlink(missing_ok=True)
    self._whole.unlink(missing_ok=True)
    left = int(self._ends[-1])
    with self._part.open("wb") as f:  # On a full disk a map would crash.
      while left:
        f.write(np.full(min(left, _BLOCK), NO_LABEL, "<u2"))
        left -= min(left, _BLOCK)


def _check(
  directory: Path, passed: bool, problem: str, remedy: str = _LABEL_IT
) -> None:
  if not passed:
    raise UserError(f"labels {str(directory)!r}: {problem}; {remedy}")


def _some(names: list[str]) -> str:
  more = ", ..." if len(names) > _NAMED else ""
  return ", ".join(map(repr, names[:_NAMED])) + more


def _parse(directory: Path, name: str, parse: Callable[[bytes], Any]) -> Any:
  """What `parse` makes of a file; whatever it raises is damage."""
  path = directory / name
  _check(directory, path.is_file(), f"{name} is missing", _COPY_IT)
  try:
    return parse(path.read_bytes())
  except Exception:  # Of many kinds, from JSON and NumPy.
    _check(directory, False, f"{name} is damaged", _COPY_IT)


def _parse_header(data: bytes) -> dict[str, Any]:
  header = json.loads(data)
  numbers = [header["format"]]
  if header["format"] == _FORMAT:  # What another holds is not known.
    numbers += [header["frame_hop"], header["clusters"]]
    for about in header["splits"].values():
      numbers += [about[key] for key in ("frames", "crc32", "records_crc32")]
  if {*map(type, numbers)} != {int}:
    raise ValueError
  return header


def _parse_codebook(data: bytes) -> np.ndarray:
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
  for labels in _blocks(path):
    crc32 = zlib.crc32(labels, crc32)
    valid = valid and _valid(labels, clusters)
  problem = f"{path.name} is damaged: its crc32 is not the header's"
  _check(directory, crc32 == about["crc32"], problem, _COPY_IT)
  problem = f"{path.name} has labels that are not below {clusters}"
  _check(directory, valid, problem, _COPY_IT)


def _blocks(path: Path) -> Iterator[np.ndarray]:
  """The labels of a file, in pieces."""
  with path.open("rb") as f:
    while data := f.read(2 * _BLOCK):
      yield np.frombuffer(data, "<u2")


def _valid(labels: np.ndarray, clusters: int) -> bool:
  return bool(((labels < clusters) | (labels == NO_LABEL)).all())
