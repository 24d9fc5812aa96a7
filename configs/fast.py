"""Recipes that buy an encoder with fewer FLOPs: HuBERT on log-mel frames.

  python -m ssl_jax.main --config=configs/fast.py --config.data.dir=LibriSpeech
  python -m ssl_jax.main --config=configs/fast.py:recipe=mel,scale=smoke

recipe: what differs from the control, each measured in docs/results/race.md.
  control: the scale's own HuBERT, but for log-mel frames in place of the
    waveform stem: at Slim's shape 3.2 times cheaper a second of audio.
  mel (default): linear logits of masked frames, positions of 31 frames (0.6 s),
    no dropout. At 1.3 M parameters it reaches the control's phone accuracy
    with 2.9 times fewer FLOPs (90 % 2.1 to 3.8) at 2.4e13, ten minutes of a
    core; both have 46 % in the end.
  visible: mel, and only the half of the frames that is not masked passes the
    encoder in training; four convolutions fill in the others (data2vec 2.0).
    It hears 1.8 times the audio, and finds fewer phones than mel from 6e12
    FLOPs on (one seed).
size: as of configs/slim.py; a shape, as in 4x192x320x4.
scale: slim (default): settings, data and size of configs/slim.py. smoke: those
  of configs/smoke.py, small models on the packaged speech.
budget: training FLOPs. Default: a fifth of Slim's 1.33e18, or smoke's. Of the
  quality at Slim's shape nothing is measured yet: what is, is at 1 M parameters
  and below 1e14 FLOPs.
"""

from os.path import relpath
from pathlib import Path

from ml_collections import ConfigDict

from ssl_jax import config as config_lib
from ssl_jax.errors import UserError, check_choice

_FLOPS = {"slim": 1.33e18 / 5, "smoke": 0.0}  # 0: as the scale's own.


def get_config(arg: str | None = None) -> ConfigDict:
  """Returns the config of `arg`, e.g. "recipe=mel,size=50,budget=1e17"."""
  values = config_lib.parse_arg(
    arg, recipe="mel", size="", scale="slim", budget=""
  )
  scale, size = values["scale"], values["size"]
  check_choice("recipe", values["recipe"], RECIPES)
  check_choice("scale", scale, _FLOPS)
  path = relpath(Path(__file__).with_name(f"{scale}.py"))
  config = config_lib.load(f"{path}:size={size}" if size else path)
  config.recipe = values["recipe"]
  config.frontend.name = "logmel"
  flops = _FLOPS[scale]
  if values["budget"]:
    try:
      flops = float(values["budget"])
    except ValueError:
      flops = 0.0
    if not 0 < flops < float("inf"):
      raise UserError(
        f"budget={values['budget']!r}: expected training FLOPs, as in 1e17"
      )
  if flops:
    config.budget.updates, config.budget.flops = 0, flops
  RECIPES[values["recipe"]](config)
  return config


def _control(config: ConfigDict) -> None:
  del config


def _mel(config: ConfigDict) -> None:
  config.hubert.loss = "linear"
  config.encoder.position_kernel = 31
  for kind in ("input_dropout", "dropout", "attention_dropout", "layerdrop"):
    config.encoder[kind] = 0.0


def _visible(config: ConfigDict) -> None:
  _mel(config)
  config.encoder.visible_only, config.masking.share = True, 0.5


RECIPES = {"control": _control, "mel": _mel, "visible": _visible}
