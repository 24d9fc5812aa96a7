"""Labels in the form that fairseq's HuBERT and WavLM have them.

Of a split X, `X.tsv` has the audio's root, then "path<TAB>samples" a clip;
`X.km` a line of cluster numbers a clip, in that order; `dict.km.txt` the
clusters, "NUMBER COUNT" a line.
"""

import itertools
import json
import logging
import os
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ssl_jax import num_frames
from ssl_jax.data.label_writer import LabelWriter
from ssl_jax.data.labels import (
  NO_LABEL,
  read_header,
  write_codebook,
  write_header,
)
from ssl_jax.data.sources.source import AudioFiles, Source, heard
from ssl_jax.errors import UserError
from ssl_jax.files import claim, write_atomically
from ssl_jax.labelling import picture, quality

_DICTIONARY = "dict.km.txt"
_SLACK = 2  # Frames by which a clip's labels may be too few or too many.


def import_labels(
  sources: dict[str, Source], km: Path, folder: Path
) -> dict[str, Any]:
  """Makes a set of labels of all `X.tsv` and `X.km` in `km`.

  A clip is found by its id among the paths, or by its file. Labels at 100 Hz,
  as of fairseq's MFCC, are taken every second; where up to two are missing at
  the end of a clip the last is repeated, and as many too many are cut.

  Args:
    sources: {split: source}, all clips of which are to be labelled.
    km: the folder.
    folder: of the labels.

  Returns:
    The header of the labels.

  Raises:
    UserError: naming the file and line that cannot be used, or the clip that
      has no labels, or too few.
  """
  clusters = _read_dictionary(km / _DICTIONARY)
  found: dict[str, np.ndarray] = {}
  crc32 = 0
  pairs = sorted(path for path in km.glob("*.tsv"))
  if not pairs:
    raise UserError(f"--from_km={km} has no .tsv: give fairseq's folder")
  for tsv in pairs:
    crc32 = _read_pair(tsv, tsv.with_suffix(".km"), clusters, found, crc32)
  labels = {
    split: [_take(source, i, found, km) for i in range(len(source.ids))]
    for split, source in sources.items()
  }
  identity = {"clusters": clusters, "km": crc32}
  text = json.dumps(identity)
  claim(folder, "identity.json", text, "--out", "other labels")
  codebook = write_codebook(folder, np.zeros((clusters, 0), np.float32))
  splits = {}
  for split, source in sources.items():
    writer = LabelWriter(folder, split, source, identity)
    for record, one in enumerate(labels[split]):
      writer.write(record, 0, one)
    writer.checkpoint(1)
    splits[split] = writer.finish()
  usage = np.sum([about["usage"] for about in splits.values()], axis=0)
  picture.draw(folder, usage, sources["train"])
  header = {
    "clusters": clusters,
    "layer": "km",
    "checkpoint": None,
    "codebook": codebook,
    **quality.of_usage(usage),
    **quality.of_records(folder, sources, clusters),
    "splits": splits,
  }
  write_header(folder, header)
  return read_header(folder)


def check_files(sources: dict[str, Source]) -> None:
  """Checks that clips are files, which a .tsv names.

  Raises:
    UserError: they are not.
  """
  if not all(isinstance(source, AudioFiles) for source in sources.values()):
    raise UserError(
      "--km: a .tsv names files, and this data.source has none of its own: "
      "label the folder or manifest that it was made of"
    )
  for source in sources.values():
    if parts := heard(source, range(len(source.ids))):
      raise UserError(
        f"--km: a .tsv names whole files, and {source.ids[parts[0][0]]!r} is a "
        "part of one, or a channel: `ssl_jax.prepare` cuts it out"
      )
    for clip, path in zip(source.ids, source.paths):
      if re.search(r"[\n\r\t\ud800-\udfff]", path):
        raise UserError(f"--km: a .tsv cannot name {clip!r}: rename the file")


