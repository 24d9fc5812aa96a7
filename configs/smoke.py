"""A small Slim on the speech that comes with the package: minutes on 2 cores.

  bash launch/local.sh
  python -m ssl_jax.main --config=configs/smoke.py:objective=wav2vec2

objective: hubert (default), wav2vec2, tera, for equal FLOPs.
size: 30 (default), as of configs/slim.py, or a shape, as in 3x96x192x4.

Log-mel frames in place of the waveform stem, which at this size would be 95 %
of the cost: the encoder then sees many epochs and the loss falls visibly.
"""

from ml_collections import ConfigDict

from ssl_jax import config as config_lib
from ssl_jax.errors import check_choice
from ssl_jax.objectives import OBJECTIVES


def get_config(arg: str | None = None) -> ConfigDict:
  """Returns the config of `arg`, e.g. "objective=tera"."""
  values = config_lib.parse_arg(arg, objective="hubert", size="30")
  check_choice("objective", values["objective"], OBJECTIVES)
  config = config_lib.base()
  config_lib.set_size(config, values["size"])
  config.frontend.name = "logmel"
  config.frontend.mel_norm = "fixed"  # Keeps what tells speakers apart.
  config.objective.name = values["objective"]
  if config.objective.name == "wav2vec2":
    config.masking.mask_prob = 0.65

  config.data.source = "embedded"
  config.data.min_seconds = 0.3
  config.data.bucket_seconds = (1.0, 2.5)
  config.batch.seconds = 16.0

  config.optimizer.learning_rate = 1e-3
  config.budget.updates, config.budget.flops = 0, 6.52e12
  config.log.every = 20
  config.eval.every = 100
  config.checkpoint.every = 100
  return config
