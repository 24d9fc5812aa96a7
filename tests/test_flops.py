"""The counter against the published counts, and against XLA's own."""

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn

from ssl_jax import config as config_lib
from ssl_jax import num_frames, optimizers
from ssl_jax.budget import flops, updates
from ssl_jax.models.encoders import positions, transformer
from ssl_jax.models.frontends import waveform
from ssl_jax.objectives import inputs as inputs_lib
from ssl_jax.objectives import make_objective
from ssl_jax.training import step

# paper.md: HuBERT's parameters, in millions; share of the stem in the forward
# pass.
PARAMS = {
  "30": 5.9,
  "50": 9.9,
  "70": 14.1,
  "100": 20.0,
  "200": 40.0,
  "base": 94.7,
  "large": 316.6,
}
WAV2VEC2_PARAMS = {
  "30": 6.2,
  "50": 10.3,
  "70": 14.4,
  "100": 20.4,
  "200": 40.4,
  "base": 95.0,
  "large": 317.4,
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


def hubert_forward(size):
  config = sized(size)
  head = 2 * num_frames(CROP) * config.encoder.hidden_size * 256
  return flops.forward_flops(config, CROP, head)


def test_forward_cost_of_slim_equals_the_published():
  forward = hubert_forward("100")
  assert forward.total / 1e9 == pytest.approx(99.6, abs=0.05)
  assert forward.stem / 1e9 == pytest.approx(68.7, abs=0.05)


@pytest.mark.parametrize(
  ("size", "percent"),
  list(STEM_PERCENT.items()),
)
def test_share_of_the_stem_equals_the_published(size, percent):
  forward = hubert_forward(size)
  assert 100 * forward.stem / forward.total == pytest.approx(percent, abs=0.6)


@pytest.mark.parametrize("size", PARAMS)
@pytest.mark.parametrize("objective", ["hubert", "wav2vec2"])
def test_parameters_equal_the_published(size, objective):
  config = sized(size)
  config.objective.name = objective
  config.hubert.clusters = (500,)
  if size == "large":
    config.hubert.final_dim = 768
    config.wav2vec2.final_dim = config.wav2vec2.code_dim = 768
  state = jax.eval_shape(
    lambda: step.init_state(
      make_objective(config, jnp.float32), optax.identity(), config
    )
  )
  params = sum(leaf.size for leaf in jax.tree.leaves(state["params"]))
  published = PARAMS[size] if objective == "hubert" else WAV2VEC2_PARAMS[size]
  assert params / 1e6 == pytest.approx(published, abs=0.06)


@pytest.fixture
def gelu_is_one_operation(monkeypatch):
  """XLA counts the polynomial it makes of GELU: up to 4.6 % of a forward pass
  that we count matmuls and convolutions of."""
  for module in (waveform, positions, transformer):
    monkeypatch.setattr(module, "gelu", nn.relu)


@pytest.mark.parametrize(
  ("size", "frontend", "objective"),
  [
    ("30", "waveform", "hubert"),
    ("100", "waveform", "hubert"),
    ("200", "waveform", "hubert"),
    ("100", "waveform", "wav2vec2"),
    ("30", "logmel", "hubert"),
    ("30", "logmel", "tera"),
    ("30", "logmel", "wav2vec2"),
  ],
)
def test_costs_equal_xla(size, frontend, objective, gelu_is_one_operation):
  config = sized(size)
  config.frontend.name = frontend
  config.objective.name = objective
  model = make_objective(config, jnp.float32)
  adam = optimizers.make_optimizer(config)
  state = jax.eval_shape(lambda: step.init_state(model, adam, config))
  # 248 frames: the encoder pads to a multiple of 8, which XLA would count.
  batch = inputs_lib.abstract_batch(config, 1, 79_440)
  inputs = jax.eval_shape(
    lambda batch: inputs_lib.prepare(model, config, batch, jax.random.key(0)),
    batch,
  )
  forward = jax.jit(
    lambda params, inputs: model.apply({"params": params}, inputs, None, 0)
  ).lower(state["params"], inputs)
  ours = updates.clip_flops(config, 79_440)
  xla = forward.cost_analysis()["flops"]
  assert xla == pytest.approx(ours.total, rel=0.03)
  if (size, frontend, objective) == ("30", "waveform", "hubert"):
    update = jax.jit(step.make_train_step(model, adam, config))
    xla = update.lower(state, batch).compile().cost_analysis()["flops"]
    assert xla == pytest.approx(ours.training, rel=0.03)


def test_readable():
  assert flops.readable(0) + "FLOP" == "0 FLOP"
  assert flops.readable(999) + "FLOP" == "999 FLOP"
  assert flops.readable(1.26e18) + "FLOP" == "1.26 EFLOP"
