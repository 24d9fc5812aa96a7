"""Files of others: read whole, or an error of one of two kinds."""

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

_MOST = 1 << 26  # Bytes of an object: settings and results take thousands.
_DEEPEST = 32


def read_bytes(path: Path, most: int = 0) -> bytes:
  """The content of a file or of what it links to.

  Args:
    path: of the file.
    most: bytes that it may have; 0: any.

  Raises:
    OSError: there is none, or what is there is no file: to open a FIFO would be
      to wait, and a device has no end.
    ValueError: it is no path, or larger.
  """
  with open(path, "rb", opener=_open_file) as file:
    if most and file.seek(0, 2) > most:
      raise ValueError(f"{path.name} has more than {most} bytes")
    file.seek(0)
    return file.read()


def check_file(path: Path) -> None:
  """Checks that something is a file, before another opens it.

  Raises:
    OSError: there is none, or what is there is no file.
  """
  os.close(_open_file(str(path), os.O_RDONLY))


def parse(data: bytes | str) -> Any:
  """What JSON says.

  Raises:
    ValueError: it is none, or nested too deep.
  """
  try:
    return json.loads(data)
  except RecursionError as error:
    raise ValueError("nested too deep") from error


def read_object(path: Path) -> dict[str, Any]:
  """The JSON object in a file.

  Raises:
    OSError: as of `read_bytes`.
    ValueError: there is none in it, or one that is too large or too deep, or
      has text that is none.
  """
  found = parse(read_bytes(path, _MOST))
  if not isinstance(found, dict):
    raise ValueError(f"{path.name} holds no JSON object")
  if _is_deeper(found, _DEEPEST):
    raise ValueError(f"{path.name} is nested too deep")
  # Half a character, which JSON can say, cannot be printed or drawn.
  json.dumps(found, ensure_ascii=False).encode()
  return found


def _open_file(path: str, flags: int) -> int:
  number = os.open(path, flags | os.O_NONBLOCK)
  if not stat.S_ISREG(os.fstat(number).st_mode):
    os.close(number)
    raise OSError(errno.EINVAL, "is not a file", path)
  return number


def _is_deeper(value: Any, levels: int) -> bool:
  if not isinstance(value, dict | list):
    return False
  inside = value.values() if isinstance(value, dict) else value
  return not levels or any(_is_deeper(x, levels - 1) for x in inside)
