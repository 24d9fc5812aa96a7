"""What a frozen encoder's features are worth: SUPERB's tasks.

  python -m ssl_jax.probe --config=configs/probe.py:task=ks --checkpoint=RUN
  python -m ssl_jax.probe --config=configs/probe.py:task=all --checkpoint=RUN
  python -m ssl_jax.probe --config=configs/probe.py --encoder=logmel

A head is trained on a learned weighting of all layers, for every learning rate
of the config and several seeds at once; what is best on dev is tested. Beside
the model stand its random twin and log-mel frames, unless --encoder asks for
one alone. Scores go to RUN/probes/TASK-PROFILE.json and .png, features to a
cache. The last line on stdout is a JSON object.
"""

import logging
import os
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from ssl_jax import cli

_ALL = ("ks", "sid", "pr", "asr")  # What the packaged clips have labels for.

_CHECKPOINT = flags.DEFINE_string(
  "checkpoint",
  None,
  "The encoder: a training run's workdir (its newest checkpoint), or "
  "WORKDIR/checkpoints/UPDATE.",
)
_ENCODER = flags.DEFINE_enum(
  "encoder",
  "all",
  ["all", "model", "random", "logmel"],
  "model: of --checkpoint; random: untrained, of its architecture; logmel: no "
  "encoder; all: the three.",
)
_OUT = flags.DEFINE_string(
  "out", None, "Where scores go. Default: probes/ in the encoder's workdir."
)
_CACHE = flags.DEFINE_string(
  "cache", None, "Of features. Default: ~/.cache/ssl_jax/features."
)


def main() -> dict:
  """Probes; returns the result, of all tasks by name for task=all."""
  # Imported late: --help and usage errors need no JAX.
  from ssl_jax.errors import UsageError
  from ssl_jax.probes import encoders, run
  from ssl_jax.training import sharding
  from ssl_jax.training.encoder import load_encoder

  chosen = _ENCODER.value
  if chosen != "logmel" and not _CHECKPOINT.value:
    raise UsageError(
      "--checkpoint is missing: give the workdir of a trained encoder, or "
      "--encoder=logmel"
    )
  config, compared, beside = cli.FLAGS.config, [], Path("runs")
  if chosen != "logmel":
    loaded = load_encoder(Path(_CHECKPOINT.value))
    beside = loaded.workdir
    if chosen != "random":
      compared.append(encoders.of_checkpoint(loaded))
    if chosen != "model":
      compared.append(encoders.random_twin(loaded, config.seed))
  if chosen in ("all", "logmel"):
    compared.append(encoders.log_mel())
  cache = Path.home() / ".cache" / "ssl_jax" / "features"
  results = [
    run.probe(
      one,
      compared,
      Path(_CACHE.value) if _CACHE.value else cache,
      Path(_OUT.value) if _OUT.value else beside / "probes",
      sharding.over_devices()[0],
    )
    for one in _each(config)
  ]
  logging.getLogger("ssl_jax").info("%s", run.table(results))
  short = {result["task"]: run.short(result) for result in results}
  return short if config.task == "all" else short[config.task]


def _each(config: ConfigDict) -> list[ConfigDict]:
  """The config, or for task=all that of every task, with the same overrides."""
  if config.task != "all":
    return [config]
  from ssl_jax import config as config_lib

  flag, configs = cli.FLAGS["config"], []
  for task in _ALL:
    argument = f"task={task},profile={config.profile}"
    path = flag.config_filename.partition(":")[0]
    one = config_lib.load(f"{path}:{argument}")
    one.update_from_flattened_dict(flag.override_values)
    configs.append(one)
  return configs


if __name__ == "__main__":
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  cli.define_config()
  cli.run(main)
