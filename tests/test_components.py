"""Frontends and encoder blocks from outside the package, as one class each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from tiny import tiny

import ssl_jax
from ssl_jax import config as config_lib
from ssl_jax import num_frames
from ssl_jax.budget import flops
from ssl_jax.devices import sharding
from ssl_jax.errors import UserError
from ssl_jax.files import read_jsonl
from ssl_jax.knobs import Knob
from ssl_jax.models import encoders, frontends
from ssl_jax.models.encoders import block, transformer
from ssl_jax.models.frontends import frontend, waveform
from ssl_jax.models.linear import Linear
from ssl_jax.models.norm import Norm, layer_norm
from ssl_jax.objectives import make_objective
from ssl_jax.pretrained.export import export
from ssl_jax.training import loop, step


class Gated(block.Block):
  """x -> norm -> up * sigmoid(gate) -> down -> add."""

  knobs = {  # noqa: RUF012
    "gate_size": Knob(
      64, "gated: its units.", role="architecture", low=1, high=1 << 17
    )
  }
  tensor_axes = {  # noqa: RUF012
    "gate/kernel": -1,
    "up/kernel": -1,
    "down/kernel": -2,
  }
  tensor_knobs = ("gate_size",)
  float32 = ("norm",)

  @nn.compact
  def __call__(self, x, frames, words):
    width, units = x.shape[-1], self.config.gate_size
    norm = Norm(width, name="norm")()

    def linear(x, name, outputs):
      kernel, bias = Linear((x.shape[-1], outputs), self.dtype, name=name)()
      return jnp.matmul(x, kernel) + bias

    y = layer_norm(x, *norm)
    y = linear(y, "up", units) * jax.nn.sigmoid(linear(y, "gate", units))
    return x + linear(y, "down", width)

  def flops(self, frames):
    units = self.config.hidden_size * self.config.gate_size
    return block.LayerFlops(attention=0, ffn=6 * frames * units)

  def check(self):
    if self.config.gate_size == 7:
      raise UserError("config.encoder.gate_size=7: choose another")


class Windows(frontend.Frontend):
  """A linear map of each frame's 400 samples."""

  knobs = {  # noqa: RUF012
    "window_channels": Knob(
      24, "windows: channels.", role="architecture", low=1, high=1_000
    )
  }
  is_learned = True

  @nn.compact
  def __call__(self, waveform, length):
    frames = num_frames(waveform.shape[1])
    index = 320 * np.arange(frames)[:, None] + np.arange(400)
    return nn.Dense(self.channels, dtype=self.dtype, name="linear")(
      waveform[:, index]
    )

  @property
  def channels(self):
    return self.config.window_channels

  def flops(self, num_samples):
    return 2 * num_frames(num_samples) * 400 * self.channels


@pytest.fixture
def outside(monkeypatch):
  monkeypatch.setitem(encoders.ENCODERS, "gated", Gated)
  monkeypatch.setitem(frontends.FRONTENDS, "windows", Windows)


def settings(objective="hubert"):
  config = tiny(2, objective)
  config.data.bucket_seconds, config.batch.seconds = (0.8,), 3.2
  config.frontend.name, config.encoder.name = "windows", "gated"
  return config


def abstract(config):
  objective = make_objective(config, jnp.float32)
  adam = step.optax.identity()
  return jax.eval_shape(lambda: step.init_state(objective, adam, config))


@pytest.mark.parametrize("objective", ["hubert", "wav2vec2"])
def test_they_train_are_read_and_exported_or_refused(
  objective, outside, tmp_path
):
  loop.train(settings(objective), tmp_path / "run")
  lines = read_jsonl(tmp_path / "run" / "metrics.jsonl")
  assert "feature_penalty" in lines[-1]  # As of any learned frontend.
  encoder = ssl_jax.load(tmp_path / "run")
  assert encoder.params["encoder"]["layers"]["gate"]["kernel"].shape == (
    *(2, 32, 64),
  )
  assert encoder.params["stem"]["linear"]["kernel"].shape == (400, 24)
  assert encoder(np.zeros(8_000, np.float32)).shape == (num_frames(8_000), 32)
  with pytest.raises(UserError, match=r"no config\.frontend\.name=windows"):
    export(encoder, "hf", tmp_path / "out")
  encoder.config.frontend.name = "waveform"
  with pytest.raises(UserError, match=r"no config\.encoder\.name=gated"):
    export(encoder, "hf", tmp_path / "out")
  assert not (tmp_path / "out").exists()


