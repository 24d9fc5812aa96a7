"""Folders that one process at a time may use, and JSON files."""

import errno
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ssl_jax import files
from ssl_jax.errors import UserError

HOLD = """
import pathlib, sys
from ssl_jax.files import alone
with alone(pathlib.Path(sys.argv[1]), "x"):
  print("held", flush=True)
  sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
  process = subprocess.Popen(
    [sys.executable, "-c", HOLD, tmp_path / "held"],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == "held\n"
  yield process, tmp_path / "held"
  process.kill()
  process.communicate()


def test_a_folder_in_use_is_refused_and_names_its_user(holder, monkeypatch):
  process, folder = holder
  monkeypatch.setattr(files, "_PATIENCE_S", 0.1)
  match = f"--out=x: process {process.pid} on .* is at work there"
  for _ in range(2):  # The first refusal leaves the message as it was.
    with pytest.raises(UserError, match=match), files.alone(folder, "--out=x"):
      raise AssertionError


def test_a_process_that_is_dying_is_waited_for(holder, monkeypatch):
  process, folder = holder
  before = files.FileLock.acquire

  def acquire(lock):
    process.kill()
    return before(lock)

  monkeypatch.setattr(files.FileLock, "acquire", acquire)
  with files.alone(folder, "x"):
    assert f"process {os.getpid()} on " in (folder / "lock").read_text()
  with files.alone(folder, "x"):  # It was given back.
    pass


def test_a_folder_removed_meanwhile_is_an_error_that_says_so(
  tmp_path, monkeypatch
):
  lock = fcntl.flock

  def removed(fd, operation):
    shutil.rmtree(tmp_path / "x", ignore_errors=True)
    return lock(fd, operation)

  monkeypatch.setattr(fcntl, "flock", removed)
  with (
    pytest.raises(UserError, match="x was just removed: run the command"),
    files.alone(tmp_path / "x", "x"),
  ):
    raise AssertionError


@pytest.mark.parametrize("code", ["ENOSYS", "ENOTSUP", "ENOLCK"])
def test_a_file_system_without_locks_is_used_with_a_warning(
  tmp_path, monkeypatch, caplog, code
):
  def refused(fd, operation):
    raise OSError(getattr(errno, code), "no locks")

  monkeypatch.setattr(fcntl, "flock", refused)
  with files.alone(tmp_path, "--out=x"):
    pass
  assert "--out=x: this file system has no locks" in caplog.text


@pytest.mark.parametrize("text", ["", "[]", "{", "x", "7"])
def test_what_is_no_json_object_is_refused(tmp_path, text, monkeypatch):
  path = tmp_path / "x.json"
  path.write_text(text)
  with pytest.raises(ValueError):
    files.read_object(path)
  path.write_text('{"a": 1}')
  assert files.read_object(path) == {"a": 1}
  monkeypatch.setattr(files, "_MOST", 7)
  with pytest.raises(ValueError, match=r"x\.json has more than 7 bytes"):
    files.read_object(path)


def test_a_user_without_a_home_has_a_cache(monkeypatch):
  def nobody():
    raise RuntimeError("Could not determine home directory.")

  monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
  monkeypatch.setattr(Path, "home", nobody)
  assert files.cache_folder("codebooks").is_absolute()
