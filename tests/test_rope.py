"""The rope block against transformers' Qwen3, in torch, and its properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import config as config_lib
from ssl_jax.errors import UserError
from ssl_jax.models import encoders
from ssl_jax.models.backbone import Backbone
from ssl_jax.models.encoders import rope
from ssl_jax.pretrained.load import Encoder

WIDTH, HEADS, FFN, FRAMES = 48, 4, 96, 21


def settings():
  config = config_lib.base()
  config.encoder.name = "rope"
  config.encoder.num_layers = 2
  config.encoder.hidden_size, config.encoder.num_heads = WIDTH, HEADS
  config.encoder.ffn_size, config.encoder.rope_theta = FFN, 500.0
  return config


@pytest.fixture(scope="module")
def block():
  """A block with random parameters: fresh biases and scales tell nothing."""
  block = rope.Block(settings().encoder)
  x = np.random.default_rng(0).normal(size=(2, FRAMES, WIDTH))
  x = x.astype(np.float32)
  frames = np.array([FRAMES, 13])
  params = jax.eval_shape(
    lambda: block.init(jax.random.key(0), x, frames, None)["params"]
  )
  rng = np.random.default_rng(1)
  params = jax.tree.map(
    lambda leaf: (0.3 * rng.normal(size=leaf.shape)).astype(np.float32), params
  )
  return block, params, x, frames


def test_a_layer_equals_qwen3s(block):
  torch = pytest.importorskip("torch")
  pytest.importorskip("transformers")
  from transformers import Qwen3Config
  from transformers.models.qwen3 import modeling_qwen3 as qwen3

  block, params, x, frames = block
  found = jax.jit(block.apply)({"params": params}, x, frames, None)
  config = Qwen3Config(
    hidden_size=WIDTH,
    intermediate_size=FFN * 2 // 3,
    num_attention_heads=HEADS,
    num_key_value_heads=HEADS,
    head_dim=WIDTH // HEADS,
    attention_bias=True,
    rms_norm_eps=1e-6,
    rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    attn_implementation="eager",
  )
  attention = qwen3.Qwen3Attention(config, 0).eval()
  mlp = qwen3.Qwen3MLP(config).eval()
  tensors = jax.tree.map(lambda leaf: torch.tensor(np.asarray(leaf)), params)
  theirs = {
    f"{name}_proj": tensors[ours]
    for name, ours in {
      "q": "query",
      "k": "key",
      "v": "value",
      "o": "output",
    }.items()
  }
  with torch.no_grad():
    for name, part in theirs.items():
      getattr(attention, name).weight.copy_(part["kernel"].T)
      getattr(attention, name).bias.copy_(part["bias"])
    attention.q_norm.weight.copy_(tensors["query_norm"]["scale"])
    attention.k_norm.weight.copy_(tensors["key_norm"]["scale"])

    def norm(y, part):
      return torch.nn.functional.layer_norm(
        y, (WIDTH,), part["scale"], part["bias"]
      )

    places = torch.arange(FRAMES)[None]
    rotary = qwen3.Qwen3RotaryEmbedding(config)
    for row, count in enumerate(frames):
      y = torch.tensor(x[row : row + 1, :count])
      around = rotary(y, places[:, :count])
      mixed, _ = attention(norm(y, tensors["attention_norm"]), around, None)
      y = y + mixed
      z = norm(y, tensors["ffn_norm"])
      # Theirs has no biases.
      gate = mlp.act_fn(z @ tensors["gate"]["kernel"] + tensors["gate"]["bias"])
      z = gate * (z @ tensors["up"]["kernel"] + tensors["up"]["bias"])
      z = z @ tensors["down"]["kernel"] + tensors["down"]["bias"]
      np.testing.assert_allclose(
        found[row, :count], (y + z)[0].numpy(), rtol=2e-4, atol=2e-4
      )


def test_products_depend_on_distances_alone(block):
  rng = np.random.default_rng(2)
  query, key = rng.normal(size=(2, 12)).astype(np.float32)
  every = jnp.ones((1, 40, 1, 1))
  turn = rope.Block(settings().encoder, parent=None)._turn
  places = jnp.arange(40)[None]
  products = (
    turn(every * query, places)[0, :, 0] @ turn(every * key, places)[0, :, 0].T
  )
  for distance in range(-39, 40):
    along = np.diagonal(products, distance)
    np.testing.assert_allclose(along, along[0], atol=1e-4)
  assert np.ptp(products[0]) > 1


def test_it_costs_what_a_plain_layer_costs():
  config = settings().encoder
  config.hidden_size, config.num_heads, config.ffn_size = 384, 8, 768
  ours = encoders.make_block(config).flops(700)
  config.name = "transformer"
  assert ours == encoders.make_block(config).flops(700)


def test_heads_of_an_odd_width_are_named():
  config = settings()
  config.encoder.num_heads = 16
  with pytest.raises(UserError, match=r"num_heads=16 .* in pairs"):
    config_lib.validate(config)


def test_states_of_a_layer_are_before_the_last_norm(tmp_path):
  config = settings()
  config.frontend.name, config.encoder.position_kernel = "logmel", 8
  clip = 0.1 * np.random.default_rng(3).normal(size=(1, 8_000))
  clip, length = clip.astype(np.float32), np.array([8_000])
  backbone = Backbone(config)
  params = backbone.init(jax.random.key(0), clip, length)["params"]
  encoder = Encoder(config, params, {"path": "here"}, tmp_path)
  every = encoder.all_states()(clip, length)
  assert every.shape == (3, 1, 24, WIDTH)
  for layer in range(3):
    one = encoder.states(layer)(clip, length)
    np.testing.assert_allclose(one, every[layer], atol=1e-4)
  assert np.asarray(every[2]).std(axis=-1) == pytest.approx(1, abs=0.01)
