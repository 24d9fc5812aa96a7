"""Settings for every test, and for the processes that tests start."""

import importlib.metadata
import os
import shutil
import signal
import tempfile
import zlib
from pathlib import Path

# A shell's background jobs ignore interrupts, and so do their children; those
# that tests interrupt must not.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)

# Most of a tiny run's time is compilation; the same programs come again, and in
# the next session. Set once: pytest's workers inherit it.
if "PYTEST_XDIST_WORKER" not in os.environ:
  _SHARED = tempfile.TemporaryDirectory(prefix="ssl_jax_test_shared_")
  os.environ["SSL_JAX_TESTS_SHARED"] = _SHARED.name  # Of tiny.finished_run.
  os.environ["XDG_CACHE_HOME"] = f"{_SHARED.name}/cache"  # Codebooks, features.
  _CACHE = tempfile.TemporaryDirectory(prefix="ssl_jax_test_compile_cache_")
  os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
  # Else a program's key holds the folder's path.
  os.environ["JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES"] = "none"
  # A tiny run's train step compiles in half the time; where there is an older
  # emitter of fusions too, in a fifth.
  os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
  if importlib.metadata.version("jaxlib").startswith("0.10."):
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"


_MOST_KEPT = 500 << 20  # Bytes; beyond, they are compiled anew.


def pytest_addoption(parser):
  parser.addoption(
    "--kills",
    type=int,
    default=2,
    help="Kills of each kind of command in tests/torture.",
  )


def pytest_configure(config):
  if kept := _kept_programs(config):
    for program in kept.iterdir():
      shutil.copy2(program, _CACHE.name)


def pytest_sessionfinish(session):
  """Keeps the compiled programs for the next session."""
  if not (kept := _kept_programs(session.config)):
    return
  if sum(program.stat().st_size for program in kept.iterdir()) > _MOST_KEPT:
    shutil.rmtree(kept)
    kept.mkdir()
  for program in Path(_CACHE.name).glob("*-cache"):
    # One that was killed as it wrote leaves a part.
    if not (kept / program.name).exists() and _is_whole(program):
      shutil.copy2(program, kept / "copying")
      (kept / "copying").rename(kept / program.name)


def _kept_programs(config):
  """The folder of programs between sessions; None in pytest's workers."""
  if hasattr(config, "workerinput") or not hasattr(config, "cache"):
    return None
  return config.cache.mkdir("jax")


def _is_whole(program):
  try:
    return bool(zlib.decompress(program.read_bytes()))
  except zlib.error:
    return False
