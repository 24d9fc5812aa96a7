"""Clips of a folder, a manifest, or an archive."""

import csv
import json
import logging
import os
import re
import shutil
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from ssl_jax.data.sources import source
from ssl_jax.data.sources.folder import list_files, probe_all
from ssl_jax.data.sources.source import SPLIT_KEY, AudioFiles, SourceKind
from ssl_jax.errors import UserError, one_line

ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
MANIFESTS = (".jsonl", ".csv", ".tsv")

_FILE = ("file", "path", "audio_filepath", "audio")  # Keys of a clip's file.
_DEEPEST = 100  # Folders in an archive.
# Facts of a file, or of a prepared corpus, which are read from itself.
_NOT_KEPT = (None, *_FILE, "id", "num_samples", "crc32", "duration_s", "packed")
# LibriSpeech's and its kin's: SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac
_LIBRISPEECH = re.compile(r"(?:^|/)(\w+)/(\w+)/\1[-_]\2[-_][^/]*$")


class Clip(NamedTuple):
  """A clip to be read: its name, its file, and its metadata."""

  id: str
  path: str
  metadata: dict[str, Any]


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
    probe_all([clip.path for clip in clips]),
    [clip.metadata for clip in clips],
    config.min_seconds,
  )


def find_clips(path: Path, name: str = "") -> list[Clip]:
  """Finds the clips of a folder tree or a manifest, in the order of their ids.

  A folder laid out as LibriSpeech is gives speakers and, from its .trans.txt
  files, texts. A manifest is JSON lines, CSV with a header, or fairseq's .tsv
  (a root, then file and samples a line); files are relative to its folder. All
  else in its lines becomes the clips' metadata.

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
  elif path.suffix in _READERS:
    clips = list(_of_manifest(name, path))
  else:
    raise UserError(
      f"{name}: expected a folder, a manifest "
      f"({', '.join(MANIFESTS)}) or an archive ({', '.join(ARCHIVES)})"
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
  lengths = probe_all([clip.path for clip in clips])
  good = [i for i, length in enumerate(lengths) if isinstance(length, int)]
  return AudioFiles(
    ids=[clips[i].id for i in good],
    paths=[clips[i].path for i in good],
    num_samples=np.array([lengths[i] for i in good], np.int64),
    metadata=[clips[i].metadata for i in good],
    skipped=[
      (clip.id, length)
      for clip, length in zip(clips, lengths)
      if isinstance(length, str)
    ],
  )


def unpack(archive: Path, folder: Path) -> None:
  """Unpacks the files of a tar or zip into a new folder.

  Links stay links, within the folder.

  Raises:
    UserError: it cannot be read, a member would land elsewhere, or there is no
      room for it.
  """
  try:
    if archive.suffix.lower() == ".zip":
      with zipfile.ZipFile(archive) as file:
        members = [m for m in file.infolist() if not m.is_dir()]
        _check_names(archive, [(m.filename, False) for m in members])
        _check_room(archive, folder, sum(m.file_size for m in members))
        file.extractall(folder, members)
    else:
      with tarfile.open(archive) as file:
        members = [m for m in _members(file) if not m.isdir()]
        links = [m.islnk() or m.issym() for m in members]
        names = [m.name for m in members]
        _check_names(archive, zip(names, links))
        _check_room(archive, folder, sum(m.size for m in members))
        files = [m for m, link in zip(members, links) if link or m.isfile()]
        file.extractall(folder, files, filter="data")
      lost = [name for name in names if not os.path.exists(folder / name)]
      _leave_out(archive, folder, lost)
  except UserError:
    raise
  except Exception as error:  # Passwords, tears and odd headers raise many.
    message = one_line(error) or type(error).__name__
    raise UserError(
      f"--input={archive} cannot be unpacked ({message})"
    ) from error


def _members(file: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
  """Yields all; sizes by which `tarfile` would go back and never end raise."""
  end = -1
  for member in file:
    if member.size < 0 or file.offset <= end:
      raise tarfile.ReadError(f"size {member.size} of {member.name[:80]!r}")
    end = file.offset
    yield member


def root_of(unpacked: Path) -> Path:
  """Returns the manifest at the top of an unpacked folder, or the folder."""
  inside = sorted(
    path
    for path in unpacked.iterdir()
    if not path.name.startswith((".", "__MACOSX"))
  )
  if len(inside) == 1 and inside[0].is_dir():
    return root_of(inside[0])  # No deeper than _DEEPEST.
  manifests = [path for path in inside if path.suffix in MANIFESTS]
  return manifests[0] if len(manifests) == 1 else unpacked


def is_archive(path: Path) -> bool:
  """Tells by its name whether a file is an archive."""
  return os.path.isfile(path) and path.name.lower().endswith(ARCHIVES)


def _check_names(archive: Path, members: Iterable[tuple[str, bool]]) -> None:
  """Refuses an archive that would write out of its folder.

  Args:
    archive: to be unpacked.
    members: name of each, and whether it is a link, in their order.
  """
  links: set[PurePosixPath] = set()
  for name, is_link in members:
    path = PurePosixPath(name.replace("\\", "/"))
    parts = path.parts
    if (
      not parts
      or ".." in parts
      or parts[0].startswith("/")
      or ":" in parts[0]
      or links & {path, *path.parents}
    ):
      raise UserError(
        f"--input={archive}: member {name[:200]!r} would be written outside of "
        "the folder, or through a link; unpack it yourself if you trust it"
      )
    if len(parts) > _DEEPEST:
      raise UserError(
        f"--input={archive}: member {name[:80]!r} ... is in {len(parts)} "
        "folders; unpack it yourself if you trust it"
      )
    if is_link:
      links.add(path)


def _check_room(archive: Path, folder: Path, size: int) -> None:
  """Makes the folder, and checks that so many bytes fit there."""
  folder.mkdir(parents=True, exist_ok=True)
  if size > (room := shutil.disk_usage(folder).free):
    raise UserError(
      f"--input={archive} unpacks to {size / 1e9:.3g} GB, and {folder.parent} "
      f"has {room / 1e9:.3g} GB free: make room, or unpack it elsewhere"
    )


def _leave_out(archive: Path, folder: Path, lost: Sequence[str]) -> None:
  for name in lost:  # Links to what is not there.
    (folder / name).unlink(missing_ok=True)
  if lost:
    logging.getLogger("ssl_jax").warning(
      "--input=%s: left out %d members that are no files, as %r",
      archive,
      len(lost),
      lost[0],
    )


def _of_folder(name: str, root: Path) -> list[Clip]:
  ids, paths = list_files(name, str(root))
  texts = {}
  for folder in {os.path.dirname(path) for path in paths}:
    for file in Path(folder).glob("*.trans.txt"):
      for line in _texts(file).split("\n"):
        clip, _, text = line.strip().partition(" ")
        texts[os.path.join(folder, clip)] = text
  clips = []
  for clip, path in zip(ids, paths):
    metadata = {}
    if match := _LIBRISPEECH.search(clip):
      metadata["speaker"] = match[1]
    if text := texts.get(os.path.splitext(path)[0]):
      metadata["text"] = text
    clips.append(Clip(clip, path, metadata))
  return clips


def _texts(file: Path) -> str:
  try:
    return file.read_bytes().decode("utf-8", "replace")
  except OSError:
    return ""


def _of_manifest(name: str, path: Path) -> Iterator[Clip]:
  try:
    with path.open(encoding="utf-8-sig", newline="") as file:
      for number, (root, line) in enumerate(_READERS[path.suffix](file), 1):
        audio = next((line[k] for k in _FILE if line.get(k)), None)
        if not isinstance(audio, str):
          raise UserError(
            f"{name}, clip {number}: names no file (one of {', '.join(_FILE)})"
          )
        metadata = {
          key: value
          for key, value in line.items()
          if key not in _NOT_KEPT
          and isinstance(value, str | int | float)
          and value != ""
        }
        clip = str(line.get("id") or audio)
        # JSON may hold what no name does.
        clip = clip.encode("utf-8", "backslashreplace").decode()
        yield Clip(clip, str(path.parent / root / audio), metadata)
  except (OSError, ValueError, csv.Error) as error:
    raise UserError(f"{name} cannot be read ({one_line(error)})") from error


def _read_jsonl(file: IO[str]) -> Iterator[tuple[str, dict[str, Any]]]:
  for line in filter(str.strip, file):
    clip = json.loads(line)
    if not isinstance(clip, dict):
      raise UserError(f"{file.name}: {line.strip()[:80]!r} is no JSON object")
    yield "", clip


def _read_csv(file: IO[str]) -> Iterator[tuple[str, dict[str, Any]]]:
  for line in csv.DictReader(file):
    yield "", line


def _read_tsv(file: IO[str]) -> Iterator[tuple[str, dict[str, Any]]]:
  root = next(file, "").strip()
  for line in filter(str.strip, file):
    yield root, {"file": line.split("\t")[0].strip()}


_READERS = {".jsonl": _read_jsonl, ".csv": _read_csv, ".tsv": _read_tsv}

KIND = SourceKind(
  open_split, "files that a .jsonl, .csv or .tsv names", SPLIT_KEY
)
