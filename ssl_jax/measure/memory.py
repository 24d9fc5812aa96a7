"""Memory of the data pipeline over a long read of prepared records."""

import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from tqdm import tqdm

from ssl_jax.measure import corpora, data

_COPIES = 40  # Copies of the packaged corpus.
_SETTLED = (
  0.1  # Share of the read after which nothing is allocated for the first time.
)


def run(num_records: int) -> dict[str, Any]:
  """Reads so many records, watching the memory that this process holds.

  Returns:
    megabytes resident at a tenth of the read, at its end, and the most between;
    growth: that over the first; records, seconds.
  """
  process, seen = psutil.Process(), []
  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    corpora.write(folder, _COPIES)
    started, records = time.monotonic(), 0
    batches = data.ours("records", folder, 0)
    with tqdm(total=num_records, unit="record", disable=None) as bar:
      for waveform, _ in batches:
        records += len(waveform)
        bar.update(len(waveform))
        if records >= _SETTLED * num_records:
          seen.append(process.memory_info().rss / 1e6)
        if records >= num_records:
          break
    batches.close()
  return {
    "benchmark": "memory",
    "records": records,
    "seconds": time.monotonic() - started,
    "megabytes": {"first": seen[0], "most": max(seen), "last": seen[-1]},
    "growth": max(seen) / seen[0] - 1,
  }


def table(result: dict[str, Any]) -> str:
  """The result as a person reads it."""
  mb = result["megabytes"]
  return (
    f"{result['records']:,} records in {result['seconds']:.0f} s: "
    f"{mb['first']:.0f} MB after a tenth, at most {mb['most']:.0f} MB, "
    f"{mb['last']:.0f} MB at the end ({result['growth']:+.1%})"
  )
