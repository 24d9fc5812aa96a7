"""Files of features, one a clip, and the index of a folder of them."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ssl_jax import FRAME_HOP, FRAME_WINDOW, SAMPLE_RATE
from ssl_jax.errors import UserError
from ssl_jax.files import named, read_jsonl, write_atomically


def frame_times(frames: int) -> np.ndarray:
  """Seconds from a clip's start to the middle of each frame's window. [T]."""
  return (np.arange(frames) * FRAME_HOP + FRAME_WINDOW / 2) / SAMPLE_RATE


def writer(kind: str) -> Callable[[Path, np.ndarray], None]:
  """-> write(file, frames [T, D] or [T, L + 1, D]).

  Args:
    kind: npz, npy or parquet.

  Raises:
    UserError: the format's library is not installed.
  """
  if kind == "parquet":
    try:
      import pyarrow
      import pyarrow.parquet
    except ImportError as error:
      raise UserError(
        "--format=parquet needs pyarrow: pip install pyarrow, or --format=npz"
      ) from error

  def write(path: Path, frames: np.ndarray) -> None:
    times, file = frame_times(len(frames)), io.BytesIO()
    # Layers first, as a stack of the states of one layer each.
    features = (
      np.ascontiguousarray(np.moveaxis(frames, -2, 0))
      if (frames.ndim == 3)
      else frames
    )
    if kind == "npz":
      np.savez(file, features=features, times=times)
    elif kind == "npy":
      np.save(file, features)
    else:
      rows = frames.reshape(len(frames), -1)
      table = pyarrow.table(
        {
          "frame": np.arange(len(frames)),
          "time": times,
          "features": pyarrow.FixedSizeListArray.from_arrays(
            pyarrow.array(rows.ravel()), rows.shape[1]
          ),
        }
      )
      pyarrow.parquet.write_table(table, file)
    write_atomically(path, file.getvalue())

  return write


def audio_facts(file: str) -> dict[str, Any]:
  """Returns what tells a file of audio from others, and from an older one.

  `size` and `mtime_ns` are None if it is gone.
  """
  facts = os.stat(file) if os.path.exists(file) else None
  return {
    "audio": os.path.abspath(file),
    "size": facts and facts.st_size,
    "mtime_ns": facts and facts.st_mtime_ns,
  }


class Index:
  """`index.jsonl`: a line for each file of features in a folder.

  Each is an object with `file` and what `audio_facts` returned. Inside its
  context lines are added, each once its file is whole: killed, files without
  one are made anew.
  """

  def __init__(self, folder: Path):
    """Reads what there is.

    Raises:
      UserError: it is damaged.
    """
    self._folder, self._path = folder, folder / "index.jsonl"
    lines = {str(x.get("file")): x for x in read_jsonl(self._path)}
    self._lines = {
      name: line for name, line in lines.items() if (folder / name).exists()
    }

  def has(self, name: str, audio: dict[str, Any]) -> bool:
    """Tells whether the file `name` has the features of that audio, unchanged.

    Raises:
      UserError: it has those of another file.
    """
    if not (line := self._lines.get(name)):
      return False
    if line.get("audio") != audio["audio"]:
      raise UserError(
        f"--out={self._folder}: {name} has the features of "
        f"{line.get('audio')}, not of {audio['audio']}: choose another --out"
      )
    return audio.items() <= line.items()

  def __enter__(self) -> "Index":
    self._write()  # Less what a kill has cut short, or is of before a change.
    self._file = self._path.open("a")
    return self

  def add(self, line: dict[str, Any]) -> None:
    """The line of a file that is written."""
    self._lines[line["file"]] = line
    with named(self._path):
      self._file.write(json.dumps(line) + "\n")
      self._file.flush()

  def __exit__(self, failed: type | None, *_: object) -> None:
    with named(self._path):
      self._file.close()
    if not failed:
      self._write()

  def _write(self) -> None:
    lines = []
    for _, line in sorted(self._lines.items()):
      audio = audio_facts(str(line.get("audio")))
      if audio["size"] is None or audio.items() <= line.items():
        lines.append(json.dumps(line) + "\n")
    write_atomically(self._path, "".join(lines))
