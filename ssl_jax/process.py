"""Settings of a process before JAX starts in it."""

import contextlib
import ctypes
import glob
import hashlib
import importlib.metadata
import os
import platform
import signal
import threading
import time
from pathlib import Path

BEGAN = time.monotonic()  # When this process did, but for Python's own start.
stopping = threading.Event()  # Set when this process was told to stop soon.
PARENT = "SSL_JAX_PARENT"  # The variable with the id of such a process.
# A run's numbers rest on these variables of JAX: what a user set for another
# program must not change them, nor make checkpoints unreadable.
_PINNED = {
  "JAX_DEFAULT_PRNG_IMPL": "threefry2x32",
  "JAX_DISABLE_JIT": "0",
  "JAX_ENABLE_X64": "0",
  "JAX_NUMPY_DTYPE_PROMOTION": "standard",
  "JAX_NUMPY_RANK_PROMOTION": "allow",
  "JAX_THREEFRY_PARTITIONABLE": "1",
}
# Parameters of mallopt, from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def prepare() -> None:
  """Pins JAX's settings; keeps compiled programs and memory for what is next.

  Compiled programs lie in ~/.cache/ssl_jax/compiled, or where
  JAX_COMPILATION_CACHE_DIR says; nowhere, if that cannot be written. A process
  that another started as `PARENT` says stops when that one is gone.
  """
  os.environ.update(_PINNED)
  if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    folder = _compiled()
    with contextlib.suppress(OSError):
      folder.mkdir(parents=True, exist_ok=True)
    if os.access(folder, os.W_OK):
      os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
  if "JAX_PLATFORMS" not in os.environ and _has_idle_libtpu():
    os.environ["JAX_PLATFORMS"] = "cpu"
  if not _has_accelerator():
    keep_freed_memory()
    if not _has_libtpu():  # Its compiler would read the flag, too.
      _compile_quickly()
  if (parent := os.environ.pop(PARENT, "")).isdecimal():
    threading.Thread(target=_end_with, args=(int(parent),), daemon=True).start()


def _end_with(parent: int) -> None:
  while os.getppid() == parent:
    time.sleep(0.5)
  if not stopping.is_set():  # A second signal would kill what is stopping.
    os.kill(os.getpid(), signal.SIGTERM)


def keep_freed_memory() -> None:
  """Keeps freed memory in the process for the next request.

  Without it each step gets its gigabytes from the system anew, page by page and
  zeroed: 14 % of its time on a CPU, as measured. Threads started later are
  affected; without glibc nothing happens.
  """
  if platform.libc_ver()[0] != "glibc":
    return
  libc = ctypes.CDLL(None)
  libc.mallopt(_M_ARENA_MAX, 1)
  libc.mallopt(_M_MMAP_MAX, 0)
  libc.mallopt(_M_TRIM_THRESHOLD, -1)


def _compile_quickly() -> None:
  """Asks LLVM for less than its most: a fifth less time to compile on CPUs.

  What takes the time of a step is in libraries, which are compiled already.
  """
  given = os.environ.get("XLA_FLAGS", "")
  if "xla_backend_optimization_level" not in given:
    flag = "--xla_backend_optimization_level=1"
    os.environ["XLA_FLAGS"] = f"{given} {flag}".strip()


def _has_accelerator() -> bool:
  if os.environ.get("JAX_PLATFORMS") == "cpu":
    return False
  return _has_plugins() or _has_libtpu()


def _has_idle_libtpu() -> bool:
  """Tells whether JAX would look for a TPU in vain, and print what it tried."""
  chips = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/*")
  return _has_libtpu() and not chips and not _has_plugins()


def _has_plugins() -> bool:
  return bool(importlib.metadata.entry_points(group="jax_plugins"))


def _has_libtpu() -> bool:
  return bool(list(importlib.metadata.distributions(name="libtpu")))


def _compiled() -> Path:
  # Programs for a CPU use the instructions of the one they were compiled on; a
  # home may be shared between machines.
  try:
    with open("/proc/cpuinfo") as file:
      kind = next((x for x in file if x.startswith(("flags", "Features"))), "")
  except OSError:
    kind = platform.processor()
  name = hashlib.sha256(kind.encode()).hexdigest()[:12]
  # Path.home() fails for users without one, as containers have.
  cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  return Path(cache) / "ssl_jax" / "compiled" / name
