"""The counter against the published counts, and against XLA's own."""

import jax
import jax.numpy as jnp
import pytest

from ssl_jax import config as config_lib
from ssl_jax.budget import flops
from ssl_jax.models.backbone import Backbone
from ssl_jax.objectives import make_objective

# paper.md: updates at the full budget; HuBERT's parameters, in millions; share
# of the stem in the forward pass.
UPDATES = {
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
PARAMS = {
  "30": 5.9,
  "50": 9.9,
  "70": 14.1,
  "100": 20.0,
  "200": 40.0,
  "base": 94.7,
  "large": 316.6,
}
STEM_PERCENT = {
  "30": 95,
  "50": 86,
  "70": 79,
  "100": 69,
  "200": 51,
  "base": 32,
  "large": 12.5,
  "small": 72,
}
CROP = flops.REFERENCE_CROP


def sized(size):
  config = config_lib.base()
  config_lib.set_size(config, size)
  return config


@pytest.mark.parametrize("size", UPDATES)
def test_equal_cost_gives_the_published_updates(size):
  updates = flops.matched_updates(sized(size), sized("100"))
  assert updates == pytest.approx(UPDATES[size], rel=0.003)


def test_forward_cost_of_slim_equals_the_published():
  forward = flops.forward_flops(sized("100"), CROP, head_size=256)
  assert forward.total / 1e9 == pytest.approx(99.6, abs=0.05)
  assert forward.stem / 1e9 == pytest.approx(68.7, abs=0.05)


@pytest.mark.parametrize(
  ("size", "percent"),
  list(STEM_PERCENT.items()),
)
def test_share_of_the_stem_equals_the_published(size, percent):
  forward = flops.forward_flops(sized(size), CROP, head_size=256)
  assert 100 * forward.stem / forward.total == pytest.approx(percent, abs=0.6)


@pytest.mark.parametrize("size", PARAMS)
def test_parameters_equal_the_published(size):
  config = sized(size)
  waveform, length = jnp.zeros((1, 1600)), jnp.array([1600])
  shapes = jax.eval_shape(
    Backbone(config, jnp.float32).init, jax.random.key(0), waveform, length
  )
  backbone = sum(leaf.size for leaf in jax.tree.leaves(shapes))
  # Published with HuBERT's head: final_proj and 500 label embeddings.
  final_dim = 768 if size == "large" else 256
  head = (config.encoder.hidden_size + 1) * final_dim + 500 * final_dim
  assert (backbone + head) / 1e6 == pytest.approx(PARAMS[size], abs=0.05)


@pytest.mark.parametrize("frontend", ["waveform", "logmel"])
def test_forward_cost_equals_xla(frontend):
  config = sized("30")
  config.frontend.name = frontend
  objective = make_objective(config, jnp.float32)
  inputs = {
    "waveform": jnp.zeros((1, 80_000)),
    "length": jnp.array([80_000]),
    "rows": jnp.zeros(1, jnp.int32),
    "mask": jnp.zeros((1, 249), bool),
    "frame_mask": jnp.ones((1, 249), bool),
    "targets": jnp.zeros((1, 249, objective.head_size)),
  }
  params = jax.eval_shape(objective.init, jax.random.key(0), inputs, None)
  compiled = (
    jax.jit(lambda params, inputs: objective.apply(params, inputs, None))
    .lower(params, inputs)
    .compile()
  )
  ours = flops.forward_flops(config, 80_000, objective.head_size).total
  assert compiled.cost_analysis()["flops"] == pytest.approx(ours, rel=0.05)


def test_readable():
  assert flops.readable(0) + "FLOP" == "0 FLOP"
  assert flops.readable(999) + "FLOP" == "999 FLOP"
  assert flops.readable(1.26e18) + "FLOP" == "1.26 EFLOP"
