"""Benchmarks measure what they say, and say it as JSON."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ssl_jax.benchmarks import data

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def ways(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(data, "_COPIES", 2)
    yield data._prepare(tmp_path_factory.mktemp("bench"))


def test_every_way_reads_the_same_clips(ways):
  assert [*ways] == ["records", "flac", "flac, 2 processes", "torch"]
  batches = {name: make() for name, make in ways.items()}
  waveform, real = next(batches["records"])
  other, other_real = next(batches["flac"])
  np.testing.assert_array_equal(waveform, other)
  assert real == other_real > 0
  theirs, their_real = next(batches["torch"])
  assert theirs.dtype == np.int16 and theirs.shape[0] == 11
  assert 0.5 < their_real / real < 1.5
  for made in batches.values():
    made.close()


def test_numbers_are_medians_of_rounds(monkeypatch):
  speeds = iter([10.0, 1.0, 30.0, 2.0, 20.0, 9.0])
  monkeypatch.setattr(
    data, "_prepare", lambda folder: {"records": 0, "torch": 0}
  )
  monkeypatch.setattr(data, "_measure", lambda make: next(speeds))
  result = data.run(3)
  assert result["times_real_time"] == {"records": 20.0, "torch": 2.0}
  assert result["records_over_torch"] == 10.0
  assert result["megabytes_per_second"]["records"] == pytest.approx(0.64)
  assert "records" in data.table(result)


@pytest.mark.parametrize(
  ("args", "said"),
  [([], "BENCHMARK is missing"), (["dta"], "did you mean 'data'?")],
)
def test_wrong_usage_is_one_line(args, said):
  done = subprocess.run(
    [sys.executable, "-m", "ssl_jax.bench", *args],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert (done.returncode, done.stdout) == (2, "")
  assert said in done.stderr and len(done.stderr.splitlines()) == 1
