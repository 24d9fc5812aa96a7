"""Processes that are told to stop, or lost: nothing of the run is."""

import os
import signal
import time

import pytest
from tiny import (
  SMALL_LOGGED as ARGS,
)
from tiny import (
  assert_same,
  finish,
  free_port,
  reproducible,
  start_main,
  wait_for,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A run that nothing happens to: 30 updates on 2 devices."""
  workdir = tmp_path_factory.mktemp("whole")
  finish(start(workdir, 2))
  return reproducible(workdir)


def start(workdir, devices, *args):
  return start_main(
    workdir,
    *ARGS,
    "--config.budget.updates=30",
    *args,
    JAX_NUM_CPU_DEVICES=str(devices),
    JAX_PLATFORMS="cpu",
  )


def start_two(workdir):
  port = free_port()
  return [
    start(
      workdir,
      1,
      f"--coordinator=localhost:{port}",
      "--num_processes=2",
      f"--process_id={i}",
      "--process_timeout=20",
    )
    for i in range(2)
  ]


@pytest.mark.slow
def test_a_run_told_to_stop_saves_and_goes_on(tmp_path, whole):
  process = start(tmp_path, 2, "--config.loader.num_workers=1")
  wait_for(tmp_path, 7, process)
  process.send_signal(signal.SIGTERM)
  out, err = process.communicate(timeout=100)
  assert process.returncode == 0, err
  said = err.splitlines()[-1]
  assert "stopped at update" in said and f"--workdir={tmp_path} goes on" in said
  (stopped,) = [int(x) for x in os.listdir(tmp_path / "checkpoints")][-1:]
  assert f'"updates": {stopped}, "preempted": true' in out
  assert not (tmp_path / "result.json").exists()
  finish(start(tmp_path, 2))
  assert reproducible(tmp_path) == whole


@pytest.mark.slow
def test_a_second_signal_stops_at_once(tmp_path):
  process = start(tmp_path, 1, "--config.eval.batch_seconds=300")
  wait_for(tmp_path, 7, process)
  os.kill(process.pid, signal.SIGSTOP)  # Both arrive before it can act.
  process.send_signal(signal.SIGTERM)
  os.kill(process.pid, signal.SIGCONT)
  while "stops at once" not in process.stderr.readline():
    assert process.poll() is None
  process.send_signal(signal.SIGTERM)
  process.communicate(timeout=20)
  assert process.returncode in (0, -signal.SIGTERM)


@pytest.mark.slow
def test_one_process_told_to_stop_stops_all(tmp_path, whole):
  pair = start_two(tmp_path)
  wait_for(tmp_path, 7, *pair)
  pair[1].send_signal(signal.SIGTERM)
  said = [process.communicate(timeout=100) for process in pair]
  assert [p.returncode for p in pair] == [0, 0], said
  assert "stopped at update" in said[0][1]
  assert '"preempted": true' in said[0][0]
  finish(start(tmp_path, 2))
  assert_same(reproducible(tmp_path), whole)


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_process_ends_the_run_of_all(tmp_path, whole, lost):
  pair = start_two(tmp_path)
  wait_for(tmp_path, 14, *pair)
  pair[lost].send_signal(signal.SIGKILL)
  before = time.monotonic()
  _, err = pair[1 - lost].communicate(timeout=60)
  assert time.monotonic() - before < 30  # --process_timeout=20.
  assert pair[1 - lost].returncode not in (0, None)
  assert "lost" in err
  assert f"--workdir={tmp_path} goes on from its newest checkpoint" in err
  pair[lost].communicate()
  alone = start(tmp_path, 2)  # One process, as many devices.
  wait_for(tmp_path, 21, alone)
  alone.send_signal(signal.SIGKILL)
  alone.communicate()
  for process in start_two(tmp_path):
    finish(process)
  assert_same(reproducible(tmp_path), whole)


def test_processes_that_do_not_come_are_named(tmp_path):
  process = start(
    tmp_path,
    1,
    f"--coordinator=localhost:{free_port()}",
    "--num_processes=2",
    "--process_id=0",
    "--process_timeout=3",
  )
  _, err = process.communicate(timeout=60)
  assert process.returncode != 0
  assert "did not meet within 3 s" in err
  assert not [*tmp_path.iterdir()]
