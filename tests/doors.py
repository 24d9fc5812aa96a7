"""Commands of ssl_jax without the wait for their imports.

A server, one for each process of pytest, has imported the libraries and forks
for every command: a child is `python -m ssl_jax.NAME` in all but its start.
JAX starts no backend and no thread before the fork. Variables that Python
reads when it starts need `fresh`, a process of its own, and so does a test
whose subject is the start.

  door("flops", "--config=configs/smoke.py").stdout
  process = start_door("main", ...); process.send_signal(signal.SIGKILL)
"""

import atexit
import contextlib
import functools
import gc
import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def door(name, *words, cwd=ROOT, env=None, timeout=300):
  """Runs a command; returns what subprocess.run does, with text."""
  process = start_door(name, *words, cwd=cwd, env=env)
  out, err = process.communicate(timeout)
  return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def fresh(name, *words, cwd=ROOT, env=None, timeout=300):
  """As `door`, in an interpreter of its own."""
  return _done(start_fresh(name, *words, cwd=cwd, env=env), timeout)


def _done(process, timeout):
  out, err = process.communicate(timeout)
  return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def start_door(name, *words, cwd=ROOT, env=None):
  """Starts a command; returns what is used as a subprocess.Popen."""
  words, env = [*map(str, words)], env or {}
  if any(key.startswith("PYTHON") for key in env):
    return start_fresh(name, *words, cwd=cwd, env=env)
  return Process([f"ssl_jax.{name}", *words], cwd, env)


