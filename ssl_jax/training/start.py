"""The state that a run goes on from."""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from ssl_jax.checkpoints.manager import Checkpoints
from ssl_jax.objectives.objective import Objective
from ssl_jax.training import init_from, trunk
from ssl_jax.training.step import State


class Start(NamedTuple):
  """A state on the devices, and what it took.

  Attributes:
    checkpoint: update of the run's own checkpoint; 0: there is none.
    update: that the state is after.
    state: of `training.step`.
    spent: counters of the run so far.
  """

  checkpoint: int
  update: int
  state: State
  spent: dict[str, Any]


def start(
  config: ConfigDict,
  checkpoints: Checkpoints,
  objective: Objective,
  init: Callable[[jax.Array], State],
  abstract_state: Any,
  go_on: Callable[[State], tuple[State, dict]],
) -> Start:
  """Reads the run's newest checkpoint, else its trunk's, else makes a state.

  Args:
    config: of the run.
    checkpoints: of the run.
    objective: of the run.
    init: makes a fresh state of a seed's key; jittable.
    abstract_state: shapes, types and placement of the state's arrays.
    go_on: puts what a first stage learned in a fresh state, and returns its
      counters beside.

  Raises:
    UserError: no checkpoint can be read, though there are some.
  """
  if restored := checkpoints.restore_newest(abstract_state):
    logging.getLogger("ssl_jax").info("resuming at update %d", restored[0])
    return Start(restored[0], *restored)
  if config.budget.trunk:
    return Start(0, *trunk.restore(config, abstract_state))
  placed = jax.tree.map(lambda x: x.sharding, abstract_state)
  state = jax.jit(init, out_shardings=placed)(jax.random.key(config.seed))
  if objective.first_stage():
    state, spent = go_on(state)
    if "extra" in state:
      remake = jax.jit(objective.init_extra, out_shardings=placed["extra"])
      state["extra"] = remake(state["params"])
    return Start(0, 0, state, spent)
  if config.init_from:
    state["params"] = init_from.fill(config, state["params"])
    if "extra" in state:
      remake = jax.jit(objective.init_extra, out_shardings=placed["extra"])
      state["extra"] = remake(state["params"])
  return Start(0, 0, state, {"audio_samples": 0, "flops": 0, "trunk_flops": 0})
