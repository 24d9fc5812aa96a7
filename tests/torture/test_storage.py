"""Disks that are full, read-only or damaged; folders that are in use."""

import errno
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import doors
import jax.numpy as jnp
import pytest
import soundfile
from tiny import SMALL, abstract, finish, reproducible, start_main, tiny

from ssl_jax.checkpoints import manager
from ssl_jax.checkpoints.manager import Checkpoints, restore_params
from ssl_jax.data.sources import embedded
from ssl_jax.errors import UserError
from ssl_jax.files import alone, read_jsonl, write_atomically
from ssl_jax.pretrained.load import load_encoder
from ssl_jax.training import loop

ROOT = Path(__file__).parents[2]
NODE = platform.node().replace(".", "-")
ARGS = [
  "-m",
  "ssl_jax.main",
  *SMALL,
  # Checkpoints that disks of some megabytes do not hold many of.
  "--config.encoder.hidden_size=192",
  "--config.encoder.ffn_size=768",
  "--config.encoder.num_heads=8",
  "--config.budget.updates=30",
  "--config.log.every=3",
  "--config.eval.every=15",
  "--config.checkpoint.every=10",
]


def may_mount() -> bool:
  """Whether a file system of some size can be had, as root is not needed."""
  test = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]
  return (
    bool(shutil.which("unshare"))
    and not subprocess.run(test, capture_output=True).returncode
  )


needs_mount = pytest.mark.skipif(not may_mount(), reason="no mount namespaces")


def on_small_disk(folder: Path, size: str, then: str, *command: str):
  """Runs a command on a disk of some size, `then`, and the command again.

  Args:
    folder: the disk.
    size: as of tmpfs.
    then: shell command in between, which sees the folder as $1.
    command: of this Python.

  Returns:
    What each of the two left: (exit status, last line of its errors, errors).
    What is in the folder is copied to `folder`/../after before the end.
  """
  folder.mkdir()
  script = """
    mount -t tmpfs -o size="$2" none "$1" || exit 99
    disk="$1" out="$3" then="$4"; shift 4
    "$@" >"$out/1.out" 2>"$out/1.err"; echo $? >"$out/1.rc"
    sh -c "$then" sh "$disk" >"$out/then" 2>&1
    "$@" >"$out/2.out" 2>"$out/2.err"; echo $? >"$out/2.rc"
    cp -r "$disk" "$out/after"
  """
  out = folder.parent
  subprocess.run(
    [
      *("unshare", "-rm", "sh", "-c", script),
      *("sh", folder, size, out, then, sys.executable, *command),
    ],
    cwd=ROOT,
    timeout=300,
    check=True,
  )
  left = []
  for name in ("1", "2"):
    err = (out / f"{name}.err").read_text()
    status = int((out / f"{name}.rc").read_text())
    left.append((status, (err.splitlines() or [""])[-1], err))
  return left


