"""The law of the published runs, and the plans made with it."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from doors import door

from ssl_jax import config as config_lib
from ssl_jax.budget import law as law_lib
from ssl_jax.budget import planner, updates
from ssl_jax.budget.law import PUBLISHED, Candidate, Point
from ssl_jax.errors import UserError
from ssl_jax.objectives.inputs import num_params

ROOT = Path(__file__).parents[1]
BITS = 1 / math.log(2)


@pytest.fixture(scope="module")
def points():
  return law_lib.published("hubert")


@pytest.fixture(scope="module")
def law(points):
  return law_lib.fit(points)


@pytest.fixture(scope="module")
def slim():
  """The published sizes, and the full budget in FLOPs."""
  configs = {
    size: config_lib.load(f"{ROOT}/configs/slim.py:size={size}")
    for size in config_lib.SIZES
    if size != "small"
  }
  candidates = [
    Candidate(size, num_params(c), updates.update_flops(c) / c.batch.seconds)
    for size, c in configs.items()
  ]
  return candidates, updates.run_flops(configs["100"])


def test_points_are_those_of_the_paper():
  full = law_lib.published("hubert", ("full",))
  losses = [round(point.loss * BITS, 4) for point in full]
  assert losses == [4.64, 4.3558, 4.2742, 4.1788, 4.1478, 4.1978, 4.6688]
  assert full[3][:2] == (20.0e6, 400_000 * 156)
  half = law_lib.published("tera", ("half",))
  assert round(half[-1].loss * BITS, 3) == 5.863
  assert half[-1].audio_seconds == 80_072 * 78
  assert len(law_lib.published("wav2vec2")) == 7


def test_the_published_losses_are_fitted_as_in_the_paper(law):
  # paper.md: RMSE 0.04, E 3.83, a 1.07, b 0.82, in bits.
  assert law.rmse * BITS == pytest.approx(0.04, abs=0.005)
  assert law.floors[PUBLISHED] * BITS == pytest.approx(3.83, abs=0.02)
  assert law.a == pytest.approx(1.07, abs=0.03)
  assert law.b == pytest.approx(0.82, abs=0.03)
  # Its worst residual: Large at the full budget, at a lowered learning rate.
  assert np.abs(law.residuals).argmax() == 6


def test_the_best_size_lies_where_the_paper_found_it(points, law, slim):
  candidates, full = slim
  laws = law_lib.bootstrap(points, law)
  best = {
    share: law_lib.optimum(law, PUBLISHED, share * full, candidates).params
    for share in (1.0, 0.5)
  }
  assert 20.0e6 < best[0.5] < best[1.0] < 40.0e6
  smaller = [
    law_lib.optimum(other, PUBLISHED, full / 2, candidates).params
    < law_lib.optimum(other, PUBLISHED, full, candidates).params
    for other in laws
  ]
  assert np.mean(smaller) > 0.95
  ranked = law_lib.rank(law, PUBLISHED, full, candidates)
  assert ranked[0].name in ("130", "160", "190", "200")
  assert {choice.name for choice in ranked[-2:]} == {"30", "large"}


def made_up(sizes, lengths, setting="a", floor=2.0):
  return [
    Point(
      n,
      d,
      floor + 0.3 * (n / 20e6) ** -0.7 + 0.2 * (d / 62.4e6) ** -0.4,
      setting,
    )
    for n in sizes
    for d in lengths
  ]


SIZES, LENGTHS = (2e6, 8e6, 3e7), (1e6, 1e7, 1e8)


def test_a_known_law_is_found():
  law = law_lib.fit(made_up(SIZES, LENGTHS))
  for point in made_up((5e6, 5e7), (3e6, 3e8)):
    assert law.loss(*point[:2], "a") == pytest.approx(point.loss, abs=2e-3)


def test_one_odd_run_does_not_bend_it():
  points = made_up((2e6, 5e6, 8e6, 3e7), LENGTHS)
  points[4] = points[4]._replace(loss=points[4].loss + 1.0)
  law = law_lib.fit(points)
  for point in made_up((5e6,), (3e6,)):
    assert law.loss(*point[:2], "a") == pytest.approx(point.loss, abs=0.02)


def test_settings_have_floors_of_their_own():
  points = made_up(SIZES, LENGTHS) + made_up((8e6,), (1e7,), "b", 3.0)
  law = law_lib.fit(points)
  assert law.floors["b"] - law.floors["a"] == pytest.approx(1.0, abs=2e-3)


def test_too_few_runs_are_refused():
  with pytest.raises(UserError, match="to 4 runs: at least 6"):
    law_lib.fit(made_up(SIZES[:2], LENGTHS[:2]))
  with pytest.raises(UserError, match="several sizes"):
    law_lib.fit(made_up((1e6,), np.geomspace(1e6, 1e8, 9)))


def test_extrapolation_is_said(law):
  assert law.outside(20e6, 6e7) == []
  (said,) = law.outside(1e6, 6e7)
  assert "1e+06 parameters are 5.9 times below" in said
  assert len(law.outside(1e9, 1e9)) == 2


def test_most_published_runs_are_in_the_band(points, law):
  laws = law_lib.bootstrap(points, law)
  inside = 0
  for point in points:
    low, high = law_lib.interval(law, laws, *point[:2], PUBLISHED)
    assert low < high
    inside += low <= point.loss <= high
  assert inside >= 12


def test_a_run_left_out_is_predicted(points):
  errors = law_lib.leave_one_out(points) * BITS
  # Of the ends of the range it would be extrapolation.
  middle = [i for i in range(14) if i not in (0, 6, 7, 13)]
  assert np.abs(errors[middle]).max() < 0.05


def plan(*args):
  done = door("plan", *args)
  lines = done.stdout.splitlines()
  return done.returncode, json.loads(lines[-1]) if lines else None, done.stderr


def test_a_budget_is_a_size_and_a_command(slim):
  status, found, err = plan("--budget=1.3e18", "--hours=960")
  assert status == 0
  candidates, _ = slim
  costs = {c.name: c.flops_per_second for c in candidates}
  spent = found["updates"] * 156 * costs[found["size"]]
  assert found["flops"] == pytest.approx(spent)
  assert found["flops"] == pytest.approx(1.3e18, rel=1e-4)
  assert found["epochs"] == pytest.approx(found["audio_hours"] / 960)
  low, high = found["interval"]
  assert low < found["predicted_loss"] < high
  assert found["runner_up"]["predicted_loss"] >= found["predicted_loss"]
  assert f"size={found['size']},objective=hubert" in found["command"]
  assert found["command"] in err
  assert found["outside"] == []


@pytest.mark.slow
def test_the_least_budget_that_is_named_is_planned():
  _, _, err = plan("--budget=1e12")
  number, unit = re.search(r"([\d.]+) (.)FLOP are the least", err).groups()
  least = float(number) * {"T": 1e12, "P": 1e15}[unit]
  status, found, _ = plan(f"--budget={1.01 * least}")
  assert status == 0
  assert found["predicted_loss"] < math.log(100) and found["updates"] >= 100
  assert plan(f"--budget={0.8 * least}")[0] == 1


def test_few_hours_repeated_are_told_of():
  _, found, err = plan("--budget=1.3e18", "--hours=10")
  assert f"{found['epochs']:.3g} epochs of 10 h" in err


def test_hours_of_a_device_are_a_budget():
  status, found, err = plan(
    "--device=v5e-8",
    "--device_hours=2",
    "--mfu=0.4",
    "--price=10",
    "--audio=a b",
  )
  assert status == 0
  budget = 8 * 197e12 * 0.4 * 2 * 3600
  assert found["flops"] == pytest.approx(budget, rel=1e-4)
  assert found["cost"] == pytest.approx(20, rel=1e-3)
  assert "40% of peak, as given" in err
  assert found["command"].endswith("--config.data.dir='a b'")
  assert found["outside"] and "a guess" in err


@pytest.mark.parametrize(
  ("args", "status", "said"),
  [
    ([], 2, "give --budget, or --device_hours"),
    (["--budget=1e17", "--device_hours=1"], 2, "give --budget, or"),
    (["--device_hours=1"], 2, "needs --device"),
    (["--budget=1e17", "--price=3"], 2, "give one"),
    (["--budget=-1"], 2, "budget"),
    (["--budget=1e12"], 1, "buys no model that is better than a guess"),
    (["--device=h100", "--device_hours=0"], 2, "device_hours"),
    (["--device=v5e8", "--device_hours=1"], 1, "did you mean 'v5e-8'?"),
    (["--device_hours=1", "--device=v55"], 1, "unknown --device='v55'"),
    (["--budget=1e17", "--runs=nowhere"], 1, "no finished run"),
    (["--budget=1e17", "--family=configs/no.py"], 1, "no config file"),
  ],
)
def test_wrong_usage_is_one_line_and_a_status(args, status, said):
  found, result, err = plan(*args)
  assert (found, result, len(err.splitlines())) == (status, None, 1)
  assert said in err


def write_run(workdir, point):
  workdir.mkdir(parents=True)
  config = config_lib.base()
  config.data.dir = "corpus"
  (workdir / "config.json").write_text(config_lib.to_json(config))
  result = dict(zip(("params", "audio_seconds", "valid_loss"), point[:3]))
  (workdir / "result.json").write_text(json.dumps(result))


@pytest.mark.slow
def test_own_runs_decide_where_there_are_enough(tmp_path):
  for i, point in enumerate(made_up(SIZES, LENGTHS, floor=1.0)):
    write_run(tmp_path / "all" / str(i), point)
  own = planner.read_runs(tmp_path / "all")
  law, _, setting, points = planner.fit("hubert", own)
  assert len(points) == len(own) == 9
  assert law.floors[setting] == pytest.approx(1.0, abs=0.02)
  assert setting == "hubert (mfcc, (100,)), waveform, corpus"
  # Two of them only move the floor of the published law.
  law, _, setting, points = planner.fit("hubert", own[:2])
  assert len(points) == 16
  assert law.a == pytest.approx(1.07, abs=0.4)
  assert law.floors[setting] < law.floors[PUBLISHED]


def test_runs_that_do_not_compare_or_cannot_be_read_are_refused(tmp_path):
  own = made_up(SIZES, LENGTHS)
  with pytest.raises(UserError, match="2 settings"):
    planner.fit("hubert", own + made_up(SIZES, LENGTHS, "b"))
  write_run(tmp_path / "run", own[0])
  (tmp_path / "run" / "result.json").write_text('{"params": 3}')
  with pytest.raises(UserError, match=r"run cannot be read .*audio_seconds"):
    planner.read_runs(tmp_path)


@pytest.mark.slow
def test_this_machine_is_measured():
  status, found, err = plan("--device=here", "--device_hours=5000")
  assert status == 0, err
  assert 1e9 < found["flops_per_second"] < 1e16
  assert found["flops"] == pytest.approx(
    5_000 * 3_600 * found["flops_per_second"], rel=0.05
  )
