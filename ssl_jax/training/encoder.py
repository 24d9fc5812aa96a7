"""A trained encoder, read back from a workdir."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ssl_jax import config as config_lib
from ssl_jax.errors import UserError
from ssl_jax.models.backbone import Backbone, compute_dtype
from ssl_jax.training.checkpoint import restore_params
from ssl_jax.validation import validate


class Encoder(NamedTuple):
  """A backbone and its parameters.

  Attributes:
    config: of the run that trained it.
    params: of the backbone.
    origin: {path, update, params: their hash, compute_dtype}.
    workdir: of that run.
  """

  config: ConfigDict
  params: Any
  origin: dict[str, Any]
  workdir: Path

  def states(self, layer: int) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Returns `states(waveform [B, S] float, length [B]) -> [B, T, D]`.

    Args:
      layer: whose output it is; 0 is the input of the first. Later layers are
        not computed.

    Raises:
      UserError: there is no such layer.
    """
    config = self.config.copy_and_resolve_references()
    if not 0 <= layer <= config.encoder.num_layers:
      raise UserError(
        f"layer {layer}: {self.origin['path']} has layers 0 to "
        f"{config.encoder.num_layers}"
      )
    config.encoder.num_layers = kept = max(1, layer)
    params = self.params | {"encoder": dict(self.params["encoder"])}
    params["encoder"]["layers"] = jax.tree.map(
      lambda x: x[:kept], params["encoder"]["layers"]
    )
    backbone = Backbone(config, compute_dtype(config))

    def states(waveform: jax.Array, length: jax.Array) -> jax.Array:
      encoded = backbone.apply(
        {"params": params}, waveform, length, all_states=True
      )
      return encoded.hidden[layer]

    return states


def load_encoder(path: Path) -> Encoder:
  """Reads the encoder of a workdir's newest checkpoint, or of a given one.

  Args:
    path: a workdir, or WORKDIR/checkpoints/UPDATE.

  Raises:
    UserError: it holds no checkpoint, or not one of this package.
  """
  folder, saved = _locate(path)
  config = config_lib.base()
  try:
    for section in ("frontend", "encoder"):
      config[section].update(saved[section])
    config.compute_dtype = saved["compute_dtype"]
    validate(config)
  except (AttributeError, KeyError, TypeError, UserError) as error:
    said = " ".join(str(error).split())
    raise UserError(
      f"{path}: config.json is not of this version ({said})"
    ) from error
  shapes = jax.eval_shape(
    Backbone(config, jnp.float32).init,
    jax.random.key(0),
    jnp.zeros((1, 3200)),
    jnp.full(1, 3200),
  )["params"]
  params = restore_params(folder, {"backbone": shapes})["backbone"]
  digest = hashlib.sha256()
  for leaf in jax.tree.leaves(params):
    digest.update(np.ascontiguousarray(leaf))
  origin = {
    "path": str(path),
    "update": int(folder.name),
    "params": digest.hexdigest()[:16],
    "compute_dtype": jnp.dtype(compute_dtype(config)).name,
  }
  return Encoder(config, params, origin, folder.parents[1])


def _locate(path: Path) -> tuple[Path, dict[str, Any]]:
  """The folder of a checkpoint, and the config it was trained with."""
  folder = path
  if not (path.name.isdigit() and path.parent.name == "checkpoints"):
    saved = path / "checkpoints"
    updates = (
      [int(p.name) for p in saved.iterdir() if p.name.isdigit()]
      if saved.is_dir()
      else []
    )
    if not updates:
      raise UserError(
        f"{path} holds no checkpoint: give the --workdir of a training run, or "
        "one of its checkpoints/UPDATE"
      )
    folder = saved / str(max(updates))
  try:
    config = json.loads((folder.parents[1] / "config.json").read_text())
  except (OSError, ValueError) as error:  # Not there, no text, no JSON.
    raise UserError(f"{path}: no readable config.json ({error})") from error
  return folder, config
