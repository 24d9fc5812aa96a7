"""Checkpoints: asynchronous, atomic; the last few and the best are kept."""

import contextlib
import errno
import json
import logging
import math
import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from ssl_jax.checkpoints.checksums import checksums
from ssl_jax.devices import processes
from ssl_jax.errors import UserError, one_line
from ssl_jax.files import read_object

_log = logging.getLogger("ssl_jax")
_SEALS = {"checksums", "crc32"}  # Checksum fields, stored with the counters.
_OWN = _SEALS | {"valid_loss"}  # Fields removed before counters are returned.
_COUNTED = {"flops", "wall_seconds"}  # Every version of the code stores these.
# Errors of the machine, not of the files.
_PASSING = {
  *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE),
  *(errno.EACCES, errno.EPERM, errno.ETIMEDOUT),
}


class DamagedCheckpoint(Exception):
  """A checkpoint that is not what was saved; the message says why."""


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
    self._folder = (workdir / "checkpoints").absolute()
    if keep is None:
      options = ocp.CheckpointManagerOptions(create=False)
      self._manager = ocp.CheckpointManager(self._folder, options=options)
      return
    self._best = _Best()
    self._manager = ocp.CheckpointManager(
      self._folder,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy(
          [policies.LatestN(keep), self._best, policies.CustomSteps(at)]
        ),
        cleanup_tmp_directories=True,
      ),
    )
    for update in self.all():
      with contextlib.suppress(OSError, ValueError):
        counters = _read_counters(self._folder / str(update))
        self._best.note(update, counters.get("valid_loss"))

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
    seals = {"valid_loss": valid_loss, "checksums": checksums(state)}
    counters = counters | seals
    counters["crc32"] = _crc32(counters)
    self._best.note(update, valid_loss)
    with self._written():
      self._manager.save(
        update,
        args=ocp.args.Composite(
          state=ocp.args.PyTreeSave(state),
          counters=ocp.args.JsonSave(counters),
        ),
      )

  def restore(self, update: int, abstract_state: Any) -> tuple[Any, dict]:
    """Reads (state, counters) of `update` onto the shardings asked for.

    Raises, alike on all processes of a run:
      DamagedCheckpoint: it is not what was saved.
      UserError: the machine cannot read it now.
    """
    folder = self._folder / str(update)
    counters: dict[str, Any] = {}

    def read() -> Any:
      counters.update(_read_counters(folder))
      if not _COUNTED <= {*counters}:
        raise ValueError("its counters lack what a run counts")
      return _read_arrays(folder, abstract_state)

    state = _alike(folder, read)
    _alike(folder, lambda: _verify(state, counters))
    return state, _spent(counters)

  def restore_newest(self, abstract_state: Any) -> tuple[int, Any, dict] | None:
    """Reads (update, state, counters) of the newest that is whole.

    Newer ones, which are damaged, are moved to WORKDIR/damaged.

    Args:
      abstract_state: shapes, types and shardings.

    Returns:
      None where there is no checkpoint.

    Raises:
      UserError: there are some, and none is whole, or the machine cannot read
        them now; they stay where they are.
    """
    damaged: dict[int, str] = {}
    for update in sorted(self.all(), reverse=True):
      try:
        state, counters = self.restore(update, abstract_state)
      except DamagedCheckpoint as error:
        damaged[update] = str(error)
        continue
      aside = self._folder.parent / "damaged"
      for other, problem in damaged.items():
        _log.warning(
          "checkpoint %d is damaged (%s): moved to %s", other, problem, aside
        )
        if processes.is_first():
          aside.mkdir(exist_ok=True)
          shutil.rmtree(aside / str(other), ignore_errors=True)
          (self._folder / str(other)).rename(aside / str(other))
      if damaged:
        processes.meet("damaged")
        self._manager.reload()
      return update, state, counters
    if not damaged:
      return None
    problems = "; ".join(f"update {at}: {why}" for at, why in damaged.items())
    raise UserError(
      f"no checkpoint in {self._folder} can be read ({problems}). They stay as "
      "they are: bring one back, or go on with the version of jax that "
      "config.json names (made_by); another --workdir starts over"
    )

  def wait(self) -> None:
    """Waits until the last save is complete on disk.

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
    except (OSError, ValueError) as error:  # TensorStore's are of the second.
      problem = one_line(error, 4_000)
      reason = re.search(r"[A-Z][^:.]*(?= \[os_error_code)", problem)
      if not reason and not isinstance(error, OSError):
        raise
      raise UserError(
        f"a checkpoint cannot be written to {self._folder} "
        f"({reason[0] if reason else problem[:200]}): make room, or whatever "
        f"it lacks; the same command goes on from update {self.latest() or 0}"
      ) from error


class _Best:
  """Has Orbax keep the checkpoint of the lowest validation loss.

  Its own policy does not know the losses of those saved before a resume.
  """

  def __init__(self):
    self._losses: dict[int, float] = {}

  def note(self, update: int, valid_loss: float | None) -> None:
    """Notes the loss of a checkpoint, if it has one."""
    known = isinstance(valid_loss, float)
    self._losses[update] = valid_loss if known else math.inf

  def should_preserve(
    self, checkpoints: Sequence[Any], *, context: Any
  ) -> list[bool]:
    """Tells for each whether it is the best, as Orbax asks."""
    # One that could not be read just then may be the best.
    losses = [self._losses.get(each.step) for each in checkpoints]
    lowest = min((x for x in losses if x is not None), default=math.inf)
    return [x is None or x == lowest < math.inf for x in losses]


def _alike(folder: Path, read: Callable[[], Any]) -> Any:
  """Runs `read` on every process; if one fails, all raise the same error."""
  value, problem, passing = None, "", False
  try:
    value = read()
  except Exception as error:  # TensorStore and Orbax raise many kinds.
    problem = one_line(error)
    if not isinstance(error, DamagedCheckpoint):
      problem = f"{type(error).__name__}: {problem}"
    passing = _is_passing(error) or _is_whole(folder)
  bad = multihost_utils.process_allgather(np.array([bool(problem), passing]))
  any_bad, any_passing = np.reshape(bad, (-1, 2)).any(axis=0)
  problem = problem or "another process cannot read it"
  if any_passing:
    raise UserError(
      f"{folder} cannot be read now ({problem}) and may be whole; when it can, "
      "the same command goes on"
    )
  if any_bad:
    raise DamagedCheckpoint(problem)
  return value


def restore_params(folder: Path, abstract_params: Any) -> tuple[Any, dict]:
  """Reads (some of the parameters, counters), on the first device.

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
  try:
    restored = _read_arrays(folder, wanted, partial=True)
  except Exception as error:  # TensorStore and Orbax raise many kinds.
    problem = one_line(error)
    raise UserError(
      f"{folder} cannot be read as this encoder ({problem}); is it whole, and "
      "its config.json its own?"
    ) from error
  try:
    counters = _read_counters(folder)
    _verify(restored, counters)
  except (OSError, ValueError, DamagedCheckpoint) as error:
    raise UserError(
      f"{folder} is damaged ({error}): give an older one, as "
      f"{folder.parent}/UPDATE"
    ) from error
  return restored["params"], _spent(counters)


