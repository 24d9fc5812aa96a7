"""Dropout, and the keys that give every clip random draws of its own."""

import functools
import math

import jax
import jax.numpy as jnp

_SITES = 2**27  # Lines that tell the uses of a key apart: up to 16.
COLUMNS = 2**31  # Lines from here on are columns.


def dropout(
  x: jax.Array, rate: float, words: jax.Array | None, site: int = 0
) -> jax.Array:
  """Dropout drawn clip by clip, so that no split of the batch changes it.

  Args:
    x: [B, ..., C].
    rate: dropped share.
    words: uint32 [B, 2], of a key a clip (`key_words`); None drops nothing.
    site: tells up to 16 uses of one key apart.
  """
  return x if words is None or rate == 0 else _drop(x, words, rate, site)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
@functools.partial(jax.jit, static_argnums=(2, 3), inline=True)
def _drop(x: jax.Array, words: jax.Array, rate: float, site: int) -> jax.Array:
  rows, columns = row_and_column_bits(
    words, math.prod(x.shape[1:-1]), x.shape[-1], site
  )
  kept = is_kept(rows[..., None], columns[:, None], rate).reshape(x.shape)
  return jnp.where(kept, x * (1 / (1 - rate)), 0)


def _forward(
  x: jax.Array, words: jax.Array, rate: float, site: int
) -> tuple[jax.Array, jax.Array]:
  return _drop(x, words, rate, site), words


def _backward(
  rate: float, site: int, words: jax.Array, dy: jax.Array
) -> tuple[jax.Array, None]:
  return _drop(dy, words, rate, site), None


_drop.defvjp(_forward, _backward)


def kernel_dropout(
  words: jax.Array | None, rate: float, batch: int
) -> tuple[jax.Array, float]:
  """Returns words [B, 2] and rate for a kernel, which always takes words."""
  if words is None:
    return jnp.zeros((batch, 2), jnp.uint32), 0.0
  return words, rate


def is_kept(rows: jax.Array, columns: jax.Array, rate: float) -> jax.Array:
  """Decides which elements survive, from random bits of rows and of columns.

  Element (i, j) survives if a hash of the bits of row i and of column j is
  below 1 - rate.

  Three operations for a decision; threefry, which makes the keys, takes a
  hundred: more than attention's own, where each weight is dropped or kept.
  Decisions are as independent as random numbers, by tests/test_dropout.py.
  """
  bits = (rows + columns) * ((rows ^ columns) | jnp.uint32(1))
  return bits < jnp.uint32(round((1 - rate) * 2**32))


def row_and_column_bits(
  words: jax.Array, rows: int, columns: int, site: int = 0
) -> tuple[jax.Array, jax.Array]:
  """Lines for `is_kept`. words uint32 [B, 2] -> [B, rows], [B, columns]."""
  return (
    _line_bits(words, site * _SITES, rows),
    _line_bits(words, site * _SITES + COLUMNS, columns),
  )


def weight_bits(
  words: jax.Array, heads: jax.Array, time: int
) -> tuple[jax.Array, jax.Array]:
  """Bits of attention weights' rows [B, H, T] and columns [B, T].

  They are for `is_kept`.

  Args:
    words: uint32 [B, 2], of the clips' dropout keys.
    heads: int32 [H], which heads of the layer these are.
    time: T, frames.
  """
  # Heads follow each other.
  index = (heads[:, None] * time + jnp.arange(time)).astype(jnp.uint32)
  rows = hash_bits(index, *words.T[..., None, None])
  return rows, row_and_column_bits(words, 0, time)[1]


def _line_bits(words: jax.Array, first: int, count: int) -> jax.Array:
  index = jnp.arange(count, dtype=jnp.uint32) + jnp.uint32(first)
  return hash_bits(index, *words.T[..., None])


def hash_bits(
  index: jax.Array, first: jax.Array, second: jax.Array
) -> jax.Array:
  """uint32 bits of an index and a key's two words.

  One round each of multiplication and shift before and after the second word is
  added (multipliers of Wellons, "Prospecting for Hash Functions", 2018).
  """
  bits = index * jnp.uint32(0x9E3779B9) + first
  bits = (bits ^ (bits >> 16)) * jnp.uint32(0x7FEB352D) + second
  bits = (bits ^ (bits >> 15)) * jnp.uint32(0x846CA68B)
  return bits ^ (bits >> 16)


def key_words(keys: jax.Array) -> jax.Array:
  """Two words of each key. [B] -> uint32 [B, 2]."""
  words = jax.random.key_data(keys).astype(jnp.uint32)
  return words[:, jnp.array([0, -1])]


def row_keys(key: jax.Array, draw_ids: jax.Array) -> jax.Array:
  """A key per clip. draw_ids int32 [B] -> keys [B]."""
  return jax.vmap(jax.random.fold_in, (None, 0))(key, draw_ids)


def fold_in_all(keys: jax.Array, data: jax.Array | int) -> jax.Array:
  """The same number folded into each of keys [B]."""
  return jax.vmap(jax.random.fold_in, (0, None))(keys, data)
