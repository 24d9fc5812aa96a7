"""A tree of audio files of any names, formats, rates and channel counts."""

import concurrent.futures
import functools
import logging
import os
from collections.abc import Sequence

import soundfile
import tqdm
from ml_collections import ConfigDict

from ssl_jax.data import workers
from ssl_jax.data.sources import audio, source
from ssl_jax.errors import UserError, check_choice

SPLITS = ("train", "valid")

# Every format libsndfile reads by its header, under its own name ("WAV" ...)
# or one of these.
EXTENSIONS = {f".{name.lower()}" for name in soundfile.available_formats()} - {
  ".raw"
} | {".mp3", ".aif", ".aifc", ".oga", ".opus", ".snd", ".sph"}

# Audio that it does not read: named as skipped, never left out unsaid.
_FOREIGN = {
  *(".3gp", ".aac", ".ac3", ".amr", ".ape", ".m4a", ".m4b", ".mka", ".mkv"),
  *(".mov", ".mp4", ".ra", ".spx", ".tta", ".webm", ".wma", ".wv"),
}

_THREADS = 16  # Threads of the header scan, which waits for the disk.


def open_split(config: ConfigDict, split: str) -> source.AudioFiles:
  """Opens train, all of `dir` less what is held out, or valid, the rest.

  With a `valid_dir`, that is valid and nothing is held out. Held-out clips are
  those whose ids hash lowest: the same on every machine, and hardly changed by
  adding files. A speaker may be in both.

  Args:
    config: `config.data`; `dir`, `valid_dir`, `valid_fraction` and
      `min_seconds` are read.
    split: one of SPLITS.

  Raises:
    UserError: unknown split; a folder that is unset, missing or not a folder;
      no usable audio files; a single one and none to hold out.
  """
  check_choice("split", split, SPLITS)
  key = "valid_dir" if config.valid_dir and split == "valid" else "dir"
  name = f"--config.data.{key}={config[key]!r}"
  root = os.path.expanduser(config[key])
  clips = _scan(name, *list_files(name, root), config.min_seconds)
  if config.valid_dir:
    return clips.select(range(len(clips.ids)))
  return clips.select(
    source.hold_out(name, clips.ids, config.valid_fraction, split)
  )


def list_files(name: str, root: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """Returns ids and paths of the audio files under `root`, sorted by id.

  `name` is the folder's, as the user gave it.

  Symbolic links are followed, but no folder is entered twice. Hidden files are
  left out: copying from a Mac leaves a `._clip.wav` that is no audio.
  """
  if not root:
    raise UserError(f"{name}: set it to a folder of audio files")
  if not os.path.isdir(root):
    problem = "is not a folder" if os.path.exists(root) else "does not exist"
    raise UserError(f"{name} {problem}: give a folder of audio files")
  paths, seen = {}, set()

  def warn(error: OSError) -> None:
    logging.getLogger("ssl_jax").warning("%s: left out: %s", name, error)

  for folder, subfolders, files in os.walk(
    root, onerror=warn, followlinks=True
  ):
    status = os.stat(folder)
    if (status.st_dev, status.st_ino) in seen:
      subfolders.clear()
      continue
    seen.add((status.st_dev, status.st_ino))
    subfolders[:] = sorted(s for s in subfolders if not s.startswith("."))
    for file in files:
      extension = os.path.splitext(file)[1].lower()
      if extension in EXTENSIONS | _FOREIGN and not file.startswith("."):
        path = os.path.join(folder, file)
        paths[_printable(path[len(root) :].lstrip(os.sep))] = path
  if not paths:
    some = "wav, flac, ogg, mp3 ..."
    raise UserError(f"{name}: no audio files ({some}) in it or below")
  return tuple(zip(*sorted(paths.items())))


def _printable(path: str) -> str:
  """Returns `path` with `/` between folders; not UTF-8 is escaped (`\\xff`)."""
  path = os.fsencode(path.replace(os.sep, "/"))
  return path.decode("utf-8", "backslashreplace")


# Both splits of a run open the same folder: its headers are read once.
@functools.lru_cache(maxsize=2)
def _scan(
  name: str, ids: tuple[str, ...], paths: tuple[str, ...], min_seconds: float
) -> source.AudioFiles:
  lengths = probe_all(paths)
  return source.keep_usable(
    name, ids, paths, lengths, [{} for _ in ids], min_seconds
  )


def probe_all(paths: Sequence[str]) -> list[int | str]:
  """Returns files' lengths, samples at 16 kHz, or why one cannot be used."""
  lengths = []
  with (
    workers.waiting("headers of audio cannot be read; is the disk there?") as (
      moved
    ),
    concurrent.futures.ThreadPoolExecutor(_THREADS) as pool,
  ):
    for length in tqdm.tqdm(
      pool.map(_probe, paths),
      desc="reading headers",
      total=len(paths),
      unit="file",
      delay=1,  # Seconds before it shows.
      disable=None,  # It is off where stderr is no terminal.
    ):
      lengths.append(length)
      moved()
  return lengths


def _probe(path: str) -> int | str:
  try:
    return audio.probe(path)
  except audio.DamagedAudio as damage:
    return str(damage)


KIND = source.SourceKind(
  open_split, "a tree of wav, flac, ogg and mp3 files of any rate"
)
