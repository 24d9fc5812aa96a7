"""Metrics elsewhere: Weights & Biases and MLflow, where config.log.to asks."""

import importlib
import importlib.util
import json
import logging
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from ml_collections import ConfigDict

from ssl_jax.errors import UserError, nearest, one_line
from ssl_jax.files import write_atomically
from ssl_jax.knobs import flatten

_log = logging.getLogger("ssl_jax")
_PACKAGES = {"wandb": "wandb", "mlflow": "mlflow-skinny"}
# MLflow's own limit on a parameter's value.
_MLFLOW_CHARACTERS = 500


class _Tracker(Protocol):
  def log(self, update: int, values: dict[str, float]) -> None: ...

  def finish(self, summary: dict[str, Any] | None) -> None: ...


class _WandB:
  def __init__(self, workdir: Path, flat: dict[str, Any], run_id: str | None):
    self.id = run_id or uuid.uuid4().hex[:16]
    self._run = importlib.import_module("wandb").init(
      dir=str(workdir),
      id=self.id,
      name=workdir.absolute().name,
      config=flat,
      resume="allow",
    )

  def log(self, update: int, values: dict[str, float]) -> None:
    self._run.log(values, step=update)

  def finish(self, summary: dict[str, Any] | None) -> None:
    self._run.summary.update(summary or {})
    self._run.finish(exit_code=0 if summary else 1)


class _MLflow:
  def __init__(self, workdir: Path, flat: dict[str, Any], run_id: str | None):
    self._mlflow = importlib.import_module("mlflow")
    if run_id:
      run = self._mlflow.start_run(run_id=run_id)
    else:
      run = self._mlflow.start_run(run_name=workdir.absolute().name)
      self._mlflow.log_params(
        {key: str(v)[:_MLFLOW_CHARACTERS] for key, v in flat.items()}
      )
    self.id = run.info.run_id

  def log(self, update: int, values: dict[str, float]) -> None:
    self._mlflow.log_metrics(values, step=update)

  def finish(self, summary: dict[str, Any] | None) -> None:
    numbers = {
      f"final/{key}": float(value)
      for key, value in (summary or {}).items()
      if isinstance(value, int | float)
    }
    if numbers:
      self._mlflow.log_metrics(numbers)
    self._mlflow.end_run("FINISHED" if summary else "KILLED")


_TRACKERS = {"wandb": _WandB, "mlflow": _MLflow}


def names(config: ConfigDict) -> list[str]:
  """Lists what `config.log.to` names.

  Raises:
    UserError: it is not known, or not installed.
  """
  asked = [name.strip() for name in config.log.to.split(",") if name.strip()]
  for name in asked:
    if name not in _TRACKERS:
      raise UserError(
        f"config.log.to={config.log.to!r}: " + nearest(name, _TRACKERS)
      )
    if importlib.util.find_spec(name) is None:
      raise UserError(
        f"config.log.to={config.log.to!r}: pip install {_PACKAGES[name]}, or "
        "leave it out: metrics are in the workdir as well"
      )
  return asked


class Trackers:
  """All that a run reports to; what fails is left out, and the run goes on.

  A run that is resumed reports to the same runs there: `tracking.json` in the
  workdir has their ids.
  """

  def __init__(self, config: ConfigDict, workdir: Path):
    path = workdir / "tracking.json"
    try:
      ids = json.loads(path.read_text())
    except (OSError, ValueError):
      ids = {}
    flat = flatten(config)
    self._open: dict[str, _Tracker] = {}
    for name in names(config):
      self._guarded(
        name,
        lambda name=name: self._open.update(
          {name: _TRACKERS[name](workdir, flat, ids.get(name))}
        ),
      )
    if self._open:
      ids |= {name: tracker.id for name, tracker in self._open.items()}
      write_atomically(path, json.dumps(ids) + "\n")

  def log(self, update: int, values: dict[str, float]) -> None:
    """Reports the metrics of an update, by name."""
    for name, tracker in [*self._open.items()]:
      self._guarded(name, lambda t=tracker: t.log(update, values))

  def finish(self, summary: dict[str, Any] | None) -> None:
    """Ends all; `summary` of a run that is complete, else None."""
    for name, tracker in [*self._open.items()]:
      self._guarded(name, lambda t=tracker: t.finish(summary))
    self._open.clear()

  def _guarded(self, name: str, act: Callable[[], Any]) -> None:
    try:
      act()
    except Exception as error:  # Whatever a network or a service can do.
      self._open.pop(name, None)
      _log.warning(
        "%s failed and is left out from here on (%s); metrics go on in the "
        "workdir",
        name,
        one_line(error),
      )
