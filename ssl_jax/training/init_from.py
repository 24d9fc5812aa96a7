"""Training that goes on from an encoder that is there: config.init_from."""

import logging
from typing import Any

import jax
from ml_collections import ConfigDict

from ssl_jax.config import flatten
from ssl_jax.pretrained.heads import load_heads
from ssl_jax.pretrained.load import load_encoder

_log = logging.getLogger("ssl_jax")

# What the encoder decides. How it is trained (dropout ...) is the run's.
_ARCHITECTURE = (
  "encoder.ffn_size",
  "encoder.hidden_size",
  "encoder.norm_first",
  "encoder.num_heads",
  "encoder.num_layers",
  "encoder.position_groups",
  "encoder.position_kernel",
  "frontend.conv_bias",
  "frontend.mel_norm",
  "frontend.name",
  "frontend.norm",
  "frontend.normalize_waveform",
  "frontend.num_mel_bins",
)
# And, of wav2vec 2.0, its quantizer.
_HEADS = ("code_dim", "final_dim", "num_codes", "num_groups")


def adopt(config: ConfigDict) -> ConfigDict:
  """Returns the config with the architecture of `config.init_from`, if any.

  Raises:
    UserError: it cannot be read.
  """
  if not config.init_from:
    return config
  encoder = load_encoder(config.init_from)
  theirs, ours = flatten(encoder.config), flatten(config)
  adopted = {key: theirs[key] for key in _ARCHITECTURE}
  if config.objective.name == "wav2vec2" and (heads := load_heads(encoder)):
    adopted |= {f"wav2vec2.{key}": heads[0][key] for key in _HEADS}
  changed = {k: v for k, v in adopted.items() if v != ours[k]}
  config = config.copy_and_resolve_references()
  config.update_from_flattened_dict(changed)
  said = ", ".join(f"{k}={v!r}" for k, v in changed.items())
  _log.info("architecture of %s%s", config.init_from, said and f": {said}")
  return config


def fill(config: ConfigDict, params: Any) -> Any:
  """Puts the parameters of `config.init_from` in place of fresh ones.

  wav2vec 2.0 gets its quantizer and projections as well, where they were saved;
  other objectives' heads are of their targets, and start afresh.

  Args:
    config: as `adopt` returns it.
    params: of the objective, on their devices; what replaces them lies as they
      do.
  """
  encoder = load_encoder(config.init_from)
  found = {"backbone": encoder.params}
  if config.objective.name == "wav2vec2" and (heads := load_heads(encoder)):
    found |= heads[1]

  def place(value: Any, fresh: jax.Array) -> jax.Array:
    return jax.make_array_from_callback(
      fresh.shape, fresh.sharding, lambda index: value[index]
    )

  fresh = sorted(params.keys() - found.keys())
  _log.info(
    "parameters of %s%s",
    config.init_from,
    f"; fresh ones of {', '.join(fresh)}" if fresh else "",
  )
  return params | {
    name: jax.tree.map(place, tree, params[name])
    for name, tree in found.items()
  }