MORE_ROOM = "mount -o remount,size=1g $1"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A run that nothing happens to."""
  workdir = tmp_path_factory.mktemp("whole")
  result = finish(start_main(workdir, *ARGS[2:]))
  return reproducible(workdir), result["valid_loss"]


def assert_clear(status: int, last: str, err: str):
  assert status == 1, err
  assert last.startswith("error: ") and "Traceback" not in err


@needs_mount
@pytest.mark.slow
@pytest.mark.parametrize(
  ("size", "said"),
  [
    ("8k", "config.json|lock|codebook|searches"),
    ("32k", "tensorboard|metrics.jsonl|codebook|searches"),
    ("5m", "goes on from update 0"),
    ("18m", "goes on from update 10"),
  ],
)
def test_a_full_disk_ends_a_run_that_goes_on_when_there_is_room(
  tmp_path, whole, size, said
):
  workdir = f"--workdir={tmp_path}/disk/run"
  first, second = on_small_disk(
    tmp_path / "disk", size, MORE_ROOM, *ARGS, workdir
  )
  assert_clear(*first)
  assert "No space left on device" in first[1]
  assert any(part in first[1] for part in said.split("|")), first[1]
  assert second[0] == 0, second[2]
  assert reproducible(tmp_path / "after" / "run") == whole[0]
  left = {path.name for path in (tmp_path / "after" / "run").rglob("*")}
  assert not [name for name in left if "tmp" in name]


@needs_mount
def test_a_corpus_is_gone_on_with_when_there_is_room(tmp_path):
  command = ["-m", "ssl_jax.prepare", f"--input={embedded_folder(tmp_path)}"]
  first, second = on_small_disk(
    tmp_path / "disk", "200k", MORE_ROOM, *command, f"--out={tmp_path}/disk/out"
  )
  assert_clear(*first)
  assert "No space left on device" in first[1]
  assert second[0] == 0, second[2]
  out = tmp_path / "after" / "out"
  assert not [*out.rglob("*.part"), *out.rglob("*tmp")]
  verified = subprocess.run(
    [sys.executable, "-m", "ssl_jax.prepare", f"--out={out}", "--verify"],
    cwd=ROOT,
  )
  assert verified.returncode == 0


@needs_mount
@pytest.mark.slow
def test_labels_are_gone_on_with_when_there_is_room(tmp_path):
  command = ["-m", "ssl_jax.label", *SMALL, "--layer=mfcc", "--clusters=10"]
  first, second = on_small_disk(
    tmp_path / "disk",
    "16k",
    MORE_ROOM,
    *command,
    f"--out={tmp_path}/disk/labels",
  )
  assert_clear(*first)
  assert "No space left on device" in first[1]
  assert second[0] == 0, second[2]


@needs_mount
@pytest.mark.slow
@pytest.mark.parametrize("begun", [False, True])
def test_a_workdir_that_cannot_be_written_to_is_refused(tmp_path, begun):
  make = "mkdir $1/run; cp $1/../config.json $1/run" if begun else "true"
  config = loop.set_up(tiny(5)).config
  (tmp_path / "config.json").write_text(
    loop.workdir_lib.config_lib.to_json(config)
  )
  script = tmp_path / "train.py"
  script.write_text(
    textwrap.dedent(f"""
      import sys
      sys.path.insert(0, {str(ROOT / "tests")!r})
      from pathlib import Path
      from tiny import tiny
      from ssl_jax.errors import UserError
      from ssl_jax.training import loop
      try:
        loop.train(tiny(5), Path(sys.argv[1]))
      except UserError as error:
        sys.exit("error: " + str(error))
    """)
  )
  # The first call is of no interest: a disk of its own, before it is closed.
  _, closed = on_small_disk(
    tmp_path / "disk",
    "4k",
    f"rm -rf $1/run; {make}; mount -o remount,ro $1",
    str(script),
    f"{tmp_path}/disk/run",
  )
  assert_clear(*closed)
  assert "Read-only file system" in closed[1]
  assert f"--workdir={tmp_path}/disk/run cannot be used" in closed[1]


def embedded_folder(tmp_path: Path) -> Path:
  source = embedded.open_split(tiny().data, "train")
  folder = tmp_path / "audio"
  folder.mkdir()
  for i in range(20):
    audio = source.read(i, 0, int(source.num_samples[i]))
    soundfile.write(folder / f"{i}.wav", audio, 16_000, "PCM_16")
  return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """12 updates, saved at 3, 6, 9 and 12, of which all are kept."""
  config = tiny(12)
  config.checkpoint.keep = 4
  workdir = tmp_path_factory.mktemp("trained") / "run"
  loop.train(config, workdir)
  return config, workdir


def copy_of(trained, tmp_path):
  config, workdir = trained
  copy = tmp_path / "run"
  shutil.copytree(workdir, copy)
  (copy / "result.json").unlink()
  return config, copy


def flip(path: Path, rng: random.Random) -> None:
  data = bytearray(path.read_bytes())
  data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
  path.write_bytes(data)


def cut(path: Path, rng: random.Random) -> None:
  data = path.read_bytes()
  path.write_bytes(data[: rng.randrange(len(data))])


def remove(path: Path, rng: random.Random) -> None:
  path.unlink()


# Of reads that Orbax leaves behind when one of them fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_no_damage_of_a_file_is_restored_as_parameters(trained, tmp_path):
  """Flips, cuts and losses of every file: found, or without a consequence."""
  config, workdir = trained
  wanted = abstract(config)
  good = Checkpoints(workdir, None)
  state, spent = good.restore(12, wanted)
  expected = json.dumps(spent), loop.jax.device_get(state)
  rng, found = random.Random(0), 0
  files = [
    p for p in (workdir / "checkpoints" / "12").rglob("*") if p.is_file()
  ]
  for path in sorted(files):
    for damage in (flip, flip, cut, remove):
      if not path.stat().st_size:
        continue
      copy = tmp_path / "copy"
      shutil.rmtree(copy, ignore_errors=True)
      shutil.copytree(workdir / "checkpoints" / "12", copy / "checkpoints/12")
      damage(copy / path.relative_to(workdir), rng)
      try:
        update, state, spent = Checkpoints(copy, None).restore_newest(wanted)
      except UserError as error:
        assert "update 12: " in str(error)
        found += 1
        continue
      assert update == 12 and json.dumps(spent) == expected[0]
      for ours, theirs in zip(
        loop.jax.tree.leaves(loop.jax.device_get(state)),
        loop.jax.tree.leaves(expected[1]),
        strict=True,
      ):
        assert (ours == theirs).all()
  assert found > 2 * len(files) / 3


@pytest.mark.parametrize("resumed", [(), (6,), (9, 12)])
def test_the_best_checkpoint_outlives_those_after_it(tmp_path, resumed):
  losses = {3: 0.1, 6: 0.5, 9: None, 12: 0.7, 15: 0.8}
  checkpoints = Checkpoints(tmp_path, keep=2)
  for update, loss in losses.items():
    state, spent = {"x": jnp.ones(3)}, {"flops": 1.0, "wall_seconds": 1.0}
    checkpoints.save(update, state, spent, loss)
    checkpoints.wait()
    if update in resumed:
      checkpoints.close()
      checkpoints = Checkpoints(tmp_path, keep=2)
  assert checkpoints.all() == [3, 12, 15]
  assert checkpoints.restore(3, {"x": jnp.ones(3)})[1] == spent
  checkpoints.close()


def test_a_checkpoint_that_cannot_be_read_just_now_may_be_the_best(
  tmp_path, monkeypatch
):
  state, spent = {"x": jnp.ones(3)}, {"flops": 1.0, "wall_seconds": 1.0}
  checkpoints = Checkpoints(tmp_path, keep=1)
  for update, loss in ((1, 0.1), (2, 0.5)):
    checkpoints.save(update, state, spent, loss)
  checkpoints.close()

  def hiccup(path):
    raise OSError(errno.EIO, "Input/output error")

  with monkeypatch.context() as patch:
    patch.setattr(manager, "read_object", hiccup)
    checkpoints = Checkpoints(tmp_path, keep=1)
  checkpoints.save(3, state, spent, 0.4)
  checkpoints.wait()
  assert 1 in checkpoints.all()
  checkpoints.close()


def largest(folder: Path) -> Path:
  files = (p for p in folder.rglob("*") if p.is_file())
  return max(files, key=lambda path: path.stat().st_size)


def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(
  trained, tmp_path, caplog
):
  config, workdir = copy_of(trained, tmp_path)
  expected = reproducible(trained[1])
  saved = workdir / "checkpoints"
  flip(largest(saved / "12" / "state"), random.Random(1))
  shutil.rmtree(saved / "9" / "state")
  loop.train(config, workdir)
  for update in (9, 12):
    assert f"checkpoint {update} is damaged" in caplog.text
  assert "is not what was saved" in caplog.text
  assert {path.name for path in (workdir / "damaged").iterdir()} == {"9", "12"}
  assert {int(path.name) for path in saved.iterdir()} == {3, 6, 9, 12}
  assert reproducible(workdir) == expected


def test_where_no_checkpoint_is_whole_nothing_is_moved(trained, tmp_path):
  config, workdir = copy_of(trained, tmp_path)
  saved = workdir / "checkpoints"
  for folder in saved.iterdir():
    (folder / "counters" / "metadata").write_text("{}")
  before = sorted(saved.rglob("*"))
  with pytest.raises(
    UserError, match=r"update 12: ValueError: its counters .* update 3:"
  ):
    loop.train(config, workdir)
  assert sorted(saved.rglob("*")) == before


def test_a_whole_checkpoint_that_cannot_be_read_is_not_called_damaged(
  trained, tmp_path, monkeypatch
):
  config, workdir = copy_of(trained, tmp_path)
  wanted = abstract(config)

  def of_another_version(*_, **__):
    raise ValueError("no such layout")

  monkeypatch.setattr(manager, "_read_arrays", of_another_version)
  before = sorted((workdir / "checkpoints").rglob("*"))
  with pytest.raises(UserError, match=r"cannot be read now .* may be whole"):
    Checkpoints(workdir, None).restore_newest(wanted)
  assert sorted((workdir / "checkpoints").rglob("*")) == before
  # Unless its checksums say otherwise.
  for folder in (workdir / "checkpoints").iterdir():
    flip(largest(folder / "state"), random.Random(1))
  with pytest.raises(UserError, match=r"update 12: .* update 9: "):
    Checkpoints(workdir, None).restore_newest(wanted)


def test_an_encoder_of_damaged_parameters_is_refused(trained, tmp_path):
  _, workdir = copy_of(trained, tmp_path)
  folder = workdir / "checkpoints" / "12"
  counters = folder / "counters" / "metadata"
  saved = json.loads(counters.read_text())
  encoder = load_encoder(str(workdir))
  path = next(x for x in saved["checksums"] if x.startswith("params/backbone"))
  saved["checksums"][path] ^= 1
  counters.write_text(json.dumps(saved))
  shapes = loop.jax.eval_shape(lambda: {"backbone": encoder.params})
  with pytest.raises(UserError, match=r"is damaged .* give an older one"):
    restore_params(folder, shapes)


def test_a_checkpoint_of_before_there_were_checksums_is_read(trained, tmp_path):
  config, workdir = copy_of(trained, tmp_path)
  counters = workdir / "checkpoints" / "12" / "counters" / "metadata"
  saved = json.loads(counters.read_text())
  counters.write_text(
    json.dumps(
      {
        k: v
        for k, v in saved.items()
        if k not in ("crc32", "health", "checksums")
      }
    )
  )
  assert loop.train(config, workdir)["updates"] == 12


@pytest.mark.slow
def test_a_second_run_on_a_workdir_is_refused(tmp_path):
  process = start_main(tmp_path, *SMALL)
  while not read_jsonl(tmp_path / "metrics.jsonl"):
    assert process.poll() is None, process.communicate()[1]
    time.sleep(0.05)
  second = start_main(tmp_path, *SMALL)
  _, err = second.communicate(timeout=100)
  assert second.returncode == 1
  said = err.splitlines()[-1]
  assert said.startswith(f"error: --workdir={tmp_path}: process {process.pid} ")
  assert "is at work there" in said
  assert process.poll() is None
  process.send_signal(signal.SIGKILL)
  process.communicate()
  with alone(tmp_path, "--workdir"):  # Held by nobody any more.
    pass


@pytest.mark.parametrize("name", ["label", "prepare"])
def test_a_second_command_on_a_folder_is_refused(tmp_path, name):
  args = {
    "label": [*SMALL, "--layer=mfcc", "--clusters=10"],
    "prepare": [f"--input={ROOT / 'ssl_jax/data/corpus'}"],
  }[name]
  with alone(tmp_path / "x", "this"):
    done = doors.door(name, *args, f"--out={tmp_path}/x")
  assert done.returncode == 1
  said = f"error: --out={tmp_path}/x: process {os.getpid()} on "
  assert done.stderr.splitlines()[-1].startswith(said)


def test_what_a_kill_left_of_a_file_is_cleared(tmp_path):
  (tmp_path / "probes").mkdir()
  for folder in (tmp_path, tmp_path / "probes"):
    write_atomically(folder / "whole.json", "{}")
    for torn in ("whole.json.host.123", f"{NODE}.{os.getpid()}", ""):
      (folder / f"{torn}.ssl_jax-tmp").write_text("{")
  (tmp_path / "mine.tmp").write_text("of the user")
  # Of a command that is at work in a folder of its own, inside.
  live = f"probes/x.json.{NODE}.{os.getppid()}.ssl_jax-tmp"
  (tmp_path / live).write_text("{")
  with alone(tmp_path, "--workdir"):
    left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.*")}
  assert left == {"whole.json", "probes/whole.json", "mine.tmp", live}


@pytest.mark.parametrize("letter", ["a", "\u3042"])
def test_the_longest_name_can_be_written(tmp_path, letter):
  name = letter * (255 // len(letter.encode()))
  write_atomically(tmp_path / name, "x")
  assert os.listdir(tmp_path) == [name]


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path):
  path = tmp_path / "x.json"
  write_atomically(path, "old")
  with pytest.raises(TypeError):
    write_atomically(path, 3)
  assert path.read_text() == "old" and os.listdir(tmp_path) == ["x.json"]


@pytest.mark.slow
def test_a_clock_that_jumps_changes_nothing(tmp_path, whole):
  """Minutes back and forth at every look, and years between processes."""
  (tmp_path / "sitecustomize.py").write_text(
    textwrap.dedent("""
      import itertools, os, time
      real, leaps = time.time, itertools.cycle((0, 120, -120, 60, -60))
      years = float(os.environ["YEARS"]) * 3e7
      time.time = lambda: real() + years + next(leaps)
    """)
  )
  workdir = tmp_path / "run"
  args = [*ARGS[2:], "--config.loader.num_workers=1"]
  leaping = {"PYTHONPATH": str(tmp_path)}
  process = start_main(workdir, *args, **leaping, YEARS="1")
  while not (workdir / "checkpoints" / "10").exists():
    assert process.poll() is None, process.communicate()[1]
    time.sleep(0.01)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  finish(start_main(workdir, *args, **leaping, YEARS="-1"))
  assert reproducible(workdir) == whole[0]


@needs_mount
@pytest.mark.slow
def test_features_that_find_the_disk_full_end_a_probe(tmp_path):
  """Also where the room was taken after it was looked for."""
  script = tmp_path / "probe.py"
  script.write_text(
    textwrap.dedent("""
      import collections, os, shutil, sys
      from ssl_jax import cli, probe
      usage = collections.namedtuple("usage", "total used free")
      if os.statvfs(sys.argv[-1].split("=")[1]).f_blocks < 1_000:
        shutil.disk_usage = lambda _: usage(1e12, 0, 1e12)
      cli.define_config()
      cli.run(probe.main)
    """)
  )
  first, second = on_small_disk(
    tmp_path / "disk",
    "200k",
    MORE_ROOM,
    str(script),
    f"--config={ROOT}/configs/probe.py:task=pr",
    "--config.fit.updates=4",
    "--config.fit.eval_every=2",
    "--config.fit.num_seeds=1",
    "--encoder=logmel",
    f"--out={tmp_path}/out",
    f"--cache={tmp_path}/disk",
  )
  assert_clear(*first)
  assert "features.npy: No space left on device" in first[1]
  assert second[0] == 0, second[2]
