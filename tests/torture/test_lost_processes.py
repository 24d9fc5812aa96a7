"""Processes that die, hang, leak or pause: a line, and nothing is lost."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile
from tiny import (
  ROOT,
  assert_same,
  finish,
  free_port,
  reproducible,
  start_main,
  tiny,
  wait_for,
)
from tiny import (
  SMALL_LOGGED as ARGS,
)

from ssl_jax.data import batch_plan, batches
from ssl_jax.data.sources import folder
from ssl_jax.data.sources.source import AudioFiles
from ssl_jax.errors import UserError
from ssl_jax.training import loop

# Found by every Python started with it: what reads audio does as the file
# FAULT says, as long as it is there. Shared memory is called MEMORY..., to be
# told from that of tests that run beside these.
FAULTY = """
import os, time, soundfile
from multiprocessing import shared_memory
shared_memory._SHM_NAME_PREFIX = os.environ["MEMORY"]
opened = soundfile.SoundFile.__init__
def init(self, *args, **kwargs):
  while os.path.exists(os.environ["FAULT"]):
    with open(os.environ["FAULT"]) as fault:
      said = fault.read()
    time.sleep(float(said or 0.1))
    if said:
      break
  opened(self, *args, **kwargs)
soundfile.SoundFile.__init__ = init
"""
# The data alone, without JAX.
READ = """
import sys, time
from pathlib import Path
from ssl_jax.data import batch_plan, batches, workers
from ssl_jax.data.sources import folder
from ssl_jax.data.sources.source import AudioFiles
import numpy as np, signal
if __name__ == "__main__":
  paths = sorted(map(str, Path(sys.argv[1]).iterdir()))
  timeout_s = float(sys.argv[3])
  workers.set_patience(timeout_s=timeout_s)
  lengths = np.array(folder.probe_all(paths))
  workers.set_patience(timeout_s=40.0)  # Until all is started.
  source = AudioFiles(paths, paths, lengths, [{}] * len(paths), [])
  planned = batch_plan.BatchPlan(lengths, [8000, 16000], 4.0, seed=0)
  signal.signal(signal.SIGTERM, lambda *_: None)
  for i, batch in enumerate(batches.make_iterator(
    source, planned, 0, 10**9,
    num_threads=2, num_workers=int(sys.argv[2]), prefetch=2,
  )):
    if i == 6:
      workers.set_patience(timeout_s=timeout_s)
    print(len(batch["length"]), flush=True)
    time.sleep(0.02)
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  root = tmp_path_factory.mktemp("corpus")
  rng = np.random.default_rng(0)
  for i in range(24):
    noise = rng.normal(size=16_000) * 0.1
    soundfile.write(root / f"{i:02}.wav", noise, 16_000)
  return root


@pytest.fixture
def faulty(tmp_path):
  """The environment of Pythons that do as a file says, and the file."""
  (tmp_path / "code").mkdir()
  (tmp_path / "code" / "sitecustomize.py").write_text(FAULTY)
  fault = tmp_path / "fault"
  return {
    "PYTHONPATH": f"{tmp_path / 'code'}:{ROOT}",
    "FAULT": str(fault),
    "MEMORY": f"/t{os.getpid() % 10**5}_",
  }, fault


@contextlib.contextmanager
def reading(faulty, corpus, num_workers, timeout_s):
  """A process that reads `corpus`, and its children, once all are at work."""
  env, fault = faulty
  script = fault.parent / "read.py"
  script.write_text(READ)
  process = subprocess.Popen(
    [sys.executable, script, corpus, str(num_workers), str(timeout_s)],
    cwd=ROOT,
    env=os.environ | env,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )
  children = []
  try:
    for _ in range(8):
      assert process.stdout.readline(), process.communicate()[1]
    children = psutil.Process(process.pid).children(recursive=True)
    yield process, children
  finally:
    for each in [process, *workers_of(children)]:
      with contextlib.suppress(psutil.NoSuchProcess):
        each.kill()
    process.communicate()
    assert_gone(children)  # The last one clears up their shared memory.


def workers_of(children):
  return [x for x in children if is_worker(x)]


def is_worker(process):
  try:
    return "spawn_main" in " ".join(process.cmdline())
  except psutil.NoSuchProcess:
    return False


def end_within(seconds, process):
  """What a process says until it ends; fails if that is not soon."""
  started = time.monotonic()
  try:
    _, err = process.communicate(timeout=seconds)
  except subprocess.TimeoutExpired:
    pytest.fail(f"still there after {seconds} s")
  return time.monotonic() - started, err


def assert_gone(processes, seconds=5):
  _, alive = psutil.wait_procs(processes, seconds)
  assert not [x for x in alive if x.status() != psutil.STATUS_ZOMBIE]


