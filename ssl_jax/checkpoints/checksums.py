"""Checksums of arrays on devices, however they are sharded."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp


def checksums(tree: Any) -> dict[str, int]:
  """Returns {path: uint32}, a number that any other bits would change.

  The sum, modulo 2^32, of its elements' bits times 2 i + 1, i the place: the
  same however the array is sharded, and another if one element differs.
  """
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  sums = jax.device_get(_sums([array for _, array in leaves]))
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): int(value)
    for (path, _), value in zip(leaves, sums)
  }


@jax.jit
def _sums(arrays: Sequence[jax.Array]) -> list[jax.Array]:
  return [_sum(array) for array in arrays]


def _sum(array: jax.Array) -> jax.Array:
  unsigned = jnp.dtype(f"uint{8 * array.dtype.itemsize}")
  bits = jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)
  place = jnp.zeros(array.shape, jnp.uint32)
  for axis in range(array.ndim):  # Reshaping would gather shards.
    stride = jnp.uint32(math.prod(array.shape[axis + 1 :]) % 2**32)
    place += stride * jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
  return (bits * (2 * place + 1)).sum(dtype=jnp.uint32)
