"""Checkpoints: asynchronous, atomic; the last few and the best are kept."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from ssl_jax.errors import UserError


class Checkpoints:
  """The checkpoints of one workdir, one a saved update.

  Each holds `state`, a plain nested dict of arrays, and `counters`, a JSON
  object of what the run has spent. A save that did not finish is never seen.
  """

  def __init__(self, workdir: Path, keep: int | None, at: Sequence[int] = ()):
    """Opens, or begins, the checkpoints of a workdir.

    Args:
      workdir: of the run.
      keep: the last so many, beside the best; None: only reads.
      at: updates whose checkpoints are kept as well.
    """
    path = (workdir / "checkpoints").absolute()
    if keep is None:
      options = ocp.CheckpointManagerOptions(create=False)
      self._manager = ocp.CheckpointManager(path, options=options)
      return
    best = policies.BestN(
      get_metric_fn=lambda metrics: metrics["valid_loss"],
      reverse=True,  # The lowest.
      n=1,
      keep_checkpoints_without_metrics=False,
    )
    self._manager = ocp.CheckpointManager(
      path,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy(
          [policies.LatestN(keep), best, policies.CustomSteps(at)]
        ),
        cleanup_tmp_directories=True,
      ),
    )

  def all(self) -> list[int]:
    """Updates of the complete checkpoints."""
    return list(self._manager.all_steps())

  def latest(self) -> int | None:
    """The newest complete checkpoint's update; None if there is none."""
    return self._manager.latest_step()

  def save(
    self, update: int, state: Any, counters: dict, valid_loss: float | None
  ) -> None:
    """Starts a save; the arrays are copied before it returns."""
    self._manager.save(
      update,
      args=ocp.args.Composite(
        state=ocp.args.PyTreeSave(state),
        counters=ocp.args.JsonSave(counters),
      ),
      metrics=None if valid_loss is None else {"valid_loss": valid_loss},
    )

  def restore(self, update: int, abstract_state: Any) -> tuple[Any, dict]:
    """Reads (state, counters) of `update` onto the shardings asked for."""
    restored = self._manager.restore(
      update,
      args=ocp.args.Composite(
        state=ocp.args.PyTreeRestore(
          abstract_state,
          restore_args=ocp.checkpoint_utils.construct_restore_args(
            abstract_state
          ),
        ),
        counters=ocp.args.JsonRestore(),
      ),
    )
    return restored["state"], restored["counters"]

  def wait(self) -> None:
    """Until the last save is complete on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for the last save, then lets go."""
    self._manager.close()


def restore_params(folder: Path, abstract_params: Any) -> Any:
  """Reads some of the parameters of a checkpoint, on the first device.

  Args:
    folder: of one checkpoint, WORKDIR/checkpoints/UPDATE.
    abstract_params: shapes and types of the subtree of `params` wanted.

  Raises:
    UserError: they are not there, have other shapes, or are damaged.
  """
  sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  wanted = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
    {"params": abstract_params},
  )
  handler = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
  try:
    restored = handler.restore(
      (folder / "state").absolute(),
      args=ocp.args.PyTreeRestore(
        wanted,
        restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
        partial_restore=True,
      ),
    )
  except Exception as error:  # Of many kinds; of a torn array, just that.
    said = " ".join(str(error).split())[:200]
    raise UserError(
      f"{folder} cannot be read as this encoder ({said}); is it whole, and its "
      "config.json its own?"
    ) from error
  return restored["params"]
