"""Measures how fast this codebase is on this machine, beside transformers.

  python -m ssl_jax.bench step --against=hf     # a training update
  python -m ssl_jax.bench stem --against=hf     # the waveform stem alone
  python -m ssl_jax.bench probe --against=hf    # a frozen encoder's states
  python -m ssl_jax.bench compile --against=hf  # from start to first update
  python -m ssl_jax.bench data      # audio a second through the data pipeline
  python -m ssl_jax.bench data --config=configs/slim.py:size=50 --device=v5e-8
  python -m ssl_jax.bench memory    # what a read of a million records holds

The model is --config's, or Slim. --against=hf measures the same work of
transformers in torch, in turn with ours: HuBERT's, on waveforms or with
--config.frontend.name=logmel, or wav2vec 2.0's. `data` compares with what
training consumes. The last line on stdout is a JSON object.
"""

import importlib
import logging
import os

from absl import flags

from ssl_jax import cli
from ssl_jax.errors import nearest

_ROUNDS = flags.DEFINE_integer(
  "rounds", 5, "Repetitions of each measurement; medians are reported.", 1
)
_AGAINST = flags.DEFINE_enum(
  "against", "", ["", "hf"], "Codebase to compare with (not data, memory)."
)
_ROWS = flags.DEFINE_integer(
  "rows", 0, "Clips in a batch (not data, memory); 0: 2 on a CPU, else 10.", 0
)
_SECONDS = flags.DEFINE_float(
  "seconds",
  0.0,
  "Length of a clip (not data, memory); 0: 10 on a CPU, else 15.6.",
  0,
)
cli.define_config()
_DEVICE = flags.DEFINE_string(
  "device",
  "h100",
  "Accelerators that training would run on (data): h100, v5e-8 ...",
)
_MFU = flags.DEFINE_float(
  "mfu",
  0.4,
  "Share of the device's peak FLOPs that training reaches (data).",
  1e-4,
  1,
)
_RECORDS = flags.DEFINE_integer(
  "records", 1_000_000, "Records to read (memory).", 100
)

# The module of ssl_jax.measure that has each benchmark.
_MODULES = dict.fromkeys(("step", "stem", "probe", "compile"), "speed") | {
  "data": "data",
  "memory": "memory",
}


def main(arguments: list[str]) -> dict:
  """Runs a benchmark; returns its JSON object."""
  # Imported late: --help and usage errors need no JAX, and a GPU machine that
  # only times steps no data pipeline.
  from ssl_jax import config as config_lib
  from ssl_jax.errors import UsageError

  (name, *rest) = arguments
  if rest or name not in _MODULES:
    raise UsageError(
      f"unknown benchmark {' '.join(arguments)!r}; {nearest(name, _MODULES)}"
    )
  benchmark = importlib.import_module(f"ssl_jax.measure.{_MODULES[name]}")
  config = flags.FLAGS.config or config_lib.base()
  rounds = _ROUNDS.value
  if name == "data":
    result = benchmark.run(rounds, config, _DEVICE.value, _MFU.value)
  elif name == "memory":
    result = benchmark.run(_RECORDS.value)
  else:
    result = benchmark.run(
      name, config, _AGAINST.value, _ROWS.value, _SECONDS.value, rounds
    )
  logging.getLogger("ssl_jax").info("%s", benchmark.table(result))
  return result


if __name__ == "__main__":
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  # Two sides share a GPU.
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  cli.run(main, arguments="BENCHMARK", needs_config=False)
