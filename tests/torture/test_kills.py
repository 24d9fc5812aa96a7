"""Commands killed at any moment, again and again: the last one ends as if none.

`--kills=N` kills each kind of command N times; 100 in all with 20.
"""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
import soundfile
from tiny import SMALL, finished_run, reproducible, tiny

from ssl_jax.data.sources import embedded

ROOT = Path(__file__).parents[2]
# Written anew by every process, and trusted by none.
_OWN = ("lock", "log.txt", "tensorboard", "events.")


class Job(NamedTuple):
  """A command that makes a folder.

  Attributes:
    command: its arguments, with the folder in place of {}.
    content: what is the same however often it was killed.
    half: what is in the folder, at any depth, while something is half written.
  """

  command: list[str]
  content: Callable[[Path], object]
  half: tuple[str, ...]


def files(*names):
  def content(folder):
    paths = sorted(x for name in names for x in folder.rglob(name))
    assert paths
    return {str(x.relative_to(folder)): x.read_bytes() for x in paths}

  return content


def of_run(workdir):
  result = json.loads((workdir / "result.json").read_text())
  kept = ("updates", "flops", "audio_seconds", "valid_loss", "skipped_updates")
  return reproducible(workdir), {key: result[key] for key in kept}


def of_sweep(folder):
  runs = sorted(path.parent for path in folder.glob("*/result.json"))
  assert len(runs) == 4
  return {run.name: of_run(run) for run in runs}


def of_probe(folder):
  (path,) = (folder / "probes").glob("*.json")

  def timeless(found):
    if not isinstance(found, dict):
      return found
    return {k: timeless(v) for k, v in found.items() if k != "seconds"}

  return timeless(json.loads(path.read_text()))


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
  folder = tmp_path_factory.mktemp("inputs")
  encoder = finished_run(tiny(4))
  source = embedded.open_split(tiny().data, "train")
  (folder / "audio").mkdir()
  for i in range(0, len(source.ids), 7):
    audio = source.read(i, 0, int(source.num_samples[i]))
    for copy in range(20):
      name = folder / "audio" / f"{i:04}-{copy:02}.wav"
      soundfile.write(name, audio, 16_000, "PCM_16")
  of_encoder = f"--checkpoint={encoder}"
  return {
    "main": Job(
      [
        *SMALL,
        "--config.budget.updates=60",
        "--config.log.every=7",
        "--config.eval.every=20",
        "--config.checkpoint.every=5",
        "--config.loader.num_workers=1",
        "--workdir={}",
      ],
      of_run,
      ("*.orbax-checkpoint-tmp*", "*tmp"),
    ),
    # An encoder for its labels, the labels, and then the run.
    "main in stages": Job(
      [
        *SMALL,
        "--config.hubert.labels=self",
        "--config.hubert.clusters=(20,)",
        "--config.budget.flops=3.5e10",
        "--config.log.every=7",
        "--config.eval.every=20",
        "--config.checkpoint.every=5",
        "--config.loader.num_workers=1",
        "--workdir={}",
      ],
      of_run,
      ("*.orbax-checkpoint-tmp*", "*tmp", "*.part"),
    ),
    "label": Job(
      [
        *SMALL,
        of_encoder,
        "--layer=1",
        "--clusters=20",
        "--km",
        "--out={}",
      ],
      files("*.labels", "codebook.npy", "header.json", "*.km", "*.tsv"),
      ("*.part", "*tmp"),
    ),
    "prepare": Job(
      [f"--input={folder}/audio", "--out={}", "--num_workers=2"],
      files("*.records", "*.jsonl", "dataset.json"),
      ("*.part", "*tmp"),
    ),
    "probe": Job(
      [
        "--config=configs/probe.py:task=ks",
        "--config.fit.updates=40",
        "--config.fit.eval_every=10",
        "--config.fit.num_seeds=1",
        of_encoder,
        "--encoder=model,logmel",
        "--out={}/probes",
        "--cache={}/cache",
      ],
      of_probe,
      ("features.npy", "*tmp"),
    ),
    "sweep": Job(
      [
        "--config=configs/isoflop.py:scale=smoke",
        "--config.size=('2x32x64x4','2x48x64x4')",
        "--config.flops=(3e9,9e9)",
        "--config.hubert.clusters=(20,)",
        "--config.kmeans.num_restarts=1",
        "--config.batch.seconds=4.0",
        "--config.data.bucket_seconds=(0.8,1.6)",
        "--config.log.every=2",
        "--config.checkpoint.every=3",
        "--workdir={}",
      ],
      of_sweep,
      ("*.orbax-checkpoint-tmp*", "*tmp"),
    ),
  }


