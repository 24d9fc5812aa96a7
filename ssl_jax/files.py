"""Files that survive a kill: written whole or not at all, read up to a tear."""

import contextlib
import errno
import json
import logging
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from ssl_jax.errors import UserError

_NODE = platform.node().replace(".", "-")
_TORN = ".ssl_jax-tmp"  # Names of files that are not whole yet end in it.
_NOBODYS = {"lock", "lost+found"}  # Our own, and a file system's.
_log = logging.getLogger("ssl_jax")
_PATIENCE_S = 5  # A process that was just killed may still hold its lock.
_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK}
_MOST = 1 << 26  # Bytes of a JSON object: settings and results take thousands.


def read_object(path: Path) -> dict[str, Any]:
  """Returns the JSON object in a file.

  Raises:
    OSError: it cannot be read.
    ValueError: it is too large, or holds no JSON object.
  """
  if path.stat().st_size > _MOST:
    raise ValueError(f"{path.name} has more than {_MOST} bytes")
  value = json.loads(path.read_bytes())
  if not isinstance(value, dict):
    raise ValueError(f"{path.name} holds no JSON object")
  return value


def read_jsonl(path: Path) -> list[dict[str, Any]]:
  """Returns the objects of a JSONL file; [] if there is no file.

  A last line that was cut short, as its writer was killed, is left out.

  Raises:
    OSError: it cannot be read.
    UserError: a line before the last is no JSON object.
  """
  lines: list[dict[str, Any]] = []
  if not path.exists():
    return lines
  *whole, last = path.read_bytes().split(b"\n")
  for number, line in enumerate([*whole, last] if last else whole, 1):
    try:
      value = json.loads(line)
      if not isinstance(value, dict):
        raise ValueError("no object")
    except ValueError as error:
      if number > len(whole):
        break
      raise UserError(
        f"{path}, line {number} is damaged ({error}): remove the line"
      ) from error
    lines.append(value)
  return lines


def write_atomically(path: Path, content: str | bytes) -> None:
  """Replaces a file so that a reader sees the old or the new one, whole."""
  # Other processes may write the same file.
  mine = f"{_NODE}.{os.getpid()}{_TORN}"
  # A file's name may have 255 bytes at most.
  temporary = path.with_name(f"{path.name[:40]}.{mine}")
  data = content.encode() if isinstance(content, str) else content
  try:
    with named(path), temporary.open("wb") as f:
      f.write(data)
      f.flush()
      os.fsync(f.fileno())
    try:
      temporary.replace(path)
    except OSError as error:  # It names the other file.
      raise OSError(error.errno, error.strerror, str(path)) from error
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
  """Has an OSError of the block name the file, as those of writes do not."""
  try:
    yield
  except OSError as error:
    if error.filename is None and error.errno:
      raise OSError(error.errno, error.strerror, str(path)) from error
    raise


@contextlib.contextmanager
def alone(folder: Path, name: str) -> Iterator[None]:
  """Keeps other processes from writing to a folder; clears what a kill left.

  Args:
    folder: made if it is not there.
    name: of the folder, as the user gave it.

  Raises:
    UserError: another process is at work there, or nobody can be.
  """
  path = folder / "lock"
  try:
    os.fsencode(folder.absolute()).decode()  # Orbax takes no other.
    folder.mkdir(parents=True, exist_ok=True)
    held = FileLock(path, _PATIENCE_S, fallback_to_soft=False).acquire()
  except Timeout as error:
    who = path.read_text()[:100] or "another process"
    raise UserError(
      f"{name}: {who} is at work there: wait for it, or choose another"
    ) from error
  except (OSError, UnicodeDecodeError) as error:
    if getattr(error, "errno", None) not in _NO_LOCKS:
      problem = f"cannot be used ({error}): choose another"
      if isinstance(error, FileNotFoundError):
        problem = "was just removed: run the command again"
      raise UserError(f"{name} {problem}") from error
    _log.warning(
      "%s: this file system has no locks: start no second command there", name
    )
    yield
    return
  with held:
    with named(path):
      path.write_text(f"process {os.getpid()} on {platform.node()}")
    for torn in folder.rglob(f"*{_TORN}"):
      if not _is_being_written(torn.name):
        torn.unlink(missing_ok=True)
    yield


def _is_being_written(name: str) -> bool:
  """Tells whether a temporary file is of a live process of this machine."""
  _, node, pid = ("", "", *name.removesuffix(_TORN).rsplit(".", 2))[-3:]
  if node != _NODE or not pid.isdecimal() or int(pid) == os.getpid():
    return False
  return psutil.pid_exists(int(pid))


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
  """Makes a folder to write into, which is at `folder` after the block.

  Raises:
    UserError: there is something there, or it cannot be written.
  """
  name = f"--out={folder}"
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise UserError(f"{name} is not empty: choose another, or remove it")
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
  except OSError as error:
    raise UserError(f"{name} cannot be used ({error})") from error
  try:
    yield temporary
    temporary.chmod(0o755)
    temporary.replace(folder)
  except OSError as error:
    raise UserError(f"{name} cannot be written ({error})") from error
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def claim(
  folder: Path,
  name: str,
  identity: str,
  flag: str,
  held: str,
  makes: Sequence[str] | None = None,
) -> None:
  """Makes a folder that of an identity, or checks that it is.

  Args:
    folder: made if it is not there.
    name: of the file in it that keeps the identity.
    identity: of what is written there.
    flag: that gave the folder, for errors.
    held: what it holds if it is another's, for errors.
    makes: names in it that the caller writes to; None: any.

  Raises:
    UserError: it is another's, has files of unknown origin, or cannot be
      written to.
  """
  path = folder / name
  try:
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
      others = {x.name for x in folder.iterdir() if x.name[0] != "."}
      others = others - _NOBODYS if makes is None else others & {*makes}
      if others := sorted(others):
        raise UserError(
          f"{flag}={folder} holds {others[0]!r}, which is not of this command: "
          "choose another"
        )
      write_atomically(path, identity)
    elif path.read_bytes() != identity.encode():
      raise UserError(f"{flag}={folder} holds {held}: choose another")
  except OSError as error:
    raise UserError(
      f"{flag}={folder} cannot be used ({error}): choose another"
    ) from error


def cache_folder(kind: str) -> Path:
  """Returns the folder of what can be computed again: ~/.cache/ssl_jax/KIND."""
  try:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
  except RuntimeError:  # Users without a home, as containers have.
    cache = Path(tempfile.gettempdir()) / f"cache-{os.getuid()}"
  return Path(cache) / "ssl_jax" / kind
