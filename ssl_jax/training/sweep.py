"""Families of runs: their configs, what they share, and training them."""

import contextlib
import itertools
import logging
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict
from tqdm import tqdm

from ssl_jax import config as config_lib
from ssl_jax import process
from ssl_jax.budget import planner
from ssl_jax.budget.flops import readable
from ssl_jax.config import override
from ssl_jax.errors import UserError
from ssl_jax.files import read_jsonl, read_object
from ssl_jax.objectives import make_objective
from ssl_jax.optimizers import schedule as schedule_lib
from ssl_jax.training import trunk
from ssl_jax.training.setup import set_up
from ssl_jax.training.sweep_probes import Probe, said_last

_POLL_SECONDS = 0.5


class Run(NamedTuple):
  """One run of a family.

  Attributes:
    name: of its folder.
    flags: of `python -m ssl_jax.main`, beside --workdir.
    facts: of its header, with `own_flops`: less what its trunk spent.
    trunk: name of the run it branches off; "".
  """

  name: str
  flags: list[str]
  facts: dict[str, Any]
  trunk: str


def expand(
  family: ConfigDict, overrides: list[str], workdir: Path
) -> list[list[Run]]:
  """Expands a family to its runs, in groups to be run in their order.

  A group is the budgets of one objective (or recipe), size, hours and seed,
  the largest first: where `decay_fraction` is below 1 the others branch off it.

  Args:
    family: as of configs/isoflop.py or, with recipes, configs/race.py.
    overrides: KEY=VALUE of every run's config.
    workdir: of the family.

  Raises:
    UserError: a run could not start; it is named.
  """
  axes = (family[_kind(family)], family.size, family.hours, family.seed)
  with _saying_once():
    return [
      _group(family, overrides, workdir, *values)
      for values in itertools.product(*axes)
    ]


