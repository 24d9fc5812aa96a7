"""Runs that label their own audio: a first stage trains the encoder for it.

The first stage is a run in WORKDIR/first, on a share of the budget. Labels of
its encoder lie in WORKDIR/labels-LAYER-CLUSTERS. The run itself then goes on
from that encoder and its moments, with fresh heads and a warm-up of its own.
Killed at any moment, the same command goes on with what is not done.
"""

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ssl_jax import process
from ssl_jax.budget import updates as updates_lib
from ssl_jax.budget.updates import FIRST_STAGE
from ssl_jax.checkpoints.manager import Checkpoints
from ssl_jax.devices import processes, sharding
from ssl_jax.errors import UserError
from ssl_jax.files import alone
from ssl_jax.models.backbone import compute_dtype
from ssl_jax.objectives import make_objective
from ssl_jax.optimizers import make_optimizer
from ssl_jax.pretrained.load import load_encoder
from ssl_jax.training import step as step_lib
from ssl_jax.training import workdir as workdir_lib
from ssl_jax.training.clock import Clock
from ssl_jax.training.setup import Setup
from ssl_jax.training.step import State


def make_labels(
  setup: Setup,
  workdir: Path,
  clock: Clock,
  run: Callable[[ConfigDict, Path], dict],
) -> tuple[Setup, dict[str, Any] | None]:
  """Trains the first stage of a run and labels its audio, unless that is done.

  Args:
    setup: of the run.
    workdir: of the run, whose config must be its own.
    clock: of the run; the first stage has its own.
    run: trains a config in a workdir; returns its result.

  Returns:
    The setup with its labels, and None; if the first stage was told to stop,
    the setup without, and the result to give.
  """
  labelled = _folders(setup, workdir)
  if workdir_lib.read_result(workdir):
    return setup, None
  if all((folder / "header.json").exists() for folder in labelled.values()):
    with contextlib.suppress(UserError):  # They are damaged: made anew.
      return setup.with_labels(labelled), None

  with contextlib.ExitStack() as held:
    with processes.first_alone("workdir"):
      if processes.is_first():
        held.enter_context(alone(workdir, f"--workdir={workdir}"))
      workdir_lib.claim(workdir, setup.config)
    if not workdir_lib.read_result(workdir / FIRST_STAGE):
      clock.switch("start")
      first = updates_lib.first_stage(setup.config)
      before = process.stopping.is_set()  # An earlier run of this process.
      result = run(first, workdir / FIRST_STAGE)
      clock.skip()
      # Told to stop at its very end, it is done, but the run is not.
      told = process.stopping.is_set() and not before
      if processes.any_says(told) or "preempted" in result:
        stopped = {"workdir": str(workdir), "updates": 0, "preempted": True}
        return setup, result | stopped
    with clock.during("codebook"):
      _label(setup, workdir)
  return setup.with_labels(labelled), None


def _folders(setup: Setup, workdir: Path) -> dict[tuple[str, int], Path]:
  """Returns the folder of each label set that the first stage makes."""
  stage = make_objective(setup.config).first_stage()
  return {
    made: workdir / f"labels-{stage.layer}-{made[1]}" for made in stage.makes
  }


def _label(setup: Setup, workdir: Path) -> None:
  """Labels the audio of a run by its first stage's encoder.

  The first process does it, on its own devices.
  """
  stage = make_objective(setup.config).first_stage()
  with processes.first_alone("labels"):
    if not processes.is_first():
      return
    # Imported where it runs: its pictures take long to import.
    from ssl_jax.labelling import corpus

    encoder = load_encoder(str(workdir / FIRST_STAGE))
    by_row = sharding.by_row(sharding.make_mesh(devices=jax.local_devices()))
    for (_, clusters), folder in _folders(setup, workdir).items():
      corpus.label_corpus(
        setup.config,
        {"train": setup.train_source, "valid": setup.valid_source},
        sharding.suited(by_row, encoder.states(stage.layer)),
        clusters,
        {"layer": str(stage.layer), "checkpoint": encoder.origin},
        folder,
        by_row,
      )


def go_on(
  setup: Setup, mesh: Mesh, workdir: Path, state: State
) -> tuple[State, dict[str, Any]]:
  """Puts the first stage's encoder and its moments in a fresh state.

  Args:
    setup: of the run.
    mesh: of the run.
    workdir: of the run.
    state: fresh.

  Returns:
    The state, and the counters that the run goes on from.

  Raises:
    UserError: the first stage has no checkpoint that is whole.
  """
  config = setup.config
  first = updates_lib.first_stage(config)
  first.budget.updates = 2  # Any: schedules have no arrays.
  objective = make_objective(first, compute_dtype(first))
  init = functools.partial(
    step_lib.init_state, objective, make_optimizer(first), first
  )
  theirs = jax.eval_shape(init, jax.random.key(config.seed))
  theirs = sharding.abstract(theirs, sharding.of_state(first, mesh, theirs))
  checkpoints = Checkpoints(workdir / FIRST_STAGE, keep=None)
  try:
    restored = checkpoints.restore_newest(theirs)
  finally:
    checkpoints.close()
  if not restored:
    raise UserError(
      f"{workdir / FIRST_STAGE} has no checkpoint, which this run goes on "
      "from: remove that folder and the labels, and the same command makes "
      "them anew"
    )
  _, trained, spent = restored
  found = dict(jax.tree_util.tree_leaves_with_path(trained))

  def carry(path: tuple, fresh: jax.Array) -> jax.Array:
    of_encoder = "backbone" in {getattr(part, "key", None) for part in path}
    return found[path] if of_encoder else fresh

  kept = jax.tree_util.tree_map_with_path(
    carry, {key: state[key] for key in ("params", "opt_state")}
  )
  spent.pop("health", None)
  spent["flops"] += updates_lib.labelling_flops(config, setup.num_samples)
  return state | kept, spent
