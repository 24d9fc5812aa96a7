"""A small Slim on the speech that comes with the package: minutes on 2 cores.

  bash launch/local.sh
  python -m ssl_jax.main --config=configs/smoke.py:objective=wav2vec2

objective: hubert (default), wav2vec2, tera, for equal FLOPs.

Log-mel frames in place of the waveform stem, which at this size would be 95 %
of the cost: the encoder then sees many epochs and the loss falls visibly.
"""

from ml_collections import ConfigDict

from ssl_jax import config as config_lib
from ssl_jax.errors import UserError

# Of equal FLOPs: 6.5e12.
_UPDATES = {"hubert": 580, "wav2vec2": 535, "tera": 600}


def get_config(arg: str | None = None) -> ConfigDict:
  """Returns the config of `arg`, e.g. "objective=tera"."""
  objective = config_lib.parse_arg(arg, objective="hubert")["objective"]
  if objective not in _UPDATES:
    said = config_lib.nearest(objective, _UPDATES)
    raise UserError(f"unknown objective {objective!r}; {said}")
  config = config_lib.base()
  config_lib.set_size(config, "30")
  config.frontend.name = "logmel"
  config.objective.name = objective
  if objective == "wav2vec2":
    config.masking.mask_prob = 0.65

  config.data.source = "embedded"
  config.data.min_seconds = 0.3
  config.data.bucket_seconds = (1.0, 2.5)
  config.batch.seconds = 16.0

  config.optimizer.learning_rate = 1e-3
  config.budget.updates = _UPDATES[objective]
  config.log.every = 20
  config.eval.every = 100
  config.checkpoint.every = 100
  return config
