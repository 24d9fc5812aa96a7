"""Files that survive a kill: written whole or not at all, read up to a tear."""

import contextlib
import errno
import fcntl
import logging
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from ssl_jax import reading
from ssl_jax.errors import UserError

_NODE = platform.node().replace(".", "-")
_TORN = ".ssl_jax-tmp"  # How names of files end that are not whole yet.
_NOBODYS = {"lock", "lost+found"}  # Ours, and of a file system.
_log = logging.getLogger("ssl_jax")
_ATTEMPTS = 50  # At a lock, a tenth of a second each.


def read_jsonl(path: Path) -> list[dict[str, Any]]:
  """The objects of a JSONL file, less a last line cut short; [] without one.

  Raises:
    OSError: it cannot be read.
    UserError: a line before the last is no JSON object.
  """
  lines: list[dict[str, Any]] = []
  if not path.exists():
    return lines
  *whole, last = reading.read_bytes(path).split(b"\n")
  for number, line in enumerate([*whole, last] if last else whole, 1):
    try:
      found = reading.parse(line)
      if not isinstance(found, dict):
        raise ValueError("no object")
    except ValueError as error:
      if number > len(whole):  # Cut short when its writer was killed.
        break
      raise UserError(
        f"{path}, line {number} is damaged ({error}): remove the line"
      ) from error
    lines.append(found)
  return lines


def write_atomically(path: Path, content: str | bytes) -> None:
  """Replaces a file so that a reader sees the old or the new one, whole."""
  # Of this process: others may write the same file.
  mine = f"{_NODE}.{os.getpid()}{_TORN}"
  # Cut, as no file's name may be longer than 255 bytes.
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
def alone(folder: Path, said: str) -> Iterator[None]:
  """Keeps other processes from writing to a folder; clears what a kill left.

  Args:
    folder: made if it is not there.
    said: the folder, as the user gave it.

  Raises:
    UserError: another process is at work there, or nobody can be.
  """
  try:
    os.fsencode(folder.absolute()).decode()  # Orbax takes no other.
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / "lock").open("a+")
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(
      f"{said} cannot be used ({error}): choose another"
    ) from error
  with lock:
    for attempt in range(_ATTEMPTS):  # What was just killed may be dying yet.
      try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        break
      except BlockingIOError as error:
        if attempt == _ATTEMPTS - 1:
          lock.seek(0)
          who = lock.read(100) or "another process"
          raise UserError(
            f"{said}: {who} is at work there: wait for it, or choose another"
          ) from error
        time.sleep(0.1)
      except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
          raise
        _log.warning(
          "%s: this file system has no locks: start no second command there",
          said,
        )
        yield
        return
    if not (folder / "lock").exists():  # Whoever had it removed the folder.
      raise UserError(f"{said} was just removed: run the command again")
    lock.truncate(0)
    with named(folder / "lock"):
      lock.write(f"process {os.getpid()} on {platform.node()}")
      lock.flush()
    for torn in folder.rglob(f"*{_TORN}"):
      if not _is_being_written(torn.name):
        torn.unlink(missing_ok=True)
    yield


def _is_being_written(name: str) -> bool:
  """Whether a temporary file is of a live process, of this machine."""
  _, node, pid = ("", "", *name.removesuffix(_TORN).rsplit(".", 2))[-3:]
  if node != _NODE or not pid.isdecimal() or int(pid) == os.getpid():
    return False
  return psutil.pid_exists(int(pid))


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
  """A folder to write into, which is at `folder` once the block is done.

  Raises:
    UserError: there is something there, or it cannot be written.
  """
  said = f"--out={folder}"
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise UserError(f"{said} is not empty: choose another, or remove it")
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
  except OSError as error:
    raise UserError(f"{said} cannot be used ({error})") from error
  try:
    yield temporary
    temporary.chmod(0o755)
    temporary.replace(folder)
  except OSError as error:
    raise UserError(f"{said} cannot be written ({error})") from error
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
    elif reading.read_bytes(path) != identity.encode():
      raise UserError(f"{flag}={folder} holds {held}: choose another")
  except OSError as error:
    raise UserError(
      f"{flag}={folder} cannot be used ({error}): choose another"
    ) from error


def cache_folder(kind: str) -> Path:
  """Where what can be computed again is kept: ~/.cache/ssl_jax/KIND."""
  cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
  return Path(cache) / "ssl_jax" / kind
