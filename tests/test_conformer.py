"""The Conformer block against transformers', in torch, and its properties."""

import jax
import numpy as np
import pytest

from ssl_jax import config as config_lib
from ssl_jax.errors import UserError
from ssl_jax.models import encoders
from ssl_jax.models.encoders import conformer

WIDTH, HEADS, FFN, FRAMES, TAPS = 48, 4, 96, 45, 31


def settings():
  config = config_lib.base()
  config.encoder.update(
    name="conformer",
    num_layers=2,
    hidden_size=WIDTH,
    num_heads=HEADS,
    ffn_size=FFN,
    conv_kernel=TAPS,
  )
  return config


@pytest.fixture(scope="module")
def block():
  """A block with random parameters: fresh biases and scales tell nothing."""
  block = conformer.Block(settings().encoder)
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, FRAMES, WIDTH)).astype(np.float32)
  frames = np.array([FRAMES, 29])
  params = jax.eval_shape(
    lambda: block.init(jax.random.key(0), x, frames, None)["params"]
  )
  params = jax.tree.map(
    lambda leaf: (0.3 * rng.normal(size=leaf.shape)).astype(np.float32), params
  )
  return block, params, x, frames


def test_a_layer_equals_transformers(block):
  torch = pytest.importorskip("torch")
  pytest.importorskip("transformers")
  from transformers import Wav2Vec2ConformerConfig
  from transformers.models.wav2vec2_conformer import (
    modeling_wav2vec2_conformer as theirs,
  )

  block, params, x, frames = block
  found = jax.jit(block.apply)({"params": params}, x, frames, None)
  config = Wav2Vec2ConformerConfig(
    hidden_size=WIDTH,
    num_attention_heads=HEADS,
    intermediate_size=FFN // 2,
    conv_depthwise_kernel_size=TAPS,
    hidden_act="swish",
    position_embeddings_type=None,
  )
  layer = theirs.Wav2Vec2ConformerEncoderLayer(config).eval()
  tensors = jax.tree.map(lambda leaf: torch.tensor(np.asarray(leaf)), params)
  norm = torch.nn.LayerNorm(WIDTH)
  convolution = layer.conv_module

  class ChannelsLast(torch.nn.Module):
    """The layer norm that stands where theirs has a batch norm."""

    def forward(self, y):
      return norm(y.transpose(1, 2)).transpose(1, 2)

  convolution.batch_norm = ChannelsLast()
  # Theirs has no biases in the convolution.
  for name in ("pointwise_conv1", "depthwise_conv", "pointwise_conv2"):
    theirs_conv = getattr(convolution, name)
    theirs_conv.bias = torch.nn.Parameter(torch.zeros(theirs_conv.out_channels))
  pairs = {
    "first_norm": layer.ffn1_layer_norm,
    "first_up": layer.ffn1.intermediate_dense,
    "first_down": layer.ffn1.output_dense,
    "attention_norm": layer.self_attn_layer_norm,
    "query": layer.self_attn.linear_q,
    "key": layer.self_attn.linear_k,
    "value": layer.self_attn.linear_v,
    "output": layer.self_attn.linear_out,
    "conv_norm": convolution.layer_norm,
    "gate": convolution.pointwise_conv1,
    "depthwise": convolution.depthwise_conv,
    "depthwise_norm": norm,
    "conv_output": convolution.pointwise_conv2,
    "second_norm": layer.ffn2_layer_norm,
    "second_up": layer.ffn2.intermediate_dense,
    "second_down": layer.ffn2.output_dense,
    "norm": layer.final_layer_norm,
  }
  assert {*pairs} == {*tensors}
  with torch.no_grad():
    for name, module in pairs.items():
      ours = tensors[name]
      weight = ours["kernel"].T if "kernel" in ours else ours["scale"]
      module.weight.copy_(weight.reshape(module.weight.shape))
      module.bias.copy_(ours["bias"])
    for row, count in enumerate(frames):
      expected = layer(torch.tensor(x[row : row + 1, :count]))[0]
      np.testing.assert_allclose(
        found[row, :count], expected.reshape(count, WIDTH), rtol=0, atol=2e-4
      )


def test_it_costs_the_convolution_more_than_a_plain_layer():
  config = settings().encoder
  ours = encoders.make_block(config).flops(100)
  config.name = "transformer"
  plain = encoders.make_block(config).flops(100)
  assert ours.ffn == plain.ffn
  more = 100 * (6 * WIDTH**2 + 2 * TAPS * WIDTH)
  assert ours.attention == plain.attention + more


def test_it_needs_all_frames():
  config = settings()
  config.encoder.visible_only, config.masking.share = True, 0.5
  with pytest.raises(UserError, match="'conformer' needs all frames"):
    config_lib.validate(config)
