"""A run's events as TensorBoard reads them."""

import subprocess
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import (
  EventAccumulator,
)

from ssl_jax import config as config_lib
from ssl_jax.files import read_jsonl
from ssl_jax.training.metrics import MetricsWriter


def shown(workdir):
  events = EventAccumulator(str(workdir / "tensorboard"))
  events.Reload()
  return events


def losses(workdir):
  return [(x.step, x.value) for x in shown(workdir).Scalars("train/loss")]


def test_tensorboard_shows_numbers_and_alarms(tmp_path):
  writer = MetricsWriter(tmp_path, 0, 0, True, config_lib.base())
  writer.write(2, "train", {"loss": 0.5, "flops": 7, "bad": float("nan")})
  writer.event(2, "alarm", {"name": "collapse"}, "All targets are the same.")
  # Before the writer is closed: whoever looks sees what was written.
  assert losses(tmp_path) == [(2, 0.5)]
  events = shown(tmp_path)
  assert events.Tags()["scalars"] == ["train/loss", "train/flops"]
  (alarm,) = events.Tensors("collapse")
  assert alarm.tensor_proto.string_val == [b"All targets are the same."]
  plugin = events.SummaryMetadata("collapse").plugin_data.plugin_name
  assert plugin == "text"
  writer.close()


def test_events_of_undone_updates_are_hidden(tmp_path, monkeypatch):
  clock = iter(range(1_000, 10_000))
  monkeypatch.setattr("time.time", lambda: float(next(clock)))
  writer = MetricsWriter(tmp_path, 0, 0, True, config_lib.base())
  for update in (2, 4, 6):
    writer.write(update, "train", {"loss": float(update)})
  writer.close()
  resumed = MetricsWriter(tmp_path, 4, 4, True, config_lib.base())
  assert losses(tmp_path) == [(2, 2.0), (4, 4.0)]
  resumed.write(6, "train", {"loss": 7.0})
  resumed.close()
  assert losses(tmp_path) == [(2, 2.0), (4, 4.0), (6, 7.0)]
  lines = read_jsonl(tmp_path / "metrics.jsonl")
  assert [line["loss"] for line in lines] == [2.0, 4.0, 7.0]


def test_training_needs_neither_torch_nor_tensorflow():
  code = (
    "import sys, ssl_jax.training.loop; "
    "print(sorted({'torch', 'tensorflow', 'tensorboardX'} & {*sys.modules}))"
  )
  done = subprocess.run(
    [sys.executable, "-c", code],
    cwd=Path(__file__).parents[1],
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout == "[]\n"