def assert_one_line(err, *said):
  errors = [line for line in err.splitlines() if line.startswith("error: ")]
  assert len(errors) == 1, err
  assert err.splitlines()[-1] == errors[0], err
  assert "Traceback" not in err
  for text in said:
    assert text in errors[0]


def shared_memory(faulty):
  """What the processes hold of it; one killed as it makes some leaves 0 B."""
  env, _ = faulty
  held = set()
  for segment in Path("/dev/shm").glob(env["MEMORY"][1:] + "*"):
    with contextlib.suppress(FileNotFoundError):  # It comes and goes.
      if segment.stat().st_size:
        held.add(segment.name)
  return held


def wait_for_memory(faulty):
  """Until some batches are in it, as they are once workers read ahead."""
  deadline = time.monotonic() + 20
  while len(shared_memory(faulty)) <= 4:
    assert time.monotonic() < deadline
    time.sleep(0.01)


def open_batches(corpus, number, num_workers, source=AudioFiles):
  paths = sorted(map(str, corpus.iterdir()))
  lengths = np.array(folder.probe_all(paths))
  return batches.make_iterator(
    source(paths, paths, lengths, [{} for _ in paths], []),
    batch_plan.BatchPlan(lengths, [8000, 16000], 4.0, seed=0),
    0,
    number,
    num_threads=2,
    num_workers=num_workers,
    prefetch=2,
  )


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGSEGV])
def test_a_worker_that_dies_is_an_error_at_once(corpus, death):
  iterator = open_batches(corpus, 10**9, 2)
  next(iterator)
  workers = multiprocessing.active_children()
  assert len(workers) == 2
  os.kill(workers[0].pid, death)
  before = time.monotonic()
  with pytest.raises(UserError, match=r"num_workers was lost, .* goes on"):
    for _ in range(100):
      next(iterator)
  iterator.close()
  assert time.monotonic() - before < 10
  assert not multiprocessing.active_children()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_read_without_memory_left_is_an_error(corpus, num_workers):
  class Leaking(AudioFiles):
    """Whose process is refused memory in the end, as by a `ulimit -v`."""

    def read(self, index, start, num_samples):
      kept = self.damaged.setdefault("kept", [])
      kept.append(np.ones(1 << 24, np.int8))
      if len(kept) > 20:
        np.ones(1 << 60, np.int8)
      return super().read(index, start, num_samples)

  iterator = open_batches(corpus, 10**9, num_workers, Leaking)
  with pytest.raises(UserError, match=r"no memory is left .* goes on"):
    for _ in range(100):
      next(iterator)
  iterator.close()
  assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_healthy_worker_does_not_grow(corpus):
  before = set(os.listdir("/dev/shm"))
  iterator = open_batches(corpus, 3000, 1)
  next(iterator)
  (worker,) = multiprocessing.active_children()
  used, here = [], []
  for _ in range(5):
    for _ in range(400):
      next(iterator)
    used.append(psutil.Process(worker.pid).memory_info().rss)
    here.append(psutil.Process().memory_info().rss)
  segments = len(set(os.listdir("/dev/shm")) - before)
  iterator.close()
  # 1,600 batches of 4 s: 200 MB of samples, if any were kept.
  assert used[-1] - used[0] < 20e6
  assert here[-1] - here[0] < 20e6
  assert segments < 400


@pytest.mark.parametrize(
  "num_workers", [0, pytest.param(1, marks=pytest.mark.slow)]
)
def test_a_disk_that_is_gone_ends_the_process_in_time(
  corpus, faulty, num_workers
):
  with reading(faulty, corpus, num_workers, 3) as (process, children):
    faulty[1].touch()
    seconds, err = end_within(20, process)
    assert process.returncode == 1
    assert 2 < seconds < 12  # What is read ahead is used first.
    assert_one_line(err, "for 3 s: no audio comes", "goes on")
    assert_gone(children)


