"""A small Slim on the speech that comes with the package: minutes on 2 cores.

  bash launch/local.sh
  python -m ssl_jax.main --config=configs/smoke.py:objective=wav2vec2

objective: hubert (default), wav2vec2, tera, for equal FLOPs.
size: 30 (default), as of configs/slim.py, or a shape, as in 3x96x192x4.

Log-mel frames in place of the waveform stem, which at this size would be 95 %
of the cost. What differs from the study's recipe is what a small model needs to
learn phones from an hour of speech (docs/results/probes.md, "A small model's
recipe").
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
  # Voices and microphones are taken off the input and the labels: telling them
  # apart is the easier half of the task, and no part of a phone.
  config.frontend.mel_norm = "clip"
  config.hubert.labels = "mfcc_clip"
  config.encoder.norm_first = True
  for kind in ("input_dropout", "dropout", "attention_dropout", "layerdrop"):
    config.encoder[kind] = 0.0  # Nothing is learned by heart in so short a run.
  config.objective.name = values["objective"]
  # Spans of 80 ms leave about half of a phone to be guessed from the rest.
  config.masking.mask_prob, config.masking.mask_length = 0.6, 4

  config.data.source = "embedded"
  config.data.min_seconds = 0.3
  # Half of the clips are words of under a second, and a twentieth is sentences
  # of 5 s to 25 s, of which each pass hears another crop. (A last bucket of 8 s
  # pads 3 % more for 12 % more of the audio a pass.)
  config.data.bucket_seconds = (1.0, 2.0, 5.0)
  config.batch.seconds = 16.0
  # Four times as many frames fit the speech 1 % better, in twice the time.
  config.kmeans.num_frames = 25_000

  config.optimizer.learning_rate = 2e-3
  config.budget.updates, config.budget.flops = 0, 6.52e12
  config.log.every = 20
  config.eval.every = 100
  config.checkpoint.every = 100
  return config
