"""Two processes of a run, of which one meets what the other does not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import finished_run, free_port, reproducible, staged, tiny

from ssl_jax.files import alone, read_object
from ssl_jax.training import loop

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent


def run_two(workdir, fault):
  """What each of the two left: (exit status, errors)."""
  port, path = free_port(), f"{HERE.parent}{os.pathsep}{HERE.parents[1]}"
  pair = [
    subprocess.Popen(
      [
        *(sys.executable, HERE / "one_of_two.py"),
        *(workdir, f"localhost:{port}", str(i), fault),
      ],
      env=os.environ | {"PYTHONPATH": path, "JAX_NUM_CPU_DEVICES": "1"},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]
  try:
    said = [process.communicate(timeout=150)[1] for process in pair]
  finally:
    for process in pair:
      process.kill()
  return [(process.returncode, err) for process, err in zip(pair, said)]


@pytest.fixture(scope="module")
def trained():
  return finished_run(tiny(6))


def unfinished(trained, tmp_path):
  workdir = tmp_path / "run"
  subprocess.run(["cp", "-r", trained, workdir], check=True)
  (workdir / "result.json").unlink()
  return workdir


def test_what_the_first_does_alone_is_waited_for(trained, tmp_path):
  workdir = tmp_path / "run"
  for status, err in run_two(workdir, "late"):
    assert status == 0, err
  assert [x["update"] for x in reproducible(workdir)] == [
    x["update"] for x in reproducible(trained)
  ]


def test_two_label_their_own_audio_as_one_does(tmp_path):
  workdir = tmp_path / "run"
  for status, err in run_two(workdir, "stages"):
    assert status == 0, err
  loop.train(staged(), tmp_path / "one")
  for part in ".", "first":
    ours = reproducible(workdir / part)
    theirs = reproducible(tmp_path / "one" / part)
    assert [x["update"] for x in ours] == [x["update"] for x in theirs]
    assert ours[-1]["loss"] == pytest.approx(theirs[-1]["loss"], rel=2e-3)
  result = read_object(workdir / "result.json")
  assert result["flops"] == read_object(tmp_path / "one/result.json")["flops"]


def test_a_checkpoint_torn_for_one_is_passed_over_by_both(trained, tmp_path):
  workdir = unfinished(trained, tmp_path)
  for status, err in run_two(workdir, "torn"):
    assert status == 0, err
  assert os.listdir(workdir / "damaged") == ["6"]
  ours, theirs = reproducible(workdir), reproducible(trained)
  assert [x["update"] for x in ours] == [x["update"] for x in theirs]
  assert ours[-1]["loss"] == pytest.approx(theirs[-1]["loss"], rel=1e-3)


def test_a_checkpoint_that_one_cannot_read_now_stays(trained, tmp_path):
  workdir = unfinished(trained, tmp_path)
  for status, err in run_two(workdir, "busy"):
    assert status != 0
    assert "6 cannot be read now" in err
  assert not (workdir / "damaged").exists()
  assert (workdir / "checkpoints" / "6").exists()


def test_two_on_a_workdir_that_is_in_use_end(tmp_path):
  with alone(tmp_path, "this"):
    before = set(os.listdir(tmp_path))
    (first, told), (second, err) = run_two(tmp_path, "")
    assert set(os.listdir(tmp_path)) == before
  assert first != 0 and "is at work there" in told
  assert second != 0, err
