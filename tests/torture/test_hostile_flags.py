"""Command lines of any words, and code that data cannot reach."""

import ast
import contextlib
import json
import os
import runpy
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LONG, DEEP = "a" * 5_000, "/".join("a" * 200 for _ in range(40))
SMOKE = "--config=configs/smoke.py"
SOURCE = SMOKE, "--dry_run", "--config.data.source"

# Of each command, what it is given; statuses are 1, or 2 where it is the usage.
LINES = [
  ("main", "--nothing"),
  ("main", "--config"),
  ("main", "--config=/dev/null"),
  ("main", "--config=/etc/passwd"),
  ("main", f"--config={LONG}"),
  ("main", "--config=configs/smoke.py:size=../.."),
  ("main", "--config=configs/smoke.py:size=1x" + "9" * 5_000),
  ("main", "--config=configs/smoke.py:size=9999x9999x9999x9999", "--dry_run"),
  ("main", "--config=configs/smoke.py:=,=,,=x"),
  ("main", SMOKE, "--dry_run", "--config.batch.seconds=1e300"),
  ("main", SMOKE, "--dry_run", "--config.batch.seconds=nan"),
  ("main", SMOKE, "--dry_run", "--config.encoder.num_layers=1" + "0" * 18),
  ("main", SMOKE, "--dry_run", "--config.encoder.num_layers=" + "9" * 5_000),
  ("main", SMOKE, "--dry_run", "--config.seed=None"),
  ("main", SMOKE, "--dry_run", "--config.seed=-1"),
  ("main", SMOKE, "--dry_run", "--config.data.bucket_seconds=(1.0,'x')"),
  ("main", SMOKE, "--dry_run", "--config.data.bucket_seconds=" + "(" * 999),
  ("main", SMOKE, "--dry_run", "--config.mesh=__import__('os')"),
  ("main", SMOKE, "--dry_run", "--config.encoder=1"),
  ("main", SMOKE, "--dry_run", "--config.budget.trunk=/dev/zero"),
  ("main", SMOKE, "--dry_run", "--config.budget.match=/dev/zero"),
  ("main", SMOKE, "--dry_run", f"--init_from={LONG}"),
  ("main", SMOKE, "--dry_run", "--init_from=hf:/dev"),
  ("main", SMOKE, "--workdir=/dev/null/x"),
  ("main", SMOKE, "--process_timeout=nan"),
  ("main", *SOURCE[:2], f"{SOURCE[2]}=folder", f"--config.data.dir={DEEP}"),
  ("main", *SOURCE[:2], f"{SOURCE[2]}=records", "--config.data.dir=/dev/zero"),
  ("main", *SOURCE[:2], f"{SOURCE[2]}=tfds", f"--config.data.name={LONG}"),
  ("main", *SOURCE[:2], f"{SOURCE[2]}=manifest", "--config.data.dir="),
  ("main", *SOURCE[:2], f"{SOURCE[2]}=mixture", "--config.data.dir=:,:,"),
  ("prepare",),
  ("prepare", "--input=/dev/zero", "--out=OUT"),
  ("prepare", f"--input={LONG}", "--out=OUT"),
  ("prepare", "--input=FIFO", "--out=OUT"),
  ("prepare", "--input=tfds:", "--out=OUT"),
  ("prepare", "--input=tfds:../../..", "--out=OUT"),
  ("prepare", "--input=BOMB.zip", "--out=OUT"),
  ("prepare", "--input=EVIL.tar", "--out=OUT"),
  ("prepare", "--input=WAV", f"--out={LONG}"),
  ("prepare", "--input=WAV", "--out=/dev/null"),
  ("prepare", "--input=WAV", "--out=OUT", "--max_seconds=nan"),
  ("prepare", "--input=WAV", "--out=OUT", "--max_seconds=inf"),
  ("prepare", "--input=WAV", "--out=OUT", "--min_seconds=1e300"),
  ("prepare", "--input=WAV", "--out=OUT", "--num_workers=" + "9" * 20),
  ("prepare", "--verify", "--out=/dev/zero"),
  ("label", SMOKE, "--layer=" + "9" * 5_000, "--checkpoint=/dev/zero"),
  ("label", SMOKE, "--layer=\u00b2"),
  ("label", SMOKE, "--clusters=" + "9" * 20),
  ("label", SMOKE, "--from_km=/dev/null"),
  ("probe", "--config=configs/probe.py:task=x"),
  ("probe", "--config=configs/probe.py", f"--checkpoint={LONG}"),
  ("probe", "--config=configs/probe.py", "--encoder=,,"),
  ("probe", "--config=configs/probe.py", "--encoder=hf:/dev/zero"),
  ("extract",),
  ("extract", "--checkpoint=/dev/zero", "--out=OUT", "WAV"),
  ("extract", f"--checkpoint={LONG}", "--out=OUT", "WAV"),
  ("export", "--checkpoint=hf:FIFO", "--out=OUT"),
  ("export", "--checkpoint=WAV", "--out=OUT", "--format=\n"),
  ("sweep", SMOKE, "--dry_run"),
  (
    "sweep",
    "--config=configs/isoflop.py",
    "--dry_run",
    "--config.batch.seconds",
  ),
  (
    "sweep",
    "--config=configs/isoflop.py",
    "--dry_run",
    f"--config.data.{LONG}=1",
  ),
  ("sweep", "--config=configs/isoflop.py", "--dry_run", "--index=" + "9" * 20),
  ("report",),
  ("report", "/dev/zero"),
  ("report", LONG),
  ("report", "WAV", "--price=-1"),
  ("plan", "--budget=nan"),
  ("plan", "--budget=inf"),
  ("plan", "--budget=1e400"),
  ("plan", "--budget=1e18", "--hours=nan"),
  ("plan", "--budget=1e18", "--family=/dev/zero"),
  ("plan", "--budget=1e18", "--runs=/dev/zero"),
  ("plan", "--budget=1e18", f"--runs={LONG}"),
  ("plan", "--device=h100-" + "9" * 5_000, "--device_hours=1"),
  ("plan", "--device=\n", "--device_hours=1"),
  ("plan", "--device=h100", "--device_hours=inf"),
  ("flops", SMOKE, "--match=/dev/zero"),
  ("flops", SMOKE, "--hours=nan"),
  ("flops", SMOKE, "--config.budget.flops=inf"),
  ("flops", SMOKE, "--config.optimizer.b1=True"),
  ("compile", SMOKE, "--topology=v5e:" + "9" * 5_000 + "x1"),
  ("compile", SMOKE, "--topology=v5e:0x0"),
  ("compile", SMOKE, "--topology=\n"),
]


