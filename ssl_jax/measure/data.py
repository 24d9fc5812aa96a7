"""Audio a second through the pipeline: read, crop, pad, batch, to the device.

The same clips as prepared records, FLAC files and a TFDS dataset, in this
process and in workers, and as FLAC files through a torch DataLoader where torch
is installed. Rounds are interleaved; each number is the median over rounds.
"""

import functools
import importlib.util
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import soundfile
from ml_collections import ConfigDict
from tqdm import tqdm

from ssl_jax import SAMPLE_RATE
from ssl_jax import config as config_lib
from ssl_jax.budget.updates import REFERENCE_CROP, clip_flops
from ssl_jax.data.batch_plan import BatchPlan
from ssl_jax.data.batches import make_iterator
from ssl_jax.data.sources import open_source
from ssl_jax.devices import chips
from ssl_jax.measure import corpora

_COPIES = 40  # Copies of the packaged corpus.
_ROUND_SECONDS = 4.0

Batches = Iterator[tuple[np.ndarray, int]]  # Waveform [B, S], real samples.


def run(
  rounds: int, config: ConfigDict, device: str, mfu: float
) -> dict[str, Any]:
  """Measures every way of reading, in turn, `rounds` times.

  Args:
    rounds: of each.
    config: whose training is fed.
    device: that trains, "h100" or "v5e-8".
    mfu: share of its peak that training reaches.

  Returns:
    times_real_time: {source: {workers: seconds of audio a second}};
    megabytes_per_second of int16 samples, alike; what the training consumes,
    and how much faster records are than that and than torch.
  """
  consumed = consumption(config, device, mfu)
  with tempfile.TemporaryDirectory() as folder:
    ways = _prepare(Path(folder))
    speeds: dict[tuple[str, int], list[float]] = {way: [] for way in ways}
    with tqdm(total=rounds * len(ways), desc="measuring", disable=None) as bar:
      for _ in range(rounds):
        for way, make in ways.items():
          speeds[way].append(_measure(make))
          bar.update()
  medians = {way: statistics.median(x) for way, x in speeds.items()}
  nested: dict[str, dict[int, float]] = {}
  for (source, workers), speed in medians.items():
    nested.setdefault(source, {})[workers] = speed
  result = {
    "benchmark": "data",
    "cores": os.cpu_count(),
    "rounds": rounds,
    "times_real_time": nested,
    "megabytes_per_second": {
      source: {n: 2 * SAMPLE_RATE * x / 1e6 for n, x in by.items()}
      for source, by in nested.items()
    },
    "consumed": {"device": device, "mfu": mfu, "times_real_time": consumed},
    "records_over_consumed": nested["records"][0] / consumed,
  }
  if "torch" in nested:
    (torch,) = nested["torch"].values()
    result["records_over_torch"] = nested["records"][0] / torch
  return result


def consumption(config: ConfigDict, device: str, mfu: float) -> float:
  """Seconds of audio that training on a device eats a second."""
  flops = clip_flops(config, REFERENCE_CROP).training
  seconds = REFERENCE_CROP / SAMPLE_RATE
  return mfu * chips.peak(device) / (flops / seconds)


def table(result: dict[str, Any]) -> str:
  """The result as a person reads it."""
  lines = [f"{'':14}{'workers':>8}{'x real time':>13}{'MB/s':>9}"]
  for source, by in result["times_real_time"].items():
    for workers, speed in by.items():
      rate = result["megabytes_per_second"][source][workers]
      lines.append(f"{source:14}{workers:>8}{speed:>13,.0f}{rate:>9,.0f}")
  consumed = result["consumed"]
  device = f"{consumed['device']} at {consumed['mfu']:.0%}"
  lines.append(f"{device:22}{consumed['times_real_time']:>13,.0f}  consumed")
  return "\n".join(lines)


def _prepare(folder: Path) -> dict[tuple[str, int], Callable[[], Batches]]:
  """Every (source, workers) that is measured."""
  corpora.write(folder, _COPIES)
  ways = {
    (source, workers): functools.partial(ours, source, folder, workers)
    for source in ("records", "flac", "tfds")
    for workers in (0, 2)
  }
  if importlib.util.find_spec("torch"):
    workers = os.cpu_count() or 1
    ways["torch", workers] = functools.partial(_torch, folder / "flac", workers)
  return ways


def _measure(make: Callable[[], Batches]) -> float:
  """Seconds of audio a second, after the first batches."""
  batches = make()
  for _ in range(3):
    next(batches)
  started, samples, previous = time.monotonic(), 0, None
  for waveform, real in batches:
    placed = jax.device_put(waveform)
    if previous is not None:
      previous.block_until_ready()
    previous = placed
    samples += real
    if (taken := time.monotonic() - started) > _ROUND_SECONDS:
      break
  batches.close()
  return samples / SAMPLE_RATE / taken


def ours(kind: str, folder: Path, workers: int) -> Batches:
  """The batches of a run on `kind` of what `corpora.write` wrote."""
  config = corpora.config(kind, folder)
  source = open_source(config.data, "train")
  buckets = [round(s * SAMPLE_RATE) for s in config.data.bucket_seconds]
  plan = BatchPlan(
    source.num_samples, buckets, config.batch.seconds, config.seed
  )
  batches = make_iterator(
    source,
    plan,
    0,
    1_000_000,
    row_multiple=1,
    **(config.loader.to_dict() | {"num_workers": workers}),
  )
  try:
    for batch in batches:
      yield batch["waveform"], int(batch["length"].sum())
  finally:
    batches.close()


class _Files:
  """A data set as a torch user writes it: each file decoded, then cropped."""

  def __init__(self, paths: list[str], longest: int):
    self._paths, self._longest = paths, longest

  def __len__(self) -> int:
    return len(self._paths)

  def __getitem__(self, index: int) -> np.ndarray:
    audio, _ = soundfile.read(self._paths[index], dtype="int16")
    start = np.random.randint(max(1, len(audio) - self._longest + 1))
    return audio[start : start + self._longest]


def _pad(rows: list[np.ndarray]) -> tuple[Any, int]:
  import torch

  batch = np.zeros((len(rows), max(map(len, rows))), np.int16)
  for row, audio in zip(batch, rows):
    row[: len(audio)] = audio
  # A tensor goes from worker to parent through shared memory.
  return torch.from_numpy(batch), sum(map(len, rows))


def _torch(folder: Path, workers: int) -> Batches:
  import torch

  config = config_lib.base()
  longest = round(config.data.bucket_seconds[-1] * SAMPLE_RATE)
  files = _Files(sorted(map(str, folder.iterdir())), longest)
  while True:
    loader = torch.utils.data.DataLoader(
      files,
      batch_size=round(config.batch.seconds / corpora.PACK_SECONDS),
      shuffle=True,
      num_workers=workers,
      collate_fn=_pad,
      multiprocessing_context="spawn",
    )
    for batch, samples in loader:
      yield batch.numpy(), samples
