"""What a budget buys, however it is stated."""

import json
from pathlib import Path

import pytest
from doors import door

from ssl_jax import config as config_lib
from ssl_jax.budget import cost, updates
from ssl_jax.config import validate
from ssl_jax.errors import UserError

ROOT = Path(__file__).parents[1]
SLIM = f"{ROOT}/configs/slim.py"
FAST = f"{ROOT}/configs/fast.py"
# paper.md: updates of Slim's FLOPs.
PUBLISHED = {
  "30": 550_070,
  "50": 499_953,
  "60": 477_321,
  "70": 454_811,
  "90": 414_242,
  "100": 400_000,
  "130": 363_047,
  "160": 328_915,
  "190": 304_098,
  "200": 297_370,
  "base": 187_222,
  "large": 72_234,
}


def facts(config, hours=960.0, with_earlier=False):
  validate(config)
  return cost.facts(config, 1, hours, with_earlier)


def stated(path, **budget):
  config = config_lib.load(path)
  config.budget.update({"updates": 0} | budget)
  return config


@pytest.mark.parametrize("size", PUBLISHED)
def test_matching_slim_gives_the_published_updates(size):
  found = facts(stated(f"{SLIM}:size={size}", match=f"{SLIM}:size=100"))
  assert found["updates"] == pytest.approx(PUBLISHED[size], rel=0.003)
  slim = facts(config_lib.load(SLIM))
  assert found["total_flops"] == pytest.approx(slim["total_flops"], rel=1e-4)
  assert found["audio_hours"] == pytest.approx(
    found["updates"] * 156 / 3600, rel=1e-9
  )


def test_slim_costs_what_the_paper_says():
  found = facts(config_lib.load(SLIM))
  assert found["total_flops"] == pytest.approx(1.33e18, rel=0.01)
  assert found["forward_flops_per_crop"] == pytest.approx(99.6e9, rel=1e-3)
  assert found["epochs"] == pytest.approx(18.0, rel=0.01)
  per_second = found["forward_flops_per_audio_second"]
  assert per_second / 2 == pytest.approx(3.56e9, rel=1e-3)


def test_parts_add_up_to_the_forward_pass():
  for name in ("hubert", "wav2vec2", "tera"):
    found = facts(config_lib.load(f"{SLIM}:objective={name}"))
    parts = found["forward_parts"].values()
    assert sum(parts) == found["forward_flops_per_crop"]
  found = facts(config_lib.load(f"{FAST}:recipe=visible"))
  assert sum(found["forward_parts"].values()) == found["forward_flops_per_crop"]
  assert found["forward_parts"]["decoder"] > 0


def test_twice_the_flops_are_twice_the_updates():
  once = facts(stated(SLIM, flops=1e17))
  twice = facts(stated(SLIM, flops=2e17))
  assert once["total_flops"] == pytest.approx(1e17, rel=1e-4)
  assert once["total_flops"] <= 1e17
  assert twice["updates"] == pytest.approx(2 * once["updates"], abs=1)
  # The warm-up keeps its share.
  assert twice["warmup_updates"] == pytest.approx(
    2 * once["warmup_updates"], abs=1
  )


def test_padding_is_paid_from_a_budget_in_flops():
  config = stated(SLIM, flops=1e17)
  per_update = 1.25 * updates.update_flops(config)
  resolved = updates.resolve(config, per_update)
  assert resolved.budget.updates == int(1e17 / per_update)


def test_what_labels_cost_is_shown_and_can_be_counted():
  config = config_lib.load(f"{SLIM}:iteration=2")
  without, counted = facts(config), facts(config, with_earlier=True)
  assert without["updates"] == 400_000
  first = facts(config_lib.load(f"{SLIM}:iteration=1"))
  assert without["earlier_flops"] == first["total_flops"]
  crops = 960 * 3600 / 14
  assert without["labelling_flops"] == pytest.approx(
    crops * first["forward_flops_per_crop"]
  )
  extra = without["earlier_flops"] + without["labelling_flops"]
  assert counted["total_flops"] + extra == pytest.approx(
    without["total_flops"], rel=1e-4
  )
  half = config_lib.load(f"{SLIM}:iteration=2,budget=half")
  with pytest.raises(UserError, match="the labels alone cost"):
    facts(half, with_earlier=True)


def test_a_budget_that_ends_in_warm_up_is_refused():
  config = stated(SLIM, flops=1e16)
  config.optimizer.warmup_updates = 32_000
  with pytest.raises(UserError, match=r"buys 2,999 updates .* 32,000 warm up"):
    facts(config)


def flops(*args):
  done = door("flops", *args)
  return done.returncode, done.stdout, done.stderr


def test_the_door_prints_a_table_and_an_object():
  status, out, err = flops(
    "--config=configs/slim.py:size=50", "--match=configs/slim.py:size=100"
  )
  assert status == 0
  assert "86.3%" in err
  found = json.loads(out.splitlines()[-1])
  assert found["updates"] == pytest.approx(499_953, rel=0.003)
  assert found["params"] / 1e6 == pytest.approx(9.9, abs=0.1)
  assert found["stem_share"] == pytest.approx(0.86, abs=0.005)


@pytest.mark.parametrize(
  ("args", "said"),
  [
    (["--match=configs/slm.py"], "no config file 'configs/slm.py'"),
    (
      ["--config.budget.flops=1e18", "--config.budget.updates=9"],
      "not updates and flops",
    ),
    (["--config.budget.flops=1e5"], "buys 0 updates"),
  ],
)
def test_bad_budgets_are_one_line(args, said):
  status, out, err = flops("--config=configs/slim.py", *args)
  assert (status, out, len(err.splitlines())) == (1, "", 1)
  assert said in err
