"""Settings for every test, and for the processes that tests start."""

import importlib.metadata
import os
import signal
import tempfile

# A shell's background jobs ignore interrupts, and so do their children; those
# that tests interrupt must not.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)

# Most of a tiny run's time is compilation; the same programs come again. Set
# once: pytest's workers inherit it.
if "PYTEST_XDIST_WORKER" not in os.environ:
  _SHARED = tempfile.TemporaryDirectory(prefix="ssl_jax_test_shared_")
  os.environ["SSL_JAX_TESTS_SHARED"] = _SHARED.name  # Of tiny.finished_run.
  _CACHE = tempfile.TemporaryDirectory(prefix="ssl_jax_test_compile_cache_")
  os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
  # A tiny run's train step compiles in half the time; where there is an older
  # emitter of fusions too, in a fifth.
  os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
  if importlib.metadata.version("jaxlib").startswith("0.10."):
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"


def pytest_addoption(parser):
  parser.addoption(
    "--kills",
    type=int,
    default=2,
    help="Kills of each kind of command in tests/torture.",
  )
