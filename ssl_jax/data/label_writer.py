"""Writing stored labels, so that a kill loses little and fakes nothing."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ssl_jax import num_frames
from ssl_jax.data.labels import (
  BLOCK,
  FORMAT,
  NO_LABEL,
  are_valid,
  blocks,
  corpus_hash,
)
from ssl_jax.data.sources.source import Source
from ssl_jax.files import write_atomically


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
    identity = identity | {"format": FORMAT, "corpus": corpus_hash(source)}
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
    if labels.dtype != np.uint16 or not are_valid(labels, self._clusters):
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
    for labels in blocks(self._part):
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
        f.write(np.full(min(left, BLOCK), NO_LABEL, "<u2"))
        left -= min(left, BLOCK)
