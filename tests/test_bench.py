"""Benchmarks measure what they say, and say it as JSON."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ssl_jax import config as config_lib
from ssl_jax.benchmarks import data, memory

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def ways(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(data, "_COPIES", 2)
    yield data._prepare(tmp_path_factory.mktemp("bench"))


def test_every_way_reads_the_same_clips(ways):
  sources = ("records", "flac", "tfds")
  assert {*ways} == {(s, n) for s in sources for n in (0, 2)} | {("torch", 2)}
  batches = {way: make() for way, make in ways.items()}
  waveform, real = next(batches["records", 0])
  other, other_real = next(batches["flac", 0])
  np.testing.assert_array_equal(waveform, other)
  assert real == other_real > 0
  other, other_real = next(batches["tfds", 0])
  assert 0.9 < other_real / real < 1.1 and other.dtype == np.int16
  theirs, their_real = next(batches["torch", 2])
  assert theirs.dtype == np.int16 and theirs.shape[0] == 11
  assert 0.5 < their_real / real < 1.5
  for made in batches.values():
    made.close()


def test_numbers_are_medians_of_rounds(monkeypatch):
  speeds = iter([10.0, 1.0, 30.0, 2.0, 20.0, 9.0])
  monkeypatch.setattr(
    data, "_prepare", lambda folder: {("records", 0): 0, ("torch", 2): 0}
  )
  monkeypatch.setattr(data, "_measure", lambda make: next(speeds))
  result = data.run(3, config_lib.base(), "h100-2", 0.5)
  assert result["times_real_time"] == {"records": {0: 20.0}, "torch": {2: 2.0}}
  assert result["records_over_torch"] == 10.0
  rate = result["megabytes_per_second"]["records"][0]
  assert rate == pytest.approx(0.64)
  consumed = result["consumed"]["times_real_time"]
  # The study's 400,000 updates of 156 s of Slim are 1.3e18 FLOPs.
  per_second = 1.3e18 / (400_000 * 156)
  assert consumed == pytest.approx(2 * 989e12 * 0.5 / per_second, rel=0.03)
  assert result["records_over_consumed"] == 20.0 / consumed
  assert "records" in data.table(result)


def test_memory_is_watched_over_the_read(monkeypatch):
  monkeypatch.setattr(memory, "_COPIES", 1)
  result = memory.run(400)
  assert 400 <= result["records"] < 500
  mb = result["megabytes"]
  assert mb["first"] <= mb["most"] and mb["last"] <= mb["most"]
  assert 0 <= result["growth"] < 0.5
  assert "at most" in memory.table(result)


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