def _read_arrays(folder: Path, wanted: Any, partial: bool = False) -> Any:
  # The manager would wait for other processes, which may have failed.
  return ocp.PyTreeCheckpointHandler().restore(
    (folder / "state").absolute(),
    args=ocp.args.PyTreeRestore(
      wanted,
      restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
      partial_restore=partial,
    ),
  )


def _read_counters(folder: Path) -> dict[str, Any]:
  """The counters, which are what was saved.

  Raises:
    OSError: there are none.
    ValueError: they are damaged.
  """
  counters = read_object(folder / "counters" / "metadata")
  sealed = bool(_SEALS & {*counters})  # An older version stored no checksums.
  if sealed and counters.get("crc32") != _crc32(counters):
    raise ValueError("its counters are not those that were saved")
  return counters


def _verify(tree: Any, counters: dict) -> None:
  """Checks arrays that were read against the checkpoint's counters.

  Raises:
    DamagedCheckpoint: they are not what was saved.
  """
  if "checksums" in counters:
    for path, value in checksums(tree).items():
      if counters["checksums"].get(path) != value:
        raise DamagedCheckpoint(f"{path} is not what was saved")


def _spent(counters: dict) -> dict[str, Any]:
  return {k: v for k, v in counters.items() if k not in _OWN}


def _crc32(counters: dict) -> int:
  counted = {k: v for k, v in counters.items() if k != "crc32"}
  return zlib.crc32(json.dumps(counted, sort_keys=True).encode())


def _is_whole(folder: Path) -> bool:
  """Tells whether a checkpoint's arrays are those that were saved.

  Then what cannot read it is another version, or its settings.
  """
  try:
    counters = _read_counters(folder)
    path = (folder / "state").absolute()
    _verify(ocp.PyTreeCheckpointHandler().restore(path), counters)
    return "checksums" in counters
  except Exception:  # TensorStore and Orbax raise many kinds.
    return False


def _is_passing(error: Exception) -> bool:
  """Tells whether it is the machine's error, and the files may be whole."""
  if isinstance(error, MemoryError | jax.errors.JaxRuntimeError):
    return True
  code = re.search(r"os_error_code='(\d+)'", str(error))
  number = int(code[1]) if code else getattr(error, "errno", None)
  return number in _PASSING
