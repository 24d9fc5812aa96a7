"""Doors whose streams, signals, paths and surroundings are not as usual."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import SMALL, reproducible, tiny

from ssl_jax import cli, files
from ssl_jax import config as config_lib
from ssl_jax.checkpoints.manager import Checkpoints
from ssl_jax.data.sources.source import AudioFiles
from ssl_jax.errors import UserError
from ssl_jax.labelling import fairseq
from ssl_jax.models.backbone import Backbone
from ssl_jax.pretrained import load
from ssl_jax.training import loop, metrics

ROOT = Path(__file__).parents[2]
FLOPS = ["-m", "ssl_jax.flops", "--config=configs/smoke.py"]


def sh(script: str, *command: str, **env: str):
  """Runs `script`, in which "$@" is a command of this Python."""
  return subprocess.run(
    ["bash", "-c", script, "sh", sys.executable, *command],
    cwd=ROOT,
    env=os.environ | {"JAX_PLATFORMS": "cpu"} | env,
    capture_output=True,
    text=True,
    timeout=120,
  )


def assert_one_line(done, said: str, status: int = 1) -> None:
  assert done.returncode == status, done.stderr
  assert "Traceback" not in done.stderr
  (line,) = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
  assert said in line


@pytest.mark.parametrize("what", [FLOPS, ["-m", "ssl_jax.main", "--help"]])
def test_a_result_nobody_reads_is_no_error(what):
  done = sh('"$@" | true; exit "${PIPESTATUS[0]}"', *what)
  assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
  full = sh('"$@" >/dev/full', *what)
  assert_one_line(full, "stdout cannot be written (No space left on device)")


@pytest.mark.slow
@pytest.mark.parametrize("stream", ["2>/dev/full", "2> >(true)"])
def test_a_run_whose_messages_are_lost_is_trained(tmp_path, stream):
  args = [*SMALL, "--config.budget.updates=4", f"--workdir={tmp_path / 'run'}"]
  # Buffered, as Python's stderr is unless told otherwise.
  done = sh(f'"$@" {stream}', "-m", "ssl_jax.main", *args, PYTHONUNBUFFERED="")
  assert done.returncode == 0
  assert json.loads(done.stdout)["updates"] == 4
  assert [*(tmp_path / "run" / "checkpoints").iterdir()]


@pytest.mark.slow
def test_paths_at_home_are_written_out(tmp_path):
  args = ["-m", "ssl_jax.main", *SMALL, "--config.budget.updates=1"]
  done = sh('"$@"', *args, "--workdir=~/run", HOME=str(tmp_path))
  assert json.loads(done.stdout)["workdir"] == f"{tmp_path}/run", done.stderr
  trunk = sh('"$@"', *args, "--config.budget.trunk=~/x", HOME=str(tmp_path))
  assert_one_line(trunk, f"config.budget.trunk='{tmp_path}/x'")
  assert not [*ROOT.glob("~*")]


@pytest.mark.slow
def test_odd_surroundings_are_one_line(tmp_path):
  args = ["-m", "ssl_jax.main", *SMALL, "--config.budget.updates=1"]
  done = sh('"$@"', *args, "--dry_run", JAX_PLATFORMS="cuda")
  assert_one_line(done, "JAX_PLATFORMS=cuda: JAX finds no such device")
  odd = {"SLURM_STEP_NUM_TASKS": "abc", "OMPI_COMM_WORLD_SIZE": "1.5"}
  done = sh('"$@"', *args, "--dry_run", SSL_JAX_PARENT="abc", **odd)
  assert done.returncode == 0, done.stderr
  workdir = f"--workdir={tmp_path}/" + os.fsdecode(b"y\xff")
  assert_one_line(sh('"$@"', *args, workdir), "cannot be used")
  assert not [*tmp_path.iterdir()]
  folder = sh('"$@"', "-m", "ssl_jax.main", "--config=configs")
  assert_one_line(folder, "--config=configs is a folder: give a file", 2)
  late = sh('"$@"', *args, "--process_timeout=1e29")
  assert late.returncode == 2 and "process_timeout" in late.stderr


def test_an_interrupt_lost_in_a_callback_comes_again(monkeypatch):
  came = threading.Event()
  before = signal.signal(signal.SIGINT, lambda *_: came.set())
  try:
    for hook in ("unraisablehook", "excepthook"):
      owner = sys if hook == "unraisablehook" else threading
      monkeypatch.setattr(owner, hook, getattr(owner, hook))
    cli._quieten_disk_errors()

    class Forgotten:
      def __del__(self):
        raise KeyboardInterrupt

    Forgotten()
    assert came.wait(5)
  finally:
    signal.signal(signal.SIGINT, before)


def test_a_folder_of_others_files_is_not_taken(tmp_path):
  claim = tmp_path, "features.json", "{}", "--out", "other features"
  (tmp_path / "lock").touch()
  (tmp_path / "index.jsonl").write_text("mine")
  with pytest.raises(UserError, match=r"--out=.* holds 'index.jsonl', which"):
    files.claim(*claim)
  with pytest.raises(UserError, match=r"holds 'index.jsonl'"):
    files.claim(*claim, ("index.jsonl", "x"))
  files.claim(tmp_path / "new", *claim[1:])
  files.claim(*claim, ("x",))
  files.claim(*claim)  # Now its own.


@pytest.mark.parametrize("name", ["a\nb.wav", "a\tb.wav", "a\udcff.wav"])
def test_names_that_fairseqs_files_cannot_hold_are_refused(name):
  source = AudioFiles([name], [f"/x/{name}"], np.ones(1), [{}], [])
  with pytest.raises(UserError, match=r"cannot name .*: rename the file"):
    fairseq.check_files({"train": source})


@pytest.mark.slow
def test_a_run_whose_metrics_are_gone_ends_as_well(tmp_path):
  loop.train(tiny(4), tmp_path)
  for name in ("metrics.jsonl", "result.json"):
    (tmp_path / name).unlink()
  result = loop.train(tiny(4), tmp_path)
  assert result["updates"] == 4 and result["valid_loss"] is None


@pytest.mark.slow
def test_a_run_whose_checkpoints_are_gone_says_so(tmp_path, caplog):
  config = tiny(4)
  config.checkpoint.every = config.log.every = 1
  loop.train(config, tmp_path)
  lines = (tmp_path / "metrics.jsonl").read_text()
  expected = reproducible(tmp_path)
  (tmp_path / "result.json").unlink()
  for saved in (tmp_path / "checkpoints").iterdir():
    saved.rename(tmp_path / saved.name)
  loop.train(config, tmp_path)
  assert "goes to update 4, but there is no checkpoint" in caplog.text
  assert (tmp_path / "metrics.old.jsonl").read_text() == lines
  assert reproducible(tmp_path) == expected


def test_a_branch_that_was_killed_early_begins_anew_as_usual(tmp_path, caplog):
  lines = '{"update": 40, "split": "valid"}\n{"update": 42, "split": "train"}\n'
  (tmp_path / "metrics.jsonl").write_text(lines)
  config = tiny()
  config.checkpoint.every = 5
  metrics.MetricsWriter(tmp_path, 0, 40, True, config).close()
  assert not caplog.text and not (tmp_path / "metrics.old.jsonl").exists()
  (tmp_path / "metrics.jsonl").write_text(lines + "{damaged\n" + lines)
  metrics.MetricsWriter(tmp_path, 0, 0, True, config).close()
  assert not (tmp_path / "metrics.jsonl").read_text()


def test_an_encoder_is_read_while_its_run_makes_room(tmp_path, monkeypatch):
  config = tiny()
  (tmp_path / "config.json").write_text(config_lib.to_json(config))
  shape = jnp.zeros((1, 3200)), jnp.full(1, 3200)
  init = Backbone(config, jnp.float32).init
  params = init(loop.jax.random.key(0), *shape)["params"]
  checkpoints = Checkpoints(tmp_path, keep=1)
  spent = {"flops": 1.0, "wall_seconds": 1.0}

  def save(update: int) -> None:
    state = {"params": {"backbone": params}}
    checkpoints.save(update, state, spent | {"flops": float(update)}, None)
    checkpoints.wait()

  save(1)
  restore, left = load.restore_params, [2, 3]

  def meanwhile(folder, wanted):
    if left:
      save(left.pop(0))
    return restore(folder, wanted)

  monkeypatch.setattr(load, "restore_params", meanwhile)
  found = load.load_encoder(tmp_path)
  assert found.origin["update"] == found.spent["flops"] == 3
  with pytest.raises(UserError):
    load.load_encoder(tmp_path / "checkpoints" / "1")
  checkpoints.close()
