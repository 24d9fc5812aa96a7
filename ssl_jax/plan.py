"""Plans a run for a budget: size, updates, data, and the loss to expect.

  python -m ssl_jax.plan --budget=1.3e18
  python -m ssl_jax.plan --device=v5e-8 --device_hours=8 --price=9.6
  python -m ssl_jax.plan --device=here --device_hours=2 --hours=100
  python -m ssl_jax.plan --budget=1e17 --runs=runs/isoflop

The law behind it is fitted to the study's published runs (LibriSpeech 960 h,
waveform stem) and to finished runs of your own. Another corpus or frontend has
other losses: without runs of your own, take the order of sizes from it. Padding
is not counted: the run that a budget of FLOPs buys is shorter by its share. The
last line on stdout is a JSON object.
"""

import logging
import os
from pathlib import Path

from absl import flags

from ssl_jax import cli

_BUDGET = flags.DEFINE_float(
  "budget", None, "FLOPs to spend on training.", lower_bound=1.0
)
_DEVICE = flags.DEFINE_string(
  "device",
  None,
  "Accelerators to run on: v5e-8, v4-32, v6e-4, h100, a100-8 ..., or here: "
  "this machine, measured by a short run.",
)
_DEVICE_HOURS = flags.DEFINE_float(
  "device_hours",
  None,
  "Hours to train on all of --device together, in place of --budget.",
  1e-6,
)
_MFU = flags.DEFINE_float(
  "mfu",
  0.3,
  "Share of the device's peak FLOPs that training reaches: an assumption, "
  "unless you measured it (`mfu` in a run's result).",
  1e-4,
  1.0,
)
_PRICE = flags.DEFINE_float(
  "price", None, "Price of an hour of all of --device, in any currency.", 0.0
)
_OBJECTIVE = flags.DEFINE_string(
  "objective", "hubert", "Objective to train, as --config.objective.name."
)
_FAMILY = flags.DEFINE_string(
  "family", "configs/slim.py", "Config file whose size= and objective= are set."
)
_HOURS = flags.DEFINE_float(
  "hours", 960.0, "Hours of audio in the corpus, to count epochs.", 1e-6
)
_RUNS = flags.DEFINE_multi_string(
  "runs",
  [],
  "Workdir of a finished run, or a folder of such, to fit the law to.",
)
_AUDIO = flags.DEFINE_string(
  "audio", "AUDIO", "Folder of the corpus, for the command that is printed."
)


def main() -> dict:
  """Plans; returns the JSON object."""
  # Imported late: --help and usage errors need no JAX.
  from ssl_jax import config as config_lib
  from ssl_jax.budget import planner
  from ssl_jax.budget.law import Candidate
  from ssl_jax.budget.updates import update_flops
  from ssl_jax.devices import chips
  from ssl_jax.errors import UsageError, check_choice
  from ssl_jax.measure import calibrate
  from ssl_jax.objectives import OBJECTIVES, make_objective
  from ssl_jax.objectives.inputs import num_params

  if (_BUDGET.value is None) == (_DEVICE_HOURS.value is None):
    raise UsageError("give --budget, or --device_hours with --device")
  if _DEVICE_HOURS.value is not None and not _DEVICE.value:
    raise UsageError("--device_hours needs --device: v5e-8, h100, here ...")
  if _PRICE.value is not None and not _DEVICE.value:
    raise UsageError("--price is of an hour of --device: give one")
  check_choice("--objective", _OBJECTIVE.value, OBJECTIVES)
  named = _DEVICE.value not in (None, "", "here")
  peak = chips.peak(_DEVICE.value) if named else None
  own = [run for d in _RUNS.value for run in planner.read_runs(Path(d))]
  law, laws, setting, points = planner.fit(_OBJECTIVE.value, own)

  def load(size: str) -> config_lib.ConfigDict:
    return config_lib.load(
      f"{_FAMILY.value}:size={size},objective={_OBJECTIVE.value}"
    )

  configs = {size: load(size) for size in config_lib.SIZES if size != "small"}
  candidates = [
    Candidate(size, num_params(c), update_flops(c) / c.batch.seconds)
    for size, c in configs.items()
  ]
  batch_seconds = configs["100"].batch.seconds

  speed = basis = None
  if _DEVICE.value == "here":
    speed = calibrate.flops_per_second(configs["100"])
    basis = "measured, size 100"
  elif peak:
    speed = peak * _MFU.value
    basis = f"{_MFU.value:.0%} of peak, " + (
      "as given" if cli.FLAGS["mfu"].present else "an assumption: see --mfu"
    )
  flops = _BUDGET.value or _DEVICE_HOURS.value * 3600 * speed
  made = planner.plan(
    law,
    laws,
    setting,
    flops,
    candidates,
    batch_seconds,
    _HOURS.value,
    make_objective(configs["100"]).guess(),
  )
  made["setting"] = setting
  made["command"] = planner.command(
    _FAMILY.value, made["size"], _OBJECTIVE.value, flops, _AUDIO.value
  )
  frontend = configs["100"].frontend.name
  if frontend not in (setting if own else "waveform"):
    made["outside"].append(f"none of the fitted runs has frontend {frontend}")
  if speed:
    hours = made["flops"] / speed / 3600
    cost = None if _PRICE.value is None else hours * _PRICE.value
    made |= {"device": _DEVICE.value, "flops_per_second": speed, "basis": basis}
    made |= {"hours": hours, "cost": cost}
  text = planner.table(made, law, setting, len(points))
  logging.getLogger("ssl_jax").info("%s", text)
  return made


if __name__ == "__main__":
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  cli.run(main)
