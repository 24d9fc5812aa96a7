"""Kernels of GPUs in training's bfloat16: compiled on a GPU, else interpreted.

`launch/gpu_check.sh` runs them on a GPU.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.models import attention
from ssl_jax.models.dropout import key_words, row_keys
from ssl_jax.models.gelu import gelu
from ssl_jax.models.kernels import attention_gpu, norm_gpu, stem_gpu
from ssl_jax.models.norm import EPSILON, add_norm

# Of the largest number: bfloat16 rounds to one in 256, and sums of it add up.
TOLERANCE = 0.02


@pytest.fixture
def interpret():
  return jax.default_backend() != "gpu"


def normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape).astype(jnp.bfloat16)


def words_of(*rows):
  return key_words(row_keys(jax.random.key(7), jnp.array(rows)))


def assert_same(kernel, plain, *arguments):
  """Results and gradients; the plain function's are of float32."""
  wide = [argument.astype(jnp.float32) for argument in arguments]
  found, transpose = jax.vjp(jax.jit(kernel), *arguments)
  with jax.default_matmul_precision("float32"):
    expected, plain_transpose = jax.vjp(jax.jit(plain), *wide)
    dy = normal(99, *expected.shape)
    gradients = plain_transpose(dy.astype(expected.dtype))
  pairs = [
    (found, expected),
    *zip(transpose(dy.astype(found.dtype)), gradients),
  ]
  for ours, theirs in pairs:
    ours, theirs = np.asarray(ours, np.float32), np.asarray(theirs)
    scale = np.abs(theirs).max()
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE * scale, rtol=0)


@pytest.mark.parametrize(("time", "head_dim"), [(130, 48), (64, 64)])
@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_attention(interpret, time, head_dim, rate):
  frames, words = jnp.array([time, 37]), words_of(3, 4)
  heads = jnp.arange(2)
  real = (jnp.arange(time) < frames[:, None])[..., None, None]

  def run(packed):
    out = attention_gpu.attention(
      packed, frames, words, heads, rate, interpret=interpret
    )
    return jnp.where(real, out, 0)

  def plain(packed):
    out = attention.plain(packed, frames, words, heads, rate)
    return jnp.where(real, out, 0)

  assert_same(run, plain, normal(0, 2, time, 3, 2, head_dim))


@pytest.mark.parametrize("rate", [0.0, 0.2])
def test_add_norm(interpret, rate):
  words, shape = words_of(1, 2), (2, 70, 96)

  def run(x, y, *vectors):
    return norm_gpu.add_norm(
      x, y, *vectors, words, rate, 1, EPSILON, interpret=interpret
    )

  def plain(x, y, *vectors):
    return add_norm(x, y, *vectors, words, rate, 1)

  vectors = (normal(seed, 96) for seed in range(2, 5))
  assert_same(run, plain, normal(0, *shape), normal(1, *shape), *vectors)


def test_first_layer(interpret):
  def run(windows, kernel):
    return stem_gpu.first_layer(windows, kernel, interpret=interpret)

  def plain(windows, kernel):
    return gelu(jnp.einsum("bti,bic->btc", windows, kernel))

  assert_same(run, plain, normal(0, 2, 531, 11), normal(1, 2, 11, 128))
