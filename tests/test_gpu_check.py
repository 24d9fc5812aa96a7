"""launch/gpu_check.sh, on a machine that seems to have a GPU, and rehearsed."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from test_launch import LAUNCH, ROOT, bash, script

# Stands for the benchmarks: wav2vec 2.0's fails.
BENCH = """
import json, os, sys, time
if sys.argv[1] == "compile" and os.path.exists("hang"):
  time.sleep(60)
if "objective=wav2vec2" in " ".join(sys.argv):
  sys.exit("starting\\nerror: out | of memory\\n")
side = dict.fromkeys(
  ("seconds", "audio_seconds_per_second", "flops_per_second", "mfu",
   "peak_memory_bytes", "cold_seconds", "warm_seconds"), 0.25)
if sys.argv[1] == "compile":
  del side["seconds"]
result = {"rows": 10, "clip_seconds": 15.625, "ours": side}
if "--against=hf" in sys.argv:
  result |= {"theirs": side, "ratio": 3.961}
print("measuring")
print(json.dumps(result))
"""

# Stands for training: the same twice only with XLA's flag.
TRAIN = """
import json, os, sys, time
from pathlib import Path
(workdir,) = (a.split("=")[1] for a in sys.argv if a.startswith("--workdir="))
same = "deterministic_ops=true" in os.environ["XLA_FLAGS"]
loss = 0.5 if same else time.time()
Path(workdir).mkdir()
lines = [{"update": 1, "loss": 0.5}, {"update": 2, "loss": loss}]
Path(workdir, "metrics.jsonl").write_text(
  "".join(json.dumps(x | {"step_seconds": time.time()}) + "\\n" for x in lines))
"""


@pytest.fixture
def checkout(tmp_path):
  root = tmp_path / "check out"  # The space is not to matter.
  shutil.copytree(LAUNCH, root / "launch")
  return root


@pytest.fixture
def gpu_machine(checkout):
  """A checkout on a machine that seems to have a GPU, and its environment."""
  script(checkout / "jax.py", "def default_backend(): return 'gpu'\n")
  script(checkout / "ssl_jax" / "bench.py", BENCH)
  script(checkout / "ssl_jax" / "main.py", TRAIN)
  for name in ("on_gpu", "kernels"):
    script(checkout / "tests" / f"test_{name}.py", "def test_it(): pass\n")
  smi = checkout.parent / "smi" / "nvidia-smi"
  script(smi, "#!/bin/bash\necho 'NVIDIA H100, 580.1'\n")
  return checkout, {"path": smi.parent, "SSL_JAX_PYTHON": sys.executable}


def rows(done) -> dict[str, tuple[str, str]]:
  """Returns {part: (result, command)} of a page."""
  cells = [re.split(r" (?<!\\)\| ", x) for x in done.stdout.splitlines()]
  return {x[0][2:]: (x[1], x[2][:-2]) for x in cells if len(x) == 3}


def test_a_check_of_a_gpu_goes_on_after_what_fails(gpu_machine):
  root, environment = gpu_machine
  done = bash(root, "launch/gpu_check.sh", **environment)
  assert done.returncode == 1, done.stderr
  assert (root / "runs" / "gpu_check" / "page.md").read_text() == done.stdout
  assert "NVIDIA H100, 580.1; jax " in done.stdout
  found = rows(done)
  assert len(found) == 11  # With the table's head.
  result, command = found["step, HuBERT"]
  assert "10 x 15.625 s: 250.00 ms" in result and "**3.96 x torch**" in result
  assert command.startswith("`python -m ssl_jax.bench step --config=configs/sl")
  assert found["step, wav2vec 2.0"][0] == "failed: error: out \\| of memory"
  assert "torch" not in found["step, TERA"][0]
  assert found["start to first update"][0].endswith("0.2 s cold, 0.2 s warm")
  assert found["two runs"][0].startswith("differ from update 2 on: loss ")
  same, command = found["two runs, deterministic"]
  assert same == "the same bit for bit: 2 lines of metrics"
  assert "env XLA_FLAGS=--xla_gpu_deterministic_ops=true bash" in command
  assert found["kernels interpreted"][0].startswith("1 passed")


def test_a_check_of_a_gpu_ends_in_time_without_what_is_missing(gpu_machine):
  root, environment = gpu_machine
  (root / "hang").touch()
  bare = root.parent / "bare-python"
  script(bare, f'#!/bin/bash\nexec {sys.executable} -S "$@"\n')
  environment |= {"SSL_JAX_PYTHON": str(bare)}
  done = bash(
    root, "launch/gpu_check.sh", "out", SSL_JAX_SECONDS="8", **environment
  )
  found = rows(done)
  assert done.returncode == 1 and len(found) == 11
  skipped = "skipped: pytest is not installed"
  assert found["kernels interpreted"][0] == skipped
  (name,) = (name for name in found if name.startswith("step, HuBERT ("))
  assert name.endswith("(ours alone: torch or transformers is not installed)")
  result, command = found[name]
  assert "torch" not in result and "--against" not in command
  late = found["start to first update"][0]
  assert re.fullmatch(
    "failed: it took longer than [1-8] s|skipped: no time was left", late
  )
  (root / "jax.py").write_text("raise ImportError\n")
  done = bash(root, "launch/gpu_check.sh", **environment)
  assert done.returncode == 1 and "has no JAX: SSL_JAX_EXTRAS" in done.stderr


def test_a_check_without_a_gpu_is_one_line(gpu_machine):
  root, environment = gpu_machine
  (root / "jax.py").write_text("def default_backend(): return 'cpu'\n")
  for path, said in (
    (environment.pop("path"), "JAX finds no GPU, only a cpu"),
    ("", "this machine has no GPU"),
  ):
    done = bash(root, "launch/gpu_check.sh", path=path, **environment)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and said in line


@pytest.mark.slow
def test_a_check_is_rehearsed_on_a_cpu(checkout):
  for name in ("ssl_jax", "configs", "tests"):
    shutil.copytree(ROOT / name, checkout / name, dirs_exist_ok=True)
  done = subprocess.run(
    ["bash", "launch/gpu_check.sh", "--cpu"],
    cwd=checkout,
    env=os.environ
    | {"SSL_JAX_PYTHON": sys.executable, "SSL_JAX_SECONDS": "1800"},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  found = rows(done)
  compared = [x for x, _ in found.values() if " x torch**" in x]
  assert len(compared) == 4
  assert "the same bit for bit" in found["two runs, deterministic"][0]
