"""Archives of clips: unpacked into a new folder, and nothing beside it."""

import logging
import os
import shutil
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from ssl_jax.data.sources.manifest import MANIFESTS
from ssl_jax.errors import UserError, one_line

ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
_DEEPEST = 100  # Folders in an archive.


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
        _extract(file, files, folder)
      lost = [name for name in names if not os.path.exists(folder / name)]
      _leave_out(archive, folder, lost)
  except UserError:
    raise
  except Exception as error:  # Passwords, tears and odd headers raise many.
    message = one_line(error) or type(error).__name__
    raise UserError(
      f"--input={archive} cannot be unpacked ({message})"
    ) from error


def _extract(
  file: tarfile.TarFile, members: list[tarfile.TarInfo], folder: Path
) -> None:
  if hasattr(tarfile, "data_filter"):
    file.extractall(folder, members, filter="data")
    return
  # Python before 3.11.4: the same by hand.
  for member in members:
    beside = os.path.dirname(member.name) if member.issym() else ""
    if member.issym() or member.islnk():
      _check_inside(folder, member, os.path.join(beside, member.linkname))
    member.mode = member.mode & 0o755 | 0o600
    member.uid, member.gid = os.getuid(), os.getgid()
    member.uname = member.gname = ""
    file.extract(member, folder)
  for member in members:  # A link may lead through one that was made later.
    _check_inside(folder, member, member.name)


def _check_inside(folder: Path, member: tarfile.TarInfo, path: str) -> None:
  inside = Path(os.path.realpath(folder))
  if inside not in Path(os.path.realpath(os.path.join(folder, path))).parents:
    raise tarfile.ReadError(f"{member.name[:80]!r} leads out of the folder")


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
