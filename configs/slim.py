"""The study's models at its full budget: one encoder, every published size.

  python -m ssl_jax.main --config=configs/slim.py --config.data.dir=LibriSpeech
  python -m ssl_jax.main --config=configs/slim.py:size=50 ...

size: 30, 40, 50, 60, 70, 80, 90, 100 (default), 130, 160, 190, 200 per cent of
  Slim's parameters, or small, base, large. Each trains for as many updates as
  cost what Slim's 400,000 do: 1.3e18 FLOPs, 18 epochs of LibriSpeech at 100 %.
objective: tera.
"""

from ml_collections import ConfigDict

from ssl_jax import config as config_lib
from ssl_jax.budget import flops

# paper.md, "Architectures": updates and peak learning rate. The two sizes whose
# updates are not published (None) get them from their FLOPs.
_RECIPE = {
  "small": (400_000, 5e-4),
  "30": (550_070, 5e-4),
  "40": (None, 5e-4),
  "50": (499_953, 5e-4),
  "60": (477_321, 5e-4),
  "70": (454_811, 5e-4),
  "80": (None, 5e-4),
  "90": (414_242, 5e-4),
  "100": (400_000, 5e-4),
  "130": (363_047, 5e-4),
  "160": (328_915, 5e-4),
  "190": (304_098, 5e-4),
  "200": (297_370, 4e-4),
  "base": (187_222, 3e-4),
  "large": (160_144, 5e-5),
}


def get_config(arg: str | None = None) -> ConfigDict:
  """Returns the config of `arg`, e.g. "size=200,objective=tera"."""
  values = config_lib.parse_arg(arg, size="100", objective="tera")
  config = config_lib.base()
  size = values["size"].removesuffix("%")
  config_lib.set_size(config, size)
  config.objective.name = values["objective"]

  updates, config.optimizer.learning_rate = _RECIPE[size]
  if updates is None:
    updates = flops.matched_updates(config, config_lib.base())
  config.budget.updates = updates
  # 32,000 updates at every size, as published; as a fraction, so that a run
  # cut short with --config.budget.updates keeps its shape.
  config.optimizer.warmup_fraction = 32_000 / updates

  if size == "large":
    encoder = config.encoder
    encoder.input_dropout = encoder.dropout = encoder.attention_dropout = 0.0
    encoder.layerdrop = 0.0
    config.frontend.grad_mult = 1.0
    config.batch.seconds = 78.0  # 160,144 updates are at half the batch.
  return config
