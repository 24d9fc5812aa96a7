"""Recipes against the control: how many times fewer FLOPs, and how sure."""

from types import SimpleNamespace

import numpy as np
import pytest
from fake_runs import measured, write_run

from ssl_jax.reports import crossings, page, runs
from ssl_jax.reports.cells import Cell
from ssl_jax.reports.crossings import Crossing, Curve

FLOPS = np.array([1e12, 2e12, 4e12, 8e12])
DRAWS = 400


def test_flops_of_a_score_are_on_the_line_between_budgets():
  scores = np.array([[0.1], [0.3], [0.2], [0.5]])
  for target, flops in (
    (0.2, 1e12 * 2**0.5),  # The first of three places.
    (0.35, 4e12 * 2**0.5),
    (0.05, 1e12),
    (0.9, 8e12),
  ):
    found = crossings.reached(FLOPS, scores, np.array([target]))
    assert found == pytest.approx(flops)
  rising = np.array([0.1, 0.25, 0.3, 0.5])
  target = np.linspace(0.1, 0.5, 9)
  expected = np.exp(np.interp(target, rising, np.log(FLOPS)))
  found = crossings.reached(FLOPS, np.tile(rising[:, None], 9), target)
  np.testing.assert_allclose(found, expected)


def curve(name, means, generator, seeds=3, units=26, seed_std=0.0):
  """A recipe of those true means; units share their ease among recipes."""
  ease = np.random.default_rng(5).normal(0, 0.05, units)
  weights = np.random.default_rng(6).multinomial(
    units, np.full(units, 1 / units), DRAWS
  )
  # A seed's luck is its own in every budget of a trunk.
  luck = generator.normal(0, seed_std, seeds)
  scored = []
  for mean in means:
    units_of = (
      mean + luck[:, None] + ease + generator.normal(0, 0.01, (seeds, units))
    )
    scored.append(
      {
        "tests": units_of.mean(axis=1).tolist(),
        "draws": (units_of @ weights.T / units).tolist(),
        "higher_is_better": True,
      }
    )
  cells = [
    Cell(tuple(SimpleNamespace(flops=f, size="30") for _ in range(seeds)))
    for f in FLOPS
  ]
  return Curve(name, cells, scored)


def cross(control, other, place, higher=True):
  noise = crossings._seed_noise([control, other])
  return crossings._crossing("m", higher, control, place, other, noise)


def test_a_recipe_twice_as_good_is_found_to_be():
  generator = np.random.default_rng(0)
  line = 0.2 + 0.04 * np.log2(FLOPS / 1e12)
  control = curve("control", line, generator)
  found = cross(control, curve("twice", line + 0.04, generator), 2)
  assert found.factor == pytest.approx(2, rel=0.1)
  low, high = found.interval
  assert 1.5 < low < 2 < high < 2.7 and found.seeds == (3, 3)
  # Beyond what was trained, the limit is said to be one.
  found = cross(control, curve("far", line + 0.4, generator), 2)
  assert found.factor == pytest.approx(4) == found.limits[1]
  assert crossings.times(found, found.factor) == "above 4.00"
  found = cross(control, curve("never", line - 0.4, generator), 2)
  assert crossings.times(found, found.factor) == "below 0.50"


def test_a_recipe_gains_nothing_on_itself():
  generator = np.random.default_rng(3)
  means = np.array([0.1, 0.3, 0.2, 0.5])
  control = curve("control", means, generator)
  for place in range(4):
    found = cross(control, control, place)
    assert found.factor == pytest.approx(1)
  # Errors are better low.
  line = 0.5 - 0.04 * np.log2(FLOPS / 1e12)
  control = curve("control", line, generator)
  found = cross(control, curve("twice", line - 0.04, generator), 2, False)
  assert found.factor == pytest.approx(2, rel=0.1)


def test_a_budget_of_one_seed_leaves_the_spread_of_the_others():
  generator = np.random.default_rng(4)
  line = 0.2 + 0.04 * np.log2(FLOPS / 1e12)
  pair = []
  for name in ("control", "other"):
    made = curve(name, line, generator, seed_std=0.05)
    for values in (made.scored[-1]["tests"], made.scored[-1]["draws"]):
      del values[1:]
    made.cells[-1] = Cell(made.cells[-1].runs[:1])
    pair.append(made)
  noise = crossings._seed_noise(pair)
  # 0.05 and 1 seed at worst; Student's t of 4 has a variance of 2.
  assert 0.03 < noise.std() / 2**0.5 < 0.09
  # A draw of nothing is left out.
  pair[0].scored[0]["draws"][0][0] = None
  assert np.isfinite(cross(*pair, 1).interval).all()


def test_nine_of_ten_intervals_hold_the_truth():
  generator = np.random.default_rng(1)
  line = 0.2 + 0.04 * np.log2(FLOPS / 1e12)
  held = []
  for _ in range(300):
    pair = [
      curve(name, line + gain, generator, seed_std=0.01)
      for name, gain in (("control", 0), ("other", 0.02))
    ]
    low, high = cross(*pair, 2).interval
    held.append(low <= 2**0.5 <= high)
  # 90 % of them, a little more: units' own noise is known, not estimated.
  assert 0.86 < np.mean(held) < 0.97


def test_the_report_races_recipes(tmp_path):
  generator = np.random.default_rng(2)
  for name, gain in (("control", 0.0), ("mel", 0.04)):
    for seed in (0, 1):
      for i, flops in enumerate(FLOPS):
        workdir = tmp_path / f"{name}-{flops:g}-{seed}"
        weight = 1e-5 if name == "mel" else 2e-5  # Another recipe.
        given = [f"recipe={name}", f"seed={seed}"]
        given += [f"optimizer.weight_decay={weight}"]
        write_run(workdir, "30", flops, config=given)
        luck = generator.normal(0, 0.001)
        measured(workdir, [0.04 * i + gain + luck])
  write_run(tmp_path / "unnamed", "30", 1e12)
  measured(tmp_path / "unnamed", [0.9])
  rows, broken = runs.read([tmp_path])
  written = page.write(rows, broken, tmp_path / "out", "T", None)
  found = {c["budget"]: c for c in written["crossings"]}
  assert [*found] == pytest.approx(FLOPS.tolist())
  assert {c["recipe"] for c in written["crossings"]} == {"mel"}
  assert found[4e12]["factor"] == pytest.approx(2, rel=0.2)
  assert found[4e12]["seeds"] == (2, 2)
  text = (tmp_path / "out" / "report.html").read_text()
  assert "Recipes at equal compute" in text and "Times fewer" in text
  assert (tmp_path / "out" / "race.png").exists()
  (told,) = (
    crossings.sentence(Crossing(**each))
    for each in written["crossings"]
    if each["budget"] == 4e12
  )
  assert told.startswith(f"mel needs {found[4e12]['factor']:.2f} times fewer")


def test_two_controls_are_none(tmp_path, caplog):
  for name, weight in (("control", 1e-5), ("control", 2e-5), ("mel", 3e-5)):
    for flops in FLOPS[:2]:
      workdir = tmp_path / f"{weight:g}-{flops:g}"
      given = [f"recipe={name}", f"optimizer.weight_decay={weight}"]
      write_run(workdir, "30", flops, config=given)
      measured(workdir, [0.1])
  rows, _ = runs.read([tmp_path])
  assert crossings.crossings(rows) == []
  assert caplog.text.count("several recipes of size 30 are named control") == 1
