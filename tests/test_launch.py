"""The launch scripts, against fakes that are as strict as what they stand for.

Workers, tasks and containers are folders and processes here: the shells are
real, and so are the scripts; Python, gcloud, srun, scontrol, nvidia-smi and
gcsfuse are not.
"""

import json
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
SYSTEM = "/usr/local/bin:/usr/bin:/bin"

# Stands for `python -m ssl_jax.main`: does what plan.json says of its attempt.
MAIN = """
import json, os, signal, sys, time
from pathlib import Path
home = os.environ["HOME"]
plan = json.loads(Path(home, "bucket", "plan.json").read_text())
log = Path(home, "bucket", f"{Path(home).name}.jsonl")
attempt = len(log.read_text().splitlines()) if log.exists() else 0
with log.open("a") as file:
  file.write(json.dumps(sys.argv[1:]) + "\\n")
def end(status=0, **more):
  print(json.dumps({"workdir": "w", "updates": 9, **more}), flush=True)
  sys.exit(status)
signal.signal(signal.SIGTERM, lambda *_: end(preempted=True))
print(f"{Path(home).name} training", file=sys.stderr, flush=True)
what = plan[min(attempt, len(plan) - 1)]
if what == "wait":
  while not Path(home, "bucket", "enough").exists():
    time.sleep(0.01)
if what == "preempted":
  end(preempted=True)
if what == "fail":
  sys.exit("error: no audio")
if what == "lost":
  sys.exit("error: a process was lost; -- goes on from its newest checkpoint")
end()
"""

# Stands for Python on a worker: pip and uv only note what they are asked.
PYTHON = f"""#!/bin/bash
case "$*" in
"-m venv --clear .venv") mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
"-m uv python find "*) echo "$(dirname "$0")/python3" ;;
"-m pip "* | "-m uv "*) echo "$*" >>~/installed ;;
"-c "*) exit 0 ;;
"--version") echo Python 3.12 ;;
*) exec {sys.executable} "$@" ;;
esac
"""


def script(path: Path, text: str) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def checkout(tmp_path):
  """The launch scripts beside a package that trains nothing."""
  root = tmp_path / "check out"  # The space is not to matter.
  shutil.copytree(LAUNCH, root / "launch")
  for name in ("pyproject.toml", "constraints.txt"):
    shutil.copy(ROOT / name, root)
  script(root / "ssl_jax" / "main.py", MAIN)
  for folder in (".git", ".venv", "runs"):
    script(root / folder / "left-behind", "")
  return root


def installed(root: Path, extras: str) -> None:
  """What launch/setup.sh makes, of the Python that stands for one."""
  script(root / ".venv" / "bin" / "python", PYTHON)
  both = [
    (root / f).read_bytes() for f in ("pyproject.toml", "constraints.txt")
  ]
  sum_of = subprocess.run("cksum", input=b"".join(both), capture_output=True)
  stamp = "installed" + f"-{extras}" * bool(extras)
  (root / ".venv" / stamp).write_bytes(sum_of.stdout)


def bash(root: Path, *args, path="", **environment):
  return subprocess.run(
    ["bash", *map(str, args)],
    cwd=root,
    env={"PATH": f"{path}:{SYSTEM}", "HOME": str(root.parent)} | environment,
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
    timeout=60,
  )


# launch/tpu_vm.sh


