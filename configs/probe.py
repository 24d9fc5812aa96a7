"""The worth of a frozen encoder: measures, and SUPERB's tasks.

  python -m ssl_jax.probe --config=configs/probe.py:task=words --checkpoint=RUN
  python -m ssl_jax.probe --config=configs/probe.py:task=phone,profile=study \\
      --checkpoint=RUN --config.data.dir=CORPUS
  python -m ssl_jax.probe --config=configs/probe.py:task=all --checkpoint=RUN
  python -m ssl_jax.probe --config=configs/probe.py:task=pr,profile=full \\
      --checkpoint=RUN --config.data.source=tfds \\
      --config.data.name=librispeech --config.data.train_split=train_clean100

task: words (the same word by another speaker), phone (frames), abx, units
  (clusters against phones), rank; SUPERB's pr (phones), asr (characters), ks
  (keywords), sid (speakers), asv (speaker verification), er (emotions), ic
  (intents); all: those that the packaged clips are enough for.
profile: smoke (default): minutes on the packaged clips. study: a folder with
  metadata.jsonl and phones.jsonl. mini: after MiniSUPERB (smaller heads, 20,000
  updates, normalised features). full: SUPERB's.
"""

from ml_collections import ConfigDict

from ssl_jax import config as config_lib
from ssl_jax.errors import check_choice
from ssl_jax.probes import TASKS
from ssl_jax.probes import config as probe_config
from ssl_jax.probes.zero_shot import MeasureKind


def get_config(arg: str | None = None) -> ConfigDict:
  """Returns the config of `arg`, e.g. "task=sid,profile=mini"."""
  values = config_lib.parse_arg(arg, task="ks", profile="smoke")
  check_choice("task", values["task"], [*TASKS, "all"])
  check_choice("profile", values["profile"], probe_config.PROFILES)
  config = probe_config.base()
  config.update(values)
  if config.task == "all":  # The door reads the config of each task.
    return config
  if config.profile == "study":
    config.data.source, config.data.split_key = "manifest", "split"
  task, head, fit = TASKS[config.task], config.head, config.fit
  if isinstance(task, MeasureKind):  # It has no head to be trained.
    if config.profile == "smoke":
      config.update_from_flattened_dict(task.smoke)
    return config
  head.projector, fit.updates, fit.batch_size, *rest = task.recipe
  fit.eval_every, fit.clip_norm = rest
  if config.profile == "full":
    return config
  config.features.normalize = True
  head.projector = 256
  fit.updates, fit.eval_every = 20_000, 1_000
  config.update_from_flattened_dict(task.mini)
  if config.profile == "smoke":
    fit.num_seeds = 3
    fit.learning_rates = (1e-1, 1e-2, 1e-3)
    fit.updates, fit.eval_every, fit.batch_size = 500, 50, 16
    head.recurrent_layers, head.recurrent_size = 2, 64
    head.projector = 128
    config.update_from_flattened_dict(task.smoke)
  return config
