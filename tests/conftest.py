"""Settings for every test, and for the processes that tests start."""

import os
import tempfile

# Most of a tiny run's time is compilation; the same programs come again.
_CACHE = tempfile.TemporaryDirectory(prefix="ssl_jax_test_compile_cache_")
os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