class Cloud:
  """The fake gcloud's, and the script started against it."""

  def __init__(self, folder: Path, checkout: Path):
    self.folder, self.checkout = folder, checkout
    self.bucket = folder / "buckets" / "my-bucket"
    for name in ("nodes", "requests", "buckets/my-bucket"):
      (folder / name).mkdir(parents=True)
    script(
      folder / "bin" / "gcloud",
      f'#!/bin/bash\nexec {sys.executable} {ROOT}/tests/fake_gcloud.py "$@"\n',
    )
    worker = folder / "worker-bin"
    script(worker / "python3", PYTHON)
    script(worker / "mountpoint", '#!/bin/bash\ntest -L "$2"\n')
    script(
      worker / "gcsfuse",
      "#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\n"
      f'rmdir "$2"\nln -s {folder}/buckets/"$1" "$2"\n',
    )
    self.environment = {
      "PATH": f"{folder}/bin:{SYSTEM}",
      "HOME": str(folder),
      "FAKE_CLOUD": str(folder),
      "FAKE_WORKER_PATH": f"{worker}:{SYSTEM}",
      "SSL_JAX_POLL_SECONDS": "0.02",
    }
    self.plan("done")

  def plan(self, *attempts):
    (self.bucket / "plan.json").write_text(json.dumps(attempts))

  def events(self, *events):
    (self.folder / "events").write_text(" ".join(events))

  def start(self, *args):
    return subprocess.Popen(
      ["bash", f"{self.checkout}/launch/tpu_vm.sh", *args],
      env=self.environment,
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      start_new_session=True,
    )

  def run(self, *args):
    process = self.start(*args)
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(args, process.returncode, out, err)

  def calls(self):
    """What gcloud was asked, without the polls."""
    path = self.folder / "calls.jsonl"
    calls = list(map(json.loads, path.open())) if path.exists() else []
    return [c for c in calls if c[3] != "describe"]

  def verbs(self):
    """As `calls`, in a word each: of ssh, what worker.sh does."""
    return [
      re.findall(r"worker\.sh (\w+)", call[-1])[-1]
      if call[3] == "ssh"
      else call[3]
      for call in self.calls()
    ]

  def attempts(self, worker=0):
    path = self.bucket / f"worker-{worker}.jsonl"
    return list(map(json.loads, path.open())) if path.exists() else []

  def home(self, worker=0):
    return self.folder / "mine" / f"worker-{worker}"


SLICE = ("--name=mine", "--zone=us-west4-a", "--type=v5litepod-16")
HERE = (*SLICE, "--bucket=my-bucket")
TRAIN = ("--", "--config=configs/slim.py", "--workdir=~/bucket/runs/x")
FRESH = ["create", "scp", "install", "start", "follow"]


@pytest.fixture
def cloud(tmp_path, checkout):
  cloud = Cloud(tmp_path / "cloud", checkout)
  yield cloud
  (cloud.bucket / "enough").touch()  # Runs that wait end.


def test_a_fresh_slice_runs_on_all_workers(cloud):
  done = cloud.run(*HERE, *TRAIN)
  assert done.returncode == 0, done.stderr
  assert cloud.verbs() == FRESH
  assert cloud.calls()[0][4:] == [
    "mine",
    "--version=v2-alpha-tpuv5-lite",
    "--quiet",
    "--zone=us-west4-a",
    "--accelerator-type=v5litepod-16",
  ]
  for worker in (0, 1):
    home = cloud.home(worker)
    assert cloud.attempts(worker) == [
      ["--config=configs/slim.py", f"--workdir={home}/bucket/runs/x"]
    ]
    assert {path.name for path in (home / "ssl_jax").iterdir()} == {
      ".venv", ".worker", "constraints.txt", "launch", "pyproject.toml",
      "ssl_jax",
    }  # fmt: skip
    said = (home / "installed").read_text()
    assert "-m uv python install" in said
    assert "--constraint constraints.txt --editable .[tpu]" in said
  assert done.stdout == '{"workdir": "w", "updates": 9}\n'
  assert "worker-0 training" in done.stderr
  assert "worker-1 training" not in done.stderr


@pytest.mark.parametrize("more", [(), ("--queued", "--spot", "--delete")])
def test_a_dry_run_prints_what_a_run_does(cloud, more):
  hostile = ("--project=my-project", "--dir=it's a; dir")
  args = (*HERE, *more, *hostile, *TRAIN, "--config.data.dir=a 'b'")
  dry = cloud.run("--dry_run", *args)
  assert dry.returncode == 0 and not dry.stderr
  assert not (cloud.folder / "calls.jsonl").exists()
  assert not (cloud.checkout / "build").exists()
  real = cloud.run(*args)
  assert real.returncode == 0, real.stderr
  printed = dry.stdout.splitlines()
  said = [line for line in real.stderr.splitlines() if line in printed]
  calls = list(map(json.loads, (cloud.folder / "calls.jsonl").open()))
  # A request is polled until it is granted.
  polls = 2 if "--queued" in more else 0
  assert len(said) == len(printed) + polls and {*said} == {*printed}
  commands = [shlex.split(line) for line in said]
  assert [c[1:] for c in commands if c[0] == "gcloud"] == calls
  assert [c[0] for c in commands if c[0] != "gcloud"] == ["mkdir", "tar"]