def run_all(folder, lines):
  """Runs each in a child of this process, which has read the libraries."""
  import jax  # noqa: F401

  import ssl_jax.budget.planner
  import ssl_jax.data
  import ssl_jax.labelling.corpus
  import ssl_jax.pretrained.hf_read
  import ssl_jax.probes.run
  import ssl_jax.training.loop  # noqa: F401

  os.chdir(ROOT)
  for number, (door, *words) in enumerate(lines):
    if not (child := os.fork()):
      with contextlib.suppress(BaseException):
        become(folder / str(number), door, words)
      os._exit(99)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    (folder / f"{number}.status").write_text(str(code))


def become(path, door, words):
  import resource
  import signal

  resource.setrlimit(resource.RLIMIT_AS, (24 << 30, 24 << 30))
  signal.alarm(60)
  for number, name in ((1, ".out"), (2, ".err")):
    file = os.open(path.with_suffix(name), os.O_CREAT | os.O_WRONLY, 0o600)
    os.dup2(file, number)
  sys.argv = [f"ssl_jax.{door}", *words]
  try:
    runpy.run_module(f"ssl_jax.{door}", run_name="__main__", alter_sys=True)
    status = 0
  except SystemExit as error:
    status = error.code or 0
  except BaseException:
    traceback.print_exc()
    status = 1
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status if isinstance(status, int) else 1)


