"""Probes a frozen encoder: measures of its frames, and SUPERB's tasks.

  python -m ssl_jax.probe --config=configs/probe.py:task=words --checkpoint=RUN
  python -m ssl_jax.probe --config=configs/probe.py:task=all --checkpoint=RUN
  python -m ssl_jax.probe --config=configs/probe.py:task=ks \\
      --encoder=logmel,hf:DIR

Beside the model stand its untrained twin, log-mel frames and MFCC, unless
--encoder asks for others. Scores go to RUN/probes/TASK-PROFILE.json and .png,
features to a cache that may be deleted at any time. The last line on stdout is
a JSON object.
"""

import logging
import os
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from ssl_jax import cli

_OURS = ("model", "random", "logmel", "mfcc")

_CHECKPOINT = flags.DEFINE_list(
  "checkpoint",
  [],
  "The encoder: a training run's workdir (its newest checkpoint), or "
  "WORKDIR/checkpoints/UPDATE, or hf:DIR. Several, separated by commas, are "
  "pretraining seeds of one recipe: their scores are averaged, and their "
  "spread is part of the error.",
)
_ENCODER = flags.DEFINE_list(
  "encoder",
  [*_OURS],
  "Encoders, compared with the first: model: that of --checkpoint; random: "
  "untrained, of its architecture; logmel, mfcc: no encoder; another run's "
  "workdir; hf:DIR: a HuBERT or wav2vec 2.0 that transformers saved.",
)
_OUT = flags.DEFINE_string(
  "out", None, "Folder of scores. Default: probes/ in the encoder's workdir."
)
_CACHE = flags.DEFINE_string(
  "cache", None, "Folder of features. Default: ~/.cache/ssl_jax/features."
)


def main() -> dict:
  """Probes; returns the result, of all tasks by name for task=all."""
  # Imported late: --help and usage errors need no JAX.
  from ssl_jax.devices import sharding
  from ssl_jax.errors import UsageError
  from ssl_jax.files import cache_folder
  from ssl_jax.probes import encoders, run

  names = _ENCODER.value
  if not names or len({*names}) < len(names):
    raise UsageError(f"--encoder={','.join(names)}: expected each once")
  if {"task", "profile"} & {*cli.FLAGS["config"].override_values}:
    raise UsageError(
      "give task and profile after a colon, which sets what goes with them: "
      "--config=configs/probe.py:task=sid,profile=mini"
    )
  for name in names:
    if name not in _OURS and not (
      name.startswith("hf:") or Path(name).is_dir()
    ):
      raise UsageError(
        f"--encoder={name}: expected {', '.join(_OURS)}, a workdir or hf:DIR"
      )
  if {"model", "random"} & {*names} and not _CHECKPOINT.value:
    raise UsageError(
      "--checkpoint is missing: give the workdir of a trained encoder, or "
      "--encoder=logmel"
    )
  config = cli.FLAGS.config
  compared, beside = encoders.open_candidates(
    names, _CHECKPOINT.value, config.seed
  )
  results = [
    run.probe(
      one,
      compared,
      Path(_CACHE.value) if _CACHE.value else cache_folder("features"),
      Path(_OUT.value) if _OUT.value else beside / "probes",
      sharding.by_row(sharding.make_mesh()),
    )
    for one in _each(config)
  ]
  logging.getLogger("ssl_jax").info("%s", run.table(results))
  short = {result["task"]: run.short(result) for result in results}
  return short if config.task == "all" else short[config.task]


def _each(config: ConfigDict) -> list[ConfigDict]:
  """Returns the config, or for task=all every task's, with its overrides."""
  if config.task != "all":
    return [config]
  from ssl_jax import config as config_lib
  from ssl_jax.probes import TASKS

  flag, configs = cli.FLAGS["config"], []
  for task in [name for name, kind in TASKS.items() if kind.packaged]:
    argument = f"task={task},profile={config.profile}"
    path = flag.config_filename.partition(":")[0]
    one = config_lib.load(f"{path}:{argument}")
    one.update_from_flattened_dict(flag.override_values)
    configs.append(one)
  return configs


if __name__ == "__main__":
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  cli.define_config(None)
  cli.run(main)