def test_their_flops_are_counted(outside):
  forward = flops.forward_flops(settings(), 16_000, head=5)
  assert (forward.stem, forward.projection, forward.attention, forward.ffn) == (
    2 * 49 * 400 * 24,
    2 * 49 * 24 * 32,
    0,
    2 * 6 * 49 * 32 * 64,
  )
  assert forward.training == 3 * forward.total  # The stem is learned.


def test_the_blocks_axes_are_cut_over_tensor(outside):
  config = settings()
  mesh = jax.sharding.AbstractMesh((1, 1, 2), sharding.AXES)
  state = abstract(config)["params"]
  placed = sharding.of_state(config, mesh, {"params": state})
  layers = placed["params"]["backbone"]["encoder"]["layers"]
  cuts = {
    name: tuple(part["kernel"].spec)
    for name, part in layers.items()
    if "kernel" in part
  }
  assert cuts == {
    "down": (None, "tensor"),
    "gate": (None, None, "tensor"),
    "up": (None, None, "tensor"),
  }
  assert not [*layers["up"]["bias"].spec]
  sharding.check(config, mesh)
  config.encoder.num_heads = 3  # Not a knob of these blocks.
  sharding.check(config, mesh)
  config.encoder.gate_size = 5
  with pytest.raises(UserError, match=r"does not divide config\.encoder\.gate"):
    sharding.check(config, mesh)


def test_knobs_come_with_the_component_and_are_checked(outside):
  config = config_lib.base()
  assert config.encoder.gate_size == 64
  config.encoder.gate_size = 7
  config_lib.validate(config)  # The block that is used asks nothing of it.
  config.encoder.name = "gated"
  with pytest.raises(UserError, match="gate_size=7: choose another"):
    config_lib.validate(config)


def test_a_knob_declared_twice_is_refused(monkeypatch):
  clash = type("Clash", (Gated,), {"knobs": {"dropout": Knob(0.5, "Mine.")}})
  monkeypatch.setitem(encoders.ENCODERS, "clash", clash)
  with pytest.raises(ValueError, match="'dropout' is declared twice"):
    config_lib.base()


@pytest.mark.parametrize("section", ["frontend", "encoder"])
def test_an_unknown_name_is_never_another_component(section):
  config = config_lib.base()
  config[section].name = "logmell"
  with pytest.raises(UserError, match=rf"config\.{section}\.name"):
    config_lib.validate(config)
  with pytest.raises(UserError, match="unknown config"):
    flops.forward_flops(config, 16_000, head=0)


@pytest.mark.parametrize("name", sorted(frontends.FRONTENDS))
def test_a_frontend_keeps_its_contract(name):
  config = config_lib.base().frontend
  config.name = name
  made = frontends.make(config)
  clip = jnp.zeros((2, 4_000)), jnp.array([4_000, 3_000])
  params = jax.eval_shape(made.init, jax.random.key(0), *clip)
  assert bool(params.get("params")) == made.is_learned
  frames = jax.eval_shape(made.apply, params, *clip)
  assert frames.shape == (2, num_frames(4_000), made.channels)
  assert made.flops(16_000) > 0


@pytest.mark.parametrize("name", sorted(encoders.ENCODERS))
def test_a_block_keeps_its_contract(name):
  config = config_lib.base().encoder
  config.name = name
  made = encoders.make_block(config)
  x = jnp.zeros((2, 16, config.hidden_size))
  params = jax.eval_shape(
    made.init, jax.random.key(0), x, jnp.array([16, 9]), None
  )["params"]
  leaves = {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }
  assert set(made.tensor_axes) <= set(leaves)
  assert set(made.float32) <= set(params)
  assert set(made.tensor_knobs) <= set(config.keys())
  if made.hf:
    assert set(made.hf.modules) == set(params)


def test_components_names_of_transformers_are_whole():
  assert transformer.Block.hf and waveform.Frontend.hf