def start(verb: str, job: Job, folder: Path, log: Path) -> subprocess.Popen:
  command = [arg.replace("{}", str(folder)) for arg in job.command]
  with log.open("a") as file:
    return subprocess.Popen(
      [sys.executable, "-m", f"ssl_jax.{verb.partition(' ')[0]}", *command],
      cwd=ROOT,
      stdout=file,
      stderr=file,
    )


def ended(process: subprocess.Popen, log: Path) -> None:
  process.wait(timeout=600)
  assert process.returncode == 0, log.read_text()[-3_000:]


def is_half(folder: Path, job: Job) -> bool:
  try:
    return any(next(folder.rglob(name), None) for name in job.half)
  except OSError:  # Of what goes while it is looked at.
    return False


def names(folder: Path) -> set[str]:
  """Of the files that are there, without those that every process has anew."""
  found = (path.relative_to(folder) for path in folder.rglob("*"))
  return {
    str(path)
    for path in found
    if not any(part.startswith(_OWN) for part in path.parts)
    and "ocdbt.process" not in str(path)  # Of chance names.
    and "/state/d/" not in str(path)
  }


def kill(process: subprocess.Popen) -> None:
  """As an out-of-memory killer does: the process alone, not what it started."""
  try:
    children = psutil.Process(process.pid).children(recursive=True)
  except psutil.NoSuchProcess:
    children = []
  process.send_signal(signal.SIGKILL)
  process.wait()
  _, left = psutil.wait_procs(children, timeout=20)
  assert not left, [" ".join(child.cmdline()) for child in left]


@pytest.mark.slow
@pytest.mark.parametrize(
  "verb", ["main", "main in stages", "label", "prepare", "probe", "sweep"]
)
def test_a_command_killed_at_any_moment_ends_as_if_it_never_was(
  jobs, tmp_path, verb, pytestconfig, record_property
):
  job, log = jobs[verb], tmp_path / "log"
  before = time.monotonic()
  ended(start(verb, job, tmp_path / "whole", log), log)
  seconds = time.monotonic() - before
  expected = job.content(tmp_path / "whole")
  files_expected = names(tmp_path / "whole")

  rng = random.Random(verb)
  killed = at_half = finished = 0
  moments = []
  folder = tmp_path / "killed"
  while killed < pytestconfig.getoption("--kills"):
    process, began = start(verb, job, folder, log), time.monotonic()
    # Every other time, in the middle of writing something.
    if waits_for_half := killed % 2:
      while process.poll() is None and not is_half(folder, job):
        time.sleep(0.001)
      time.sleep(rng.uniform(0, 0.05))
    else:
      until = began + rng.uniform(0, seconds)
      while process.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    if process.poll() is None:
      moments.append(round(time.monotonic() - began, 2))
      kill(process)
      killed += 1
      at_half += bool(waits_for_half)
    else:  # It was through: begun anew, to be killed again.
      ended(process, log)
      assert job.content(folder) == expected
      assert names(folder) == files_expected
      finished += 1
      shutil.rmtree(folder)
  ended(start(verb, job, folder, log), log)
  assert job.content(folder) == expected
  assert names(folder) == files_expected
  print(
    f"\n{verb}: {killed} kills, {at_half} while something was half written, "
    f"after {min(moments)} to {max(moments)} s of {seconds:.1f} s; "
    f"{finished + 1} times to the end, each the same"
  )
