"""Checkpoints: asynchronous, atomic; the last few and the best are kept."""

import contextlib
import json
import logging
import math
import re
import shutil
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from ssl_jax import reading
from ssl_jax.errors import UserError

_log = logging.getLogger("ssl_jax")
_SEALS = ("checksums", "crc32")  # In the counters, beside what they count.


class DamagedCheckpoint(Exception):
  """One that cannot be read, or is not what was saved; the message says why."""


class Checkpoints:
  """The checkpoints of one workdir, one a saved update.

  Each holds `state`, a plain nested dict of arrays, and `counters`, a JSON
  object of what the run has spent. A save that did not finish is never seen,
  and what is read is checked against checksums of what was saved: the files'
  format does not notice a flipped bit.
  """

  def __init__(self, workdir: Path, keep: int | None, at: Sequence[int] = ()):
    """Opens, or begins, the checkpoints of a workdir.

    Args:
      workdir: of the run.
      keep: the last so many, beside the best; None: only reads.
      at: updates whose checkpoints are kept as well.
    """
    self._workdir = workdir
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
    """Starts a save; the arrays are copied before it returns.

    Raises:
      UserError: this one or the last cannot be written.
    """
    counters = counters | {"checksums": checksums(state)}
    counters["crc32"] = _crc32(counters)
    with self._written():
      self._manager.save(
        update,
        args=ocp.args.Composite(
          state=ocp.args.PyTreeSave(state),
          counters=ocp.args.JsonSave(counters),
        ),
        metrics=None if valid_loss is None else {"valid_loss": valid_loss},
      )

  def restore(self, update: int, abstract_state: Any) -> tuple[Any, dict]:
    """Reads (state, counters) of `update` onto the shardings asked for.

    Raises:
      DamagedCheckpoint: on all processes, if any of them cannot read it.
    """
    state, counters, problem = None, {}, ""
    try:
      _check_files(self._workdir / "checkpoints" / str(update))
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
      state, counters = restored["state"], restored["counters"]
    except Exception as error:  # Of many kinds; of a torn array, just that.
      problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    lost = multihost_utils.process_allgather(jnp.array(bool(problem)))
    if problem or lost.any():
      raise DamagedCheckpoint(problem or "another process cannot read it")
    _verify(state, counters)
    return state, {k: v for k, v in counters.items() if k not in _SEALS}

  def restore_newest(
    self, abstract_state: Any, is_first: bool = True
  ) -> tuple[int, Any, dict] | None:
    """Reads (update, state, counters) of the newest that is whole.

    Newer ones, which are damaged, are moved to WORKDIR/damaged.

    Args:
      abstract_state: shapes, types and shardings.
      is_first: whether this process is the one that moves them.

    Returns:
      None where there is no checkpoint.

    Raises:
      UserError: there are some, and none is whole; they stay where they are.
    """
    damaged: dict[int, str] = {}
    for update in sorted(self.all(), reverse=True):
      try:
        state, counters = self.restore(update, abstract_state)
      except DamagedCheckpoint as error:
        damaged[update] = str(error)
        continue
      for other, problem in damaged.items():
        _log.warning(
          "checkpoint %d is damaged (%s): moved to %s",
          other,
          problem,
          self._workdir / "damaged",
        )
        if is_first:
          self._put_aside(other)
      if damaged:
        multihost_utils.sync_global_devices("damaged")
        self._manager.reload()
      return update, state, counters
    if not damaged:
      return None
    said = "; ".join(f"update {at}: {why}" for at, why in damaged.items())
    raise UserError(
      f"no checkpoint in {self._workdir / 'checkpoints'} can be read ({said}): "
      "bring one back, or remove the folder to start over"
    )

  def _put_aside(self, update: int) -> None:
    folder = self._workdir / "damaged"
    folder.mkdir(exist_ok=True)
    shutil.rmtree(folder / str(update), ignore_errors=True)
    (self._workdir / "checkpoints" / str(update)).rename(folder / str(update))

  def wait(self) -> None:
    """Until the last save is complete on disk.

    Raises:
      UserError: it cannot be written.
    """
    with self._written():
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for the last save, as `wait` does, then lets go."""
    with self._written():
      self._manager.close()

  @contextlib.contextmanager
  def _written(self) -> Iterator[None]:
    try:
      yield
    except Exception as error:  # Of many kinds, from threads and libraries.
      said = " ".join(str(error).split())
      reason = re.search(r"[A-Z][^:.]*(?= \[os_error_code)", said)
      raise UserError(
        f"a checkpoint cannot be written to {self._workdir / 'checkpoints'} "
        f"({reason[0] if reason else said[:200]}): make room, or whatever it "
        f"lacks; the same command goes on from update {self.latest() or 0}"
      ) from error


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
    _check_files(folder)
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
  try:
    counters = json.loads((folder / "counters" / "metadata").read_bytes())
    _verify(restored, counters)
  except (OSError, ValueError, DamagedCheckpoint) as error:
    raise UserError(
      f"{folder} is damaged ({error}): give an older one, as "
      f"{folder.parent}/UPDATE"
    ) from error
  return restored["params"]


def checksums(tree: Any) -> dict[str, int]:
  """Of each array, a number that any other bits would change: {path: uint32}.

  The sum, modulo 2^32, of its elements' bits times 2 i + 1, i the place: the
  same however the array is sharded, and another if one element differs.
  """
  paths, arrays = zip(*jax.tree_util.tree_leaves_with_path(tree))
  sums = jax.device_get(_sums(arrays))
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): int(value)
    for path, value in zip(paths, sums)
  }


@jax.jit
def _sums(arrays: Sequence[jax.Array]) -> list[jax.Array]:
  return [_sum(array) for array in arrays]


def _sum(array: jax.Array) -> jax.Array:
  unsigned = jnp.dtype(f"uint{8 * array.dtype.itemsize}")
  bits = jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)
  place = jnp.zeros(array.shape, jnp.uint32)
  for axis in range(array.ndim):  # Not by reshaping, which gathers shards.
    stride = jnp.uint32(math.prod(array.shape[axis + 1 :]) % 2**32)
    place += stride * jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
  return (bits * (2 * place + 1)).sum(dtype=jnp.uint32)


def _check_files(folder: Path) -> None:
  """Raises an OSError for what would be waited for, as a FIFO, if opened."""
  for path in folder.rglob("*"):
    if not path.is_dir():
      reading.check_file(path)


def _verify(tree: Any, counters: dict) -> None:
  """Checks what was read of a checkpoint against its counters.

  Raises:
    DamagedCheckpoint: it is not what was saved.
  """
  if isinstance(counters, dict) and counters and not {*_SEALS} & {*counters}:
    return  # Of an older version.
  if not counters or counters.get("crc32") != _crc32(counters):
    raise DamagedCheckpoint("its counters are not those that were saved")
  for path, value in checksums(tree).items():
    if counters["checksums"].get(path) != value:
      raise DamagedCheckpoint(f"{path} is not what was saved")


def _crc32(counters: dict) -> int:
  counted = {k: v for k, v in counters.items() if k != "crc32"}
  return zlib.crc32(json.dumps(counted, sort_keys=True).encode())
