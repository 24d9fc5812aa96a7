"""Clips of a folder or a manifest."""

import functools
import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from ssl_jax import SAMPLE_RATE
from ssl_jax.data.sources import audio, manifest_lines, source
from ssl_jax.data.sources.folder import list_files, probe_all
from ssl_jax.data.sources.manifest_lines import MANIFESTS, Clip
from ssl_jax.data.sources.source import SPLIT_KEY, AudioFiles, Part, SourceKind
from ssl_jax.errors import UserError

_TOLERANCE, _LOOSE = (
  0.1,
  1.0,
)  # Seconds by which ends and durations are rounded.
# LibriSpeech's and its kin's: SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac
_LIBRISPEECH = re.compile(r"(?:^|/)(\w+)/(\w+)/\1[-_]\2[-_][^/]*$")


def open_split(config: ConfigDict, split: str) -> AudioFiles:
  """Opens the clips that the manifest `dir`, or `valid_dir`, has in a split.

  Args:
    config: `config.data`; `dir`, `valid_dir`, `split_key`, `valid_fraction`
      and `min_seconds` are read.
    split: one that clips have under `split_key`; without that key, train or
      valid, held out.

  Raises:
    UserError: no such manifest, no such split, or nothing usable.
  """
  which = "valid_dir" if config.valid_dir and split == "valid" else "dir"
  key = f"--config.data.{which}={config[which]!r}"
  if not config[which]:
    raise UserError(f"{key}: set it to a manifest, or a folder of audio files")
  clips = find_clips(Path(config[which]).expanduser(), key)
  if not source.is_whole(config, split):
    metadata = [clip.metadata for clip in clips]
    chosen = source.choose_split(
      key, [clip.id for clip in clips], metadata, config, split
    )
    clips = [clips[i] for i in chosen]
  return source.keep_usable(
    key,
    [clip.id for clip in clips],
    [clip.path for clip in clips],
    _lengths(clips),
    [clip.metadata for clip in clips],
    config.min_seconds,
  )


def find_clips(path: Path, name: str = "") -> list[Clip]:
  """Finds the clips of a folder tree or a manifest, in the order of their ids.

  A folder laid out as LibriSpeech is gives speakers and, from its .trans.txt
  files, texts; one with a metadata.jsonl or metadata.csv, as Hugging Face has
  them, what that says of its files. A manifest is JSON lines, CSV or TSV with a
  header, or fairseq's .tsv (a root, then file and samples a line); files are
  relative to its folder. A line may be about a part of a file (`offset` and
  `duration`, or `start` and `end`, in seconds) or one of its channels
  (`channel`, from 0). All else in its lines becomes the clips' metadata.

  Args:
    path: of the folder or manifest.
    name: of it, as the user gave it; by default as --input.

  Raises:
    UserError: there is no such thing, it cannot be read, or ids are not unique.
  """
  name = name or f"--input={path}"
  if os.path.isdir(path):  # Path.is_dir fails for a long name.
    clips = _of_folder(name, path)
  elif not os.path.isfile(path):
    raise UserError(f"{name} does not exist")
  elif path.suffix in MANIFESTS:
    clips = list(manifest_lines.read(name, path))
  else:
    raise UserError(
      f"{name}: expected a folder, a manifest ({', '.join(MANIFESTS)}) or an "
      "archive (.zip, .tar ...)"
    )
  if not clips:
    raise UserError(f"{name}: no audio in it")
  clips.sort(key=lambda clip: clip.id)
  for one, other in zip(clips, clips[1:]):
    if one.id == other.id:
      raise UserError(f"{name}: two clips have the id {one.id!r}")
  return clips


def open_clips(clips: list[Clip]) -> AudioFiles:
  """Opens clips, their lengths read from their files' headers."""
  lengths = _lengths(clips)
  good = [i for i, length in enumerate(lengths) if not isinstance(length, str)]
  samples, parts = source.parts_of([lengths[i] for i in good])
  return AudioFiles(
    ids=[clips[i].id for i in good],
    paths=[clips[i].path for i in good],
    num_samples=np.array(samples, np.int64),
    metadata=[clips[i].metadata for i in good],
    skipped=[
      (clip.id, length)
      for clip, length in zip(clips, lengths)
      if isinstance(length, str)
    ],
    parts=parts,
  )


def _lengths(clips: Sequence[Clip]) -> list[int | Part | str]:
  """Returns each clip's samples, or part of its file, or why it is unusable."""
  paths = list(dict.fromkeys(clip.path for clip in clips))
  known = dict(zip(paths, probe_all(paths)))
  rate = functools.lru_cache(audio.sample_rate)
  return [_part(clip, known[clip.path], rate) for clip in clips]


def _part(
  clip: Clip, length: int | str, rate_of: Callable[[str], int]
) -> int | Part | str:
  begin, end, in_samples, channel = clip.span
  if isinstance(length, str) or clip.span == manifest_lines.Span():
    return length
  if in_samples:
    try:
      rate = rate_of(clip.path)
    except audio.DamagedAudio as damage:
      return str(damage)
    begin, end = begin / rate, end / rate
  seconds = length / SAMPLE_RATE
  # A duration alone may be rounded, or in milliseconds.
  loose = _LOOSE if begin is None else _TOLERANCE
  begin = begin or 0.0
  if (
    end is None or abs(end - seconds) <= loose or (end > seconds and not begin)
  ):
    end = seconds
  if end > seconds or begin >= end:
    return f"its part is not in its file (of {seconds:.2f} s)"
  first = round(begin * SAMPLE_RATE)
  if not first and end == seconds and channel is None:
    return length
  return Part(first, min(length, round(end * SAMPLE_RATE)) - first, channel)


def _of_folder(name: str, root: Path) -> list[Clip]:
  listed = []
  for file in (root / "metadata.jsonl", root / "metadata.csv"):
    if file.is_file() and manifest_lines.names_files(file):
      listed += manifest_lines.read(f"{name}: {file.name}", file)
    elif file.is_file():
      logging.getLogger("ssl_jax").warning(
        "%s: its %s names no files (one of %s): not read",
        *(name, file.name, ", ".join(manifest_lines.FILE)),
      )
  named = {os.path.realpath(clip.path) for clip in listed}
  ids, paths = list_files(name, str(root))
  texts = {}
  for folder in {os.path.dirname(path) for path in paths}:
    for file in Path(folder).glob("*.trans.txt"):
      for line in _texts(file).split("\n"):
        clip, _, text = line.strip().partition(" ")
        texts[os.path.join(folder, clip)] = text
  clips = []
  for clip, path in zip(ids, paths):
    if named and os.path.realpath(path) in named:
      continue
    metadata = {}
    if match := _LIBRISPEECH.search(clip):
      metadata["speaker"] = match[1]
    if text := texts.get(os.path.splitext(path)[0]):
      metadata["text"] = text
    clips.append(Clip(clip, path, metadata))
  return listed + clips


def _texts(file: Path) -> str:
  try:
    return file.read_bytes().decode("utf-8", "replace")
  except OSError:
    return ""


KIND = SourceKind(
  open_split, "files that a .jsonl, .csv or .tsv names", SPLIT_KEY
)
