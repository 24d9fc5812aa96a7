"""Every command starts in an interpreter of its own, and as its fork does."""

import json
import re
import subprocess
import sys

import pytest
from doors import ROOT, fresh

DOORS = [
  path.stem
  for path in sorted(ROOT.glob("ssl_jax/*.py"))
  if "cli.run(" in path.read_text()
]


def test_these_are_all_the_doors():
  assert len(DOORS) == 12 and {"main", "prepare", "bench"} <= {*DOORS}


@pytest.mark.parametrize("name", DOORS)
def test_a_command_starts(name):
  helped = fresh(name, "--help")
  assert helped.returncode == 0 and not helped.stderr
  assert f"python -m ssl_jax.{name}" in helped.stdout
  wrong = fresh(name, "--nothing")
  assert (wrong.returncode, wrong.stdout) == (2, "")
  (line,) = wrong.stderr.splitlines()
  assert line.startswith("error: ") and "nothing" in line


def python(*args):
  return subprocess.run(
    [sys.executable, "-m", *args], cwd=ROOT, capture_output=True, text=True
  )


def test_the_package_lists_them():
  listed = python("ssl_jax")
  assert listed.returncode == 0 and not listed.stderr
  names = re.findall(r"python -m ssl_jax\.(\w+)", listed.stdout)
  assert sorted(names) == DOORS


@pytest.mark.parametrize(
  "args, said",
  [
    (["ssl_jax", "train"], "no command 'train'; python -m ssl_jax.main"),
    (["ssl_jax.train", "--x"], "no command 'train'; python -m ssl_jax.main"),
    (["ssl_jax", "prob"], "did you mean 'probe'?"),
    (["ssl_jax", "plan"], "python -m ssl_jax.plan"),
  ],
)
def test_what_is_no_command_says_which_is(args, said):
  done = python(*args)
  assert (done.returncode, done.stdout) == (2, "")
  (line,) = done.stderr.splitlines()
  assert said in line


def test_a_config_that_is_not_there_says_which_is():
  done = fresh("main", "--config=configs/smok.py")
  assert done.returncode == 2
  (line,) = done.stderr.splitlines()
  assert "did you mean 'configs/smoke.py'?" in line


@pytest.mark.parametrize(
  "door, old, new",
  [
    ("label", "workdir", "out"),
    ("extract", "workdir", "checkpoint"),
    ("export", "workdir", "checkpoint"),
  ],
)
def test_flags_keep_their_old_names_with_a_notice(door, old, new):
  args = ["--config=configs/smoke.py"] if door == "label" else []
  args += ["--out=OUT"] if new == "checkpoint" else []
  args += ["AUDIO"] if door == "extract" else []
  done = fresh(door, *args, f"--{old}=nowhere")
  first, last = done.stderr.splitlines()
  assert first == f"--{old} is --{new} now"
  said = "--checkpoint is missing" if door == "label" else "holds no checkpoint"
  assert said in last
  assert f"--{old}:" not in fresh(door, "--help").stdout


# Runs a door, and prints the packages that it imported.
IMPORTS = """
import contextlib, io, json, runpy, sys
sys.argv = sys.argv[1:]
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
  runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""
_TRAINING = {"grain", "orbax", "tensorstore", "tensorboard"}
_DRAWING = {"matplotlib", "scipy", "sklearn", "torch", "tensorflow", "pandas"}


@pytest.mark.parametrize(
  ("words", "unused"),
  [
    ("ssl_jax.main --help=seed", _TRAINING | _DRAWING),
    ("ssl_jax.main --config=configs/smoke.py --no", _TRAINING | _DRAWING),
    ("ssl_jax.flops --config=configs/slim.py", _TRAINING | _DRAWING),
    ("ssl_jax.plan --budget=1e17", _TRAINING | _DRAWING - {"scipy"}),
    ("ssl_jax.main --config=configs/smoke.py --dry_run", _DRAWING),
  ],
)
def test_a_command_imports_nothing_heavy_that_it_does_not_use(words, unused):
  done = subprocess.run(
    [sys.executable, "-c", IMPORTS, *words.split()],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  imported = set(json.loads(done.stdout.splitlines()[-1]))
  assert "ssl_jax" in imported
  assert not imported & unused
