"""An isoFLOP family: sizes x budgets (x objectives x hours x seeds).

  python -m ssl_jax.sweep --config=configs/isoflop.py --workdir=runs/isoflop \\
      --config.data.dir=LibriSpeech
  python -m ssl_jax.sweep --config=configs/isoflop.py:scale=smoke

scale: slim (default): the study's U-curves, eight sizes of HuBERT at its full
  and its half budget. smoke: four tiny shapes on the packaged speech, at two
  budgets, in under 20 minutes on 2 cores.
"""

from ml_collections import ConfigDict

from ssl_jax import config as config_lib
from ssl_jax.errors import UserError, nearest

_SCALES = ("slim", "smoke")


def get_config(arg: str | None = None) -> ConfigDict:
  """Returns the family of `arg`: not a run's config, but what its runs are."""
  scale = config_lib.parse_arg(arg, scale="slim")["scale"]
  if scale not in _SCALES:
    message = nearest(scale, _SCALES)
    raise UserError(f"unknown scale {scale!r}; {message}")
  family = ConfigDict()
  family.config = (
    f"configs/{scale}.py"  # The config of each run; takes size= and objective=.
  )
  family.objective = ("hubert",)
  family.hours = (0.0,)  # Hours of training audio; 0: all.
  family.seed = (0,)
  # Share of the updates after the warm-up. Below 1, a size's budgets share all
  # before the decay of each: all but the largest cost only their decay. 1: each
  # run is trained from scratch, and decays from its warm-up on, as the study's.
  family.decay_fraction = 0.2
  # Tasks of ssl_jax.probe that score each run: on the packaged clips, or on the
  # corpus in `probe_dir`, as `phone` needs.
  family.probes, family.probe_dir = (), ""
  if scale == "slim":
    family.size = ("30", "50", "70", "100", "130", "160", "200", "base")
    family.flops = (6.7e17, 1.33e18)
  else:
    family.size = ("1x16x32x4", "2x32x64x4", "2x64x128x4", "4x128x256x4")
    family.flops = (3e11, 9e11)
  return family
