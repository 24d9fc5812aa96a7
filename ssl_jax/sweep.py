"""Trains a family of runs: sizes x budgets x objectives x hours x seeds.

  python -m ssl_jax.sweep --config=configs/isoflop.py:scale=smoke --dry_run
  python -m ssl_jax.sweep --config=configs/isoflop.py --workdir=runs/isoflop \\
      --config.data.dir=LibriSpeech --index=$SLURM_ARRAY_TASK_ID --count=8
  python -m ssl_jax.report runs/isoflop

--config.KEY=VALUE sets a key of the family, as `size`, or where it has a dot,
as `data.dir`, one of every run's config. Each run is a `python -m ssl_jax.main`
in a folder of --workdir, and is scored by the `probes` that the family names
(tasks of ssl_jax.probe). What is done is skipped, what was interrupted goes on,
and a run that fails does not stop the others: it is listed at the end, and the
exit status is 1. The last line on stdout is a JSON object.
"""

import logging
import os
import re
import sys
from pathlib import Path

from absl import flags

from ssl_jax import cli

_WORKDIR = flags.DEFINE_string(
  "workdir", "runs/sweep", "Folder of the family; each run has a folder in it."
)
_SET = flags.DEFINE_multi_string(
  "set", [], "KEY=VALUE, as --config.KEY=VALUE: the name it once had."
)
_INDEX = flags.DEFINE_integer(
  "index", 0, "Number of the share of the family to run, from 0.", lower_bound=0
)
_COUNT = flags.DEFINE_integer(
  "count", 1, "Number of shares; a size's budgets stay in one.", 1
)
_DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "Print what the runs would be and cost, and stop."
)


def main() -> dict:
  """Runs the family of `--config`; returns what was done."""
  environment = dict(os.environ)
  # The accelerator is for the runs: this process only counts.
  os.environ["JAX_PLATFORMS"] = "cpu"
  from ssl_jax.errors import UsageError, UserError
  from ssl_jax.training import sweep, sweep_probes

  if _INDEX.value >= _COUNT.value:
    raise UsageError(
      f"--index={_INDEX.value} is not below --count={_COUNT.value}"
    )
  if "flops" not in cli.FLAGS.config:
    raise UserError(
      f"--config={cli.FLAGS['config'].config_filename} is no family: give one "
      "as configs/isoflop.py"
    )
  workdir, probes = (
    Path(_WORKDIR.value),
    sweep_probes.of_family(cli.FLAGS.config),
  )
  groups = sweep.expand(cli.FLAGS.config, _SET.value, workdir)
  runs = [
    run for group in groups[_INDEX.value :: _COUNT.value] for run in group
  ]
  logging.getLogger("ssl_jax").info("%s", sweep.table(runs, workdir))
  failed = {}
  if not _DRY_RUN.value:
    failed = sweep.train_all(runs, workdir, environment, probes)
    for name, problem in failed.items():
      logging.getLogger("ssl_jax").error("failed: %s: %s", name, problem)
  return {
    "workdir": str(workdir),
    "runs": [
      {"name": run.name, "finished": sweep.is_finished(workdir / run.name)}
      | {key: run.facts[key] for key in ("params", "updates", "flops")}
      | {"own_flops": run.facts["own_flops"], "epochs": run.facts["epochs"]}
      for run in runs
    ],
    "failed": failed,
  }


def _for_runs(words: list[str]) -> list[str]:
  """Returns a command line whose keys of the runs are in --set.

  The config is a family's, which has no such keys: they are those with a dot.
  """
  if any(re.match(r"--?set(=|$)", word) for word in words):
    print("--set=KEY=VALUE is --config.KEY=VALUE now", file=sys.stderr)
  changed, left = [], [*words]
  while left:
    word = left.pop(0)
    key = re.match(r"--?config\.(\w+\.[\w.]+)(?:=|$)", word)
    if not key:
      changed.append(word)
      continue
    value = word[key.end() :]
    if "=" not in word:  # As absl has it, a value may be the next word.
      flag_next = not left or left[0].startswith("--")
      value = "true" if flag_next else left.pop(0)
    changed.append(f"--set={key[1]}={os.path.expanduser(value)}")
  return changed


if __name__ == "__main__":
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  sys.argv = _for_runs(sys.argv)
  cli.define_config(None, family=True)
  if cli.run(main)["failed"]:
    sys.exit(1)
