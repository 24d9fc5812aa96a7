"""A small Slim on the speech that comes with the package: minutes on 2 cores.

  bash launch/local.sh

Log-mel frames in place of the waveform stem, which at this size would be 95 %
of the cost: the encoder then sees many epochs and the loss falls visibly.
"""

from ml_collections import ConfigDict

from ssl_jax import config as config_lib


def get_config(arg: str | None = None) -> ConfigDict:
  """Returns the config of `arg`, e.g. "objective=tera"."""
  values = config_lib.parse_arg(arg, objective="hubert")
  config = config_lib.base()
  config_lib.set_size(config, "30")
  config.frontend.name = "logmel"
  config.objective.name = values["objective"]

  config.data.source = "embedded"
  config.data.min_seconds = 0.3
  config.data.bucket_seconds = (1.0, 2.5)
  config.batch.seconds = 16.0

  config.optimizer.learning_rate = 1e-3
  config.budget.updates = 600
  config.log.every = 20
  config.eval.every = 100
  config.checkpoint.every = 100
  return config