def test_a_slice_that_is_there_is_used(cloud):
  assert cloud.run(*HERE, *TRAIN).returncode == 0
  going = ["bash", "launch/worker.sh", "going"]
  for worker in (0, 1):  # A loaded machine takes a while to end a process.
    while not subprocess.run(
      going, cwd=cloud.home(worker) / "ssl_jax"
    ).returncode:
      time.sleep(0.1)
  (cloud.checkout / "ssl_jax" / "new.py").touch()
  assert cloud.run(*HERE, *TRAIN).returncode == 0
  assert cloud.verbs() == FRESH + FRESH[1:]
  deadline = time.monotonic() + 60  # Worker 0's end does not wait for 1's.
  while len(cloud.attempts(1)) < 2 and time.monotonic() < deadline:
    time.sleep(0.1)
  assert len(cloud.attempts(1)) == 2
  assert (cloud.home(1) / "ssl_jax" / "ssl_jax" / "new.py").exists()


def test_a_run_outlives_the_script_and_is_found_again(cloud):
  cloud.plan("wait")
  first = cloud.start(*HERE, *TRAIN)
  while "worker-0 training" not in first.stderr.readline():
    assert first.poll() is None
  os.killpg(first.pid, signal.SIGINT)
  _, err = first.communicate(timeout=20)
  assert first.returncode == 130 and "the same command attaches" in err
  other = cloud.run(*HERE, "--", "--config=configs/smoke.py")
  assert other.returncode == 1
  assert "a run goes on here: local.sh --config=configs/slim.py" in other.stderr
  assert other.stderr.splitlines()[-1].startswith("error: the run could not be")
  second = cloud.start(*HERE, *TRAIN)
  while "worker-0 training" not in second.stderr.readline():
    assert second.poll() is None
  (cloud.bucket / "enough").touch()
  out, err = second.communicate(timeout=20)
  assert second.returncode == 0, err
  assert out == '{"workdir": "w", "updates": 9}\n'
  assert len(cloud.attempts(0)) == len(cloud.attempts(1)) == 1


def test_spot_and_queued_wait_for_capacity(cloud):
  done = cloud.run(*HERE, "--spot", "--queued", *TRAIN)
  assert done.returncode == 0, done.stderr
  assert cloud.calls()[0][2:] == [
    "queued-resources",
    "create",
    "mine",
    "--node-id=mine",
    "--runtime-version=v2-alpha-tpuv5-lite",
    "--quiet",
    "--zone=us-west4-a",
    "--accelerator-type=v5litepod-16",
    "--spot",
  ]
  states = re.findall("slice mine: (.*)", done.stderr)
  assert states == ["ABSENT", "WAITING_FOR_RESOURCES", "PROVISIONING", "READY"]
  assert cloud.verbs() == FRESH


@pytest.mark.parametrize("queued", [(), ("--queued",)])
def test_a_preempted_slice_is_made_again_and_the_run_goes_on(cloud, queued):
  cloud.plan("wait", "done")
  cloud.events("preempt", "none")
  (cloud.folder / "nodes" / "other").write_text("READY")
  done = cloud.run(*HERE, "--spot", *queued, *TRAIN)
  assert done.returncode == 0, done.stderr
  assert "slice mine: PREEMPTED" in done.stderr
  assert cloud.verbs() == [*FRESH, "delete", *FRESH]
  calls = cloud.calls()
  assert calls[:5] == calls[6:]
  first, second = cloud.attempts(1)
  assert first == second
  assert (cloud.folder / "nodes" / "other").exists()


def test_no_capacity_after_a_preemption_is_waited_out(cloud):
  cloud.plan("wait", "done")
  cloud.events("preempt", "none")
  process = cloud.start(*HERE, "--spot", *TRAIN)
  while "slice mine: READY" not in (line := process.stderr.readline()):
    assert line
  (cloud.folder / "refuse").touch()
  while cloud.verbs().count("create") < 3:
    assert process.poll() is None
    time.sleep(0.02)
  (cloud.folder / "refuse").unlink()
  _, err = process.communicate(timeout=60)
  assert process.returncode == 0, err


def test_a_run_stopped_by_sigterm_is_started_again(cloud):
  cloud.plan("preempted", "done")
  done = cloud.run(*HERE, *TRAIN)
  assert done.returncode == 0, done.stderr
  assert cloud.verbs() == [*FRESH, "stop", *FRESH[1:]]
  assert "preempted" not in done.stdout


