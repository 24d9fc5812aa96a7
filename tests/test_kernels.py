"""Kernels of accelerators against the plain functions, interpreted on a CPU."""

import functools
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.models import attention
from ssl_jax.models.dropout import key_words, row_keys
from ssl_jax.models.gelu import gelu
from ssl_jax.models.kernels import (
  attention_gpu,
  attention_tpu,
  norm_gpu,
  stem_gpu,
)
from ssl_jax.models.norm import EPSILON, add_norm, layer_norm

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def exact_products():
  """Both sides then differ by rounding alone."""
  with jax.default_matmul_precision("float32"):
    yield


def normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


def words_of(*rows):
  return key_words(row_keys(jax.random.key(7), jnp.array(rows)))


def assert_same(kernel, plain, *arguments, dy=None, atol=2e-6):
  """Results and gradients, relative to the largest of each."""
  found, transpose = jax.vjp(jax.jit(kernel), *arguments)
  expected, plain_transpose = jax.vjp(jax.jit(plain), *arguments)
  dy = normal(99, *expected.shape) if dy is None else dy
  pairs = [(found, expected), *zip(transpose(dy), plain_transpose(dy))]
  for ours, theirs in pairs:
    theirs = np.asarray(theirs)
    scale = max(np.abs(theirs).max(), 1e-6)
    np.testing.assert_allclose(ours, theirs, atol=atol * scale, rtol=0)


@pytest.mark.parametrize("kernel", [attention_gpu, attention_tpu])
@pytest.mark.parametrize(
  ("time", "frames", "rate"),
  [(100, (100, 37), 0.3), (64, (64, 1), 0.0), (130, (128, 65), 0.1)],
)
def test_attention(kernel, time, frames, rate):
  frames, words = jnp.array(frames), words_of(3, 4)
  heads = jnp.array([2, 5])  # Of a layer cut between devices.
  packed = normal(0, 2, time, 3, 2, 24)
  real = (jnp.arange(time) < frames[:, None])[..., None, None]
  # What later layers make of frames past a clip's end has no gradient.
  dy = jnp.where(real, normal(1, 2, time, 2, 24), 0)

  def run(packed):
    out = kernel.attention(packed, frames, words, heads, rate, interpret=True)
    return jnp.where(real, out, 0)

  def plain(packed):
    out = attention.plain(packed, frames, words, heads, rate)
    return jnp.where(real, out, 0)

  assert_same(run, plain, packed, dy=dy, atol=5e-6)


@pytest.mark.parametrize(("time", "width"), [(21, 24), (64, 64), (40, 96)])
@pytest.mark.parametrize("rate", [0.0, 0.2])
def test_add_norm(time, width, rate):
  words = words_of(1, 2, 3)
  shape = (3, time, width)

  def run(x, y, y_bias, scale, bias):
    return norm_gpu.add_norm(
      x, y, y_bias, scale, bias, words, rate, 1, EPSILON, interpret=True
    )

  def plain(x, y, y_bias, scale, bias):
    return add_norm(x, y, y_bias, scale, bias, words, rate, 1)

  vectors = (normal(seed, width) for seed in range(2, 5))
  assert_same(run, plain, normal(0, *shape), normal(1, *shape), *vectors)


@pytest.mark.parametrize("time", [5, 32, 531])
def test_first_layer(time):
  windows = normal(0, 2, time, 11)

  def plain(windows, kernel):
    return gelu(jnp.einsum("bti,bic->btc", windows, kernel))

  run = functools.partial(stem_gpu.first_layer, interpret=True)
  assert_same(run, plain, windows, normal(1, 2, 11, 128))


def test_layer_norm_equals_torch():
  torch = pytest.importorskip("torch")
  x, scale, bias, dy = normal(0, 5, 32), normal(1, 32), normal(2, 32), None
  dy = normal(3, 5, 32)
  found, transpose = jax.vjp(layer_norm, x, scale, bias)
  theirs = [torch.tensor(np.asarray(v), requires_grad=True) for v in (x, scale)]
  theirs.append(torch.tensor(np.asarray(bias), requires_grad=True))
  expected = torch.nn.functional.layer_norm(
    theirs[0], (32,), theirs[1], theirs[2]
  )
  expected.backward(torch.tensor(np.asarray(dy)))
  np.testing.assert_allclose(found, expected.detach(), atol=2e-6)
  for ours, leaf in zip(transpose(dy), theirs):
    np.testing.assert_allclose(ours, leaf.grad, atol=1e-5)


