"""The jitted functions: one training update, one validation batch.

A batch on the device is {waveform int16 [B, S], length int32 [B], draw_id int32
[B]}, with labels uint16 [B, T, sets] where the objective has stored ones. Every
random draw is a function of (seed, update, draw_id), so neither the number of
devices nor of microbatches changes it.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ssl_jax.devices import sharding
from ssl_jax.models.dropout import row_keys
from ssl_jax.objectives.inputs import (
  AUGMENT,
  DROPOUT,
  beside,
  init_params,
  prepare,
)
from ssl_jax.objectives.objective import Objective
from ssl_jax.signal import augment

# Purposes of the keys drawn from the seed.
_INIT, _TRAIN, _VALID = range(3)
# Validation masks are the same in every run, whatever its seed.
_VALID_SEED = 0
# Terms of every run, summed beside the objective's own.
_OWN = ("loss", "grad_norm", "param_norm")

# params, opt_state, update int32, sums; extra where the objective has some.
State = dict[str, Any]


def init_state(
  objective: Objective,
  optimizer: optax.GradientTransformation,
  config: ConfigDict,
  seed_key: jax.Array | None = None,
) -> State:
  """Makes fresh parameters, optimizer state and extra state; jittable.

  Args:
    objective: of the run.
    optimizer: of the run.
    config: of the run.
    seed_key: of the seed, where programs of all seeds are to be one; None: made
      of the config's.
  """
  key = _key(seed_key, config, _INIT)
  totals, params = init_params(objective, config, key)
  extra = objective.init_extra(params)
  return ({"extra": extra} if extra else {}) | {
    "params": params,
    "opt_state": optimizer.init(params),
    "update": jnp.zeros((), jnp.int32),
    # Sums over the updates since the last line of metrics: a run resumed
    # between two lines then writes the same second one.
    "sums": {
      name: (jnp.zeros(total.shape), jnp.zeros(()))
      for name, total in (totals | dict.fromkeys(_OWN, jnp.zeros(()))).items()
    },
  }


def make_train_step(
  objective: Objective,
  optimizer: optax.GradientTransformation,
  config: ConfigDict,
  mesh: Mesh | None = None,
  seed_key: jax.Array | None = None,
) -> Callable[[State, dict], tuple[State, dict]]:
  """Returns `step(state, batch) -> (state, metrics)`.

  The metrics: loss, grad_norm, param_norm, audio_samples. An update whose loss
  or gradient norm is not finite is skipped: parameters, moments, extra state
  and sums stay, the counts of updates go on. It runs on `mesh`; None: JAX's
  default device. `seed_key` is as of `init_state`.
  """
  mesh = sharding.make_mesh(devices=jax.devices()[:1]) if mesh is None else mesh
  # XLA's CPU convolutions are some 100 times slower inside a loop.
  unroll = mesh.devices.flat[0].platform == "cpu"

  def train_step(state: State, batch: dict) -> tuple[State, dict]:
    key = jax.random.fold_in(_key(seed_key, config, _TRAIN), state["update"])
    extra = state.get("extra")
    whole = sharding.gather(config, mesh, extra) if extra else extra
    with sharding.suit(mesh):
      inputs = prepare(objective, config, batch, key, whole)
    # Targets are made before, of the clean audio.
    inputs["waveform"] = augment.augment(
      config.augment,
      inputs["waveform"],
      inputs["length"],
      row_keys(jax.random.fold_in(key, AUGMENT), inputs["draw_id"]),
    )
    counts = _floats(objective.counts(inputs | beside(whole)))
    key = jax.random.fold_in(key, DROPOUT)

    def totals_of(params: Any, part: dict) -> dict:
      params = {"params": sharding.gather(config, mesh, params)}
      with sharding.suit(mesh):
        part = part | beside(whole)
        return objective.apply(params, part, key, state["update"])

    def loss_of(totals: dict) -> jax.Array:
      values = objective.values(_means(totals, counts))
      return sum(w * values[name] for name, w in objective.weights.items())

    loss, grads, totals = _gradient(
      totals_of,
      loss_of,
      state["params"],
      _split(inputs, config.batch.microbatches),
      unroll,
    )
    updates, opt_state = optimizer.update(
      grads, state["opt_state"], state["params"]
    )
    params = optax.apply_updates(state["params"], updates)
    grad_norm = optax.tree.norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)

    def kept(new: jax.Array, old: jax.Array) -> jax.Array:
      counts = jnp.issubdtype(new.dtype, jnp.integer)
      return new if counts else jnp.where(finite, new, old)

    params = jax.tree.map(kept, params, state["params"])
    opt_state = jax.tree.map(kept, opt_state, state["opt_state"])
    carried = {}
    if extra:
      means = _means(totals, counts)
      new = objective.update_extra(extra, params, means, state["update"])
      carried["extra"] = jax.tree.map(
        lambda x, old: jnp.where(finite, x, old), new, extra
      )
    current = {
      "loss": loss,
      "grad_norm": grad_norm,
      "param_norm": optax.tree.norm(params),
    }
    new = {name: (current[name], jnp.ones(())) for name in _OWN}
    new |= {name: (totals[name], counts[name]) for name in counts}
    return carried | {
      "params": params,
      "opt_state": opt_state,
      "update": state["update"] + 1,
      "sums": jax.tree.map(
        lambda old, x: jnp.where(finite, old + x, old), state["sums"], new
      ),
    }, current | {"audio_samples": batch["length"].sum()}

  return train_step


def make_valid_step(
  objective: Objective, config: ConfigDict, mesh: Mesh | None = None
) -> Callable[[dict, dict], dict]:
  """Returns `step(model, batch) -> {term: (total, count)}`, without dropout.

  `model` is what `model_of` takes of a state. The `draw_id` of a validation
  batch identifies the clips, so that a clip keeps its mask in whatever batch it
  stands. It runs on `mesh`; None: JAX's default device.
  """
  mesh = sharding.make_mesh(devices=jax.devices()[:1]) if mesh is None else mesh

  def valid_step(model: dict, batch: dict) -> dict:
    extra = model.get("extra")
    key = jax.random.fold_in(jax.random.key(_VALID_SEED), _VALID)
    with sharding.suit(mesh):
      inputs = prepare(objective, config, batch, key, extra) | beside(extra)
      counts = _floats(objective.counts(inputs))
      totals = objective.apply({"params": model["params"]}, inputs, None, 0)
    return {name: (totals[name], counts[name]) for name in counts}

  return valid_step


def no_sums(state: State) -> dict:
  """Returns the sums of a state before any update."""
  return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state["sums"])


def model_of(state: State) -> dict[str, Any]:
  """Returns the part of a state that validation takes: params, any extra."""
  return {key: state[key] for key in ("params", "extra") if key in state}


def report(objective: Objective, sums: dict) -> dict[str, float]:
  """Returns all that is logged of sums {term: (total, count)}.

  `loss` is the mean over updates where it was summed, else that of the means.
  All are NaN if every update was skipped.
  """
  sums = dict(sums)
  own = {name: sums.pop(name) for name in _OWN if name in sums}
  totals = {name: total for name, (total, _) in sums.items()}
  counts = {name: count for name, (_, count) in sums.items()}
  values = objective.values(_means(totals, counts))
  loss = sum(w * values[name] for name, w in objective.weights.items())
  if own and not own["loss"][1]:
    return dict.fromkeys(["loss", *own, *values], math.nan)
  values = {"loss": loss} | {n: t / c for n, (t, c) in own.items()} | values
  return {name: float(value) for name, value in values.items()}


def _gradient(
  totals_of: Callable[[Any, dict], dict],
  loss_of: Callable[[dict], jax.Array],
  params: Any,
  parts: dict,
  unroll: bool,
) -> tuple[jax.Array, Any, dict]:
  """Returns the loss of the parts' summed totals, its gradient, the totals.

  The gradient is the sum of each part's, weighted by how the loss depends on
  the totals of all parts. Where it does so linearly the weights are known
  before the totals; else the totals are summed first, without gradients (XLA
  leaves out what no weight depends on).
  """
  num_parts = jax.tree.leaves(parts)[0].shape[0]
  if num_parts == 1:
    part = jax.tree.map(lambda x: x[0], parts)
    totals, transpose = jax.vjp(lambda p: totals_of(p, part), params)
    loss, weights = jax.value_and_grad(loss_of)(totals)
    return loss, transpose(weights)[0], totals
  totals = _sum_over(lambda part: totals_of(params, part), parts, unroll)
  weights = jax.grad(loss_of)(totals)

  def weighted(params: Any, part: dict) -> tuple[jax.Array, dict]:
    totals = totals_of(params, part)
    return sum(jnp.vdot(weights[n], totals[n]) for n in totals), totals

  grads, totals = _sum_over(
    lambda part: jax.grad(weighted, has_aux=True)(params, part), parts, unroll
  )
  return loss_of(totals), grads, totals


def _means(totals: dict, counts: dict) -> dict:
  # The floor: a batch without a single masked frame has loss 0, not NaN.
  return {n: totals[n] / jnp.maximum(1.0, counts[n]) for n in counts}


def _split(inputs: dict, parts: int) -> dict:
  # Rows are dealt out in turn, so that each device keeps its own rows.
  return jax.tree.map(
    lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), inputs
  )


def _sum_over(
  function: Callable[[dict], Any], parts: dict, unroll: bool
) -> Any:
  first = jax.tree.map(lambda x: x[0], parts)
  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, first)
  )

  def add(total: Any, part: dict) -> tuple[Any, None]:
    return jax.tree.map(jnp.add, total, function(part)), None

  return jax.lax.scan(add, zeros, parts, unroll=unroll)[0]


def _floats(tree: Any) -> Any:
  return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def _key(
  seed_key: jax.Array | None, config: ConfigDict, purpose: int
) -> jax.Array:
  if seed_key is None:
    seed_key = jax.random.key(config.seed)
  return jax.random.fold_in(seed_key, purpose)
