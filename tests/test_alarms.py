"""Alarms fire on runs that learn nothing, once, and say what to change."""

import math

import jax.numpy as jnp
import pytest

from ssl_jax import config as config_lib
from ssl_jax.objectives import make_objective
from ssl_jax.training.alarms import Alarms


def make(name, history=(), updates=1_000):
  config = config_lib.base()
  config.objective.name = name
  config.budget.updates = updates
  config.optimizer.warmup_fraction = 0.1
  return Alarms(make_objective(config, jnp.float32), config, list(history))


def line(update, **values):
  healthy = {
    "contrastive": 3.0,
    "chance": 4.6,
    "accuracy": 0.4,
    "code_perplexity": 300.0,
  }
  return {"update": update, "split": "train"} | healthy | values


def told(alarms, lines):
  return {
    x["update"]: found for x in lines if (found := alarms.check(x["update"], x))
  }


def test_a_healthy_run_raises_none():
  lines = [line(u, contrastive=4.6 - 0.001 * u) for u in range(0, 1_001, 20)]
  lines[0]["contrastive"] = 4.63
  assert told(make("wav2vec2"), lines) == {}


def test_a_plateau_at_chance_is_told_once_after_warm_up():
  stuck = math.log(101)  # The famous 6.658 bits.
  lines = [
    line(u, contrastive=stuck, chance=stuck) for u in range(0, 1_001, 20)
  ]
  found = told(make("wav2vec2"), lines)
  assert [*found] == [220]  # A tenth of the run after update 120.
  text = found[220]["chance"]
  assert "at chance (4.615) since update 120" in text
  assert "config.optimizer.learning_rate" in text


def test_collapsed_codes_are_told_with_what_to_change():
  lines = [line(u, code_perplexity=2.0) for u in range(0, 200, 20)]
  found = told(make("wav2vec2"), lines)
  assert [*found] == [40]  # The third line in a row.
  assert "code perplexity is 2.0 of 640" in found[40]["code_perplexity"]
  assert "diversity_weight" in found[40]["code_perplexity"]


def test_a_contrastive_loss_of_zero_at_once_is_told():
  lines = [
    line(u, contrastive=0.01, accuracy=1.0, chance=0.0)
    for u in range(0, 100, 20)
  ]
  found = told(make("wav2vec2"), lines)
  assert "too easy to be real" in found[40]["contrastive"]


def test_a_passing_symptom_is_not_told_and_a_returning_one_is_told_again():
  values = [2.0, 2.0, 300.0, 2.0, 2.0, 2.0, 2.0, 300.0, 2.0, 2.0, 2.0]
  lines = [line(20 * i, code_perplexity=v) for i, v in enumerate(values)]
  assert [*told(make("wav2vec2"), lines)] == [100, 200]


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped():
  lines = [line(u, code_perplexity=2.0) for u in range(0, 200, 20)]
  for cut in (1, 2, 5):
    alarms = make("wav2vec2", lines[:cut])
    expected = [40] if cut < 3 else []
    assert [*told(alarms, lines[cut:])] == expected


@pytest.mark.parametrize(
  ("name", "values"),
  [
    (
      "hubert",
      {"cross_entropy": 4.5, "label_perplexity": 90.0, "unused_labels": 0.0},
    ),
    ("tera", {"l1": 7.0}),
  ],
)
def test_chance_is_watched_for_every_objective(name, values):
  chance = 4.5 if name == "hubert" else 7.0
  lines = [line(u, **values, chance=chance) for u in range(0, 400, 20)]
  assert [*told(make(name), lines)] == [220]