def test_a_lost_connection_is_made_again(cloud):
  cloud.plan("wait")
  cloud.events("drop", "drop", "none")
  process = cloud.start(*HERE, *TRAIN)
  while cloud.verbs().count("follow") < 3:
    assert process.poll() is None
    time.sleep(0.02)
  (cloud.bucket / "enough").touch()
  _, err = process.communicate(timeout=60)
  assert process.returncode == 0, err
  assert "delete" not in cloud.verbs() and "stop" not in cloud.verbs()
  assert len(cloud.attempts(0)) == len(cloud.attempts(1)) == 1


def test_a_rebooted_worker_starts_again(cloud):
  cloud.plan("wait", "done")
  cloud.events("reboot", "none")
  done = cloud.run(*HERE, *TRAIN)
  assert done.returncode == 0, done.stderr
  assert cloud.verbs() == [*FRESH, "follow", "stop", *FRESH[1:]]
  assert len(cloud.attempts(0)) == len(cloud.attempts(1)) == 2


def test_a_slice_out_of_reach_is_made_again(cloud):
  cloud.plan("wait", "done")
  cloud.events("drop", "drop", "drop", "none")
  done = cloud.run(*HERE, *TRAIN)
  assert done.returncode == 0, done.stderr
  verbs = cloud.verbs()
  assert verbs.count("create") == 2 and verbs[-6:] == ["delete", *FRESH]


def test_no_network_here_is_no_reason_to_delete(cloud):
  cloud.plan("wait")
  cloud.events("drop", "none")
  process = cloud.start(*HERE, *TRAIN)
  while "follow" not in cloud.verbs():
    time.sleep(0.02)
  (cloud.folder / "offline").touch()
  while "slice mine: unknown" not in (line := process.stderr.readline()):
    assert line
  (cloud.folder / "offline").unlink()
  (cloud.bucket / "enough").touch()
  _, err = process.communicate(timeout=60)
  assert process.returncode == 0, err
  assert "delete" not in cloud.verbs()
  assert len(cloud.attempts()) == 1


def test_a_run_that_lost_a_process_goes_on_but_not_for_ever(cloud):
  cloud.plan("lost", "done")
  assert cloud.run(*HERE, *TRAIN).returncode == 0
  assert cloud.verbs() == [*FRESH, "stop", *FRESH[1:]]
  cloud.plan("lost")
  failed = cloud.run(*HERE, *TRAIN)
  assert failed.returncode == 1
  assert "lost 3 times in a row" in failed.stderr.splitlines()[-1]


@pytest.mark.parametrize("delete", [(), ("--delete",)])
def test_a_run_that_fails_is_not_repeated(cloud, delete):
  cloud.plan("fail")
  failed = cloud.run(*HERE, *delete, *TRAIN)
  assert failed.returncode == 1 and not failed.stdout
  assert "error: no audio" in failed.stderr
  last = failed.stderr.splitlines()[-1]
  assert last.startswith("error: the run failed with status 1 on worker 0")
  assert cloud.verbs() == FRESH + ["delete"] * len(delete)


def test_delete(cloud):
  assert cloud.run(*SLICE, "--delete", *TRAIN[:1]).returncode == 1
  gone = cloud.run("--name=mine", "--delete")
  assert gone.returncode == 0 and "there is no mine" in gone.stderr
  cloud.run(*HERE, *TRAIN)
  assert cloud.run("--name", "mine", "--delete").returncode == 0
  assert cloud.verbs()[-1] == "delete" and not cloud.home().exists()
  cloud.run(*HERE, "--queued", "--delete", *TRAIN)
  assert not cloud.home().exists()
  assert not [*(cloud.folder / "requests").iterdir()]
  with_it = cloud.calls()[-1]
  assert with_it[2:4] == ["queued-resources", "delete"]
  assert "--force" in with_it


def test_what_cannot_be_created_is_one_line(cloud):
  (cloud.folder / "refuse").touch()
  failed = cloud.run(*HERE, *TRAIN)
  assert failed.returncode == 1
  *_, reason, last = failed.stderr.splitlines()
  assert "no more capacity" in reason
  assert last.startswith("error: mine could not be created") and (
    "--queued" in last
  )
  (cloud.folder / "offline").touch()
  failed = cloud.run(*HERE, *TRAIN)
  assert failed.returncode == 1
  assert "gcloud cannot say whether mine is there" in failed.stderr