def export_labels(folder: Path, sources: dict[str, AudioFiles]) -> None:
  """Writes a set of labels as .tsv, .km and dict.km.txt into its folder.

  Clips with frames that could not be read are left out.
  """
  header = read_header(folder)
  for split, source in sources.items():
    stored = np.memmap(folder / f"{split}.labels", "<u2", "r")
    ends = np.cumsum(num_frames(np.asarray(source.num_samples, np.int64)))
    root = os.path.commonpath([os.path.dirname(x) for x in source.paths])
    if all(
      path.endswith(os.sep + clip)
      for path, clip in zip(source.paths, source.ids)
    ):
      root = source.paths[0][: -len(source.ids[0]) - 1]
    tsv, km, lost = [os.path.abspath(root)], [], 0
    for path, samples, labels in zip(
      source.paths, source.num_samples, np.split(stored, ends[:-1])
    ):
      if (labels == NO_LABEL).any():
        lost += 1
        continue
      tsv.append(f"{os.path.relpath(path, root)}\t{samples}")
      km.append(" ".join(map(str, labels.tolist())))
    write_atomically(folder / f"{split}.tsv", "\n".join(tsv) + "\n")
    write_atomically(folder / f"{split}.km", "\n".join(km) + "\n")
    if lost:
      logging.getLogger("ssl_jax").warning(
        "%s.km: left out %d clips that have no labels", split, lost
      )
  usage = np.sum([x["usage"] for x in header["splits"].values()], axis=0)
  lines = [f"{cluster} {count}\n" for cluster, count in enumerate(usage)]
  write_atomically(folder / _DICTIONARY, "".join(lines))


def _read_dictionary(path: Path) -> int:
  """The number of clusters."""
  tokens = []
  for number, line in enumerate(_lines(path), 1):
    token = line.split(maxsplit=1)[:1]
    if not token or not token[0].isdecimal() or len(token[0]) > 9:
      raise UserError(
        f"{path}, line {number}: {line[:80]!r} is no cluster's number"
      )
    tokens.append(int(token[0]))
  if sorted(tokens) != [*range(len(tokens))] or not 1 < len(tokens) < NO_LABEL:
    raise UserError(
      f"{path}: its {len(tokens)} clusters are not numbered from 0 on"
    )
  return len(tokens)


def _read_pair(
  tsv: Path, km: Path, clusters: int, found: dict[str, np.ndarray], crc32: int
) -> int:
  """Adds a split's labels by path and by file; their crc32, after another."""
  root, *clips = _lines(tsv)
  lines = _lines(km)
  if len(lines) != len(clips):
    raise UserError(
      f"{km} has {len(lines)} lines, and {tsv} names {len(clips)} clips: they "
      "are not of one split"
    )
  pairs = zip(clips, lines)
  for number, (clip, line) in enumerate(
    tqdm(pairs, desc=km.name, total=len(lines), delay=1, disable=None), 1
  ):
    try:
      labels = np.array(line.split(), np.int64)
    except (ValueError, OverflowError) as error:
      raise UserError(f"{km}, line {number}: not all numbers") from error
    if not len(labels) or labels.min() < 0 or labels.max() >= clusters:
      said = (
        "is empty"
        if not len(labels)
        else (f"has a label that is not 0 to {clusters - 1}")
      )
      raise UserError(f"{km}, line {number}: {said}")
    labels = labels.astype(np.uint16)
    path = clip.split("\t")[0]
    file = os.path.realpath(tsv.parent / root.strip() / path)
    found[path] = found[file] = labels
    crc32 = zlib.crc32(labels, crc32)
  return crc32


def _lines(path: Path) -> list[str]:
  try:
    text = path.read_bytes().decode().replace("\r\n", "\n")
    if "\0" in text:
      raise ValueError("it is no text")
  except (OSError, ValueError) as error:
    raise UserError(f"{path} cannot be read ({error})") from error
  lines = text.removesuffix("\n").split("\n")
  if not text.strip():
    raise UserError(f"{path} is empty")
  return lines


def _take(
  source: Source, index: int, found: dict[str, np.ndarray], km: Path
) -> np.ndarray:
  """The labels of a clip's frames, uint16 [T]."""
  clip, frames = source.ids[index], num_frames(int(source.num_samples[index]))
  labels = found.get(clip)
  if labels is None and isinstance(source, AudioFiles):
    labels = found.get(os.path.realpath(source.paths[index]))
  if labels is None:
    some = ", ".join(map(repr, itertools.islice(found, 2)))
    raise UserError(
      f"--from_km={km} has no labels of {clip!r} (it has {some} ...): give the "
      "data that its .tsv names"
    )
  given = len(labels)
  if abs(given - 2 * frames) <= 2 * _SLACK < frames:
    labels = labels[::2]
  if abs(len(labels) - frames) > _SLACK:
    raise UserError(
      f"--from_km={km}: {clip!r} has {given} labels, and {frames} frames of 20 "
      f"ms: they may differ by {_SLACK}; are they of other audio?"
    )
  return np.pad(labels, (0, max(0, frames - len(labels))), "edge")[:frames]
