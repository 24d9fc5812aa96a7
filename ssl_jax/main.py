"""Pretrains a speech encoder.

  python -m ssl_jax.main --config=configs/smoke.py
  python -m ssl_jax.main --config=configs/slim.py:size=50 --workdir=runs/s50 \\
      --config.data.dir=LibriSpeech --config.budget.updates=100000
  python -m ssl_jax.main --config=configs/slim.py --dry_run --time ...

The workdir holds the resolved config, checkpoints, metrics.jsonl, TensorBoard
events and a picture of the losses. Running the same command on it again resumes
exactly where its last checkpoint is. The last line on stdout is a JSON object.

On TPU pods, under SLURM and under Open MPI, the same command on every host is
one run; elsewhere --coordinator, --num_processes and --process_id make it one.
The workdir must be the same folder on all. SIGTERM saves and stops, with status
0; the same command goes on.

Any key of the config is set by --config.KEY=VALUE, for example
--config.optimizer.learning_rate=3e-4. docs/config.md describes them.
"""

import logging
import os
import time
from pathlib import Path

from absl import flags

from ssl_jax import cli, process

_WORKDIR = flags.DEFINE_string(
  "workdir",
  None,
  "Folder of the run; an existing run is resumed. "
  "Default: runs/CONFIG-DATE-TIME.",
)
_DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "Print what the run would be and cost, and stop."
)
_TIME = flags.DEFINE_bool(
  "time",
  False,
  "With --dry_run: train a few updates of noise, and say how long it would "
  "take.",
)
_INIT_FROM = flags.DEFINE_string(
  "init_from",
  None,
  "Encoder to start from: hf:DIR, a HuBERT or wav2vec 2.0 of transformers, or "
  "a run's workdir. Short for --config.init_from.",
)
_PROBE = flags.DEFINE_bool(
  "probe",
  False,
  "Measure the encoder at the end, in a run of one process: packaged words of "
  "one speaker found among another's, beside the untrained encoder, log-mel "
  "and MFCC (ssl_jax.probe, task words).",
)
_PROFILE = flags.DEFINE_string(
  "profile",
  "",
  "FIRST:COUNT, updates to trace, as in 20:5; the trace is in WORKDIR/profile, "
  "for XProf and Perfetto.",
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator",
  None,
  "Address of process 0, as HOST:PORT; found automatically on TPU pods, under "
  "SLURM and under Open MPI.",
)
_NUM_PROCESSES = flags.DEFINE_integer(
  "num_processes",
  None,
  "Number of processes of the run; requires --coordinator.",
  lower_bound=1,
)
_PROCESS_ID = flags.DEFINE_integer(
  "process_id",
  None,
  "Number of this process, from 0; requires --coordinator.",
  lower_bound=0,
)
_PROCESS_TIMEOUT = flags.DEFINE_float(
  "process_timeout",
  300.0,
  "Seconds without a sign of another process, or without the next batch, after "
  "which the run ends; the same command goes on. Must exceed the time to read "
  "any batch and, with several processes, to evaluate a batch, save a "
  "checkpoint or fit a codebook.",
  1.0,
  1e7,
)


def main() -> dict:
  """Trains `--config` in `--workdir`; returns the run's JSON object."""
  # Imported late: --help and usage errors need no JAX.
  from ssl_jax.budget.flops import readable
  from ssl_jax.devices import processes
  from ssl_jax.errors import UsageError, UserError
  from ssl_jax.text import readable_time
  from ssl_jax.training import loop
  from ssl_jax.training.clock import Clock
  from ssl_jax.training.profile import Profile

  clock = Clock(process.BEGAN)
  who = _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
  if None in who and any(x is not None for x in who):
    raise UsageError(
      "--coordinator, --num_processes and --process_id go together"
    )
  processes.join(*who, _PROCESS_TIMEOUT.value)
  if processes.many() and not _WORKDIR.value:
    raise UsageError("--workdir is missing: one folder for all processes")
  if _TIME.value and not _DRY_RUN.value:
    raise UsageError("--time needs --dry_run")
  if _INIT_FROM.value:
    cli.FLAGS.config.init_from = _INIT_FROM.value
  config_file = cli.FLAGS["config"].config_filename
  name = f"{Path(config_file).stem}-{time.strftime('%Y%m%d-%H%M%S')}"
  workdir = Path(_WORKDIR.value or Path("runs") / name)
  profile = Profile(_PROFILE.value, workdir, processes.is_first())
  result = loop.train(cli.FLAGS.config, workdir, _DRY_RUN.value, clock, profile)
  if _TIME.value:
    from ssl_jax.measure import calibrate

    speed = calibrate.flops_per_second(cli.FLAGS.config)
    result |= {
      "flops_per_second": speed,
      "train_seconds": result["flops"] / speed,
    }
    logging.getLogger("ssl_jax").info(
      "%14s  %s here, at %sFLOP/s: a few updates of noise were timed",
      "time",
      readable_time(result["train_seconds"]),
      readable(speed),
    )
  if _PROBE.value and "valid_loss" in result and not processes.many():
    try:
      _measure(workdir)
    except UserError as error:  # The run is whole, whatever this lacks.
      logging.getLogger("ssl_jax").warning("not measured: %s", error)
  return result


def _measure(workdir: Path) -> None:
  """Says what the encoder of a finished run is worth."""
  from ssl_jax.devices import sharding
  from ssl_jax.files import cache_folder
  from ssl_jax.probes import TASKS, encoders, run
  from ssl_jax.probes import config as probe_config

  config = probe_config.base()
  config.task, config.profile = "words", "smoke"
  config.update_from_flattened_dict(TASKS["words"].smoke)
  names = "model", "random", "logmel", "mfcc"
  found, beside = encoders.open_candidates(names, [str(workdir)], config.seed)
  by_row = sharding.by_row(sharding.make_mesh())
  result = run.probe(
    config, found, cache_folder("features"), beside / "probes", by_row
  )
  logging.getLogger("ssl_jax").info("%s", run.table([result]))


if __name__ == "__main__":
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  cli.define_config()
  cli.run(main)
