"""How every door opens: flags in, one call, one JSON object out.

Exit status: 0 done, 1 the input is at fault, 2 wrong usage, 130 interrupted.
"""

import contextlib
import errno
import functools
import inspect
import json
import logging
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

from absl import flags
from ml_collections import config_flags

from ssl_jax import process
from ssl_jax.config import clear_other_budgets
from ssl_jax.errors import UsageError, UserError
from ssl_jax.knobs import flatten

FLAGS = flags.FLAGS

_GO_ON = "the same command goes on where it stopped"
# What is the machine's fault, or the disk's, with what to do about it.
_REMEDIES = {
  errno.ENOSPC: f"make room; {_GO_ON}",
  errno.EDQUOT: f"make room; {_GO_ON}",
  errno.EFBIG: f"raise `ulimit -f`; {_GO_ON}",
  errno.EROFS: "give a folder that can be written to",
  errno.EACCES: "give one that this user may read and write",
  errno.EPERM: "give one that this user may read and write",
  errno.EMFILE: f"raise `ulimit -n`; {_GO_ON}",
  errno.ENFILE: f"close other programs; {_GO_ON}",
  errno.ENOMEM: f"free memory; {_GO_ON}",
  errno.EIO: f"check the disk; {_GO_ON}",
  errno.ESTALE: f"mount it again; {_GO_ON}",
  errno.ENAMETOOLONG: "give a shorter name",
  **dict.fromkeys(
    (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EINVAL),
    "remove what is in its place, or choose another",
  ),
}


def define_config() -> None:
  """Defines `--config=FILE.py[:key=value,...]` and `--config.KEY=VALUE`."""
  config_flags.DEFINE_config_file(
    "config",
    None,
    "The experiment: a file of configs/, with its arguments after a colon. "
    "Any key is overridden by --config.KEY=VALUE.",
    lock_config=True,
  )


def run(
  main: Callable[..., dict], arguments: str = "", needs_config: bool = True
) -> dict:
  """Parses the flags, calls `main`, prints what it returns as a last line.

  Args:
    main: of the door.
    arguments: what `main` takes beside flags, as a list, in a word for the
      user; "": it takes nothing, and is given nothing.
    needs_config: whether the door cannot do without --config, if it has it.
  """
  while (fd := os.open(os.devnull, os.O_RDWR)) < 3:
    pass  # Else a stream that is closed would be the next file opened.
  os.close(fd)
  sys.stderr = _Unheard(sys.stderr or open(os.devnull, "w"))
  logging.basicConfig(format="%(message)s", stream=sys.stderr, force=True)
  logging.getLogger("ssl_jax").setLevel(logging.INFO)
  logging.getLogger("absl").setLevel(logging.WARNING)
  _quieten_threads()
  try:
    if {"--help", "-h", "--helpfull", "--helpshort"} & set(sys.argv[1:]):
      _print(_help(main))
      sys.exit(0)
    process.prepare()  # Reading the config may import JAX.
    given = _parse(sys.argv, arguments, needs_config)
    result = main(given) if arguments else main()
    _print(json.dumps(result))
  except UserError as error:
    _fail(str(error), 2 if isinstance(error, UsageError) else 1)
  except OSError as error:
    if error.errno not in _REMEDIES:
      raise
    where = f"{error.filename}: " if error.filename else ""
    _fail(f"{where}{error.strerror}; {_REMEDIES[error.errno]}", 1)
  except KeyboardInterrupt as error:
    _fail(str(error) or "interrupted", 130)
  except (AssertionError, RuntimeError) as error:
    if "home directory" in str(error):  # pathlib's words.
      _fail("a path begins with ~, and there is no such home: write it out", 1)
    asked = os.environ.get("JAX_PLATFORMS", "")
    last = traceback.extract_tb(error.__traceback__)[-1]
    if not asked or not last.filename.endswith("xla_bridge.py"):
      raise
    said = _one_line(error)[:200] or "JAX finds no such device: unset it"
    _fail(f"JAX_PLATFORMS={asked}: {said}", 1)
  return result


class _Unheard:
  """A stream that may be full or closed, or read by nobody: not an error."""

  def __init__(self, stream: Any):
    self._stream = stream

  def write(self, text: str) -> int:
    with contextlib.suppress(OSError):
      self._stream.write(text)
    return len(text)

  def flush(self) -> None:
    with contextlib.suppress(OSError):
      self._stream.flush()

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)


def _print(text: str) -> None:
  """To stdout; all is done by now, whether or not it can be written."""
  try:
    print(text, flush=True)
  except OSError as error:
    # Else the interpreter would try again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if not isinstance(error, BrokenPipeError):
      _fail(f"stdout cannot be written ({error.strerror}); all is done", 1)


