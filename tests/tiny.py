"""Runs of a tiny model on the embedded speech, which many tests need."""

import fcntl
import hashlib
import json
import os
import socket
import time
from pathlib import Path

import doors
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from ssl_jax import config as config_lib
from ssl_jax import optimizers
from ssl_jax.data.sources import audio
from ssl_jax.files import read_jsonl
from ssl_jax.objectives import make_objective
from ssl_jax.training import loop, step

ROOT = Path(__file__).parents[1]
CORPUS = ROOT / "ssl_jax" / "data" / "corpus"
# As `tiny`, for a command.
SMALL = [
  "--config=configs/smoke.py",
  "--config.kmeans.num_restarts=1",
  "--config.kmeans.num_frames=4000",
  "--config.kmeans.batch_frames=1000",
  "--config.encoder.num_layers=2",
  "--config.encoder.hidden_size=32",
  "--config.encoder.ffn_size=64",
  "--config.encoder.num_heads=4",
  "--config.encoder.layerdrop=0.3",
  "--config.batch.seconds=4.0",
  "--config.data.bucket_seconds=(1.6,)",
  "--config.data.hours=0.06",  # Commands that read all clips are quick, too.
]
# With lines apart from the checkpoints, so that sums are saved too.
SMALL_LOGGED = [
  *SMALL,
  "--config.log.every=7",
  "--config.eval.every=15",
  "--config.checkpoint.every=10",
]


def tiny(updates: int = 6, objective: str = "hubert"):
  """The config of a run of a second or two, with one shape of batches."""
  config = config_lib.base()
  config.objective.name = objective
  config.hubert.clusters = (20,)
  config.kmeans.num_restarts = 1
  config.kmeans.num_frames, config.kmeans.batch_frames = 4_000, 1_000
  config.frontend.name = "logmel"
  config.encoder.num_layers = 2
  config.encoder.hidden_size = 32
  config.encoder.ffn_size = 64
  config.encoder.num_heads = 4
  config.encoder.position_kernel = 8
  config.data.source = "embedded"
  config.data.min_seconds = 0.3
  config.data.bucket_seconds = (1.6,)
  config.batch.seconds = 6.0
  config.eval.batch_seconds = 6.0
  config.budget.updates = updates
  config.optimizer.warmup_fraction = 0.3
  config.optimizer.learning_rate = 1e-2
  config.log.every = 2
  config.eval.every = 4
  config.checkpoint.every = 3
  return config


def staged():
  """The config of a run that trains an encoder for its labels first.

  Some 10 updates each.
  """
  config = tiny(0)
  config.hubert.labels, config.hubert.clusters = "self,mfcc", (15, 20)
  config.hubert.layers = (0, 1)
  config.hubert.self_share, config.hubert.self_clusters = 0.3, (20,)
  config.hubert.self_layer = 1
  config.data.hours, config.budget.flops = 0.02, 2.5e10
  return config


def on_waveforms(updates: int = 2, objective: str = "hubert"):
  """As `tiny`, with the frontend and widths that transformers has."""
  config = tiny(updates, objective)
  config.frontend.name = "waveform"
  config.encoder.hidden_size, config.encoder.ffn_size = 48, 96
  config.data.bucket_seconds, config.batch.seconds = (0.6,), 1.2
  config.data.min_seconds = 0.6
  return config


def finished_run(config) -> Path:
  """The workdir of a finished run of a config; tests only read it.

  It is made once for all the processes of a session of pytest.
  """
  text = config_lib.to_json(config)
  name = hashlib.sha256(text.encode()).hexdigest()[:12]
  shared = Path(os.environ["SSL_JAX_TESTS_SHARED"])
  with open(shared / f"{name}.lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not (shared / name / "result.json").exists():
      loop.train(config, shared / name)
  return shared / name


def reproducible(workdir: Path) -> list[dict]:
  """The lines of a run's metrics, without what is of the clock."""
  return [
    {
      key: value
      for key, value in line.items()
      if not key.endswith(("_seconds", "_per_second", "_wait_fraction"))
    }
    for line in read_jsonl(workdir / "metrics.jsonl")
  ]


def assert_same(ours, theirs):
  """Asserts that lines of metrics differ by rounding alone."""
  assert len(ours) == len(theirs)
  for a, b in zip(ours, theirs):
    assert a.pop("split") == b["split"]
    expected = {k: v for k, v in b.items() if k != "split"}
    assert a == pytest.approx(expected, rel=1e-3)


def abstract(config):
  """The shapes of a run's state."""
  objective = make_objective(config, np.dtype("float32"))
  optimizer = optimizers.make_optimizer(config)
  return jax.eval_shape(lambda: step.init_state(objective, optimizer, config))


def state_of(workdir):
  """What the newest checkpoint holds, as arrays of this process."""
  folder = max((workdir / "checkpoints").iterdir(), key=lambda p: int(p.name))
  handler = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
  return handler.restore(
    (folder / "state").absolute(),
    args=ocp.args.PyTreeRestore(
      restore_args=jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
        handler.metadata((folder / "state").absolute()).item_metadata.tree,
      )
    ),
  )


def start_main(workdir: Path, *args: str, **env: str) -> doors.Process:
  """Starts a run as a command."""
  return doors.start_door("main", f"--workdir={workdir}", *args, env=env)


def finish(process) -> dict:
  """Waits for a command; -> its JSON object."""
  out, err = process.communicate(timeout=300)
  assert process.returncode == 0, err
  return json.loads(out.splitlines()[-1])


def wait_for(workdir: Path, update: int, *processes) -> None:
  """Waits until the metrics have come to an update, or all is over."""
  while True:
    lines = read_jsonl(workdir / "metrics.jsonl")
    if lines and lines[-1]["update"] >= update:
      return
    for process in processes:
      assert process.poll() is None, process.communicate()[1]
    time.sleep(0.01)


def free_port() -> int:
  with socket.socket() as listening:
    listening.bind(("localhost", 0))
    return listening.getsockname()[1]


def clips(count: int) -> list[np.ndarray]:
  """Real speech: float32 [S] of different lengths, up to 1.5 s."""
  lines = [json.loads(line) for line in (CORPUS / "metadata.jsonl").open("rb")]
  files = [CORPUS / line["file"] for line in lines][:: len(lines) // count]
  read = [audio.read(str(file), 0, 24_000) for file in files[:count]]
  return [x.astype(np.float32) / 2**15 for x in read]
