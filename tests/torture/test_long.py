"""20,000 updates: memory, files, pace and logs stay as they are."""

import contextlib
import json
import statistics
import subprocess

import psutil
import pytest
from tiny import finish, start_main

from ssl_jax.files import read_jsonl

UPDATES = 20_000
ARGS = [
  "--config=configs/smoke.py:size=1x16x32x2",
  "--config.hubert.clusters=(20,)",
  "--config.kmeans.num_restarts=1",
  "--config.batch.seconds=0.8",
  "--config.data.bucket_seconds=(0.4,)",
  "--config.log.every=50",
  "--config.eval.every=2000",
  "--config.checkpoint.every=500",
  "--config.checkpoint.keep=1",
]


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_long_run_is_flat(tmp_path, num_workers):
  updates = UPDATES if not num_workers else UPDATES // 4
  process = start_main(
    tmp_path,
    *ARGS,
    f"--config.budget.updates={updates}",
    f"--config.loader.num_workers={num_workers}",
  )
  watched, samples = psutil.Process(process.pid), []
  while process.poll() is None:
    lines = read_jsonl(tmp_path / "metrics.jsonl")
    try:
      with watched.oneshot():
        sample = {
          "update": lines[-1]["update"] if lines else 0,
          "memory": watched.memory_info().rss,
          "files": watched.num_fds(),
          "threads": watched.num_threads(),
        }
      sample["workers"] = sum(
        child.memory_info().rss for child in watched.children(recursive=True)
      )
      samples.append(sample)
    except psutil.Error:  # It ended meanwhile.
      pass
    with contextlib.suppress(subprocess.TimeoutExpired):
      process.wait(1)
  finish(process)

  def of_quarter(rows, key, quarter):
    low, high = updates * (quarter - 1) / 4, updates * quarter / 4
    return statistics.median(
      row[key] for row in rows if low < row["update"] <= high
    )

  lines = read_jsonl(tmp_path / "metrics.jsonl")
  train = [x for x in lines if x["split"] == "train"]
  facts = {
    key: [of_quarter(rows, key, quarter) for quarter in (1, 2, 3, 4)]
    for rows, key in (
      (samples, "memory"),
      (samples, "workers"),
      (samples, "files"),
      (samples, "threads"),
      (train, "update_seconds"),
    )
  }
  logs = {
    path.name.partition(".")[0]: path.stat().st_size
    for path in (
      tmp_path / "metrics.jsonl",
      *(tmp_path / "tensorboard").iterdir(),
    )
  }
  print("\n" + json.dumps(facts | {"bytes": logs, "lines": len(train)}))
  for key in ("memory", "workers"):
    assert facts[key][3] <= 1.05 * facts[key][1] + 2**20, facts
  for key in ("files", "threads"):
    assert facts[key][3] <= facts[key][1] + 4, facts
  # Not a measure of speed: of a pace that would fall with the updates done.
  assert facts["update_seconds"][3] < 2 * facts["update_seconds"][1], facts
  # Of a full run, 4,000 lines: a few megabytes.
  assert all(size < 2_500 * len(train) + 50_000 for size in logs.values()), logs