def start_fresh(name, *words, cwd=ROOT, env=None):
  """As `start_door`, in an interpreter of its own."""
  return subprocess.Popen(
    [sys.executable, "-m", f"ssl_jax.{name}", *map(str, words)],
    cwd=cwd,
    env=os.environ | (env or {}),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


class Process:
  """A command that the server forked for us.

  Attributes:
    args: the module and its arguments.
    pid: its process.
    returncode: as of subprocess.Popen; None while it runs or is not asked.
    stdout, stderr: its streams, as text.
  """

  def __init__(self, args, cwd, env):
    self.args, self.returncode = args, None
    request = {"args": args, "cwd": str(cwd), "env": {**os.environ, **env}}
    (out, out_end), (err, err_end) = os.pipe(), os.pipe()
    self.stdout, self.stderr = os.fdopen(out), os.fdopen(err)
    self._server, self._received = socket.socket(socket.AF_UNIX), b""
    self._server.connect(_address())
    socket.send_fds(self._server, [b"\0"], [out_end, err_end])
    os.close(out_end)
    os.close(err_end)
    self._server.sendall(json.dumps(request).encode() + b"\n")
    self.pid = self._answer(None)

  def _answer(self, timeout):
    """Returns the next number that the server says."""
    self._server.settimeout(timeout)
    while b"\n" not in self._received:
      if not (more := self._server.recv(64)):
        raise RuntimeError(f"the server of {self.args} ended")
      self._received += more
    number, _, self._received = self._received.partition(b"\n")
    return int(number)

  def wait(self, timeout=None):
    if self.returncode is None:
      try:
        self.returncode = self._answer(timeout and max(timeout, 1e-3))
      except TimeoutError:
        raise subprocess.TimeoutExpired(self.args, timeout) from None
      self._server.close()
    return self.returncode

  def poll(self):
    with contextlib.suppress(subprocess.TimeoutExpired):
      self.wait(1e-3)
    return self.returncode

  def send_signal(self, number):
    if self.poll() is None:
      os.kill(self.pid, number)

  def kill(self):
    self.send_signal(signal.SIGKILL)

  def communicate(self, timeout=None):
    deadline = None if timeout is None else time.monotonic() + timeout
    texts = {}

    def read(name):
      texts[name] = getattr(self, name).read()

    threads = [
      threading.Thread(target=read, args=(name,), daemon=True)
      for name in ("stdout", "stderr")
    ]
    for thread in threads:
      thread.start()
    for thread in threads:
      left = None if deadline is None else max(0, deadline - time.monotonic())
      thread.join(left)
      if thread.is_alive():
        raise subprocess.TimeoutExpired(self.args, timeout)
    left = None if deadline is None else max(1e-3, deadline - time.monotonic())
    self.wait(left)
    return texts["stdout"], texts["stderr"]


@functools.cache
def _address() -> str:
  """Starts the server of this process, and returns where it listens."""
  folder = tempfile.mkdtemp(prefix="ssl_jax_doors_")
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  path = f"{folder}/socket"
  server = subprocess.Popen(
    [sys.executable, __file__, path], cwd=ROOT, stdout=subprocess.PIPE
  )
  assert server.stdout.readline() == b"ready\n"
  return path


def _serve(path: str) -> tuple[list[int], dict]:
  """Forks for every request, as long as its parent lives.

  Returns:
    In the child alone: its stdout and stderr, and the request.
  """
  sys.path.insert(0, str(ROOT))
  import jax

  import ssl_jax.budget.planner
  import ssl_jax.data
  import ssl_jax.labelling.corpus
  import ssl_jax.pretrained.export
  import ssl_jax.pretrained.hf_read
  import ssl_jax.probes.run
  import ssl_jax.training.loop  # noqa: F401

  assert not jax._src.xla_bridge.backends_are_initialized()
  assert threading.active_count() == 1
  gc.collect()
  gc.freeze()
  parent = os.getppid()
  listening = socket.socket(socket.AF_UNIX)
  listening.bind(path)
  listening.listen(16)
  listening.settimeout(1)
  print("ready", flush=True)
  while os.getppid() == parent:
    with contextlib.suppress(ChildProcessError):
      while os.waitpid(-1, os.WNOHANG)[0]:
        pass
    with contextlib.suppress(TimeoutError):
      connection, _ = listening.accept()
      if not os.fork():
        listening.close()
        return _fork(connection)
      connection.close()
  sys.exit()


def _fork(connection: socket.socket) -> tuple[list[int], dict]:
  """Forks a command, tells its id, and its status when it has ended."""
  connection.setblocking(True)
  _, streams, _, _ = socket.recv_fds(connection, 1, 2)
  request = json.loads(connection.makefile().readline())
  if not (child := os.fork()):
    connection.close()
    return streams, request
  for stream in streams:
    os.close(stream)
  with contextlib.suppress(OSError):  # Nobody may be there any more.
    connection.sendall(b"%d\n" % child)
  status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
  with contextlib.suppress(OSError):
    connection.sendall(b"%d\n" % status)
  os._exit(0)


def _become(streams, args, cwd, env) -> None:
  """Runs a module as `python -m` does, and ends as it does."""
  for number, stream in enumerate([os.open(os.devnull, os.O_RDONLY), *streams]):
    os.dup2(stream, number)
    os.close(stream)
  _set_variables(env)
  os.chdir(cwd)
  sys.path[:2] = [cwd]  # In place of this folder and of the root.
  sys.argv[:] = args
  runpy.run_module(args[0], run_name="__main__", alter_sys=True)


def _set_variables(env: dict[str, str]) -> None:
  """Makes these the environment, also of JAX, which has read its own."""
  import jax

  before = dict(os.environ)
  os.environ.clear()
  os.environ.update(env)
  for key in {*before, *env}:
    if key.startswith("JAX_") and before.get(key) != env.get(key):
      name, value = key.lower(), env.get(key)
      old = getattr(jax.config, name)
      if isinstance(old, bool):
        value = value in ("1", "true", "True")
      elif isinstance(old, int | float):
        value = type(old)(value)
      jax.config.update(name, value)


if __name__ == "__main__":
  _streams, _request = _serve(sys.argv[1])
  _become(_streams, **_request)