def _parse(argv: list[str], arguments: str, needs_config: bool) -> list[str]:
  try:
    rest = [_at_home(word, word) for word in FLAGS(argv)[1:]]
    for name, value in FLAGS.flag_values_dict().items():
      said = f"--{name}={value}"
      if isinstance(value, list):
        FLAGS[name].value = [_at_home(x, said) for x in value]
      elif isinstance(value, str) and value.startswith("~"):
        FLAGS[name].parse(_at_home(value, said))  # A config's has it as well.
    if arguments and not rest:
      _fail(f"{arguments} is missing; see --help", 2)
    if rest and not arguments:
      _fail(f"unexpected argument {rest[0]!r}; see --help", 2)
    if "config" in FLAGS and FLAGS.config is None:
      if needs_config:
        _fail("--config=configs/... is missing; see --help", 2)
    elif "config" in FLAGS:
      if os.path.isdir(name := FLAGS["config"].config_filename):
        _fail(f"--config={name} is a folder: give a file of it", 2)
      FLAGS.config.items()  # A file that could not be read fails here.
      if "budget" in FLAGS.config:
        clear_other_budgets(FLAGS.config, FLAGS["config"].override_values)
    _check_numbers()
    _check_local(rest)
    return rest
  except UserError as error:
    _fail(str(error), 1)
  except (flags.Error, OSError) as error:
    _fail(_one_line(error), 2)
  except (AttributeError, KeyError) as error:
    # ml_collections names the nearest key, in a doubly quoted message.
    _fail("unknown config key: " + re.sub(r"[\\'\"]", "", _one_line(error)), 2)
  except Exception as error:  # Of many kinds: the config is the user's code.
    given = next((x for x in argv if x.startswith("--config=")), "--config")
    said = f"{type(error).__name__}: {_one_line(error)[:200]}"
    _fail(f"{given[:200]} fails ({said})", 2)


def _at_home(path: Any, said: str) -> Any:
  """A path that begins with ~, written out; a shell leaves it in --flag=~/x."""
  if not isinstance(path, str) or not path.startswith("~"):
    return path
  if (found := os.path.expanduser(path)) == path:
    raise UserError(f"{said}: there is no such home; write ./~ if it is a name")
  return found


def _check_numbers() -> None:
  """Refuses nan, which no limit of a flag does, and what floats overflow of."""
  for name, value in FLAGS.flag_values_dict().items():
    if isinstance(value, float) and not abs(value) <= 1e30:
      raise flags.Error(f"--{name}={value}: expected a number, up to 1e30")


def _check_local(rest: list[str]) -> None:
  """Refuses addresses of buckets: as paths they would name local folders."""
  given = [(word, word) for word in rest]
  given += [(f"--{k}={v}", v) for k, v in FLAGS.flag_values_dict().items()]
  if "config" in FLAGS and FLAGS.config is not None:
    config = flatten(FLAGS.config)
    given += [(f"--config.{k}={v}", v) for k, v in config.items()]
  for said, value in given:
    if isinstance(value, str) and re.search(
      r"(^|[:,])(gs|s3|https?)://", value
    ):
      raise UserError(
        f"{said}: files are read and written through the file system; mount "
        "the bucket (gcsfuse; launch/tpu_vm.sh --bucket does it) and give its "
        "folder"
      )


def _help(main: Callable[..., dict]) -> str:
  module = inspect.getmodule(main)
  lines = [inspect.getdoc(module), "", "Flags:"]
  for name, flag in sorted(FLAGS.flags_by_module_dict().items()):
    if name in (module.__name__, sys.argv[0], "ssl_jax.cli"):
      lines += [f"  --{f.name}: {' '.join(f.help.split())}" for f in flag]
  return "\n".join(lines)


def _quieten_threads() -> None:
  """Has what a disk does to a library's thread said in a line, once.

  The main thread hears of it as well, and ends with an error of its own.
  """

  @functools.cache
  def say(text: str) -> None:
    logging.getLogger("ssl_jax").warning("%s", text)

  def quieter(default: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def hook(failed: Any) -> None:
      if isinstance(failed.exc_value, KeyboardInterrupt):
        # It came where nothing can be raised, as in a callback of the garbage
        # collector: once more.
        interrupt = os.getpid(), signal.SIGINT
        threading.Timer(0.1, os.kill, interrupt).start()
      elif _is_of_disk(failed.exc_value):
        say(f"{failed.exc_type.__name__}: {_one_line(failed.exc_value)[:200]}")
      else:
        default(failed)

    return hook

  threading.excepthook = quieter(threading.__excepthook__)
  sys.unraisablehook = quieter(sys.__unraisablehook__)
  logging.getLogger("asyncio").setLevel(logging.CRITICAL)
  logging.getLogger().handlers[0].addFilter(
    lambda record: not (record.exc_info and _is_of_disk(record.exc_info[1]))
  )


def _is_of_disk(error: BaseException | None) -> bool:
  # The last two of TensorStore, and what its threads meet afterwards.
  said = str(error)
  return (
    isinstance(error, OSError)
    or "os_error_code" in said
    or "Event loop is closed" in said
  )


def _one_line(error: BaseException | None) -> str:
  return " ".join(str(error).replace("\\n", " ").split())


def _fail(message: str, status: int) -> None:
  # The last line is this one.
  threading.excepthook = sys.unraisablehook = lambda _: None
  print(f"error: {message}", file=sys.stderr, flush=True)
  sys.exit(status)
