"""Probes of a family's runs, each in a process, in the run's folder."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from ssl_jax import process
from ssl_jax.errors import UserError, check_choice
from ssl_jax.files import read_object
from ssl_jax.probes import TASKS


class Probe(NamedTuple):
  """A task of ssl_jax.probe.

  Attributes:
    task: its name.
    corpus: folder that it is probed on; "": the packaged clips.
  """

  task: str
  corpus: str

  @property
  def profile(self) -> str:
    """That of its config."""
    return "study" if self.corpus else "smoke"

  def is_done(self, workdir: Path) -> bool:
    """Tells whether there is a result of it in a run's folder."""
    path = workdir / "probes" / f"{self.task}-{self.profile}.json"
    try:
      probed = read_object(path)["config"]["data"]["dir"]
    except (OSError, ValueError, LookupError, TypeError):
      return False
    return probed == self.corpus

  def run(self, workdir: Path, environment: dict[str, str]) -> str:
    """Probes a run's encoder; returns "" or what went wrong."""
    # Features that no other run will read are not kept.
    with (
      (workdir / "log.txt").open("a") as log,
      tempfile.TemporaryDirectory(dir=workdir, prefix="features-") as features,
    ):
      config = f"configs/probe.py:task={self.task},profile={self.profile}"
      status = subprocess.run(
        [
          *(sys.executable, "-m", "ssl_jax.probe", f"--config={config}"),
          *[f"--config.data.dir={self.corpus}"] * bool(self.corpus),
          *(f"--checkpoint={workdir}", "--encoder=model"),
          f"--cache={features}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=log,
        env=environment | {process.PARENT: str(os.getpid())},
      ).returncode
    if status:
      return f"{self.task}: exit status {status}: {said_last(workdir)}"
    return ""


def of_family(family: ConfigDict) -> list[Probe]:
  """Returns the probes of each run of a family.

  Raises:
    UserError: there is no such task, or not the corpus that it needs.
  """
  if "probes" not in family:
    return []
  corpus = family.get("probe_dir") or ""
  if corpus and not Path(corpus).exists():
    raise UserError(f"config.probe_dir={corpus!r}: there is no such corpus")
  for task in family.probes:
    check_choice("config.probes", task, TASKS)
    if not corpus and not TASKS[task].packaged:
      raise UserError(
        f"config.probes={(*family.probes,)}: the packaged clips are not enough "
        f"for {task}; name a corpus by config.probe_dir"
      )
  return [Probe(task, corpus) for task in family.probes]


def said_last(workdir: Path) -> str:
  """Returns the last line of a run's log."""
  *_, last = (workdir / "log.txt").read_text().splitlines() or ["nothing"]
  return last.removeprefix("error: ")
