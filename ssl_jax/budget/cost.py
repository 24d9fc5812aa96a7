"""The cost of a run, from its config alone."""

from typing import Any

from ml_collections import ConfigDict

from ssl_jax import SAMPLE_RATE
from ssl_jax import config as config_lib
from ssl_jax.budget import updates as updates_lib
from ssl_jax.budget.flops import REFERENCE_CROP, forward_flops, readable
from ssl_jax.errors import UserError
from ssl_jax.objectives import make_objective
from ssl_jax.optimizers import schedule as schedule_lib
from ssl_jax.text import two_columns

_PARTS = "stem,projection,positions,attention,ffn,decoder,head".split(",")


def facts(
  config: ConfigDict, params: int, hours: float, with_earlier: bool
) -> dict[str, Any]:
  """Counts of a run, FLOPs where nothing else is said.

  Args:
    config: of the run.
    params: of its model.
    hours: of its corpus.
    with_earlier: the budget also pays for stored labels: for the run that
      trained their encoder (`Objective.earlier`), and for labelling.

  Raises:
    UserError: the budget does not last for more than the warm-up.
  """
  config = updates_lib.match(config)
  forward = updates_lib.clip_flops(config, REFERENCE_CROP)
  per_update = updates_lib.update_flops(config)
  earlier = labelling = 0.0
  if origin := make_objective(config).earlier():
    other = config_lib.load(origin)
    earlier = updates_lib.run_flops(other)
    crops = hours * 3600 * SAMPLE_RATE / REFERENCE_CROP
    head = make_objective(other).head_flops(REFERENCE_CROP)
    labelling = crops * forward_flops(other, REFERENCE_CROP, head).total
  if with_earlier:
    left = updates_lib.run_flops(config) - earlier - labelling
    if left <= 0:
      raise UserError(
        f"the labels alone cost {readable(earlier + labelling)}FLOP of a "
        f"budget of {readable(updates_lib.run_flops(config))}FLOP: raise it"
      )
    config.budget.update(updates=0, flops=left, match="")
  samples = round(hours * 3600 * SAMPLE_RATE)
  config = updates_lib.resolve(config, num_samples=samples)
  before = updates_lib.before_flops(config, samples)
  updates = config.budget.updates
  audio_hours = updates * config.batch.seconds / 3600
  return {
    "params": params,
    "forward_flops_per_crop": forward.total,
    "forward_flops_per_audio_second": forward.total
    * SAMPLE_RATE
    / REFERENCE_CROP,
    "forward_parts": {part: getattr(forward, part) for part in _PARTS},
    "target_flops_per_crop": forward.targets,
    "stem_share": forward.stem / forward.total,
    "train_flops_per_update": per_update,
    "batch_seconds": config.batch.seconds,
    "updates": updates,
    "warmup_updates": schedule_lib.warmup_updates(config),
    "before_flops": before,
    "total_flops": before + updates * per_update,
    "earlier_flops": earlier,
    "labelling_flops": labelling,
    "audio_hours": audio_hours,
    "hours": hours,
    "epochs": audio_hours / hours,
  }


def table(facts: dict[str, Any], config: ConfigDict) -> str:
  """Returns the facts as a person reads them."""
  crop, forward = facts["forward_flops_per_crop"], facts["forward_parts"]
  rows = {
    "model": f"{config.objective.name}, {config.frontend.name} frontend, "
    f"{config.encoder.num_layers} x {config.encoder.hidden_size}, "
    f"{readable(facts['params'])} parameters",
    "forward": f"{readable(crop)}FLOP a crop of "
    f"{REFERENCE_CROP / SAMPLE_RATE:g} s, "
    f"{readable(facts['forward_flops_per_audio_second'])}FLOP a second",
  }
  for part, flops in forward.items():
    if part == "decoder" and not flops:
      continue
    rows[part] = f"{flops / crop:6.1%}  {readable(flops)}FLOP"
  targets = facts["target_flops_per_crop"]
  rows["targets"] = f"{targets / crop:6.1%}  {readable(targets)}FLOP beside it"
  rows |= {
    "update": f"{readable(facts['train_flops_per_update'])}FLOP, "
    f"{facts['batch_seconds']:g} s of audio",
    "run": f"{readable(facts['total_flops'])}FLOP, {facts['updates']:,} "
    f"updates, of which {facts['warmup_updates']:,} warm up",
    "data": f"{facts['audio_hours']:,.4g} h, {facts['epochs']:.4g} epochs of "
    f"{facts['hours']:g} h",
  }
  if facts["before_flops"]:
    rows["first"] = (
      f"{readable(facts['before_flops'])}FLOP of the run for an encoder that "
      "makes its labels, and for labelling"
    )
  if facts["earlier_flops"]:
    rows["labels"] = (
      f"{readable(facts['earlier_flops'])}FLOP for "
      f"{make_objective(config).earlier()}, "
      f"{readable(facts['labelling_flops'])}FLOP for labelling"
    )
  return two_columns(rows)