def test_headers_that_cannot_be_read_end_the_process_in_time(
  tmp_path, corpus, faulty
):
  env, fault = faulty
  fault.touch()
  script = tmp_path / "read.py"
  script.write_text(READ)
  done = subprocess.run(
    [sys.executable, script, corpus, "0", "3"],
    env=os.environ | env,
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert done.returncode == 1
  assert_one_line(done.stderr, "headers of audio cannot be read", "disk")


def test_a_stopped_worker_ends_the_process_in_time(corpus, faulty):
  with reading(faulty, corpus, 2, 3) as (process, children):
    wait_for_memory(faulty)
    workers_of(children)[1].suspend()
    seconds, err = end_within(20, process)
    assert process.returncode == 1
    assert 2 < seconds < 12
    assert_one_line(err, "one of config.loader.num_workers stopped", "goes on")
    assert_gone(children)
    assert not shared_memory(faulty)


@pytest.mark.slow
def test_time_that_the_process_itself_is_stopped_does_not_count(corpus, faulty):
  _, fault = faulty
  with reading(faulty, corpus, 1, 4) as (process, children):
    fault.touch()
    time.sleep(2)  # It waits for a batch by now.
    everything = [psutil.Process(process.pid), *workers_of(children)]
    for each in everything:
      each.suspend()
    time.sleep(5)
    fault.unlink()
    for each in everything:
      each.resume()
    for _ in range(50):
      assert process.stdout.readline(), process.communicate()[1]


def test_a_killed_process_leaves_no_workers_and_no_memory(corpus, faulty):
  with reading(faulty, corpus, 2, 60) as (process, children):
    assert len(workers_of(children)) == 2
    wait_for_memory(faulty)
    left = shared_memory(faulty)
    time.sleep(0.2)  # Each of them is then known to what clears up.
    process.kill()
    assert_gone(children)
    assert not shared_memory(faulty) & left


@pytest.mark.slow
def test_signals_to_the_whole_group_leave_batches_to_come(corpus, faulty):
  with reading(faulty, corpus, 2, 60) as (process, children):
    os.killpg(process.pid, signal.SIGTERM)  # The parent goes on for a while.
    for worker in workers_of(children):
      worker.send_signal(signal.SIGINT)
    for _ in range(100):
      assert process.stdout.readline(), process.communicate()[1]


def test_a_killed_preparing_worker_is_told_and_gone_on_with(
  tmp_path, corpus, faulty
):
  env, fault = faulty
  fault.write_text("0.3")  # Seconds a read takes.
  command = [
    *(sys.executable, "-m", "ssl_jax.prepare", "--num_workers=2"),
    *(f"--input={corpus}", f"--out={tmp_path / 'out'}"),
  ]
  process = subprocess.Popen(
    command,
    cwd=ROOT,
    env=os.environ | env,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  deadline = time.monotonic() + 60
  while not (
    workers := workers_of(psutil.Process(process.pid).children(recursive=True))
  ):
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.05)
  workers[0].kill()
  _, err = end_within(20, process)
  assert process.returncode == 1
  assert_one_line(err, "a worker process was lost", "the same command goes on")
  assert_gone(workers)
  fault.unlink()
  done = subprocess.run(
    command, cwd=ROOT, capture_output=True, text=True, timeout=120
  )
  assert done.returncode == 0, done.stderr
  assert '"clips": 24' in done.stdout


@pytest.mark.slow
def test_a_run_whose_worker_is_killed_goes_on_the_same(tmp_path):
  def kill() -> None:
    while not any(x["update"] >= 8 for x in reproducible(tmp_path / "run")):
      time.sleep(0.005)
    multiprocessing.active_children()[0].kill()

  config = tiny(30, "tera")
  config.eval.every, config.checkpoint.every = 30, 5
  config.loader.num_workers = 1
  killer = threading.Thread(target=kill, daemon=True)
  killer.start()
  said = f"was lost, .*--workdir={tmp_path}/run goes on from its newest"
  with pytest.raises(UserError, match=said):
    loop.train(config, tmp_path / "run")
  killer.join()
  assert not multiprocessing.active_children()
  loop.train(config, tmp_path / "run")
  config.loader.num_workers = 0
  loop.train(config, tmp_path / "whole")
  assert reproducible(tmp_path / "run") == reproducible(tmp_path / "whole")


def train(workdir, *args, **env):
  return start_main(workdir, *ARGS, "--config.budget.updates=30", *args, **env)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A run that nothing happens to."""
  workdir = tmp_path_factory.mktemp("whole")
  finish(train(workdir, JAX_NUM_CPU_DEVICES="2", JAX_PLATFORMS="cpu"))
  return reproducible(workdir)


class Pair:
  """Two processes of one run, and what they have said."""

  def __init__(self, workdir, timeout_s=20, envs=({}, {}), args=()):
    address = f"--coordinator=localhost:{free_port()}"
    self.workdir = workdir
    self.both = [
      train(
        workdir,
        address,
        "--num_processes=2",
        f"--process_id={i}",
        f"--process_timeout={timeout_s}",
        *args,
        **{"JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"} | env,
      )
      for i, env in enumerate(envs)
    ]
    self.said = ["", ""]
    self._threads = [
      threading.Thread(target=self._read, args=(i,)) for i in (0, 1)
    ]
    for thread in self._threads:
      thread.start()

  def _read(self, i):
    for line in self.both[i].stderr:
      self.said[i] += line

  def wait_until(self, said):
    deadline = time.monotonic() + 120
    while said not in self.said[0]:
      assert time.monotonic() < deadline
      assert self.both[0].poll() is None, self.said
      time.sleep(0.01)

  def end_within(self, seconds, *which):
    """Status of those, or of both; how long it took."""
    before = time.monotonic()
    for i in which or (0, 1):
      try:
        self.both[i].wait(before + seconds - time.monotonic())
      except subprocess.TimeoutExpired:
        pytest.fail(f"{i} still there: {self.said}")
    taken = time.monotonic() - before
    return [self.both[i].returncode for i in which or (0, 1)], taken

  def __enter__(self):
    return self

  def __exit__(self, *_):
    for process in self.both:
      process.kill()
    for thread in self._threads:
      thread.join()
    for process in self.both:
      process.communicate()


def go_on(workdir, whole):
  with Pair(workdir, 60) as pair:
    statuses, _ = pair.end_within(300)
    assert statuses == [0, 0], pair.said
  assert_same(reproducible(workdir), [dict(line) for line in whole])


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stopped_process_ends_the_run_of_all(tmp_path, whole, stopped):
  with Pair(tmp_path) as pair:
    wait_for(tmp_path, 14, *pair.both)
    pair.both[stopped].send_signal(signal.SIGSTOP)
    (status,), seconds = pair.end_within(40, 1 - stopped)
    assert status == 1, pair.said
    assert 15 < seconds < 25  # --process_timeout=20, and a tenth.
    assert "for --process_timeout=20 s" in pair.said[1 - stopped]
    assert f"--workdir={tmp_path} goes on" in pair.said[1 - stopped]
    pair.both[stopped].send_signal(signal.SIGCONT)
    (status,), _ = pair.end_within(30, stopped)
    assert status != 0
  go_on(tmp_path, whole)


@pytest.mark.slow
def test_a_pause_shorter_than_the_timeout_changes_nothing(tmp_path, whole):
  with Pair(tmp_path) as pair:
    wait_for(tmp_path, 7, *pair.both)
    pair.both[1].send_signal(signal.SIGSTOP)
    time.sleep(10)
    pair.both[1].send_signal(signal.SIGCONT)
    statuses, _ = pair.end_within(200)
    assert statuses == [0, 0], pair.said
  assert_same(reproducible(tmp_path), [dict(line) for line in whole])


@pytest.mark.slow
@pytest.mark.parametrize("at", ["data  embedded", "k-means"])
@pytest.mark.parametrize(
  ("lost", "how"),
  [(0, signal.SIGSTOP), (1, signal.SIGSTOP), (1, signal.SIGKILL)],
)
def test_a_process_lost_before_the_first_update(tmp_path, lost, how, at):
  with Pair(tmp_path, 15) as pair:
    pair.wait_until(at)
    pair.both[lost].send_signal(how)
    (status,), _ = pair.end_within(25, 1 - lost)
    assert status == 1, pair.said
    assert f"--workdir={tmp_path} goes on" in pair.said[1 - lost]
    pair.both[lost].send_signal(signal.SIGCONT)
    (status,), _ = pair.end_within(30, lost)
    assert status != 0


@pytest.mark.slow
def test_the_first_process_killed_before_the_first_update(tmp_path):
  with Pair(tmp_path, 15) as pair:
    pair.wait_until("k-means")
    pair.both[0].send_signal(signal.SIGKILL)
    (status,), _ = pair.end_within(25, 1)
    assert status != 0
    # JAX's abort, at once, or ours.
    assert "leader task" in pair.said[1] or "was lost" in pair.said[1]


@pytest.mark.slow
def test_a_process_stopped_at_the_last_checkpoint(tmp_path, whole):
  with Pair(tmp_path) as pair:
    wait_for(tmp_path, 28, *pair.both)
    pair.both[1].send_signal(signal.SIGSTOP)
    pair.end_within(90, 0)
  go_on(tmp_path, whole)


@pytest.mark.slow
def test_a_slow_process_is_waited_for(tmp_path, faulty, corpus):
  env, fault = faulty
  fault.write_text("0.5")  # Seconds a read takes.
  args = "--config.data.source=folder", f"--config.data.dir={corpus}"
  with Pair(tmp_path / "run", 20, ({}, env), args) as pair:
    statuses, _ = pair.end_within(300)
    assert statuses == [0, 0], pair.said


@pytest.mark.slow
def test_a_killed_data_worker_of_one_ends_the_run_of_all(tmp_path):
  with Pair(tmp_path, args=["--config.loader.num_workers=1"]) as pair:
    wait_for(tmp_path, 14, *pair.both)
    children = psutil.Process(pair.both[1].pid).children(recursive=True)
    workers_of(children)[0].kill()
    statuses, _ = pair.end_within(15)  # Not --process_timeout.
    assert 0 not in statuses
    assert "num_workers was lost" in pair.said[1]