@pytest.fixture(scope="module")
def said(tmp_path_factory):
  """Of each line: exit status, stdout, stderr."""
  from archives import GOOD, tar, zipped

  inputs, folder = (tmp_path_factory.mktemp(name) for name in ("in", "out"))
  (inputs / "WAV").mkdir()
  (inputs / "WAV" / "a.wav").write_bytes(b"RIFF" * 99)
  os.mkfifo(inputs / "FIFO")
  bomb = bytearray(zipped([(f"{i}", b"0") for i in range(2_000)]))
  at = 0
  while (at := bomb.find(b"PK\1\2", at + 1)) > 0:
    bomb[at + 24 : at + 28] = (2**32 - 2).to_bytes(4, "little")
  (inputs / "BOMB.zip").write_bytes(bomb)
  (inputs / "EVIL.tar").write_bytes(tar([*GOOD, ("../../x", b"evil")]))
  lines = [
    [
      word.replace("=OUT", f"={inputs}/OUT{number}")
      .replace("WAV", f"{inputs}/WAV")
      .replace("FIFO", f"{inputs}/FIFO")
      .replace("=BOMB", f"={inputs}/BOMB")
      .replace("=EVIL", f"={inputs}/EVIL")
      for word in words
    ]
    for number, words in enumerate(LINES)
  ]
  code = (
    f"import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}]\n"
    "import json, pathlib, test_hostile_flags\n"
    f"test_hostile_flags.run_all(pathlib.Path({str(folder)!r}), "
    "json.load(sys.stdin))"
  )
  subprocess.run(
    [sys.executable, "-c", code],
    input=json.dumps(lines),
    text=True,
    check=True,
    timeout=300,
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
  )
  assert {path.name for path in inputs.iterdir()} <= {
    *("WAV", "FIFO", "BOMB.zip", "EVIL.tar"),
    *(f"OUT{number}" for number in range(len(LINES))),
  }
  for path in inputs.glob("OUT*/*"):
    assert path.name == "lock", path
  return [
    (
      int((folder / f"{number}.status").read_text()),
      (folder / f"{number}.out").read_text(),
      (folder / f"{number}.err").read_text(),
    )
    for number in range(len(LINES))
  ]


@pytest.mark.parametrize(
  "number", range(len(LINES)), ids=[" ".join(x)[:60] for x in LINES]
)
def test_command_lines(said, number):
  status, out, err = said[number]
  *before, last = err.splitlines() or [""]
  assert "Traceback" not in err
  assert (status, last[:7]) in ((1, "error: "), (2, "error: ")), (status, err)
  assert sum(line.startswith("error:") for line in before) == 0
  assert len(last) < 20_000 and not out


# What may run code that is in data, and the one place that may: a config is a
# Python file of the user.
MODULES = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
MODULES |= {"yaml", "torch", "code", "imp", "xmlrpc", "pty"}
CALLS = {"eval", "exec", "compile", "__import__", "execfile", "input"}
METHODS = {"os.system", "os.popen", "os.execv", "os.execvp", "os.spawnl"}
METHODS |= {"yaml.load", "torch.load", "pickle.load", "runpy.run_path"}
IMPORTLIB = {"importlib.util.module_from_spec": ["ssl_jax/config.py"]}
MEASURED = "ssl_jax/measure/"  # Where torch is, as what we are compared with.


def calls(tree):
  for node in ast.walk(tree):
    if isinstance(node, ast.Call):
      yield ast.unparse(node.func), {k.arg: k.value for k in node.keywords}


FILES = [*ROOT.glob("ssl_jax/**/*.py"), *ROOT.glob("configs/*.py")]


def test_no_code_is_run_that_data_brought():
  assert len(FILES) > 90
  loads, filters = 0, []
  for path in FILES:
    name = path.relative_to(ROOT).as_posix()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
      modules = []
      if isinstance(node, ast.Import):
        modules = [alias.name for alias in node.names]
      elif isinstance(node, ast.ImportFrom):
        modules = [node.module or ""]
      for module in modules:
        top = module.split(".")[0]
        measured = top == "torch" and name.startswith(MEASURED)
        assert top not in MODULES or measured, (name, module)
    for call, given in calls(tree):
      assert call not in CALLS and call not in METHODS, (name, call)
      if call in IMPORTLIB:
        assert name in IMPORTLIB[call]
      if call.endswith("exec_module"):
        assert name == "ssl_jax/config.py"
      shell = given.get("shell")
      assert shell is None or ast.unparse(shell) == "False", (name, call)
      if call in ("np.load", "numpy.load", "np.lib.format.read_array"):
        loads += 1
        assert ast.unparse(given["allow_pickle"]) == "False", name
      if call.endswith("extractall"):
        # Names and links are checked before; tar's own filter checks again.
        assert name == "ssl_jax/data/sources/archives.py"
        filters.append(
          ast.unparse(given["filter"]) if "filter" in given else ""
        )
      if call.endswith(("unpack_archive", "fromfile", "mktemp")):
        raise AssertionError((name, call))
  assert sorted(filters) == ["", "'data'"]  # A zip has none; a tar's.
  assert loads >= 2
