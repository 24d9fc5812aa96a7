"""What is set of a process before JAX starts in it."""

import os
import subprocess
import sys

import pytest

from ssl_jax import process


@pytest.fixture
def prepare(monkeypatch):
  def run(cache):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr(process, "keep_freed_memory", lambda: None)
    process.prepare()
    return os.environ.get("JAX_COMPILATION_CACHE_DIR")

  before = dict(os.environ)
  yield run
  os.environ.clear()
  os.environ.update(before)  # Then monkeypatch's own.


def test_compiled_programs_are_kept_in_the_cache_of_the_user(tmp_path, prepare):
  folder = prepare(tmp_path)
  assert folder.startswith(str(tmp_path / "ssl_jax")) and os.path.isdir(folder)


def test_nothing_is_kept_where_nothing_can_be_written(tmp_path, prepare):
  (tmp_path / "file").touch()
  assert prepare(tmp_path / "file") is None


def test_settings_that_numbers_rest_on_are_pinned(
  monkeypatch, tmp_path, prepare
):
  monkeypatch.setenv("JAX_ENABLE_X64", "1")
  monkeypatch.setenv("JAX_DEFAULT_PRNG_IMPL", "rbg")
  prepare(tmp_path)
  ask = "import jax; print(jax.numpy.ones(1).dtype, jax.random.key(0).dtype)"
  said = subprocess.run(
    [sys.executable, "-c", ask], capture_output=True, text=True, check=True
  )
  assert said.stdout.split() == ["float32", "key<fry>"]


@pytest.mark.parametrize(
  "libtpu, chips, plugins, said",
  [
    (True, [], False, "cpu"),
    (True, ["/dev/accel0"], False, None),
    (True, [], True, None),
    (False, [], False, None),
  ],
)
def test_a_compiler_of_tpus_alone_is_no_tpu(
  monkeypatch, tmp_path, prepare, libtpu, chips, plugins, said
):
  monkeypatch.delenv("JAX_PLATFORMS", raising=False)
  monkeypatch.setattr(process, "_has_libtpu", lambda: libtpu)
  monkeypatch.setattr(process, "_has_plugins", lambda: plugins)
  monkeypatch.setattr(process.glob, "glob", lambda pattern: chips)
  prepare(tmp_path)
  assert os.environ.pop("JAX_PLATFORMS", None) == said


def test_the_users_choice_stays(monkeypatch):
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "chosen")
  monkeypatch.setattr(process, "keep_freed_memory", lambda: None)
  process.prepare()
  assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "chosen"


@pytest.mark.parametrize(
  ("given", "libtpu", "flags"),
  [
    (None, False, "--xla_backend_optimization_level=1"),
    ("--xla_a=1", False, "--xla_a=1 --xla_backend_optimization_level=1"),
    (
      "--xla_backend_optimization_level=3",
      False,
      "--xla_backend_optimization_level=3",
    ),
    (None, True, None),  # The TPU's compiler reads the flags, too.
  ],
)
def test_cpus_compile_quickly_unless_told_otherwise(
  monkeypatch, tmp_path, prepare, given, libtpu, flags
):
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  monkeypatch.delenv("XLA_FLAGS", raising=False)
  if given:
    monkeypatch.setenv("XLA_FLAGS", given)
  monkeypatch.setattr(process, "_has_libtpu", lambda: libtpu)
  prepare(tmp_path)
  assert os.environ.get("XLA_FLAGS") == flags
