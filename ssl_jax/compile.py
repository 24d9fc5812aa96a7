"""Compiles the training step for a TPU slice, without one.

  python -m ssl_jax.compile --config=configs/slim.py --topology=v5e:4x4
  python -m ssl_jax.compile --config=configs/slim.py:size=large \\
      --topology=v6e-64 --config.mesh='(-1,8,1)' --config.encoder.remat=dots
  python -m ssl_jax.compile --table=rows.jsonl  # many, one after the other
  python -m ssl_jax.compile --table=rows.jsonl \\
      --row='--config=configs/slim.py --topology=v5p:2x2x1'

Says whether the step fits the chips' memory, what it sends between them, and
how fast it could be at best. The step is that of the longest bucket, the batch
as large as config.batch.seconds; minutes of compilation on a CPU host. Needs
`pip install '.[tpu]'`. XLA counts a loop's body once: its own counts,
xla_*, are too few with encoder.scan_layers or microbatches. The last line on
stdout is a JSON object.

--table keeps a line for each row in a file and prints them as a table in
Markdown: those of --row, or the published models and slices. A row whose line
is there is skipped, so the same command goes on where it was killed; one that
failed has its reason, and is tried again once its line is removed.
"""

import importlib.util
import logging
import os
from pathlib import Path

from absl import flags

from ssl_jax import cli

_TOPOLOGY = flags.DEFINE_string(
  "topology",
  None,
  "TPU slice to compile for, as v5e:4x4 or v5e-16; chips are v5e, v5p, v6e and "
  "tpu7x.",
)
_XLA = flags.DEFINE_multi_string(
  "xla", [], "NAME=VALUE, an option of the TPU compiler; may be repeated."
)
_TABLE = flags.DEFINE_string(
  "table", None, "JSONL file of rows to fill, each compiled in its own process."
)
_ROW = flags.DEFINE_multi_string(
  "row",
  [],
  "A row of --table, the words of a command that compiles; may be repeated.",
)


def main() -> dict:
  """Compiles; returns the JSON object."""
  from ssl_jax.devices import chips
  from ssl_jax.errors import UserError

  _check_flags()
  if not _TABLE.value:
    chip, name, number = chips.topology(_TOPOLOGY.value)
  if importlib.util.find_spec("libtpu") is None:
    raise UserError(
      "the TPU compiler is not installed: pip install '.[tpu]', on any "
      "x86-64 Linux host"
    )
  if _TABLE.value:
    return _fill(Path(_TABLE.value))
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
  facts = compile_ahead.compile_for(
    *(cli.FLAGS.config, chip, name, number),
    options=dict(option.split("=", 1) for option in _XLA.value),
  )
  logging.getLogger("ssl_jax").info("%s", compile_ahead.text(facts))
  return facts


def _check_flags() -> None:
  from ssl_jax.errors import UsageError

  if _ROW.value and not _TABLE.value:
    raise UsageError("--row without --table=FILE.jsonl, the file to fill")
  if _TABLE.value:
    if cli.FLAGS.config or _TOPOLOGY.value or _XLA.value:
      raise UsageError(
        "--table: --config, --topology and --xla are of a row: give them as "
        "--row='--config=... --topology=...'"
      )
    return
  if not cli.FLAGS.config:
    raise UsageError("--config=configs/... is missing; see --help")
  if not _TOPOLOGY.value:
    raise UsageError("--topology is missing: say v5e:4x4, for example")
  for option in _XLA.value:
    if not option.partition("=")[2]:
      raise UsageError(f"--xla={option!r}: expected NAME=VALUE")


def _fill(path: Path) -> dict:
  from ssl_jax.measure import slices

  rows = _ROW.value or slices.PUBLISHED
  slices.check(rows)
  lines = slices.fill(path, rows)
  logging.getLogger("ssl_jax").info("%s", slices.table(lines))
  failed = {x["row"]: x["error"] for x in lines if "error" in x}
  return {"table": str(path), "rows": len(lines), "failed": failed}


if __name__ == "__main__":
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  cli.define_config()
  cli.run(main, needs_config=False)