@contextlib.contextmanager
def _saying_once() -> Iterator[None]:
  """Drops messages that were said before: runs open the same audio."""
  said = set()

  def is_new(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return not (message in said or said.add(message))

  log = logging.getLogger("ssl_jax")
  log.addFilter(is_new)
  try:
    yield
  finally:
    log.removeFilter(is_new)


def _kind(family: ConfigDict) -> str:
  """Returns which argument of the runs' config tells its methods apart.

  Raises:
    UserError: the family has neither.
  """
  for kind in ("recipe", "objective"):
    if kind in family:
      return kind
  raise UserError("the family names neither objectives nor recipes")


def _group(
  family: ConfigDict,
  overrides: list[str],
  workdir: Path,
  method: str,
  size: str,
  hours: float,
  seed: int,
) -> list[Run]:
  common = f"{method}-{size}"
  common += f"-{hours:g}h" if hours else ""
  common += f"-seed{seed}" if seed else ""
  more = "," if ":" in family.config else ":"
  path = f"{family.config}{more}size={size},{_kind(family)}={method}"
  fixed = [*overrides, f"seed={seed}", f"data.hours={hours}"]
  budgets = sorted({*family.flops}, reverse=True)
  shared = family.decay_fraction < 1

  def configure(flops: float, more: list[str]) -> tuple[list[str], Any]:
    given = [*fixed, f"budget.flops={flops:g}", *more]
    config = config_lib.load(path)
    override(config, given)
    return given, set_up(config)

  def name(flops: float) -> str:
    return f"{common}-{flops:.3g}".replace("+", "")

  try:
    if shared:
      _, smallest = configure(budgets[-1], [])
      # A first stage is of one budget, and so are its labels.
      shared = not make_objective(smallest.config).first_stage()
    if shared:
      warmup = max(1, schedule_lib.warmup_updates(smallest.config))
      fixed += [
        f"optimizer.warmup_updates={warmup}",
        f"optimizer.decay_fraction={family.decay_fraction:g}",
      ]
    made = [(flops, *configure(flops, [])) for flops in budgets]
  except UserError as error:
    raise UserError(f"{common}: {error}") from error

  longest = made[0][2].config
  leave = {
    flops: trunk.branch_update(setup.config)
    for flops, _, setup in made[1:]
    if shared
    and schedule_lib.warmup_updates(longest)
    <= trunk.branch_update(setup.config)
    <= min(trunk.branch_update(longest), setup.config.budget.updates - 1)
  }
  runs = []
  for flops, given, setup in made:
    facts, own = dict(setup.header), setup.header["flops"]
    facts["objective"] = setup.config.objective.name
    facts["frontend"] = setup.config.frontend.name
    if flops in leave:
      given = [*given, f"budget.trunk={workdir / name(budgets[0])}"]
      own -= leave[flops] * facts["padded_flops_per_update"]
    elif flops == budgets[0] and leave:
      given = [*given, f"checkpoint.at={(*sorted(leave.values()),)}"]
    flags = [f"--config={path}"] + [f"--config.{item}" for item in given]
    trunk_name = name(budgets[0]) if flops in leave else ""
    runs.append(Run(name(flops), flags, facts | {"own_flops": own}, trunk_name))
  return runs


def train_all(
  runs: list[Run],
  workdir: Path,
  environment: dict[str, str],
  probes: Sequence[Probe] = (),
) -> dict[str, str]:
  """Trains and probes what is not, one after the other, each in a process.

  Args:
    runs: in an order that has trunks before their branches.
    workdir: of the family.
    environment: of the processes.
    probes: of each run.

  Returns:
    {name: last line said} of the runs that failed.
  """
  failed = {}
  todo = [run for run in runs if not is_finished(workdir / run.name, probes)]
  untrained = [run for run in todo if not is_finished(workdir / run.name)]
  with tqdm(
    total=sum(run.facts["own_flops"] for run in untrained),
    unit="FLOP",
    unit_scale=True,
    disable=None,
  ) as bar:
    spent, began = 0.0, time.monotonic()
    for i, run in enumerate(todo):
      bar.set_description(f"{run.name} ({i + 1}/{len(todo)})")
      own, there = run.facts["own_flops"], workdir / run.name
      problem = ""
      if run in untrained:
        if run.trunk and not is_finished(workdir / run.trunk):
          problem = f"its trunk, {run.trunk}, failed"
        else:
          problem = _train(run, there, environment, bar, spent)
        spent += own
        bar.update(spent - bar.n)
      for probe in probes:
        if not problem and not probe.is_done(there):
          problem = probe.run(there, environment)
      if problem:
        failed[run.name] = problem
        bar.write(f"{run.name} failed: {problem}", file=sys.stderr)
        continue
      done = f"{run.name} finished ({i + 1} of {len(todo)})"
      if spent:
        left = (time.monotonic() - began) / spent * (bar.total - spent)
        done += f", {tqdm.format_interval(left)} left at this pace"
      bar.write(done, file=sys.stderr)
  return failed


def is_finished(workdir: Path, probes: Sequence[Probe] = ()) -> bool:
  """Tells whether the run in a folder ended, and its probes."""
  probed = all(probe.is_done(workdir) for probe in probes)
  return (workdir / "result.json").exists() and probed


def _train(
  run: Run, workdir: Path, environment: dict[str, str], bar: tqdm, spent: float
) -> str:
  """Returns "" or what a failed run said last."""
  workdir.mkdir(parents=True, exist_ok=True)
  command = [sys.executable, "-m", "ssl_jax.main", f"--workdir={workdir}"]
  with (workdir / "log.txt").open("a") as log:
    trainer = subprocess.Popen(
      command + run.flags,
      stdout=subprocess.DEVNULL,
      stderr=log,
      env=environment | {process.PARENT: str(os.getpid())},
    )
    try:
      shared = run.facts["flops"] - run.facts["own_flops"]
      while trainer.poll() is None:
        time.sleep(_POLL_SECONDS)
        lines = []
        with contextlib.suppress(UserError):  # The run itself says it.
          lines = read_jsonl(workdir / "metrics.jsonl")
        flops = [line["flops"] for line in lines if "flops" in line]
        if flops:
          bar.update(spent + max(0, flops[-1] - shared) - bar.n)
    except KeyboardInterrupt:
      trainer.wait()  # It got the interrupt too, and saves.
      raise KeyboardInterrupt(
        "interrupted; the same command goes on from here"
      ) from None
  if trainer.returncode == 0:
    stopped = "stopped by SIGTERM; the same command goes on from here"
    return "" if is_finished(workdir) else stopped
  return f"exit status {trainer.returncode}: {said_last(workdir)}"


def table(runs: list[Run], workdir: Path) -> str:
  """Returns the runs and their costs as a table for people.

  Losses of finished runs are theirs. Others' are guessed by the planner's law:
  of the finished runs where they are enough, else of the published ones where
  these had the frontend; and hours from the FLOPs a second of finished runs.
  """
  rates, losses = [], _predict(runs, workdir)
  for run in runs:
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
      done = read_object(workdir / run.name / "result.json")
      rates.append(done["flops"] / max(1e-9, done["train_seconds"]))
      losses[run.name] = f"{done['valid_loss']:.3f}"
  lines = [
    f"{'run':32}{'parameters':>12}{'updates':>11}{'epochs':>10}"
    f"{'FLOPs':>10}{'own':>10}{'hours':>8}{'loss':>8}"
  ]
  for run in runs:
    facts, hours = run.facts, "-"
    if is_finished(workdir / run.name):
      hours = "done"
    elif rates:
      hours = f"{facts['own_flops'] / statistics.median(rates) / 3600:.2g}"
    lines.append(
      f"{run.name:32}{readable(facts['params']):>12}{facts['updates']:>11,}"
      f"{facts['epochs']:>10.3g}{readable(facts['flops']):>10}"
      f"{readable(facts['own_flops']):>10}{hours:>8}"
      f"{losses.get(run.name, '-'):>8}"
    )
  own = sum(run.facts["own_flops"] for run in runs)
  whole = sum(run.facts["flops"] for run in runs)
  lines.append(
    f"{len(runs)} runs, {readable(own)}FLOP ({readable(whole)}FLOP if each "
    "were trained from scratch)"
  )
  return "\n".join(lines)


def _predict(runs: list[Run], workdir: Path) -> dict[str, str]:
  """{name: expected validation loss, nats} of what can be told."""
  predicted = {}
  for objective in sorted({run.facts["objective"] for run in runs}):
    own = [run for run in runs if run.facts["objective"] == objective]
    points = []
    for run in own:
      with contextlib.suppress(UserError):  # A loss may not be finite.
        if is_finished(workdir / run.name):
          points += planner.read_runs(workdir / run.name)
    if own[0].facts["frontend"] != "waveform" and not planner.enough(points):
      continue
    try:
      law, _, setting, _ = planner.fit(objective, points)
    except UserError:  # There are several settings, or sizes too alike.
      continue
    for run in own:
      audio = run.facts["updates"] * run.facts["seconds_per_update"]
      loss = law.loss(run.facts["params"], audio, setting)
      predicted[run.name] = f"{loss:.3f}"
  return predicted
