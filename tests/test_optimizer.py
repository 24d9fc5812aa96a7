"""AdamW, clipping and the schedule against torch; Muon against NumPy."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, PartitionSpec
from tiny import reproducible, state_of, tiny

from ssl_jax import config as config_lib
from ssl_jax import optimizers
from ssl_jax.devices import sharding
from ssl_jax.errors import UserError
from ssl_jax.knobs import Knob
from ssl_jax.objectives import OBJECTIVES, inputs
from ssl_jax.optimizers import muon as muon_lib
from ssl_jax.optimizers.optimizer import Optimizer
from ssl_jax.training import loop


def test_updates_equal_torch():
  torch = pytest.importorskip("torch")
  config = config_lib.base()
  config.budget.updates = 20
  config.optimizer.warmup_fraction = 0.25
  config.optimizer.learning_rate = 1e-2
  config.optimizer.clip_norm = 1.0
  rng = np.random.default_rng(0)
  start = rng.normal(size=(5, 3)).astype(np.float32)
  gradients = rng.normal(size=(20, 5, 3)).astype(np.float32)
  gradients[::2] *= 0.01  # Some below the clip norm, some above.

  theirs = torch.nn.Parameter(torch.from_numpy(start.copy()))
  adam = torch.optim.AdamW(
    [theirs], lr=1e-2, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01
  )
  # lr of update u: u / 5 in the warm-up, then a line to 0 at 20.
  scheduler = torch.optim.lr_scheduler.LambdaLR(
    adam, lambda u: u / 5 if u < 5 else (20 - u) / 15
  )
  for gradient in gradients:
    theirs.grad = torch.from_numpy(gradient.copy())
    torch.nn.utils.clip_grad_norm_([theirs], 1.0)
    adam.step()
    scheduler.step()

  ours = jnp.asarray(start)
  ours_adam = optimizers.make_optimizer(config)
  state = ours_adam.init(ours)
  for gradient in gradients:
    updates, state = ours_adam.update(gradient, state, ours)
    ours = optax.apply_updates(ours, updates)
  np.testing.assert_allclose(ours, theirs.detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("warmup", [0, 32_000])
def test_schedule_of_slim_is_the_published_one(warmup):
  config = config_lib.base()
  config.optimizer.warmup_updates = warmup  # 8 % or the count: the same.
  schedule = optimizers.make_schedule(config)
  for update, rate in [
    (0, 0.0),
    (16_000, 2.5e-4),
    (32_000, 5e-4),
    (216_000, 2.5e-4),
    (400_000, 0.0),
  ]:
    assert float(schedule(update)) == pytest.approx(rate, abs=1e-9)


def test_between_warm_up_and_decay_the_rate_stays():
  config = config_lib.base()
  config.optimizer.decay_fraction = 0.25
  schedule = optimizers.make_schedule(config)
  for update, rate in [
    (16_000, 2.5e-4),
    (32_000, 5e-4),
    (308_000, 5e-4),  # 92,000 before the end.
    (354_000, 2.5e-4),
    (400_000, 0.0),
  ]:
    assert float(schedule(update)) == pytest.approx(rate, abs=1e-9)


def muon(**knobs):
  config = config_lib.base()
  config.optimizer.name = "muon"
  config.optimizer.update(knobs)
  return config


def params_like_a_model(rng, layers=3, width=12, ffn=20):
  """One parameter of each sort: stacked or not, kernel or not."""

  def draw(*shape):
    return rng.normal(size=shape).astype(np.float32)

  return {
    "backbone": {
      "encoder": {
        "layers": {
          "query": {"kernel": draw(layers, width, width)},
          "up": {"kernel": draw(layers, width, ffn), "bias": draw(layers, ffn)},
          "down": {"kernel": draw(layers, ffn, width)},
          "ffn_norm": {"scale": draw(layers, width)},
          # A convolution's, stacked: an axis more than a linear map's.
          "conv": {"kernel": draw(layers, 5, 1, width)},
        },
        "positions": {"direction": draw(8, 3, width)},
      },
      "mask_vector": draw(width),
      "projection": {"kernel": draw(16, width)},
      "stem": {"conv1": {"kernel": draw(3, width, width)}},
    },
    "label_embeddings_0": draw(7, width),
  }


KERNELS = [
  f"backbone/encoder/layers/{name}/kernel" for name in ("down", "query", "up")
]


def by_path(tree):
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): x
    for path, x in jax.tree_util.tree_leaves_with_path(tree)
  }


def run_updates(optimizer, params, gradients):
  """The updates of each step, with parameters that follow them."""
  state, all_updates = optimizer.init(params), []
  for gradient in gradients:
    updates, state = jax.jit(optimizer.update)(gradient, state, params)
    params = optax.apply_updates(params, updates)
    all_updates.append(by_path(updates))
  return all_updates


def newton_schulz(matrix, steps):
  """Jordan et al. 2024, in float64: singular values towards 1."""
  x = matrix.astype(np.float64)
  x = x.T if x.shape[0] > x.shape[1] else x
  x = x / np.sqrt((x**2).sum())
  for _ in range(steps):
    gram = x @ x.T
    x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
  return x.T if matrix.shape[0] > matrix.shape[1] else x


def test_muon_makes_each_layers_momentum_orthogonal():
  config = muon(warmup_fraction=0.0, learning_rate=1e-2, clip_norm=1e9)
  config.budget.updates = 10
  rng = np.random.default_rng(0)
  params = params_like_a_model(rng)
  gradients = [params_like_a_model(rng) for _ in range(3)]
  # Layers of other scales: if they were not taken one by one, it would show.
  for gradient in gradients:
    gradient["backbone"]["encoder"]["layers"]["up"]["kernel"][1] *= 100
  ours = run_updates(optimizers.make_optimizer(config), params, gradients)
  for path in KERNELS:
    value = by_path(params)[path].astype(np.float64)
    momentum = np.zeros_like(value)
    for step, (gradient, update) in enumerate(zip(gradients, ours), 1):
      gradient, rate = by_path(gradient)[path], 1e-2 * (11 - step) / 10
      momentum = 0.95 * momentum + 0.05 * gradient
      ahead = 0.95 * momentum / (1 - 0.95 ** (step + 1))
      ahead += 0.05 * gradient / (1 - 0.95**step)
      scale = 0.2 * np.sqrt(max(value.shape[1:]))
      expected = np.stack([scale * newton_schulz(x, 5) for x in ahead])
      expected = -rate * (expected + 0.05 * value)
      np.testing.assert_allclose(update[path], expected, atol=2e-3 * rate)
      value += expected


def test_muons_updates_are_near_orthogonal_and_of_the_stated_size():
  config = muon(warmup_fraction=0.0, learning_rate=1.0, muon_weight_decay=0.0)
  rng = np.random.default_rng(0)
  shapes = {"square": (96, 96), "up": (96, 160), "down": (160, 96)}

  def draw(shape):
    """Two layers whose singular values span a factor of ten."""
    u, _, v = np.linalg.svd(rng.normal(size=(2, *shape)), full_matrices=False)
    return ((u * np.geomspace(1, 0.1, 96)) @ v).astype(np.float32)

  gradient = {"layers": {n: {"kernel": draw(x)} for n, x in shapes.items()}}
  optimizer = optimizers.make_optimizer(config)
  (updates,) = run_updates(optimizer, gradient, [gradient])
  assert len(updates) == 3
  for update in updates.values():
    for layer in update:
      # Five steps bring singular values into a band about 0.9, not to 1.
      values = np.linalg.svd(layer, compute_uv=False)
      values /= 0.2 * np.sqrt(max(layer.shape))
      assert 0.65 < values.min() and values.max() < 1.15
      size = np.sqrt(np.square(layer).mean())
      assert size == pytest.approx(0.2 * 0.9, rel=0.1)


def test_muon_leaves_all_else_to_adamw():
  config = muon(warmup_fraction=0.1, learning_rate=1e-2, clip_norm=1.0)
  config.budget.updates = 20
  rng = np.random.default_rng(0)
  params = params_like_a_model(rng)
  gradients = [params_like_a_model(rng) for _ in range(4)]
  ours = run_updates(optimizers.make_optimizer(config), params, gradients)
  adamw = optax.adamw(
    optimizers.make_schedule(config),
    b1=0.9,
    b2=0.98,
    eps=1e-6,
    weight_decay=0.01,
  )
  adamw = optax.chain(optax.clip_by_global_norm(1.0), adamw)
  theirs = run_updates(adamw, params, gradients)
  assert len(ours[0]) == 11
  for our, their in zip(ours[1:], theirs[1:]):  # The first has no rate.
    for path in our:
      same = np.array_equal(our[path], their[path])
      assert same == (path not in KERNELS), path


@pytest.mark.parametrize("objective", [*OBJECTIVES])
def test_muon_takes_the_kernels_of_the_encoders_layers(objective):
  config = muon()
  config.objective.name = objective
  parts = by_path(muon_lib.assign(inputs.abstract_params(config)))
  names = ("down", "key", "output", "query", "up", "value")
  assert [path for path, part in parts.items() if part == "muon"] == [
    f"backbone/encoder/layers/{name}/kernel" for name in names
  ]


def test_muon_refuses_an_encoder_without_kernels():
  params = {"layers": {"norm": {"scale": jnp.ones((2, 4))}}}
  with pytest.raises(UserError, match="no stacked kernels"):
    optimizers.make_optimizer(muon()).init(params)


def test_flops_are_newton_schulz_of_each_layer():
  config = muon(muon_ns_steps=3)
  config_lib.set_size(config, "2x64x96x4")
  # X X^T and the product with X: 2 m^2 n each; the square of the first: 2 m^3.
  square = 4 * 64 * 64 * 64 + 2 * 64**3
  wide = 4 * 64 * 64 * 96 + 2 * 64**3
  expected = 3 * 2 * (4 * square + 2 * wide)
  assert optimizers.flops(config, inputs.abstract_params) == expected

  def never(config):
    raise AssertionError("AdamW needs no shapes")

  assert optimizers.flops(config_lib.base(), never) == 0.0


def test_flops_are_what_xla_counts():
  def counted(config, shapes):
    optimizer = optimizers.make_optimizer(config)
    state = jax.eval_shape(optimizer.init, shapes)
    lowered = jax.jit(optimizer.update).lower(shapes, state, shapes)
    return lowered.compile().cost_analysis()["flops"]

  config = muon()
  config_lib.set_size(config, "2x192x320x4")
  shapes = inputs.abstract_params(config)
  ours = optimizers.flops(config, inputs.abstract_params)
  both = counted(config, shapes)
  config.optimizer.name = "adamw"
  # XLA counts sums with the identity and scalings as well: 3 to 6 m^2 a step.
  assert both - counted(config, shapes) == pytest.approx(ours, rel=0.02)


def test_state_lies_where_its_parameters_lie():
  mesh = AbstractMesh((1, 2, 2), sharding.AXES)
  config = muon()
  config_lib.set_size(config, "2x128x256x4")
  params = inputs.abstract_params(config)
  state = jax.eval_shape(optimizers.make_optimizer(config).init, params)
  whole = {"params": params, "opt": state}
  places = by_path(sharding.of_state(config, mesh, whole))
  found = {path: [] for path in by_path(params)}
  for path, place in places.items():
    for name in found:
      if path.startswith("opt/") and path.endswith(f"/{name}"):
        assert place.spec == places[f"params/{name}"].spec, path
        found[name].append(path)
  for name, moments in found.items():
    kernel = name.endswith("kernel") and "/layers/" in name
    assert len(moments) == (1 if kernel else 2), name  # Momentum; or mean, var.
  cut = places["params/backbone/encoder/layers/up/kernel"].spec
  assert cut == PartitionSpec(None, "fsdp", "tensor")


def test_adamws_state_is_as_it_was():
  config = config_lib.base()
  params = {"a": {"kernel": jnp.ones((2, 3))}}
  ours = optimizers.make_optimizer(config).init(params)
  theirs = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adamw(lambda _: 0.1)
  ).init(params)
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)


def test_the_table_gives_knobs_names_and_checks(monkeypatch):
  def refuse(config):
    raise UserError("refused")

  config = config_lib.base()
  config.optimizer.name = "muom"
  with pytest.raises(UserError, match="did you mean 'muon'"):
    config_lib.validate(config)

  twice = {"b1": Knob(0.5, "Another meaning.")}
  own = {"momentum": Knob(0.9, "Decay of the momentum.")}

  def make(config, schedule):
    return optax.sgd(schedule, config.optimizer.momentum)

  sgd = Optimizer(make, own, check=refuse)
  monkeypatch.setitem(optimizers.OPTIMIZERS, "sgd", sgd)
  config = config_lib.base()
  config_lib.validate(config)  # Only the chosen one is asked.
  config.optimizer.name = "sgd"
  assert config.optimizer.momentum == 0.9
  optimizers.make_optimizer(config).init({"x": jnp.ones(3)})
  with pytest.raises(UserError, match="refused"):
    config_lib.validate(config)

  monkeypatch.setitem(optimizers.OPTIMIZERS, "sgd", Optimizer(make, twice))
  with pytest.raises(AssertionError, match="b1"):
    optimizers.knobs()


@pytest.mark.slow
def test_a_run_with_muon_learns_and_resumes_bit_for_bit(tmp_path):
  config = tiny(12, "tera")
  config.optimizer.name = "muon"
  config.data.bucket_seconds = (1.6,)
  whole, resumed = tmp_path / "whole", tmp_path / "resumed"
  result = loop.train(config, whole)
  assert result["valid_loss"] < 0.99 * result["first_valid_loss"]
  shutil.copytree(whole, resumed)
  # As if it had been killed after update 9 was saved.
  (resumed / "result.json").unlink()
  shutil.rmtree(resumed / "checkpoints" / "12")
  loop.train(config, resumed)
  assert reproducible(resumed) == reproducible(whole)
  for ours, theirs in zip(
    *(jax.tree.leaves(state_of(x)) for x in (resumed, whole)), strict=True
  ):
    np.testing.assert_array_equal(ours, theirs)
