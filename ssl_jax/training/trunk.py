"""Runs that share the updates before their decay: a trunk and its branches."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from ssl_jax import config as config_lib
from ssl_jax.checkpoints.manager import Checkpoints, DamagedCheckpoint
from ssl_jax.errors import UserError
from ssl_jax.files import read_object
from ssl_jax.optimizers.schedule import decay_updates


def branch_update(config: ConfigDict) -> int:
  """The update of the trunk after which a branch, `config`, decays."""
  return config.budget.updates - decay_updates(config)


def check(config: ConfigDict) -> None:
  """Checks that the run of `config` can branch off.

  Raises:
    UserError: `config.budget.trunk` is no run of this config, did not save at
      that update, or had already begun to decay.
  """
  workdir, update = Path(config.budget.trunk), branch_update(config)
  said = f"config.budget.trunk={str(workdir)!r}"
  try:
    theirs = ConfigDict(read_object(workdir / "config.json"))
    decays = branch_update(theirs)
  except Exception as error:  # The file may hold anything.
    raise UserError(
      f"{said}: no readable config.json ({' '.join(str(error).split())[:200]})"
    ) from error
  if differing := config_lib.differing(theirs.to_dict(), config, "branch"):
    raise UserError(f"{said} is of another config: {'; '.join(differing)}")
  if update > decays:
    raise UserError(
      f"{said} decays from update {decays}, before this run would leave it at "
      f"{update}: branches must have smaller budgets than the trunk"
    )
  saved = _all(workdir)
  if update not in saved:
    raise UserError(
      f"{said} has no checkpoint at update {update} (has: {saved}): train it "
      f"with --config.checkpoint.at='({update},)'"
    )


def begins(config: ConfigDict) -> int:
  """Returns the update that a run without a checkpoint begins at."""
  return branch_update(config) if config.budget.trunk else 0


def restore(config: ConfigDict, abstract_state: Any) -> tuple[int, Any, dict]:
  """Reads (update, state, counters) that the run of `config` goes on from."""
  update = branch_update(config)
  checkpoints = Checkpoints(Path(config.budget.trunk), keep=None)
  try:
    state, spent = checkpoints.restore(update, abstract_state)
  except DamagedCheckpoint as error:
    raise UserError(
      f"config.budget.trunk={config.budget.trunk!r}: its checkpoint at update "
      f"{update} is damaged ({error}); train the trunk again"
    ) from error
  finally:
    checkpoints.close()
  return update, state, spent | {"trunk_flops": spent["flops"]}


def _all(workdir: Path) -> list[int]:
  checkpoints = Checkpoints(workdir, keep=None)
  try:
    return checkpoints.all()
  finally:
    checkpoints.close()
