"""Compiles the training step for a TPU slice, without one.

  python -m ssl_jax.compile --config=configs/slim.py --topology=v5e:4x4
  python -m ssl_jax.compile --config=configs/slim.py:size=large \\
      --topology=v6e-64 --config.mesh='(-1,8,1)' --config.encoder.remat=dots

Says whether the step fits the chips' memory, what it sends between them, and
how fast it could be at best. The step is that of the longest bucket, the batch
as large as config.batch.seconds; minutes of compilation on a CPU host. Needs
`pip install '.[tpu]'`. XLA counts a loop's body once: its own counts,
xla_*, are too few with encoder.scan_layers or microbatches. The last line on
stdout is a JSON object.
"""

import importlib.util
import logging
import os

from absl import flags

from ssl_jax import cli

_TOPOLOGY = flags.DEFINE_string(
  "topology",
  None,
  "TPU slice to compile for, as v5e:4x4 or v5e-16; chips are v5e, v5p and v6e.",
)


def main() -> dict:
  """Compiles; returns the JSON object."""
  from ssl_jax.devices import chips
  from ssl_jax.errors import UsageError, UserError

  if not _TOPOLOGY.value:
    raise UsageError("--topology is missing: say v5e:4x4, for example")
  chip, name, chips = chips.topology(_TOPOLOGY.value)
  if importlib.util.find_spec("libtpu") is None:
    raise UserError(
      "the TPU compiler is not installed: pip install '.[tpu]', on any "
      "x86-64 Linux host"
    )
  # libtpu would ask a TPU VM for these; arrays are on the CPU.
  os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_STDERR_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # Nothing is held: no chip is used.
  }
  from ssl_jax.config import validate
  from ssl_jax.measure import compile_ahead

  validate(cli.FLAGS.config)
  facts = compile_ahead.compile_for(cli.FLAGS.config, chip, name, chips)
  logging.getLogger("ssl_jax").info("%s", compile_ahead.text(facts))
  return facts


if __name__ == "__main__":
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  cli.define_config()
  cli.run(main)