def test_gelu_equals_scipy_and_its_derivative():
  from scipy.stats import norm

  x = np.linspace(-8, 8, 4001, dtype=np.float32)
  exact = x.astype(np.float64)
  np.testing.assert_allclose(gelu(x), exact * norm.cdf(exact), atol=6e-7)
  slope = norm.cdf(exact) + exact * norm.pdf(exact)
  np.testing.assert_allclose(
    jax.vmap(jax.grad(gelu))(jnp.asarray(x)), slope, atol=6e-7
  )


# As if on GPUs, on a mesh of four devices: XLA cuts no kernel, shard_map does.
ON_FOUR = """
import jax, numpy as np
import mesh_runs
from ssl_jax.models.kernels import attention_gpu, norm_gpu, stem_gpu
from ssl_jax.models.placement import Placement
from ssl_jax.devices import sharding
from ssl_jax.measure import calibrate

def losses(mesh, kernels, rows=4):
  Placement.kernels = kernels
  config = mesh_runs.settings("hubert", (1, 1, 1))
  config.frontend.name, config.hubert.labels = "waveform", "noise"
  update = calibrate.noise_step(config, mesh, rows, 6400)
  return [
    [float(update()[name]) for name in ("loss", "grad_norm", "param_norm")]
    for _ in range(3)
  ]

expected = losses(sharding.make_mesh(devices=jax.devices()[:1]), "")
called = set()
for module, name in (
  (attention_gpu, "attention"),
  (norm_gpu, "add_norm"),
  (stem_gpu, "first_layer"),
):
  def interpreted(*arguments, kernel=getattr(module, name), name=name):
    called.add(name)
    # The stem's own gradient calls it with the flag.
    flag = () if isinstance(arguments[-1], bool) else (True,)
    return kernel(*arguments, *flag)
  setattr(module, name, interpreted)
mesh = sharding.make_mesh((2, 1, 2))
np.testing.assert_allclose(losses(mesh, "gpu"), expected, rtol=2e-5)
losses(mesh, "gpu", rows=2)  # Fewer rows than devices.
assert len(called) == 3, called
"""


# Validation and frozen encoders on four TPUs, as far as MLIR.
FOR_TPUS = """
import functools
import jax, jax.numpy as jnp
import mesh_runs
from ssl_jax import optimizers
from ssl_jax.models.backbone import Backbone
from ssl_jax.models.placement import Placement
from ssl_jax.objectives import make_objective
from ssl_jax.devices import sharding
from ssl_jax.objectives import inputs
from ssl_jax import optimizers
from ssl_jax.training import step

Placement.kernels, sharding._OnMesh.vmem = "tpu", 64 * 2**20
config = mesh_runs.settings("hubert", (1, 1, 1))
config.hubert.labels = "noise"
mesh = sharding.make_mesh()
objective = make_objective(config, jnp.float32)
state = jax.eval_shape(
  lambda: step.init_state(objective, optimizers.make_optimizer(config), config)
)
by_row = sharding.by_row(mesh)
batch = inputs.abstract_batch(config, 4, 6400)

def lower(function, placed, *arguments):
  jitted = jax.jit(function, in_shardings=placed)
  text = jitted.trace(*arguments).lower(lowering_platforms=("tpu",)).as_text()
  assert "tpu_custom_call" in text

valid_step = step.make_valid_step(objective, config, mesh)
lower(valid_step, (None, by_row), {"params": state["params"]}, batch)

backbone = Backbone(config, jnp.float32)
waveform = jax.ShapeDtypeStruct((4, 6400), jnp.float32)
params = jax.eval_shape(
  backbone.init, jax.random.key(0), waveform, batch["length"]
)
params = jax.tree.map(lambda x: jnp.zeros(x.shape), params)
states = functools.partial(backbone.apply, params)
lower(
  sharding.suited(by_row, lambda *x: states(*x).hidden),
  by_row,
  waveform,
  batch["length"],
)
"""


