"""Measures what is claimed to be fast, side by side, on this machine.

  python -m ssl_jax.bench data      # audio a second through the data pipeline

The last line on stdout is a JSON object.
"""

import logging
import os

from absl import flags

from ssl_jax import cli

_ROUNDS = flags.DEFINE_integer(
  "rounds", 5, "Of each measurement; medians are reported.", lower_bound=1
)


def main(arguments: list[str]) -> dict:
  """Runs a benchmark; returns its JSON object."""
  # Imported late: --help and usage errors need no JAX.
  from ssl_jax.benchmarks import data
  from ssl_jax.config import nearest
  from ssl_jax.errors import UsageError

  benchmarks = {"data": data}
  (name, *rest) = arguments
  if rest or name not in benchmarks:
    raise UsageError(
      f"unknown benchmark {' '.join(arguments)!r}; {nearest(name, benchmarks)}"
    )
  result = benchmarks[name].run(_ROUNDS.value)
  logging.getLogger("ssl_jax").info("%s", benchmarks[name].table(result))
  return result


if __name__ == "__main__":
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  cli.run(main, arguments="BENCHMARK")