@pytest.mark.parametrize(
  "args, status, said",
  [
    ((*TRAIN,), 2, "--name is missing"),
    (("--name=mine", *TRAIN), 2, "--type is missing"),
    ((*SLICE,), 2, "what to run is missing"),
    ((*SLICE, "--config=x"), 2, "unexpected '--config=x'"),
    ((*SLICE, "--zone"), 2, "--zone needs a value"),
    ((*SLICE, "--name=a;rm", *TRAIN), 1, "--name='a;rm' is not such as"),
    ((*SLICE, "--zone=$(id)", *TRAIN), 1, "--zone='$(id)' is not such as"),
    ((*SLICE, "--project=a b", *TRAIN), 1, "--project='a b' is not such as"),
    ((*SLICE, "--bucket=../x", *TRAIN), 1, "--bucket='../x' is not such as"),
    ((*SLICE, "--workers=1;2", *TRAIN), 1, "--workers='1;2' is not such as"),
    ((*SLICE, "--dir=", *TRAIN), 1, "--dir='' is not such as"),
    ((*SLICE, "--type=big", *TRAIN), 1, "--type='big' is not such as"),
    ((*SLICE, "--type=v9-8", *TRAIN), 1, "no runtime is known"),
  ],
)
def test_bad_input_is_one_line(cloud, args, status, said):
  failed = cloud.run(*args)
  assert failed.returncode == status
  (line,) = failed.stderr.splitlines()
  assert line.startswith("error: ") and said in line
  assert not cloud.calls()


def test_runtimes_by_type(cloud):
  for kind, runtime in {
    "v3-8": "tpu-ubuntu2204-base",
    "v4-32": "tpu-ubuntu2204-base",
    "v5p-8": "v2-alpha-tpuv5",
    "v6e-8": "v2-alpha-tpuv6e",
  }.items():
    args = ("--name=mine", f"--type={kind}", "--dry_run")
    assert f" --version={runtime} " in cloud.run(*args, "--").stdout
    said = cloud.run(*args, "--version=other", "--").stdout
    assert " --version=other " in said


def test_hostile_values_arrive_as_they_are(cloud):
  words = [
    "--config.data.dir=a  b",
    "it's",
    'say "x"; rm -rf ~',
    "$(touch pwned)`touch pwned`$HOME",
    "a\nb\tc",
    "*",
    "",
    "a~/b",
    "&& exit 3",
    "-n",
    "ü",
  ]
  directory = "a dir'; touch pwned #"
  done = cloud.run(
    *HERE, f"--dir={directory}", *TRAIN, *words, "~/x", "--y=~/z"
  )
  assert done.returncode == 0, done.stderr
  for worker in (0, 1):
    home = cloud.home(worker)
    (words_there,) = cloud.attempts(worker)
    assert words_there[2:] == [*words, f"{home}/x", f"--y={home}/z"]
    assert (home / directory / "launch").is_dir()
    assert not [*home.rglob("pwned")]


def test_the_command_of_the_readme_works(cloud):
  text = (ROOT / "README.md").read_text().replace("\\\n", "")
  (command,) = re.findall(r"^ +(bash launch/tpu_vm.sh .*)", text, re.M)
  done = cloud.run("--dry_run", *shlex.split(command)[2:])
  assert done.returncode == 0 and not done.stderr
  assert "tpu-vm delete mine" in done.stdout.splitlines()[-1]


def test_help(cloud):
  helped = cloud.run("--help")
  assert helped.returncode == 0 and not helped.stderr
  text = (LAUNCH / "tpu_vm.sh").read_text().partition("\n  esac")[0]
  flags = {*re.findall(r"--(\w+)(?==\*| \||\))", text)} - {"help"}
  assert len(flags) == 12
  for flag in flags:
    assert re.search(rf"^  .*--{flag}\b", helped.stdout, re.M), flag


# launch/gpu.sh


def gpu(root: Path, tmp_path: Path, smi: str | None, kind="gpu", **environment):
  if smi is not None:
    script(tmp_path / "bin" / "nvidia-smi", f"#!/bin/bash\n{smi}\n")
  installed(root, kind)
  script(
    root / "ssl_jax" / "main.py",
    "import os, sys; print(os.environ['SSL_JAX_EXTRAS'], *("
    "os.environ.get(x) for x in ('XLA_CLIENT_MEM_FRACTION',"
    "'XLA_PYTHON_CLIENT_MEM_FRACTION')), *sys.argv[1:])",
  )
  args = ("launch/gpu.sh", "--workdir=a b")
  return bash(root, *args, path=tmp_path / "bin", **environment)


