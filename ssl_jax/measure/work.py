"""The work that is timed: a training step, the stem, a frozen encoder."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ssl_jax import process
from ssl_jax.budget.flops import forward_flops
from ssl_jax.budget.updates import clip_flops
from ssl_jax.devices import sharding
from ssl_jax.measure import calibrate
from ssl_jax.measure.sides import Subject
from ssl_jax.models import frontends
from ssl_jax.models.backbone import Backbone, compute_dtype

_PEAK_REPEATS = 5
_REPEATS = 10  # On an accelerator.


def step(
  config: ConfigDict, rows: int, length: int, cache: str | None = None
) -> Subject:
  """One training update, from int16 samples to new parameters.

  `cache` is a folder of compiled programs; None: compiled anew.
  """
  _prepare(cache)
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  update = calibrate.noise_step(config, mesh, rows, length)
  return _subject(update, config)


def stem(config: ConfigDict, rows: int, length: int) -> Subject:
  """The stem, forwards and backwards to its parameters."""
  _prepare()
  module = frontends.make(config.frontend, compute_dtype(config))
  waveform, real = _noise(rows, length)
  params = module.init(jax.random.key(0), waveform, real)

  @jax.jit
  def gradient(params: Any, waveform: jax.Array, real: jax.Array) -> Any:
    def total(params: Any) -> jax.Array:
      return jnp.square(module.apply(params, waveform, real)).mean()

    return jax.value_and_grad(total)(params)

  return _subject(lambda: gradient(params, waveform, real), config)


def probe(config: ConfigDict, rows: int, length: int) -> Subject:
  """All hidden states of a frozen encoder, as probes read them."""
  _prepare()
  module = Backbone(config, compute_dtype(config))
  waveform, real = _noise(rows, length)
  params = module.init(jax.random.key(0), waveform[:1, :3200], real[:1])

  @jax.jit
  def states(params: Any, waveform: jax.Array, real: jax.Array) -> jax.Array:
    return module.apply(params, waveform, real, all_states=True).hidden

  return _subject(lambda: states(params, waveform, real), config)


def flops(what: str, config: ConfigDict, length: int) -> float:
  """Counts the FLOPs of one clip, as `ssl_jax.flops` does."""
  if what == "step":
    return clip_flops(config, length).training
  forward = forward_flops(config, length, head=0)
  return forward.total if what == "probe" else 3 * forward.stem


def _prepare(cache: str | None = None) -> None:
  """This process, as `ssl_jax.main` prepares its own."""
  process.prepare()
  jax.config.update("jax_compilation_cache_dir", cache)


def _noise(rows: int, length: int) -> tuple[jax.Array, jax.Array]:
  waveform = np.random.default_rng(0).normal(0, 0.1, (rows, length))
  return jnp.asarray(waveform, jnp.float32), jnp.full(rows, length)


def _subject(work: Callable[[], Any], config: ConfigDict) -> Subject:
  device = jax.devices()[0]
  memory = None
  if device.platform != "cpu":
    memory = lambda: device.memory_stats()["peak_bytes_in_use"]  # noqa: E731

  def run(times: int) -> None:
    for _ in range(times):
      made = work()
    jax.block_until_ready(made)

  def facts() -> dict[str, Any]:
    return {
      "device": device.device_kind,
      "library": f"jax {jax.__version__}",
      "dtype": str(compute_dtype(config)),
      "matmul_flops_per_second": matmul_peak(compute_dtype(config)),
    }

  return Subject(run, memory, facts, 1 if memory is None else _REPEATS)


def matmul_peak(dtype: jnp.dtype) -> float:
  """FLOP/s of a large square matrix product: the best of a few."""
  size = 2048 if jax.default_backend() == "cpu" else 8192
  # Ones take less power than a model's numbers: GPUs multiply them faster.
  x = jax.random.normal(jax.random.key(0), (size, size), dtype)
  product = jax.jit(jnp.matmul)
  product(x, x).block_until_ready()
  taken = []
  for _ in range(_PEAK_REPEATS):
    before = time.monotonic()
    product(x, x).block_until_ready()
    taken.append(time.monotonic() - before)
  return 2 * size**3 / min(taken)
