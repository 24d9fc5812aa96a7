"""The jitted functions: one training update, one validation batch.

A batch on the device is {waveform int16 [B, S], length int32 [B], rows int32
[B]}. Every random draw is a function of (seed, update, row), so neither the
number of devices nor of microbatches changes it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from ml_collections import ConfigDict

from ssl_jax import num_frames
from ssl_jax.models.backbone import frame_mask
from ssl_jax.models.transformer import row_keys
from ssl_jax.signal import spans

# Purposes of the keys drawn from the seed.
_INIT, _TRAIN, _VALID = range(3)
_MASK, _DROPOUT = range(2)
# Validation masks are the same in every run, whatever its seed.
_VALID_SEED = 0

State = dict[str, Any]  # params, opt_state, update int32, sums


def init_state(
  objective: nn.Module,
  optimizer: optax.GradientTransformation,
  config: ConfigDict,
) -> State:
  """Fresh parameters and optimizer state; jittable."""
  batch = {
    "waveform": jnp.zeros((1, 3200), jnp.int16),
    "length": jnp.full(1, 3200, jnp.int32),
    "rows": jnp.zeros(1, jnp.int32),
  }
  key = _key(config.seed, _INIT)
  inputs = prepare(objective, config, batch, key)
  params = objective.init(key, inputs, None)["params"]
  counts = objective.counts(inputs["mask"], inputs["frame_mask"])
  return {
    "params": params,
    "opt_state": optimizer.init(params),
    "update": jnp.zeros((), jnp.int32),
    # Of the updates since the last line of metrics, so that a run resumed
    # between two lines writes the same second one.
    "sums": {
      name: jnp.zeros(2)
      for name in ("loss", "grad_norm", "param_norm", *counts)
    },
  }


def prepare(
  objective: nn.Module, config: ConfigDict, batch: dict, key: jax.Array
) -> dict:
  """What needs no parameters: float waveform, masks, targets.

  Done on the whole batch before it is split into microbatches, as masks are
  trimmed to a common share over it.
  """
  waveform = batch["waveform"].astype(jnp.float32) / 2**15
  real = frame_mask(batch["length"], num_frames(waveform.shape[1]))
  mask = spans.sample_spans(
    row_keys(jax.random.fold_in(key, _MASK), batch["rows"]),
    real.sum(axis=1),
    real.shape[1],
    config.masking.mask_prob,
    config.masking.mask_length,
    config.masking.min_masks,
  )
  return {
    "waveform": waveform,
    "length": batch["length"],
    "rows": batch["rows"],
    "mask": mask,
    "frame_mask": real,
    "targets": objective.targets(waveform, batch["length"]),
  }


def make_train_step(
  objective: nn.Module,
  optimizer: optax.GradientTransformation,
  config: ConfigDict,
) -> Callable[[State, dict], tuple[State, dict]]:
  """Returns `step(state, batch) -> (state, {loss, grad_norm, param_norm})`."""

  def train_step(state: State, batch: dict) -> tuple[State, dict]:
    key = jax.random.fold_in(_key(config.seed, _TRAIN), state["update"])
    inputs = prepare(objective, config, batch, key)
    counts = _floats(objective.counts(inputs["mask"], inputs["frame_mask"]))
    key = jax.random.fold_in(key, _DROPOUT)

    def loss_fn(params: Any, inputs: dict) -> tuple[jax.Array, dict]:
      totals = objective.apply({"params": params}, inputs, key)
      return _loss(objective.weights, totals, counts), totals

    gradient = jax.value_and_grad(loss_fn, has_aux=True)
    parts = _split(inputs, config.batch.microbatches)
    (loss, totals), grads = _sum_over(
      lambda part: gradient(state["params"], part), parts
    )
    updates, opt_state = optimizer.update(
      grads, state["opt_state"], state["params"]
    )
    params = optax.apply_updates(state["params"], updates)
    current = {
      "loss": loss,
      "grad_norm": optax.tree.norm(grads),
      "param_norm": optax.tree.norm(params),
    }
    new = {name: (value, 1.0) for name, value in current.items()}
    new |= {name: (totals[name], counts[name]) for name in counts}
    sums = {
      name: state["sums"][name] + jnp.stack(_floats(pair))
      for name, pair in new.items()
    }
    return {
      "params": params,
      "opt_state": opt_state,
      "update": state["update"] + 1,
      "sums": sums,
    }, current

  return train_step


def make_valid_step(
  objective: nn.Module, config: ConfigDict
) -> Callable[[Any, dict], dict]:
  """Returns `step(params, batch) -> {term: [total, count]}`, without dropout.

  `rows` of a validation batch identify the clips, so that a clip keeps its
  mask in whatever batch it stands.
  """

  def valid_step(params: Any, batch: dict) -> dict:
    inputs = prepare(objective, config, batch, _key(_VALID_SEED, _VALID))
    counts = _floats(objective.counts(inputs["mask"], inputs["frame_mask"]))
    totals = objective.apply({"params": params}, inputs, None)
    return {n: jnp.stack([totals[n], counts[n]]) for n in counts}

  return valid_step


def divide(weights: dict[str, float], sums: dict[str, Any]) -> dict[str, float]:
  """Divides totals by counts, once; adds `loss` where it was not summed."""
  values = {n: float(s[0]) / max(1.0, float(s[1])) for n, s in sums.items()}
  if "loss" not in values:
    values["loss"] = sum(w * values[name] for name, w in weights.items())
  return values


def _loss(weights: dict, totals: dict, counts: dict) -> jax.Array:
  # The floor: a batch without a single masked frame has loss 0, not NaN.
  return sum(
    weight * totals[name] / jnp.maximum(1.0, counts[name])
    for name, weight in weights.items()
  )


def _split(inputs: dict, parts: int) -> dict:
  # Rows are dealt out in turn, so that each device keeps its own rows.
  return jax.tree.map(
    lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), inputs
  )


def _sum_over(function: Callable[[dict], Any], parts: dict) -> Any:
  first = jax.tree.map(lambda x: x[0], parts)
  if jax.tree.leaves(parts)[0].shape[0] == 1:
    return function(first)
  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, first)
  )

  def add(total: Any, part: dict) -> tuple[Any, None]:
    return jax.tree.map(jnp.add, total, function(part)), None

  # XLA's CPU convolutions are some 100 times slower inside a loop.
  unroll = jax.default_backend() == "cpu"
  return jax.lax.scan(add, zeros, parts, unroll=unroll)[0]


def _floats(tree: Any) -> Any:
  return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def _key(seed: int, purpose: int) -> jax.Array:
  return jax.random.fold_in(jax.random.key(seed), purpose)
