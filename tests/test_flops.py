"""The counter against the published counts, and against XLA's own."""

import math

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn

from ssl_jax import config as config_lib
from ssl_jax import num_frames, optimizers
from ssl_jax.budget import flops, updates
from ssl_jax.models import decoder
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


def test_heads_of_any_layer_and_of_masked_frames_are_counted():
  config = sized("30")
  config.encoder.norm_first, config.frontend.name = True, "logmel"
  config.hubert.labels, config.hubert.clusters = "rq,rq:1,mfcc", (512, 512, 100)
  config.hubert.layers = (2, 4, 0)
  config.hubert.loss = "linear"
  frames = 248
  most = math.ceil(1.05 * (1 - math.exp(-0.8)) * frames) + 10
  objective = make_objective(config, jnp.float32)
  assert objective.head_flops(79_440) == 2 * most * 192 * (512 + 512 + 100)
  batch = inputs_lib.abstract_batch(config, 1, 79_440)
  inputs = {k: v for k, v in batch.items() if k != "draw_id"}
  inputs["waveform"] = jax.ShapeDtypeStruct((1, 79_440), jnp.float32)
  inputs["frame_mask"] = jax.ShapeDtypeStruct((1, frames), bool)
  made = jax.jit(lambda inputs: objective.targets(inputs, None)).lower(inputs)
  xla = made.compile().cost_analysis()["flops"]
  # What is left are windows, means and variances, and slopes of MFCC.
  assert objective.target_flops(79_440) == pytest.approx(xla, rel=0.05)
  config.hubert.loss = "cosine"
  assert objective.head_flops(79_440) == 2 * frames * 256 * (3 * 192 + 1_124)


@pytest.fixture
def gelu_is_one_operation(monkeypatch):
  """XLA counts the polynomial it makes of GELU: up to 4.6 % of a forward pass
  that we count matmuls and convolutions of."""
  for module in (waveform, positions, transformer, decoder):
    monkeypatch.setattr(module, "gelu", nn.relu)


@pytest.fixture
def taps_are_computed_alone(monkeypatch):
  """Blocks of 8 frames compute 16 taps for the decoder's 7, most of them 0."""

  def conv(x, kernel):
    return jax.lax.conv_general_dilated(
      x,
      kernel,
      (1,),
      "SAME",
      dimension_numbers=("NWC", "WIO", "NWC"),
      feature_group_count=x.shape[-1] // kernel.shape[1],
    )

  monkeypatch.setattr(decoder, "grouped_conv", conv)


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
    ("30", "logmel", "visible"),
  ],
)
@pytest.mark.usefixtures("gelu_is_one_operation", "taps_are_computed_alone")
def test_costs_equal_xla(size, frontend, objective):
  config = sized(size)
  if objective == "visible":
    objective, config.encoder.visible_only = "hubert", True
    config.masking.share = 120 / 248  # 128 frames are left.
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