def test_a_gpu_run(checkout, tmp_path):
  done = gpu(checkout, tmp_path, "echo 580.65.06; echo 580.65.06")
  assert done.stdout == "gpu 0.92 None --workdir=a b\n", done.stderr
  done = gpu(checkout, tmp_path, "echo 535.183.01", "gpu12")
  assert done.stdout == "gpu12 0.92 None --workdir=a b\n", done.stderr
  old = {"XLA_PYTHON_CLIENT_MEM_FRACTION": ".5"}  # Both are an error to JAX.
  done = gpu(checkout, tmp_path, "echo 580.65.06", **old)
  assert done.stdout == "gpu None .5 --workdir=a b\n", done.stderr


@pytest.mark.parametrize(
  "smi, said",
  [
    (
      "echo failed because it could not talk to the driver; exit 9",
      "no NVIDIA",
    ),
    ("exit 127", "no NVIDIA"),
    ("echo 470.82.01", "version 470.82.01, and CUDA 12 needs 525"),
  ],
)
def test_no_gpu_driver_is_one_line(checkout, tmp_path, smi, said):
  failed = gpu(checkout, tmp_path, smi)
  assert failed.returncode == 1 and not failed.stdout
  (line,) = failed.stderr.splitlines()
  assert line.startswith("error: ") and said in line and "install" in line


# launch/slurm.sbatch

SRUN = """#!/bin/bash
# Two tasks, as srun starts them; SIGUSR1 stands for SIGTERM to all tasks.
[[ $1 == --kill-on-bad-exit=1 ]] && shift
echo "$SRUN_CPUS_PER_TASK $*" >>"$HOME/srun"
pids=()
trap 'told=1; kill -TERM "${pids[@]}"' USR1
for i in 0 1; do
  SLURM_STEP_NODELIST=localhost SLURM_STEP_NUM_TASKS=2 SLURM_NTASKS=2 \\
    SLURM_PROCID=$i SLURM_LOCALID=$i "$@" &
  pids+=($!)
done
echo $$ >"$HOME/srun-pid"
status=0
for pid in "${pids[@]}"; do
  # The signal interrupts the wait.
  while told=; wait "$pid"; code=$?; [[ $told ]]; do true; done
  ((code == 0)) || status=$code
done
exit $status
"""
SCONTROL = """#!/bin/bash
echo "$*" >>"$HOME/scontrol"
[[ $1 != show ]] || echo "JobId=7 JobState=$(cat "$HOME/state") Reason=None"
[[ $1 != requeue || ! -e $HOME/no-requeue ]]
"""


@pytest.fixture
def job(checkout, tmp_path):
  """Runs slurm.sbatch as SLURM does: a copy of it, from elsewhere."""
  installed(checkout, "gpu")
  home = tmp_path / "home"
  script(home / "bin" / "srun", SRUN)
  script(home / "bin" / "scontrol", SCONTROL)
  (home / "bucket").mkdir()
  (home / "state").write_text("RUNNING")
  spooled = tmp_path / "slurm_script"
  shutil.copy(LAUNCH / "slurm.sbatch", spooled)

  def run(plan, *args, **environment):
    (home / "bucket" / "plan.json").write_text(json.dumps(plan))
    with (home / "log").open("a") as log:
      return subprocess.run(
        ["bash", spooled, *args],
        cwd=tmp_path,
        env={
          "PATH": f"{home}/bin:{SYSTEM}",
          "HOME": str(home),
          "SLURM_SUBMIT_DIR": str(checkout),
          "SLURM_JOB_ID": "7",
          "SLURM_CPUS_PER_TASK": "3",
          "SLURM_NTASKS_PER_NODE": "2",
          "SLURM_GPUS_ON_NODE": "2",
        }
        | environment,
        stdout=log,
        stderr=log,
        timeout=400,
      ).returncode

  run.home = home
  return run


def directives():
  lines = (LAUNCH / "slurm.sbatch").read_text().splitlines()
  first = next(i for i, x in enumerate(lines) if x and not x.startswith("#"))
  found = [x.split()[1] for x in lines[:first] if x.startswith("#SBATCH")]
  # Below the first command sbatch reads none.
  assert len(found) == sum(x.startswith("#SBATCH") for x in lines)
  return dict((x + "=").split("=")[:2] for x in found)


