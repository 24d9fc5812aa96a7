"""The compiled training and validation steps of a run, by length of batch."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from ssl_jax.devices import sharding
from ssl_jax.devices.programs import Programs, Wanted
from ssl_jax.objectives import inputs as inputs_lib
from ssl_jax.objectives.objective import Objective
from ssl_jax.training import step as step_lib
from ssl_jax.training.setup import Setup
from ssl_jax.training.step import State


class CompiledSteps:
  """Compiles a run's steps for each shape of its batches, none twice.

  What is needed first comes first, so that a run need not wait for the rest.
  """

  def __init__(
    self,
    setup: Setup,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    abstract_state: Any,
    codebooks: tuple[np.ndarray, ...],
    update: int,
    validates: bool,
  ):
    """Begins to compile what is needed first: the rest would slow it down.

    Args:
      setup: of the run.
      objective: of the run.
      optimizer: of the run.
      mesh: of the run.
      abstract_state: shapes, types and placement of the training state.
      codebooks: of the objective.
      update: that the run goes on from.
      validates: whether validation comes before that.
    """
    config, plan = setup.config, setup.plan
    by_row, replicated = sharding.by_row(mesh), sharding.replicated(mesh)
    placed = jax.tree.map(lambda x: x.sharding, abstract_state)
    model = step_lib.model_of(abstract_state)

    # Seeds and codebooks are arguments, so that the runs of a sweep share their
    # programs.
    self._given = {
      "codebooks": codebooks,
      "seed": jax.random.key_data(jax.random.key(config.seed)),
    }

    def train_step(
      state: State, batch: dict, given: dict
    ) -> tuple[State, dict]:
      own = objective.clone(codebooks=given["codebooks"])
      key = jax.random.wrap_key_data(given["seed"])
      make = step_lib.make_train_step
      return make(own, optimizer, config, mesh, key)(state, batch)

    def valid_step(model: dict, batch: dict, given: dict) -> dict:
      own = objective.clone(codebooks=given["codebooks"])
      return step_lib.make_valid_step(own, config, mesh)(model, batch)

    self._train = jax.jit(
      train_step,
      in_shardings=(placed, by_row, replicated),
      out_shardings=(placed, replicated),
      donate_argnums=0,
    )
    self._valid = jax.jit(
      valid_step,
      in_shardings=(step_lib.model_of(placed), by_row, replicated),
      out_shardings=replicated,
    )
    first = plan.batch(update).bucket_length
    train = [
      Wanted(self._train, abstract_state, *shape) for shape in plan.shapes
    ]
    train.sort(key=lambda program: program.length != first)
    valid_shapes = {(len(x.clips), x.bucket_length) for x in setup.valid_plan}
    valid = [Wanted(self._valid, model, *x) for x in sorted(valid_shapes)]
    if validates:
      wanted = train[:1] + valid + train[1:]
    else:
      wanted = train + valid
    self._programs = Programs(
      wanted,
      functools.partial(inputs_lib.abstract_batch, config),
      sharding.row_shards(mesh) * config.batch.microbatches,
      by_row,
      sharding.abstract(self._given, replicated),
    )
    self._programs.begin(1 + len(valid) if validates else 1)

  def close(self) -> None:
    """Compiles nothing that has not begun."""
    self._programs.close()

  def train(self, length: int) -> Callable:
    """Returns the training step for batches of `length` samples."""
    step = self._programs.get(self._train, length)
    return functools.partial(self._call, step)

  def valid(self, length: int) -> Callable:
    """Returns the validation step for batches of `length` samples."""
    step = self._programs.get(self._valid, length)
    return functools.partial(self._call, step)

  def _call(self, step: Callable, first: Any, batch: dict) -> Any:
    return step(first, batch, self._given)

  def wait_where_needed(self) -> None:
    """Waits for what must be compiled before the first update.

    That is nothing on one process, but with a GPU, on which compiling times
    kernels; several processes wait for all of it, as one that is ready would
    give up those that are not.
    """
    if jax.process_count() > 1 or jax.default_backend() == "gpu":
      self._programs.begin()
      self._programs.wait()

  def compile_rest(self) -> None:
    """Compiles what is not needed yet, while the run goes on."""
    self._programs.begin()
