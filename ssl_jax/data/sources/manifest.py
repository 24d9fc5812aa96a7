"""What a corpus holds: clips of a folder, a manifest, or an archive."""

import csv
import json
import logging
import os
import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from ssl_jax.data.sources import source
from ssl_jax.data.sources.folder import list_files, probe_all
from ssl_jax.data.sources.source import AudioFiles
from ssl_jax.errors import UserError

ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
MANIFESTS = (".jsonl", ".csv", ".tsv")

_FILE = ("file", "path", "audio_filepath", "audio")  # Keys of a clip's file.
_DEEPEST = 100  # Folders in an archive.
# What is said of a file, or by a prepared corpus, is read from it.
_NOT_KEPT = (None, *_FILE, "id", "num_samples", "crc32", "duration_s", "packed")
# LibriSpeech's and its kin's: SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac
_LIBRISPEECH = re.compile(r"(?:^|/)(\w+)/(\w+)/\1[-_]\2[-_][^/]*$")


class Clip(NamedTuple):
  """A clip to be read: its name, its file, and what is known of it."""

  id: str
  path: str
  metadata: dict[str, Any]


def open_split(config: ConfigDict, split: str) -> AudioFiles:
  """The clips that the manifest `dir` has in a split; valid: or `valid_dir`.

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
  """The clips of a folder tree or a manifest, in the order of their ids.

  A folder laid out as LibriSpeech is gives speakers and, from its .trans.txt
  files, texts. A manifest is JSON lines, CSV with a header, or fairseq's .tsv
  (a root, then file and samples a line); files are relative to its folder. What
  else its lines have becomes the clips' metadata.

  Args:
    path: of the folder or manifest.
    name: of it, as the user gave it; by default as --input.

  Raises:
    UserError: there is no such thing, it cannot be read, or ids are not unique.
  """
  name = name or f"--input={path}"
  if os.path.isdir(path):  # Of Path's own, a long name is an error.
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
  """A `Source` of clips, their lengths read from their files' headers."""
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

  Raises:
    UserError: it cannot be read, or a member would land elsewhere.
  """
  try:
    if archive.suffix.lower() == ".zip":
      with zipfile.ZipFile(archive) as file:
        members = [m for m in file.infolist() if not m.is_dir()]
        _extract(
          [
            (m.filename, m.file_size, lambda m=m: file.open(m)) for m in members
          ],
          archive,
          folder,
        )
    else:
      with tarfile.open(archive) as file:
        _extract(
          [
            (m.name, m.size, lambda m=m: file.extractfile(m))
            for m in _members(file)
            if not m.isdir()  # Of a link, the content of what it names.
          ],
          archive,
          folder,
        )
  except UserError:
    raise
  except Exception as error:  # Of many kinds: passwords, tears, odd headers.
    said = " ".join(str(error).split())[:200] or type(error).__name__
    raise UserError(f"--input={archive} cannot be unpacked ({said})") from error


def _members(file: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
  """All; some sizes would have `tarfile` go back, and round and round."""
  end = -1
  for member in file:
    if member.size < 0 or file.offset <= end:
      raise tarfile.ReadError(f"size {member.size} of {member.name[:80]!r}")
    end = file.offset
    yield member


def root_of(unpacked: Path) -> Path:
  """The manifest at the top of what was unpacked, else the folder."""
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
  """By its name."""
  return os.path.isfile(path) and path.name.lower().endswith(ARCHIVES)


def _extract(
  members: list[tuple[str, int, Callable[[], IO[bytes] | None]]],
  archive: Path,
  folder: Path,
) -> None:
  """Writes members (name, declared size, its content if it is a file)."""
  for name, _, _ in members:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if (
      not parts or ".." in parts or parts[0].startswith("/") or ":" in parts[0]
    ):
      raise UserError(
        f"--input={archive}: member {name[:200]!r} would be written outside of "
        "the folder; unpack it yourself if you trust it"
      )
    if len(parts) > _DEEPEST:
      raise UserError(
        f"--input={archive}: member {name[:80]!r} ... is in {len(parts)} "
        "folders; unpack it yourself if you trust it"
      )
  folder.mkdir(parents=True, exist_ok=True)
  needed, written, lost = sum(size for _, size, _ in members), 0, []
  room = shutil.disk_usage(folder).free

  def check_room(size: int) -> None:
    if size > room:
      raise UserError(
        f"--input={archive} unpacks to {size / 1e9:.3g} GB or more, and "
        f"{folder.parent} has {room / 1e9:.3g} GB free: make room, or unpack "
        "it elsewhere"
      )

  check_room(needed)
  for name, _, open_member in members:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
      content = open_member()
    except (
      KeyError,
      RecursionError,
    ):  # A link to what is not there, or itself.
      content = None
    if content is None:
      lost.append(name)
      continue
    with content, path.open("wb") as target:
      while block := content.read(1 << 20):
        written += len(block)
        check_room(written)  # Links, which are of no size, are copies here.
        target.write(block)
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
    if found := _LIBRISPEECH.search(clip):
      metadata["speaker"] = found[1]
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
    said = " ".join(str(error).split())[:200]
    raise UserError(f"{name} cannot be read ({said})") from error


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