def test_what_slurm_is_asked():
  asked = directives()
  # Without B: the signal goes to the tasks.
  assert asked["--signal"] == "TERM@120"
  assert asked["--ntasks-per-node"] == asked["--gpus-per-node"]
  assert not {"--gpus-per-task", "--gpu-bind"} & {*asked}
  assert asked["--open-mode"] == "append" and "--requeue" in asked


def test_a_job_is_queued_again_until_the_run_is_done(job):
  (job.home / "log").write_text("before\n")
  plan = ["preempted", "preempted", "done", "done"]
  args = ("--config=configs/slim.py", "--workdir=a b")
  assert job(["preempted"], *args) == 0
  show, requeue = "show job 7", "requeue 7"
  asked = (job.home / "scontrol").read_text().splitlines()
  assert asked == [show, requeue]
  assert job(plan, *args) == 0
  assert (job.home / "scontrol").read_text().splitlines() == asked
  again = (job.home / "srun").read_text().splitlines()
  assert again == [f"3 .venv/bin/python -m ssl_jax.main {' '.join(args)}"] * 2
  log = (job.home / "log").read_text()
  assert log.startswith("before\n")  # Appended to, not emptied.
  assert log.count('"preempted": true') == 2 and log.count("training") == 4
  assert log.splitlines()[-1] == '{"workdir": "w", "updates": 9}'


@pytest.mark.parametrize("state", ["CANCELLED", "PREEMPTED", "COMPLETING"])
def test_a_cancelled_job_stays_cancelled(job, state):
  (job.home / "state").write_text(state)
  assert job(["preempted"], "--workdir=w") == 0
  assert "requeue" not in (job.home / "scontrol").read_text()


def test_a_job_that_fails_says_so(job):
  assert job(["fail"], "--workdir=w") == 1
  assert not (job.home / "scontrol").exists()
  (job.home / "no-requeue").touch()
  (job.home / "bucket" / "home.jsonl").unlink()
  assert job(["preempted"], "--workdir=w") == 1
  last = (job.home / "log").read_text().splitlines()[-1]
  assert last.startswith("error: the job could not be queued again")


@pytest.mark.parametrize(
  "args, environment, said",
  [
    ((), {}, "--workdir=DIR is missing"),
    (("--workdir=w",), {"SLURM_GPUS_ON_NODE": "4"}, "2 tasks and 4 GPUs"),
    (("--workdir=w",), {"SLURM_SUBMIT_DIR": "/"}, "submit from the checkout"),
  ],
)
def test_a_job_that_cannot_work_is_one_line(job, args, environment, said):
  assert job(["done"], *args, **environment) == 2
  (line,) = (job.home / "log").read_text().splitlines()
  assert line.startswith("error: ") and said in line


@pytest.mark.slow
def test_two_tasks_of_a_job_are_one_run(job, checkout):
  """With the package itself and JAX's own detection of SLURM."""
  shutil.copytree(ROOT / "ssl_jax", checkout / "ssl_jax", dirs_exist_ok=True)
  shutil.copytree(ROOT / "configs", checkout / "configs")
  environment = {
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": os.environ["JAX_COMPILATION_CACHE_DIR"],
    # A job of its own to others on this machine: the port comes from it.
    "SLURM_JOB_ID": str(os.getpid()),
  }
  args = (
    "--config=configs/smoke.py:objective=tera,size=3x32x64x2",
    "--config.budget.flops=0",
    "--config.budget.updates=30",
    "--config.log.every=1",
    f"--workdir={job.home}/run",
  )
  metrics = job.home / "run" / "metrics.jsonl"
  with ThreadPoolExecutor() as pool:
    first = pool.submit(job, [], *args, **environment)
    while not metrics.exists() or '"train"' not in metrics.read_text():
      assert not first.done(), (job.home / "log").read_text()
      time.sleep(0.05)
    tell_tasks(job.home)
    assert first.result() == 0, (job.home / "log").read_text()
  asked = (job.home / "scontrol").read_text().splitlines()
  assert asked[-1].startswith("requeue ")
  assert job([], *args, **environment) == 0
  log = (job.home / "log").read_text()
  assert "devices  2 x cpu" in log
  assert log.count('"preempted": true') == 2  # Each task's line.
  assert json.loads(log.splitlines()[-1])["updates"] == 30


