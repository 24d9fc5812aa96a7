"""Inputs of an objective: batches, masks and targets, fresh parameters."""

from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ssl_jax import num_frames
from ssl_jax.models.backbone import frame_mask
from ssl_jax.models.dropout import row_keys
from ssl_jax.objectives import make_objective
from ssl_jax.objectives.objective import Objective
from ssl_jax.signal import masking

# Purposes of the keys drawn from a batch's key.
MASK, DROPOUT, TARGETS, AUGMENT = range(4)
_INIT_SAMPLES = 3200  # Length of the clip that parameters are made with.


def abstract_batch(config: ConfigDict, rows: int, length: int) -> dict:
  """Returns shapes and types of a batch of `rows` clips of `length` samples."""
  batch = {
    "waveform": jax.ShapeDtypeStruct((rows, length), jnp.int16),
    "length": jax.ShapeDtypeStruct((rows,), jnp.int32),
    "draw_id": jax.ShapeDtypeStruct((rows,), jnp.int32),
  }
  if sets := len(make_objective(config).stored_labels()):
    shape = (rows, num_frames(length), sets)
    batch["labels"] = jax.ShapeDtypeStruct(shape, jnp.uint16)
  return batch


def prepare(
  objective: Objective,
  config: ConfigDict,
  batch: dict,
  key: jax.Array,
  extra: Any = None,
) -> dict:
  """Adds what needs no parameters: float waveform, masks, targets.

  Done on the whole batch before it is split into microbatches, as masks are
  trimmed to a common share over it.

  Args:
    objective: that makes the targets.
    config: of the run.
    batch: as it comes to the device.
    key: of the batch.
    extra: the objective's extra state, which `targets` may use.
  """
  waveform = batch["waveform"].astype(jnp.float32) / 2**15
  real = frame_mask(batch["length"], num_frames(waveform.shape[1]))
  mask = masking.sample(
    config.masking,
    row_keys(jax.random.fold_in(key, MASK), batch["draw_id"]),
    real.sum(axis=1),
    real.shape[1],
  )
  inputs = batch | {"waveform": waveform, "mask": mask, "frame_mask": real}
  keys = row_keys(jax.random.fold_in(key, TARGETS), batch["draw_id"])
  return inputs | {"targets": objective.targets(inputs | beside(extra), keys)}


def beside(extra: Any) -> dict:
  """Returns what extra state adds to the inputs of an objective."""
  return {"extra": jax.lax.stop_gradient(extra)} if extra else {}


def init_params(
  objective: Objective, config: ConfigDict, key: jax.Array
) -> tuple[dict, Any]:
  """Makes fresh parameters; jittable.

  Returns:
    The terms that the objective sums over a batch, of a silent clip, and the
    parameters.
  """
  batch = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype),
    abstract_batch(config, 1, _INIT_SAMPLES),
  )
  inputs = prepare(objective, config, batch, key)
  totals, params = objective.init_with_output(key, inputs, None, 0)
  return totals, params["params"]


def abstract_params(config: ConfigDict) -> Any:
  """Returns shapes and types of a model's parameters, its objective's too."""
  config = config.copy_and_resolve_references()
  config.encoder.scan_layers = True  # The same parameters, of one trace.
  objective = make_objective(config, jnp.float32)
  return jax.eval_shape(
    lambda: init_params(objective, config, jax.random.key(0))[1]
  )


def num_params(config: ConfigDict) -> int:
  """Counts the parameters of a model and its objective."""
  return sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config)))