# What suits chips that are not there: the stem's segments, attention's kernels.
FOR_CHIPS = """
import jax, jax.numpy as jnp
from jax.experimental import topologies
from ssl_jax.devices import sharding
from ssl_jax.models import placement
from ssl_jax.models.attention import attention

for name, segments in (("v5e:2x2", 16), ("v5p:2x2x1", 32), ("tpu7x:2x2x1", 32)):
  described = topologies.get_topology_desc(platform="tpu", topology_name=name)
  mesh = sharding.make_mesh(devices=described.devices)
  with sharding.suit(mesh):  # The stem's rows of a clip of 15.6 s.
    place = placement.current()
    assert place.segments(2 * mesh.size, 50_000 * 512 * 2) == segments, name
  if segments == 16:
    continue  # The step is compiled for v5e in test_compile.py.
  rows = sharding.by_row(mesh)

  def gradient(packed, frames, words, dy):
    with sharding.suit(mesh):
      run = lambda x: attention(x, frames, words, 0.1)
      return jax.vjp(run, packed)[1](dy)

  def array(*shape, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct((mesh.size, *shape), dtype, sharding=rows)

  # Slim's heads took more than elsewhere on v5p.
  heads = (8, 48) if name.startswith("v5p") else (2, 64)
  arrays = array(784, 3, *heads), array(dtype=jnp.int32)
  arrays += array(2, dtype=jnp.uint32), array(784, *heads)
  text = jax.jit(gradient).lower(*arrays).compile().as_text()
  assert "backward_kernel" in text, name
"""


@pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None,
  reason="the TPU compiler, libtpu, is not installed",
)
def test_models_suit_the_vmem_of_chips_that_are_not_there():
  run_on_four(
    FOR_CHIPS,
    JAX_PLATFORMS="cpu",
    TPU_ACCELERATOR_TYPE="v5litepod-4",
    TPU_SKIP_MDS_QUERY="1",
    TPU_WORKER_HOSTNAMES="localhost",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
  )


@pytest.mark.parametrize(
  ("shape", "mebibytes", "fits"),
  [
    ((784, 3, 16, 64), 64, True),  # Large, 15.6 s, on v5p and TPU7x.
    ((784, 3, 8, 48), 16, False),  # Slim on v4.
    ((1504, 3, 8, 48), 128, True),  # 30 s on v5e.
    ((3000, 3, 8, 48), 128, False),
  ],
)
def test_attention_kernels_are_for_clips_that_vmem_holds(
  shape, mebibytes, fits
):
  packed = jax.ShapeDtypeStruct((2, *shape), jnp.bfloat16)
  assert attention_tpu.fits(packed, mebibytes * 2**20) == fits


def test_frozen_models_lower_for_several_tpus():
  run_on_four(FOR_TPUS)


@pytest.mark.slow
def test_kernels_on_a_mesh_train_the_same_model():
  run_on_four(ON_FOUR)


def run_on_four(program, **environment):
  done = subprocess.run(
    [sys.executable, "-c", program],
    env=os.environ
    | {"JAX_NUM_CPU_DEVICES": "4", "PYTHONPATH": f"{ROOT}:{ROOT}/tests"}
    | environment,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-3000:]


BY_ROWS = """
import jax
import jax.numpy as jnp
import numpy as np
from ssl_jax.devices import sharding
from ssl_jax.models import placement

class Tpus(sharding._OnMesh):
  def __init__(self):
    super().__init__(sharding.make_mesh())
    self.platform = "tpu"

def function(params, x):
  return jnp.tanh(x @ params["w"] + params["b"])

def loss(params, x, place):
  if place is None:
    return jnp.square(function(params, x)).sum()
  with placement.use(place):
    return jnp.square(placement.by_rows(function, params, x)).sum()

params = {"w": jax.random.normal(jax.random.key(1), (5, 3)), "b": jnp.ones(3)}
mesh = sharding.make_mesh()
placed = sharding.replicated(mesh), sharding.by_row(mesh)
for rows in (64, 32, 12):  # 2 x 8 rows a device, 8, 3.
  x = jax.random.normal(jax.random.key(0), (rows, 5))
  gradient = jax.grad(loss, (0, 1))
  expected = jax.jit(lambda *x: gradient(*x, None))(params, x)
  on_mesh = jax.jit(lambda *x: gradient(*x, Tpus()), in_shardings=placed)
  found = on_mesh(params, x)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
    np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)
"""


def test_rows_in_groups_have_the_gradient_of_all_on_a_mesh():
  flags = "--xla_force_host_platform_device_count=4"
  done = subprocess.run(
    [sys.executable, "-c", BY_ROWS],
    env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
