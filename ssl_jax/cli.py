"""The frame of every door: flags in, one call, one JSON object out.

Exit status: 0 done, 1 the input is at fault, 2 wrong usage, 130 interrupted.
"""

import atexit
import contextlib
import errno
import gc
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

from ssl_jax import config as config_lib
from ssl_jax import manual, process
from ssl_jax.errors import UsageError, UserError, one_line
from ssl_jax.knobs import by_key, flatten

FLAGS = flags.FLAGS

_HELP = re.compile(r"-h|--help(full|short)?(=(?P<about>.*))?")
_BUCKET = re.compile(r"(^|[:,])(gs|s3|https?)://")
_REMEDIES = {
  errno.ENOSPC: "make room",
  errno.EDQUOT: "make room",
  errno.EMFILE: "raise `ulimit -n`",
  errno.ENOMEM: "free memory",
  errno.EIO: "check the disk",
}
_old_flags: dict[str, str] = {}
_Sections = Callable[[], manual.Sections] | None
_sections: _Sections = None  # The knobs of --config, for --help.
_takes_family = False


def define_config(
  sections: _Sections = config_lib.sections, family: bool = False
) -> None:
  """Defines `--config=FILE.py[:key=value,...]` and `--config.KEY=VALUE`.

  Args:
    sections: returns the knobs of the config, for --help; None: it has none.
    family: the config is that of a family of runs.
  """
  global _sections, _takes_family
  _sections, _takes_family = sections, family
  config_flags.DEFINE_config_file(
    "config",
    None,
    "Experiment: a file of configs/, with its arguments after a colon. Any key "
    "is set by --config.KEY=VALUE.",
    lock_config=True,
  )


def rename_flag(old: str, new: str) -> None:
  """Keeps the name that a flag once had; its use is told of."""
  flags.DEFINE_alias(old, new)
  _old_flags[old] = new


