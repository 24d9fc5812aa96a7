"""Pretrains a speech encoder.

  python -m ssl_jax.main --config=configs/smoke.py
  python -m ssl_jax.main --config=configs/slim.py:size=50 --workdir=runs/s50 \\
      --config.data.dir=LibriSpeech --config.budget.updates=100000
  python -m ssl_jax.main --config=configs/slim.py --dry_run ...

The workdir holds the resolved config, checkpoints, metrics.jsonl, TensorBoard
events and a picture of the losses. Running the same command on it again resumes
exactly where its last checkpoint is. The last line on stdout is a JSON object.

Any key of the config (documented in ssl_jax/config.py) is set by
--config.KEY=VALUE, for example --config.optimizer.learning_rate=3e-4.
"""

import os
import time
from pathlib import Path

from absl import flags

from ssl_jax import cli

_WORKDIR = flags.DEFINE_string(
  "workdir",
  None,
  "Where the run lives; an existing one is resumed. "
  "Default: runs/CONFIG-DATE-TIME.",
)
_DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "Print what the run would be and cost, and stop."
)


def main() -> dict:
  """Trains `--config` in `--workdir`; returns the run's JSON object."""
  # Imported late: --help and usage errors need no JAX.
  from ssl_jax.training import loop

  config_file = cli.FLAGS["config"].config_filename
  name = f"{Path(config_file).stem}-{time.strftime('%Y%m%d-%H%M%S')}"
  workdir = Path(_WORKDIR.value or Path("runs") / name)
  return loop.train(cli.FLAGS.config, workdir, dry_run=_DRY_RUN.value)


if __name__ == "__main__":
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  cli.define_config()
  cli.run(main)
