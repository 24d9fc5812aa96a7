"""Benchmarks measure what they say, and say it as JSON."""

import time
from pathlib import Path

import numpy as np
import pytest
from doors import door

from ssl_jax import config as config_lib
from ssl_jax.errors import UserError
from ssl_jax.measure import data, memory, sides, speed

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def ways(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(data, "_COPIES", 2)
    yield data._prepare(tmp_path_factory.mktemp("bench"))


@pytest.mark.slow
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


def sleeper(seconds, repeats=1):
  """A side whose work takes so long."""
  return sides.Subject(
    lambda times: time.sleep(seconds * times), lambda: 7, dict, repeats
  )


def test_sides_are_measured_in_turn_each_in_its_process():
  makers = {
    "ours": ("test_bench:sleeper", {"seconds": 0.02, "repeats": 5}),
    "theirs": ("test_bench:sleeper", {"seconds": 0.1}),
  }
  found = sides.compare(makers, 3)
  assert 0.02 <= found["ours"]["seconds"] < 0.08 < found["theirs"]["seconds"]
  assert len(found["ours"]["seconds_of_rounds"]) == 3
  assert found["ours"]["peak_memory_bytes"] == 7
  with pytest.raises(UserError, match="ours could not be measured: TypeError"):
    sides.compare({"ours": ("test_bench:sleeper", {})}, 1)


def test_speed_is_of_the_same_flops_and_the_faster_peak(monkeypatch):
  made = {"ours": (0.5, 8e9), "theirs": (1.5, 1e10)}

  def compare(makers, rounds):
    if "theirs" in makers:
      assert makers["theirs"][1]["masked"].shape == (2, 49)
    return {
      side: {
        "seconds": made[side][0],
        "matmul_flops_per_second": made[side][1],
        "peak_memory_bytes": 5,
        "first_seconds": 1.0,
        "library": side,
        "dtype": "float32",
        "device": "cpu",
      }
      for side in makers
    }

  monkeypatch.setattr(sides, "compare", compare)
  result = speed.run("step", config_lib.base(), "hf", 2, 1.0, 3)
  assert result["ratio"] == 3.0 and result["peak_memory_bytes"] == 5
  assert result["mfu"] == pytest.approx(result["flops"] / 0.5 / 1e10)
  assert result["ours"]["audio_seconds_per_second"] == 4.0
  assert "3.00 x theirs" in speed.table(result)
  alone = config_lib.base()
  alone.objective.name, alone.frontend.name = "tera", "logmel"
  assert "ratio" not in speed.run("step", alone, "", 2, 1.0, 3)


@pytest.mark.parametrize(
  ("what", "objective", "frontend", "mel_norm"),
  [
    ("step", "tera", "waveform", "clip"),
    ("compile", "wav2vec2", "logmel", "clip"),
    ("step", "hubert", "logmel", "fixed"),
    ("stem", "hubert", "logmel", "clip"),
    ("probe", "wav2vec2", "logmel", "clip"),
  ],
)
def test_what_cannot_be_compared_is_one_line(
  what, objective, frontend, mel_norm
):
  config = config_lib.base()
  config.objective.name, config.frontend.name = objective, frontend
  config.frontend.mel_norm = mel_norm
  with pytest.raises(UserError, match="can be compared is") as raised:
    speed.run(what, config, "hf", 2, 1.0, 3)
  assert f"this is {what} of {objective} on " in str(raised.value)
  assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
  ("args", "said"),
  [([], "BENCHMARK is missing"), (["dta"], "did you mean 'data'?")],
)
def test_wrong_usage_is_one_line(args, said):
  done = door("bench", *args)
  assert (done.returncode, done.stdout) == (2, "")
  assert said in done.stderr and len(done.stderr.splitlines()) == 1
