"""Finds the runs that are in a folder."""

import os
from collections.abc import Iterator
from pathlib import Path

from ssl_jax.budget.updates import FIRST_STAGE
from ssl_jax.files import read_object

_FILES = {"result.json", "config.json", "metrics.jsonl"}
_HOLD_NO_RUNS = ("checkpoints", "tensorboard", FIRST_STAGE)


def find(folder: Path) -> Iterator[Path]:
  """Folders that hold a file of a run; links are followed, once."""
  seen = set()
  for path, below, files in os.walk(folder, followlinks=True):
    real = os.path.realpath(path)
    if real in seen:
      below.clear()
      continue
    seen.add(real)
    if _FILES & set(files):
      below[:] = [x for x in below if x not in _HOLD_NO_RUNS]
      if not _is_other_model(Path(path), set(files)):
        yield Path(path)
    below.sort()


def _is_other_model(path: Path, files: set[str]) -> bool:
  """Tells whether it is an exported model, which has a config.json too."""
  if files & (_FILES - {"config.json"}):
    return False
  try:
    return "model_type" in read_object(path / "config.json")
  except (OSError, ValueError):
    return False
