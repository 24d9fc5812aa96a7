"""The files of a run beside its checkpoints: config.json and result.json."""

import json
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

import ssl_jax
from ssl_jax import SAMPLE_RATE
from ssl_jax import config as config_lib
from ssl_jax.budget.updates import FIRST_STAGE, is_first_stage
from ssl_jax.devices import chips
from ssl_jax.errors import UserError
from ssl_jax.files import read_jsonl, read_object, write_atomically


def claim(workdir: Path, config: ConfigDict) -> None:
  """Makes `workdir` this run's, or checks that it already is.

  Raises:
    UserError: if it cannot be written, or holds a run of another config; the
      differing keys are listed.
  """
  path = workdir / "config.json"
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    if path.exists():
      _check_same(read_object(path), config, workdir)
    else:
      saved = json.loads(config_lib.to_json(config))
      saved[config_lib.MADE_BY] = made_by()
      write_atomically(path, json.dumps(saved, indent=2) + "\n")
  except (OSError, ValueError, TypeError, AttributeError) as error:
    raise UserError(
      f"--workdir={workdir} cannot be used ({error}); choose another"
    ) from error


def made_by() -> dict[str, Any]:
  """Returns what made a run: version, commit, jax, python, command.

  `commit` is None outside of a git checkout; it ends in `-dirty` where files
  differ from it.
  """
  root = Path(ssl_jax.__file__).parents[1]
  git = [
    "git",
    "-C",
    str(root),
    "describe",
    "--always",
    "--abbrev=40",
    "--dirty",
  ]
  try:
    done = subprocess.run(git, capture_output=True, text=True, timeout=10)
    commit = done.stdout.strip() if (root / ".git").exists() else ""
  except (OSError, subprocess.SubprocessError):
    commit = ""
  return {
    "version": ssl_jax.__version__,
    "commit": commit or None,
    "jax": jax.__version__,
    "python": platform.python_version(),
    "command": shlex.join(sys.argv),
  }


def claim_data(workdir: Path, data: dict[str, Any], trunk: str) -> None:
  """Notes what a run is trained on, or checks that it still is that.

  Args:
    workdir: of the run.
    data: `train` and `valid`, {clips, corpus: its hash}; `labels`, of each set
      what tells it from others.
    trunk: the workdir of the run that this one branches off, if any.

  Raises:
    UserError: clips were added or are gone, or labels were made anew, since
      the run or its trunk began.
  """
  path = workdir / "data.json"
  if trunk:
    _check_data(Path(trunk) / "data.json", data, f"config.budget.trunk={trunk}")
  if path.exists():
    _check_data(path, data, f"--workdir={workdir}")
  else:
    write_atomically(path, json.dumps(data) + "\n")


def _check_data(path: Path, data: dict[str, Any], said: str) -> None:
  try:
    old = read_object(path)
  except (OSError, ValueError) as error:
    raise UserError(
      f"{path} is missing or damaged ({error}), and says what the run was "
      "trained on: bring it back, or choose another --workdir"
    ) from error
  remedy = "bring those back, or choose another --workdir"
  for split in ("train", "valid"):
    if old.get(split) != data[split]:
      there = old[split] if isinstance(old.get(split), dict) else {}
      raise UserError(
        f"{said} was begun with other clips ({split}: {there.get('clips')} "
        f"there, {data[split]['clips']} now, of other names or lengths): "
        f"{remedy}"
      )
  if old.get("labels") != data["labels"]:
    raise UserError(f"{said} was begun with other labels: {remedy}")


def _check_same(old: dict, config: ConfigDict, workdir: Path) -> None:
  differing = config_lib.differing(old, config, "resume")
  if not differing:
    return
  if all(line.startswith("budget.") for line in differing):
    raise UserError(
      f"--workdir={workdir} holds a run of another length "
      f"({'; '.join(differing)}), for which its learning rate was made: to use "
      f"what it learned, choose another workdir and --init_from={workdir}; to "
      "extend runs without loss, let the first save before its decay "
      "(config.optimizer.decay_fraction=0.2, config.checkpoint.at) and the "
      "longer one branch off (config.budget.trunk)"
    )
  raise UserError(
    f"--workdir={workdir} holds a run of another config; "
    f"choose another workdir or undo: {'; '.join(differing)}"
  )


def goes_on(workdir: Path) -> str:
  """Returns the words for how a run in a folder goes on."""
  given = workdir.parent if is_first_stage(workdir) else workdir
  return f"the same command with --workdir={given} goes on"


def make_result(
  workdir: Path,
  header: dict[str, Any],
  update: int,
  spent: dict[str, Any],
  skipped: int,
  to_first: float,
) -> dict[str, Any]:
  """Returns what a finished run prints (README, "What a run leaves").

  Args:
    workdir: of the run, with its metrics.
    header: of the run.
    update: its last.
    spent: in all.
    skipped: updates whose loss was not finite.
    to_first: seconds to this process's first update.
  """
  before = header["before_flops"]
  first = (read_result(workdir / FIRST_STAGE) or {}) if before else {}
  lines = read_jsonl(workdir / "metrics.jsonl")
  valid = [line["loss"] for line in lines if line["split"] == "valid"]
  peak = chips.peak_flops_per_second(header["device_kind"])
  return {
    "workdir": str(workdir),
    "updates": update,
    "flops": spent["flops"],
    "trunk_flops": spent["trunk_flops"],
    "audio_seconds": spent["audio_samples"] / SAMPLE_RATE,
    "before_flops": before,
    "before_audio_seconds": first.get("audio_seconds", 0.0),
    "params": header["params"],
    "first_valid_loss": valid[0] if valid else None,
    "valid_loss": valid[-1] if valid else None,
    "best_valid_loss": min((x for x in valid if x is not None), default=None),
    "skipped_updates": skipped,
    "alarms": [line["name"] for line in lines if line["split"] == "alarm"],
    "wall_seconds": spent["wall_seconds"],
    "train_seconds": spent["train_seconds"],
    "seconds": spent["seconds"],
    "first_update_seconds": to_first,
    "mfu": peak
    and spent["flops"] / spent["train_seconds"] / peak / header["devices"],
    "devices": header["devices"],
    "device_kind": header["device_kind"],
    config_lib.MADE_BY: made_by(),
  }


def write_result(workdir: Path, result: dict[str, Any]) -> None:
  """Saves what a finished run returned."""
  write_atomically(workdir / "result.json", json.dumps(result) + "\n")


def read_result(workdir: Path) -> dict[str, Any] | None:
  """Reads what the finished run in `workdir` returned; None if unfinished."""
  path = workdir / "result.json"
  try:
    return read_object(path) if path.exists() else None
  except (OSError, ValueError) as error:
    raise UserError(
      f"{path} is damaged ({error}): remove it, and the same command makes it "
      "anew"
    ) from error
