"""Training that goes on from an encoder that is there: config.init_from."""

import logging
from typing import Any

import jax
from ml_collections import ConfigDict

from ssl_jax.config import flatten, knobs
from ssl_jax.objectives import make_objective
from ssl_jax.pretrained.heads import load_heads
from ssl_jax.pretrained.load import Encoder, load_encoder

_log = logging.getLogger("ssl_jax")


def adopt(config: ConfigDict) -> ConfigDict:
  """Returns the config with the architecture of `config.init_from`, if any.

  Raises:
    UserError: it cannot be read.
  """
  if not config.init_from:
    return config
  encoder = load_encoder(config.init_from)
  theirs, ours = flatten(encoder.config), flatten(config)
  architecture = [
    key.partition(".")[::2]
    for key, knob in knobs().items()
    if knob.role == "architecture"
  ]
  adopted = {
    f"{section}.{name}": theirs[f"{section}.{name}"]
    for section, name in architecture
    if section in ("frontend", "encoder")
  }
  if heads := _heads(config, encoder):
    adopted |= {
      f"{section}.{name}": heads[0][name]
      for section, name in architecture
      if section == config.objective.name
    }
  changed = {k: v for k, v in adopted.items() if v != ours[k]}
  config = config.copy_and_resolve_references()
  config.update_from_flattened_dict(changed)
  changes = ", ".join(f"{k}={v!r}" for k, v in changed.items())
  _log.info(
    "architecture of %s%s", config.init_from, changes and f": {changes}"
  )
  return config


def fill(config: ConfigDict, params: Any) -> Any:
  """Puts the parameters of `config.init_from` in place of fresh ones.

  The head too where the objective continues heads and one was saved (wav2vec
  2.0: its quantizer and projections); others start afresh, as their targets do.

  Args:
    config: as `adopt` returns it.
    params: of the objective, on their devices; what replaces them lies as they
      do.
  """
  encoder = load_encoder(config.init_from)
  loaded = {"backbone": encoder.params}
  if heads := _heads(config, encoder):
    loaded |= heads[1]

  def place(value: Any, fresh: jax.Array) -> jax.Array:
    return jax.make_array_from_callback(
      fresh.shape, fresh.sharding, lambda index: value[index]
    )

  # The decoder of `encoder.visible_only` is of no use beyond a run.
  started = sorted(params["backbone"].keys() - encoder.params.keys())
  fresh = sorted(params.keys() - loaded.keys()) + started
  _log.info(
    "parameters of %s%s",
    config.init_from,
    f"; fresh ones of {', '.join(fresh)}" if fresh else "",
  )
  placed = {
    name: jax.tree.map(place, tree, {key: params[name][key] for key in tree})
    for name, tree in loaded.items()
  }
  placed["backbone"] = params["backbone"] | placed["backbone"]
  return params | placed


def _heads(
  config: ConfigDict, encoder: Encoder
) -> tuple[dict[str, Any], Any] | None:
  """Returns the encoder's head, where it is one of the run's objective."""
  same = encoder.config.objective.name == config.objective.name
  if not same or not make_objective(config).continues_heads:
    return None
  return load_heads(encoder)
