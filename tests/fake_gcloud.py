"""A `gcloud` with a small cloud of its own, in a folder.

It takes the commands, flags and values that gcloud 528 takes of those that
launch/tpu_vm.sh uses, and records each call. Workers are folders, the homes of
real shells. Events, one taken by each `worker.sh follow`, make it fail.

  CLOUD/calls.jsonl     the arguments of every call
  CLOUD/nodes/NAME      the state of a slice
  CLOUD/requests/NAME   the states that a queued request is yet to have
  CLOUD/NAME/worker-I   the home of a worker
  CLOUD/events          words: preempt, reboot, drop, none
  CLOUD/refuse          create fails while it is there
  CLOUD/offline         everything fails while it is there
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CLOUD = Path(os.environ["FAKE_CLOUD"])
WIDE = {"--project": str, "--format": str, "--quiet": bool}
SSH = {
  "--worker": str,
  "--zone": str,
  "--internal-ip": bool,
  "--plain": bool,
  "--ssh-key-file": str,
}
CREATE = {
  "--zone": str,
  "--accelerator-type": str,
  "--async": bool,
  "--labels": str,
  "--metadata": str,
  "--network": str,
  "--reserved": bool,
  "--service-account": str,
  "--spot": bool,
  "--subnetwork": str,
}
KNOWN = {
  "tpu-vm create": {**CREATE, "--version": str, "--preemptible": bool},
  "tpu-vm delete": {"--zone": str, "--async": bool},
  "tpu-vm describe": {"--zone": str},
  "tpu-vm scp": {
    **SSH,
    "--scp-flag": str,
    "--recurse": bool,
    "--compress": bool,
  },
  "tpu-vm ssh": {
    **SSH,
    "--ssh-flag": str,
    "--command": str,
    "--output-directory": str,
  },
  "queued-resources create": {
    **CREATE,
    "--runtime-version": str,
    "--node-id": str,
    "--valid-until-duration": str,
  },
  "queued-resources delete": {"--zone": str, "--async": bool, "--force": bool},
  "queued-resources describe": {"--zone": str},
}
STEPS = "WAITING_FOR_RESOURCES PROVISIONING ACTIVE"


def fail(message: str, status: int = 1) -> None:
  print(f"ERROR: (gcloud) {message}", file=sys.stderr)
  sys.exit(status)


def parse(argv: list[str]) -> tuple[str, list[str], dict[str, str]]:
  command = " ".join(argv[2:4])
  if argv[:2] != ["compute", "tpus"] or command not in KNOWN:
    fail(f"Invalid choice: {argv[:4]}", 2)
  positional, flags = [], {}
  for word in argv[4:]:
    flag, equals, value = word.partition("=")
    kind = {**WIDE, **KNOWN[command]}.get(flag)
    if not word.startswith("--"):
      positional.append(word)
    elif kind is None or (kind is str) != bool(equals):
      fail(f"unrecognized arguments: {word}", 2)
    else:
      flags[flag] = value
  if "--quiet" not in flags:
    fail("it would ask, and nobody would answer", 2)
  return command, positional, flags


def main(argv: list[str]) -> None:
  with (CLOUD / "calls.jsonl").open("a") as calls:
    calls.write(json.dumps(argv) + "\n")
  command, positional, flags = parse(argv)
  if (CLOUD / "offline").exists():
    fail("There was a problem refreshing your current auth tokens")
  group, verb = command.split()
  if verb == "scp":
    source, name = positional[0], positional[1].rstrip(":")
    for home in reach(name, flags):
      shutil.copy(source, home)
    return
  (name,) = positional
  if verb == "ssh":
    ssh(name, flags)
    return
  path = CLOUD / {"tpu-vm": "nodes"}.get(group, "requests") / name
  if verb == "create":
    if (CLOUD / "refuse").exists():
      fail("There is no more capacity in the zone")
    if path.exists():
      fail(f"ALREADY_EXISTS: {name}")
    if group == "tpu-vm":
      make(name)
    else:
      assert flags["--node-id"] == name
      path.write_text(STEPS)
  elif not path.exists():
    fail(f"NOT_FOUND: Resource 'projects/p/locations/z/x/{name}' was not found")
  elif verb == "describe":
    describe(path, group, flags)
  elif verb == "delete":
    if group == "queued-resources" and "--force" not in flags:
      fail("the queued resource still has nodes")
    path.unlink()
    (CLOUD / "nodes" / name).unlink(missing_ok=True)
    kill_all(name)
    shutil.rmtree(CLOUD / name, ignore_errors=True)


def make(name: str) -> None:
  (CLOUD / "nodes" / name).write_text("READY")
  for worker in range(2):
    (CLOUD / name / f"worker-{worker}").mkdir(parents=True)


def describe(path: Path, group: str, flags: dict[str, str]) -> None:
  field = "state" if group == "tpu-vm" else "state.state"
  assert flags["--format"] == f"value({field})"
  state, *later = path.read_text().split()
  if later:
    path.write_text(" ".join(later))
    if later == ["ACTIVE"]:
      make(path.name)
  print("Updates are available for some components.", file=sys.stderr)
  print(state)


def reach(name: str, flags: dict[str, str]) -> list[Path]:
  """Homes of the workers asked for."""
  path = CLOUD / "nodes" / name
  if not path.exists():
    fail(f"NOT_FOUND: {name}")
  if path.read_text() != "READY":
    fail(f'This TPU has terminal state "{path.read_text()}"')
  homes = sorted((CLOUD / name).iterdir())
  worker = flags.get("--worker", "0")
  return homes if worker == "all" else [homes[int(worker)]]


def ssh(name: str, flags: dict[str, str]) -> None:
  homes, command = reach(name, flags), flags["--command"]
  if "worker.sh follow" in command:
    event = take_event()
    if event != "none":
      until_it_runs(name)
      if event == "preempt":
        (CLOUD / "nodes" / name).write_text("PREEMPTED")
      if event in ("preempt", "reboot"):
        kill_all(name)
      fail("[ssh] exited with return code [255].")
  # As gcloud has it: the words that it was given, joined for a remote shell.
  words = command.split(" ")

  def in_home(home: Path) -> int:
    environment = {"HOME": str(home), "PATH": os.environ["FAKE_WORKER_PATH"]}
    shell = ["bash", "-c", " ".join(words)]
    return subprocess.run(shell, cwd=home, env=environment).returncode

  with ThreadPoolExecutor() as pool:
    statuses = [*pool.map(in_home, homes)]
  sys.exit(next((status for status in statuses if status), 0))


def take_event() -> str:
  path = CLOUD / "events"
  event, *later = path.read_text().split() if path.exists() else ["none"]
  path.write_text(" ".join(later or ["none"]))
  return event


def sessions(name: str) -> list[Path]:
  return [*(CLOUD / name).glob("*/*/.worker/session")]


def until_it_runs(name: str) -> None:
  """Waits until training has begun on every worker."""
  homes = [*(CLOUD / name).iterdir()]
  while True:
    logs = [path.with_name("log") for path in sessions(name)]
    running = ["training" in log.read_text() for log in logs if log.exists()]
    if sum(running) == len(homes):
      return
    time.sleep(0.01)


def kill_all(name: str) -> None:
  for path in sessions(name):
    try:
      os.killpg(int(path.read_text()), signal.SIGKILL)
    except ProcessLookupError:
      pass


if __name__ == "__main__":
  main(sys.argv[1:])