def tell_tasks(home: Path) -> None:
  """The signal of #SBATCH --signal=TERM@120."""
  os.kill(int((home / "srun-pid").read_text()), signal.SIGUSR1)


# launch/Dockerfile


def instructions():
  text = (LAUNCH / "Dockerfile").read_text()
  text = re.sub(r"^#.*\n", "", text, flags=re.M).replace("\\\n", "")
  return [x.split(None, 1) for x in text.splitlines() if x]


def test_an_image_holds_what_it_needs_and_runs_as_a_user():
  steps = instructions()
  assert [x for x, _ in steps if x == "FROM"] == ["FROM"]
  copied = [what.split()[:-1] for x, what in steps if x == "COPY"]
  assert copied == [["pyproject.toml", "constraints.txt"], ["."]]
  ignored = (ROOT / ".dockerignore").read_text().splitlines()
  kept = {line[1:] for line in ignored if line.startswith("!")}
  assert "*" in ignored and kept >= {"ssl_jax", "configs", *copied[0]}
  assert all((ROOT / name).exists() for name in kept)
  assert steps[-3:] == [
    ["USER", "ssl_jax"],
    ["ENTRYPOINT", '["python", "-m", "ssl_jax.main"]'],
    ["CMD", '["--config=configs/smoke.py"]'],
  ]


@pytest.mark.parametrize("extras", ["", "gpu", "tpu", "gpu,tfds"])
def test_an_image_has_the_extras_asked_for(extras, tmp_path):
  (install,) = [what for _, what in instructions() if "tomllib" in what]
  listed = install.partition(" >/tmp/requirements.txt")[0]
  listed = listed.replace("/tmp/ssl_jax", str(ROOT))
  listed = listed.replace("python -c", f"{sys.executable} -c", 1)
  done = bash(tmp_path, "-c", listed, EXTRAS=extras)
  assert done.returncode == 0, done.stderr
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  more = project["optional-dependencies"]
  assert done.stdout.splitlines() == project["dependencies"] + [
    x for e in filter(None, extras.split(",")) for x in more[e]
  ]


# launch/colab.ipynb


def notebook():
  return nbformat.read(LAUNCH / "colab.ipynb", as_version=4)


def test_the_notebook_is_kept_without_outputs():
  nbformat.validate(notebook())
  for cell in notebook().cells:
    assert cell.get("outputs", []) == [] and not cell.get("execution_count")


def test_the_notebook_asks_for_an_address_outside_a_checkout(tmp_path):
  cells = [c for c in notebook().cells if c.id in ("parameters", "code")]
  code = "\n".join(cell.source for cell in cells)
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
  )
  assert "put the address of your clone into REPO" in done.stderr


@pytest.mark.slow
def test_the_notebook_runs(checkout, monkeypatch):
  shutil.copytree(ROOT / "ssl_jax", checkout / "ssl_jax", dirs_exist_ok=True)
  shutil.copytree(ROOT / "configs", checkout / "configs")
  installed(checkout, "")
  small = {
    "CONFIG": "configs/smoke.py:size=3x32x64x2",
    "RUN_FLAGS": "--config.budget.flops=0 --config.budget.updates=20",
    "PROBE_FLAGS": "--cache=features --config.fit.updates=20 "
    "--config.fit.eval_every=10 --config.fit.num_seeds=1",
    "JAX_PLATFORMS": "cpu",
    "SSL_JAX_EXTRAS": "",
  }
  for name, value in small.items():
    monkeypatch.setenv(name, value)
  done = nbclient.NotebookClient(
    notebook(),
    timeout=600,
    kernel_name="python3",
    resources={"metadata": {"path": str(checkout / "launch")}},
  ).execute()
  outputs = {c.id: c.outputs for c in done.cells if c.cell_type == "code"}

  def shown(name, kind):
    return any(kind in x.get("data", {}) for x in outputs[name])

  assert shown("loss", "image/png") and shown("scores", "image/png")
  assert any("<audio" in x["data"]["text/html"] for x in outputs["listen"][1:])
  text = "".join(x.get("text", "") for x in outputs["probe"])
  assert "words, map, %" in text and "logmel" in text


def test_the_scripts_are_shellcheck_clean():
  scripts = [*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")]
  checker = Path(sys.executable).with_name("shellcheck")
  done = subprocess.run(
    [checker, "--external-sources", "--source-path=SCRIPTDIR", *scripts],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout
