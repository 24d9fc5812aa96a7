"""Audio a second through the pipeline: read, crop, pad, batch, to the device.

The same clips as FLAC files and as prepared records, and as FLAC files through
a torch DataLoader where torch is installed. Rounds are interleaved; each number
is the median over rounds.
"""

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
from ssl_jax.data import manifest, open_source, prepare
from ssl_jax.data.batches import make_iterator
from ssl_jax.data.plan import BatchPlan

_COPIES = 40  # Of the packaged corpus, to be read at random.
_PACK_SECONDS = 14.0  # As long as the utterances that people train on.
_ROUND_SECONDS = 4.0

Batches = Iterator[tuple[np.ndarray, int]]  # Waveform [B, S], real samples.


def run(rounds: int) -> dict[str, Any]:
  """Measures every way of reading, in turn, `rounds` times.

  Returns:
    times_real_time: {way: seconds of audio a second}; megabytes_per_second of
    int16 samples; the clips; and how much faster records are than torch.
  """
  with tempfile.TemporaryDirectory() as folder:
    ways = _prepare(Path(folder))
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    with tqdm(total=rounds * len(ways), desc="measuring", disable=None) as bar:
      for _ in range(rounds):
        for name, make in ways.items():
          speeds[name].append(_measure(make))
          bar.update()
  medians = {name: statistics.median(x) for name, x in speeds.items()}
  result = {
    "benchmark": "data",
    "cores": os.cpu_count(),
    "rounds": rounds,
    "times_real_time": medians,
    "megabytes_per_second": {
      name: 2 * SAMPLE_RATE * x / 1e6 for name, x in medians.items()
    },
  }
  if "torch" in medians:
    result["records_over_torch"] = medians["records"] / medians["torch"]
  return result


def table(result: dict[str, Any]) -> str:
  """The result as a person reads it."""
  lines = [f"{'':22}{'x real time':>13}{'MB/s':>9}"]
  for name, speed in result["times_real_time"].items():
    rate = result["megabytes_per_second"][name]
    lines.append(f"{name:22}{speed:>13,.0f}{rate:>9,.0f}")
  return "\n".join(lines)


def _prepare(folder: Path) -> dict[str, Callable[[], Batches]]:
  """Clips of real speech of usual lengths, in every form."""
  corpus = Path(prepare.__file__).parent / "corpus" / "metadata.jsonl"
  clips = manifest.find_clips(corpus)
  packed = folder / "packed"
  options = {"min_seconds": 0.1, "max_seconds": 60.0, "num_workers": 1}
  prepare.prepare(clips, packed, pack_seconds=_PACK_SECONDS, **options)
  config = config_lib.base().data
  config.source, config.dir, config.valid_dir = "records", str(packed), "-"
  source = open_source(config, "train")
  flac = folder / "flac"
  flac.mkdir()
  for i in range(len(source.ids)):
    audio = source.read(i, 0, 1 << 40)
    soundfile.write(flac / f"{i}.flac", audio, SAMPLE_RATE)
    for copy in range(1, _COPIES):
      os.link(flac / f"{i}.flac", flac / f"{i}-{copy}.flac")
  found = manifest.find_clips(flac)
  prepare.prepare(found, folder / "records", pack_seconds=0.0, **options)

  def ours(kind: str, workers: int) -> Callable[[], Batches]:
    return lambda: _ours(kind, folder / kind, workers)

  ways = {
    "records": ours("records", 0),
    "flac": ours("flac", 0),
    "flac, 2 processes": ours("flac", 2),
  }
  if importlib.util.find_spec("torch"):
    ways["torch"] = lambda: _torch(flac)
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


def _config(kind: str, folder: Path) -> ConfigDict:
  config = config_lib.base()
  config.data.source = "folder" if kind == "flac" else kind
  config.data.dir, config.data.valid_dir = str(folder), "-"
  config.data.min_seconds = 0.1
  return config


def _ours(kind: str, folder: Path, workers: int) -> Batches:
  config = _config(kind, folder)
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
  """What a torch user would write: a file decoded whole, then cropped."""

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


def _torch(folder: Path) -> Batches:
  import torch

  config = _config("flac", folder)
  longest = round(config.data.bucket_seconds[-1] * SAMPLE_RATE)
  files = _Files(sorted(map(str, folder.iterdir())), longest)
  while True:
    loader = torch.utils.data.DataLoader(
      files,
      batch_size=round(config.batch.seconds / _PACK_SECONDS),
      shuffle=True,
      num_workers=os.cpu_count() or 1,
      collate_fn=_pad,
      multiprocessing_context="spawn",
    )
    for batch, samples in loader:
      yield batch.numpy(), samples
