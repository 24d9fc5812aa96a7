"""The study's models: one encoder, three objectives, every published size.

  python -m ssl_jax.main --config=configs/slim.py --config.data.dir=LibriSpeech
  python -m ssl_jax.main --config=configs/slim.py:size=50,objective=tera ...

size: 30, 40, 50, 60, 70, 80, 90, 100 (default), 130, 160, 190, 200 per cent of
  Slim's parameters, or small, base, large. Each trains for as many updates as
  cost what Slim's 400,000 do: 1.3e18 FLOPs, 18 epochs of LibriSpeech at 100 %.
objective: hubert (default), wav2vec2, tera; any other has HuBERT's recipe.
  bestrq is HuBERT's with labels of a random projection and log-mel frames as
  its input (Chiu et al. 2022), for as many FLOPs.
iteration: for hubert. single (default): labels are k-means on MFCC, fitted at
  start, for the whole budget, as the other objectives have it. The study's two:
  1, the same labels for five eighths of the budget; 2, labels that `python -m
  ssl_jax.label` made of an encoder of iteration 1 (layer 6 of 100, layer 2 of
  small; 500 clusters), given by --config.hubert.labels=DIR, for the whole
  budget. It trained iteration 1 at 100 and small only, and labelled for every
  other size with 100's.
budget: full (default), half.
"""

from os.path import relpath

from ml_collections import ConfigDict

from ssl_jax import config as config_lib
from ssl_jax.budget import updates as updates_lib
from ssl_jax.errors import UserError, nearest
from ssl_jax.objectives import OBJECTIVES

# paper.md, "Architectures": updates; peak learning rate of HuBERT and TERA, and
# of wav2vec 2.0. The two sizes whose updates are not published (None), and any
# other shape, get them from their FLOPs.
_RECIPE = {
  "small": (400_000, 5e-4, 5e-4),
  "30": (550_070, 5e-4, 4e-4),
  "40": (None, 5e-4, 4e-4),
  "50": (499_953, 5e-4, 4e-4),
  "60": (477_321, 5e-4, 4e-4),
  "70": (454_811, 5e-4, 4e-4),
  "80": (None, 5e-4, 4e-4),
  "90": (414_242, 5e-4, 4e-4),
  "100": (400_000, 5e-4, 4e-4),
  "130": (363_047, 5e-4, 4e-4),
  "160": (328_915, 5e-4, 4e-4),
  "190": (304_098, 5e-4, 4e-4),
  "200": (297_370, 4e-4, 3e-4),
  "base": (187_222, 3e-4, 2e-4),
  "large": (72_234, None, 1e-4),
}
_LARGE_LEARNING_RATE = {"hubert": 2e-4, "tera": 5e-5}

_CHOICES = {
  "objective": (*OBJECTIVES, "bestrq"),
  "iteration": ("single", "1", "2"),
  "budget": ("full", "half"),
}


def get_config(arg: str | None = None) -> ConfigDict:
  """Returns the config of `arg`, e.g. "size=200,objective=wav2vec2"."""
  values = config_lib.parse_arg(
    arg, size="100", objective="hubert", iteration="single", budget="full"
  )
  for key, choices in _CHOICES.items():
    if values[key] not in choices:
      message = nearest(values[key], choices)
      raise UserError(f"unknown {key} {values[key]!r}; {message}")
  size, objective = values["size"].removesuffix("%"), values["objective"]
  if values["iteration"] != "single" and objective != "hubert":
    raise UserError(f"{objective} has no iterations: leave out iteration=")
  config = config_lib.base()
  config_lib.set_size(config, size)
  config.objective.name = objective
  if objective == "bestrq":
    _set_bestrq(config)

  updates, rate, wav2vec2_rate = _RECIPE.get(size, (None, 5e-4, 4e-4))
  warmup = 32_000  # At every size and budget.
  if updates is None or objective == "bestrq":
    slim = config_lib.base()
    slim.objective.name = config.objective.name
    updates = updates_lib.matched(config, slim)
  if objective == "wav2vec2":
    rate = wav2vec2_rate
    config.masking.mask_prob = 0.65
  config.optimizer.learning_rate = rate or _LARGE_LEARNING_RATE.get(
    objective, _LARGE_LEARNING_RATE["hubert"]
  )
  if size == "large":
    _set_large(config)
    if objective != "wav2vec2":
      updates, config.batch.seconds = 160_144, 78.0  # Half the batch.
  if values["iteration"] == "2":
    config.hubert.labels, config.hubert.clusters = "", (500,)
    earlier = "small" if size == "small" else "100"
    config.hubert.earlier = f"{relpath(__file__)}:size={earlier},iteration=1"
  elif values["iteration"] == "1":
    updates, warmup = round(updates * 250_000 / 400_000), 20_000
  config.budget.updates = updates // (2 if values["budget"] == "half" else 1)
  # As a fraction, so that a run cut short with --config.budget.updates keeps
  # its shape.
  config.optimizer.warmup_fraction = warmup / config.budget.updates
  return config


def _set_bestrq(config: ConfigDict) -> None:
  config.objective.name = "hubert"
  config.frontend.name = "logmel"  # Each clip normalised, as labels are.
  config.hubert.labels, config.hubert.clusters = "rq", (8192,)
  config.hubert.loss = "linear"


def _set_large(config: ConfigDict) -> None:
  encoder = config.encoder
  encoder.input_dropout = encoder.dropout = encoder.attention_dropout = 0.0
  encoder.layerdrop = 0.0
  config.frontend.grad_mult = 1.0
  config.hubert.final_dim = 768
  config.wav2vec2.final_dim = config.wav2vec2.code_dim = 768
  config.wav2vec2.temperature_end = 0.1
  config.wav2vec2.feature_dropout = 0.0
  if config.objective.name == "hubert":
    config.frontend.norm = "layer"
    config.frontend.normalize_waveform = True
