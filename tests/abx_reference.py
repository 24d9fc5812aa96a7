"""Scores an item file with fastabx; run by an interpreter that has it.

Usage: python abx_reference.py FOLDER, where FOLDER has clips.item, a .npy of
[T, D] for each clip, and perhaps `libri_light`. Prints {mode: error} as JSON.
Segments and speakers are all compared: none is drawn.
"""

import json
import os
import sys
from pathlib import Path

MODES = {
  "abx_across": ([], ["speaker"]),
  "abx_within": (["speaker"], []),
  "abx_across_triphone": (["prev-phone", "next-phone"], ["speaker"]),
  "abx_within_triphone": (["prev-phone", "next-phone", "speaker"], []),
}


def main(folder: Path):
  if (folder / "libri_light").exists():
    os.environ["FASTABX_WITH_LIBRILIGHT_BUG"] = "1"
  import numpy
  import torch
  from fastabx import Dataset, Score, Task
  from fastabx.pooling import pool_dataset

  def read(path):
    return torch.from_numpy(numpy.load(path))

  found = {}
  for distance in ("pooled", "dtw"):
    found[distance] = {}
    for mode, (by, across) in MODES.items():
      dataset = Dataset.from_item(
        folder / "clips.item", folder, 50, feature_maker=read, extension=".npy"
      )
      if distance == "pooled":
        dataset = pool_dataset(dataset, "mean")
      task = Task(dataset, on="#phone", by=by, across=across)
      levels = [("next-phone", "prev-phone")] if "triphone" in mode else []
      score = Score(task, "angular").collapse(levels=[*levels, "speaker"])
      found[distance][mode] = score
  print(json.dumps(found))


if __name__ == "__main__":
  main(Path(sys.argv[1]))
