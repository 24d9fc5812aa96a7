"""SUPERB's tasks on a frozen encoder.

  python -m ssl_jax.probe --config=configs/probe.py:task=ks --checkpoint=RUN
  python -m ssl_jax.probe --config=configs/probe.py:task=all --checkpoint=RUN
  python -m ssl_jax.probe --config=configs/probe.py:task=pr,profile=full \\
      --checkpoint=RUN --config.data.source=tfds \\
      --config.data.name=librispeech --config.data.train_split=train_clean100 \\
      --config.features.cache_gb=400

task: pr (phones), asr (characters), ks (keywords), sid (speakers), asv
  (speaker verification), er (emotions), ic (intents); all: those the packaged
  clips have labels for (ks, sid, pr, asr).
profile: smoke (default): minutes on the packaged clips. mini: after MiniSUPERB
  (smaller heads, 20,000 updates, normalised features). full: SUPERB's.
"""

from ml_collections import ConfigDict

from ssl_jax import config as config_lib
from ssl_jax.errors import UserError, nearest
from ssl_jax.probes import TASKS
from ssl_jax.probes import config as probe_config

PROFILES = ("smoke", "mini", "full")

# SUPERB: projector, updates, clips a batch (with accumulation), evaluation
# every, norm that gradients are clipped to.
_FULL = {
  "pr": (256, 100_000, 32, 1_000, 1.0),
  "asr": (1024, 200_000, 16, 2_000, 1.0),
  "ks": (256, 200_000, 32, 5_000, 1.0),
  "sid": (256, 200_000, 32, 5_000, 1.0),
  "asv": (512, 200_000, 50, 20_000, 1_000.0),
  "er": (256, 30_000, 32, 1_000, 1.0),
  "ic": (256, 200_000, 32, 5_000, 1.0),
}


def get_config(arg: str | None = None) -> ConfigDict:
  """Returns the config of `arg`, e.g. "task=sid,profile=mini"."""
  values = config_lib.parse_arg(arg, task="ks", profile="smoke")
  for key, choices in (("task", [*TASKS, "all"]), ("profile", PROFILES)):
    if values[key] not in choices:
      said = nearest(values[key], choices)
      raise UserError(f"unknown {key} {values[key]!r}; {said}")
  config = probe_config.base()
  config.task, config.profile = values["task"], values["profile"]
  task = config.task if config.task in _FULL else "ks"
  head, fit = config.head, config.fit
  head.projector, fit.updates, fit.batch_size, *rest = _FULL[task]
  fit.eval_every, fit.clip_norm = rest
  if config.profile == "full":
    return config
  config.features.normalize = True
  head.projector = 256
  fit.updates, fit.eval_every = 20_000, 1_000
  if task == "asr":
    head.recurrent_layers, head.recurrent_size = 3, 256
  if config.profile == "smoke":
    fit.num_seeds = 3
    fit.learning_rates = (1e-1, 1e-2, 1e-3)
    fit.updates, fit.eval_every, fit.batch_size = 500, 50, 16
    head.recurrent_layers, head.recurrent_size = 2, 64
    head.projector = 128
    if task == "asr":  # Its small BiLSTM is slow to start.
      fit.learning_rates = (3e-2, 1e-2)
      fit.updates, fit.eval_every, head.recurrent_size = 300, 100, 32
    if task == "ks":
      config.where = ("label_type=digit",)
    if task in ("pr", "asr"):
      config.where = ("text",)
  return config
