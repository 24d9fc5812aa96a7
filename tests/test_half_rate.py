"""Layers at 25 Hz: what they compute, what they cost, what they go with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import finished_run, tiny

import ssl_jax
from ssl_jax import config as config_lib
from ssl_jax.errors import UserError
from ssl_jax.models import encoders
from ssl_jax.models.encoders import positions
from ssl_jax.models.norm import layer_norm
from ssl_jax.pretrained import hf_names

WIDTH, LAYERS = 32, 4


def settings(name="transformer", norm_first=True):
  config = config_lib.base()
  config.encoder.update(
    name=name,
    norm_first=norm_first,
    num_layers=LAYERS,
    hidden_size=WIDTH,
    num_heads=4,
    ffn_size=64,
    position_kernel=5,
    position_groups=4,
    half_rate=(2, 3),
  )
  return config


def by_hand(config, params, x, count):
  """A clip without padding, layer by layer, from the layers alone."""
  block, layers = encoders.make_block(config.encoder), params["layers"]
  x = x[:, :count]
  x = x + positions.Positions(config.encoder).apply(
    {"params": params["positions"]}, x
  )
  norm = params["norm"]["scale"], params["norm"]["bias"]
  x = x if block.norm_first else layer_norm(x, *norm)
  rope = config.encoder.name == "rope"

  def layer(i, x, frames, *places):
    own = jax.tree.map(lambda leaf: leaf[i], layers)
    return block.apply({"params": own}, x, jnp.array([frames]), None, *places)

  states = [x, x := layer(0, x, count)]
  pairs = [np.asarray(x[:, i : i + 2]).mean(axis=1) for i in range(0, count, 2)]
  low = before = np.stack(pairs, axis=1)
  at = 2 * np.arange(low.shape[1])[None]
  for i in (1, 2):
    low = layer(i, low, low.shape[1], *([at] if rope else []))
    added = np.repeat(low - before, 2, axis=1)[:, :count]
    states.append(x + added)
  x = layer(3, states[-1], count)
  return [*states, layer_norm(x, *norm) if block.norm_first else x]


@pytest.mark.parametrize(
  ("name", "norm_first", "scan"),
  [
    ("transformer", True, False),
    ("transformer", False, True),
    ("rope", True, False),
  ],
)
def test_pairs_go_through_the_middle_layers(name, norm_first, scan):
  config = settings(name, norm_first)
  config.encoder.scan_layers = scan
  encoder = encoders.make(config.encoder)
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 21, WIDTH)).astype(np.float32)
  counts = np.array([21, 12])
  real = np.arange(21) < counts[:, None]
  ids = jnp.arange(2)
  params = jax.tree.map(
    lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32),
    encoder.init(jax.random.key(0), x, real, None, ids)["params"],
  )
  states = jax.jit(
    lambda x: encoder.apply({"params": params}, x, real, None, ids, True)
  )(x)
  last = encoder.apply({"params": params}, x, real, None, ids)
  np.testing.assert_allclose(states[-1], last, atol=1e-5)
  for row, count in enumerate(counts):
    expected = by_hand(config, params, x[row : row + 1], count)
    assert len(expected) == len(states) == LAYERS + 1
    for ours, theirs in zip(states, expected):
      np.testing.assert_allclose(ours[row, :count], theirs[0], atol=2e-4)


def test_two_of_four_layers_cost_half_or_less():
  config = settings()
  ours = encoders.make(config.encoder).flops(100, 100)
  config.encoder.half_rate = ()
  whole = encoders.make(config.encoder).flops(100, 100)
  assert ours["ffn"] == whole["ffn"] * 3 / 4
  assert ours["attention"] < whole["attention"] * 3 / 4
  assert ours["positions"] == whole["positions"]


def test_it_trains_and_every_layer_is_read():
  config = tiny()
  config.encoder.num_layers, config.encoder.half_rate = 3, (2, 2)
  encoder = ssl_jax.load(finished_run(config))
  clip = np.random.default_rng(0).normal(size=8_000).astype(np.float32)
  states = encoder(clip, "all")
  assert len(states) == 4
  for layer in range(4):
    np.testing.assert_allclose(encoder(clip, layer), states[layer], atol=1e-5)
  config.frontend.name = "waveform"
  with pytest.raises(UserError, match=r"transformers has no .*half_rate"):
    hf_names.Layout(config)


@pytest.mark.parametrize(
  ("given", "said"),
  [
    ({"encoder.half_rate": (3, 2)}, r"expected \(first, last\) of the 4"),
    ({"encoder.half_rate": (2, 5)}, r"expected \(first, last\)"),
    (
      {"encoder.visible_only": True, "masking.share": 0.5},
      "make no pairs",
    ),
  ],
)
def test_what_it_cannot_be_is_refused(given, said):
  config = settings()
  config.update_from_flattened_dict(given)
  with pytest.raises(UserError, match=said):
    config_lib.validate(config)
