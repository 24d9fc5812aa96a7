"""A race of the recipes of configs/fast.py at equal FLOPs.

  python -m ssl_jax.sweep --config=configs/race.py --workdir=runs/race \\
      --config.data.source=records --config.data.dir=PREPARED \\
      --config.probe_dir=CORPUS "--config.probes=('phone', 'words')"
  python -m ssl_jax.report runs/race

scale: smoke (default): a model of 1.3 M parameters, hours of two cores. slim:
  Slim's shape, for a GPU or a slice.

A recipe's budgets are branches of one run with a constant learning rate. The
report says how many times fewer FLOPs than the control each recipe needs for
the same score, with an interval over speakers and seeds.
"""

from ml_collections import ConfigDict

from ssl_jax import config as config_lib
from ssl_jax.errors import check_choice

_SCALES = {
  "smoke": ("30", (3e12, 6e12, 1.2e13, 2.4e13)),
  "slim": ("100", (1e15, 2e15, 4e15, 8e15)),
}


def get_config(arg: str | None = None) -> ConfigDict:
  """Returns the family of `arg`: not a run's config, but what its runs are."""
  scale = config_lib.parse_arg(arg, scale="smoke")["scale"]
  check_choice("scale", scale, _SCALES)
  size, flops = _SCALES[scale]
  family = ConfigDict()
  family.config = f"configs/fast.py:scale={scale}"
  family.recipe = ("control", "mel")
  family.size, family.flops = (size,), flops
  family.hours = (0.0,)  # Hours of training audio; 0: all.
  family.seed = (0, 1, 2)
  family.decay_fraction = 0.2  # Share of the updates after the warm-up.
  # Tasks of ssl_jax.probe that score each run: on the packaged clips, or on the
  # corpus in `probe_dir`, as `phone` needs.
  family.probes, family.probe_dir = ("words",), ""
  return family