def run(
  main: Callable[..., dict], arguments: str = "", needs_config: bool = True
) -> dict:
  """Parses the flags, calls `main`, prints what it returns as a last line.

  Args:
    main: of the door.
    arguments: a word for the arguments beside flags, which `main` takes as a
      list; "": it takes none.
    needs_config: whether --config is required, where it is defined.
  """
  logging.basicConfig(format="%(message)s", force=True)
  logging.raiseExceptions = False  # A full disk of a log does not stop a run.
  logging.getLogger("ssl_jax").setLevel(logging.INFO)
  logging.getLogger("absl").setLevel(logging.WARNING)
  _quieten_disk_errors()
  atexit.register(_let_go_of_stderr)
  try:
    asked = next(filter(None, map(_HELP.fullmatch, sys.argv[1:])), None)
    if asked:
      _help(main, asked["about"])
      sys.exit(0)
    process.prepare()  # Reading the config may import JAX.
    gc.disable()  # Imports stay; looking for garbage takes a tenth longer.
    given = _parse(arguments, needs_config)
    gc.freeze()
    gc.enable()
    result = main(given) if arguments else main()
    _print(json.dumps(result))
    return result
  except UserError as error:
    _fail(str(error), 2 if isinstance(error, UsageError) else 1)
  except KeyboardInterrupt as error:
    _fail(str(error) or "interrupted", 130)
  except OSError as error:
    if not error.errno:
      raise
    where = f"{error.filename}: " if error.filename else ""
    remedy = _REMEDIES.get(error.errno, "check that it may be used so")
    _fail(
      f"{where}{error.strerror}; {remedy}; the same command goes on where it "
      "stopped",
      1,
    )
  except (AssertionError, RuntimeError) as error:
    last = traceback.extract_tb(error.__traceback__)[-1]
    if not last.filename.endswith("xla_bridge.py"):
      raise
    problem = one_line(error) or "JAX finds no such device: unset it"
    _fail(f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS')}: {problem}", 1)


def _let_go_of_stderr() -> None:
  """Drops messages that cannot be written.

  The interpreter would try again at its end, and change the exit status.
  """
  try:
    sys.stderr.flush()
  except OSError:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _print(text: str) -> None:
  """Prints to stdout; whether or not it can be written, all else is done."""
  try:
    print(text, flush=True)
  except OSError as error:
    # The interpreter would try again at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if not isinstance(error, BrokenPipeError):
      _fail(f"stdout cannot be written ({error.strerror}); all is done", 1)


def _parse(arguments: str, needs_config: bool) -> list[str]:
  try:
    rest = FLAGS(sys.argv)[1:]
    for old, new in _old_flags.items():
      if any(re.match(rf"--?{old}(=|$)", word) for word in sys.argv[1:]):
        logging.getLogger("ssl_jax").warning("--%s is --%s now", old, new)
    given = FLAGS.flag_values_dict()
    if bool(rest) != bool(arguments):
      problem = (
        f"unexpected argument {rest[0]!r}"
        if rest
        else (f"{arguments} is missing")
      )
      raise UsageError(f"{problem}; see --help")
    for name, value in given.items():
      if isinstance(value, float) and not abs(value) <= 1e30:
        raise UsageError(f"--{name}={value}: expected a number, up to 1e30")
      if isinstance(value, list):
        FLAGS[name].value = [_local(x, f"--{name}={x}") for x in value]
      elif _local(value, f"--{name}={value}") != value:
        FLAGS[name].parse(os.path.expanduser(value))  # The config's key too.
    if given.get("config"):
      if os.path.isdir(file := FLAGS["config"].config_filename):
        raise UsageError(f"--config={file} is a folder: give a file of it")
      try:
        config_lib.check_file(file.partition(":")[0])
      except UserError as error:
        raise UsageError(f"--config: {error}") from error
      FLAGS.config.items()  # A file that could not be read fails here.
      if not _takes_family and {"config", "flops"} <= {*FLAGS.config}:
        raise UserError(
          f"--config={file} is a family of runs: give it to `python -m "
          "ssl_jax.sweep`"
        )
      if "budget" in FLAGS.config:
        overrides = FLAGS["config"].override_values
        config_lib.clear_other_budgets(FLAGS.config, overrides)
    elif "config" in FLAGS and needs_config:
      raise UsageError("--config=configs/... is missing; see --help")
    return [_local(word, word) for word in rest]
  except UserError:
    raise
  except (flags.Error, OSError) as error:
    raise UsageError(one_line(error, 4_000)) from error
  except (AttributeError, KeyError) as error:
    # ml_collections names the nearest key, in a doubly quoted message.
    message = re.sub(r"[\\'\"]", "", one_line(error, 4_000))
    raise UsageError(f"unknown config key: {message}") from error
  except Exception as error:  # The config is the user's code.
    file = next((x for x in sys.argv if x.startswith("--config=")), "--config")
    problem = f"{type(error).__name__}: {one_line(error)}"
    raise UsageError(f"{file[:200]} fails ({problem})") from error


def _local(value: Any, text: str) -> Any:
  """Writes out a ~ that the shell left; refuses an address of a bucket."""
  if not isinstance(value, str):
    return value
  if _BUCKET.search(value):
    raise UserError(
      f"{text}: files are read and written through the file system; mount the "
      "bucket (gcsfuse; launch/tpu_vm.sh --bucket does it) and give its folder"
    )
  return os.path.expanduser(value)


def _help(main: Callable[..., dict], about: str | None) -> None:
  """Prints what a door does, its flags, and the config's keys.

  Args:
    main: of the door.
    about: a key of the config, or a section, to explain instead.
  """
  if about and _sections:
    _print(manual.explain(about, _sections()))
    return
  module = inspect.getmodule(main)
  lines = [inspect.getdoc(module), "", "Flags:"]
  for name, defined in sorted(FLAGS.flags_by_module_dict().items()):
    if name in (module.__name__, sys.argv[0], "ssl_jax.cli"):
      for flag in defined:
        if flag.name in _old_flags:
          continue
        default = f" Default: {flag.value}." if flag.value else ""
        lines += manual.wrap(f"--{flag.name}: {flag.help}{default}")
  _print("\n".join(lines))
  if "config" not in FLAGS:
    return
  # Printed afterwards: the tables of components import JAX.
  file = next((x[9:] for x in sys.argv if x.startswith("--config=")), "")
  if file:
    values = flatten(config_lib.load(file))
  elif _sections:
    values = {k: x.default for k, x in by_key(_sections()).items()}
  else:
    values = {}
  _print("\nKeys of --config; --help --config=FILE lists those of a file:")
  _print("\n".join(f"  {key}={value}" for key, value in values.items()))
  if _sections:
    _print("--help=KEY and --help=SECTION explain them.")


def _quieten_disk_errors() -> None:
  """Silences threads that a disk stops: the main thread reports the error.

  An interrupt that came where nothing can be raised, as in a callback of the
  garbage collector, is sent again.
  """

  def quieter(default: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def hook(failed: Any) -> None:
      if isinstance(failed.exc_value, KeyboardInterrupt):
        again = os.getpid(), signal.SIGINT
        threading.Timer(0.1, os.kill, again).start()
      elif not _is_of_disk(failed.exc_value):
        default(failed)

    return hook

  threading.excepthook = quieter(threading.__excepthook__)
  sys.unraisablehook = quieter(sys.__unraisablehook__)
  logging.getLogger("asyncio").setLevel(logging.CRITICAL)
  logging.getLogger().handlers[0].addFilter(
    lambda record: not (record.exc_info and _is_of_disk(record.exc_info[1]))
  )


def _is_of_disk(error: BaseException | None) -> bool:
  # The last two are TensorStore's, and its threads' afterwards.
  return (
    isinstance(error, OSError)
    or "os_error_code" in str(error)
    or "Event loop is closed" in str(error)
  )


def _fail(message: str, status: int) -> None:
  # No thread may write after this line.
  threading.excepthook = sys.unraisablehook = lambda _: None
  with contextlib.suppress(OSError):  # The status says it, too.
    print(f"error: {message}", file=sys.stderr, flush=True)
  sys.exit(status)
