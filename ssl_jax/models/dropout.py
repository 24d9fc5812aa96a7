"""Dropout, and the keys that give every clip random draws of its own."""

import math

import jax
import jax.numpy as jnp


def dropout(
  x: jax.Array, rate: float, keys: jax.Array | None, site: int
) -> jax.Array:
  """Dropout drawn clip by clip, so that no split of the batch changes it.

  x [B, ...]; keys [B], None to keep all; `site` tells apart uses of one key.
  """
  if keys is None or rate == 0:
    return x
  bits = position_bits(fold_in_all(keys, site), x.shape[1:])
  kept = bits < jnp.uint32(round((1 - rate) * 2**32))
  return jnp.where(kept, x * (1 / (1 - rate)), 0)


def position_bits(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Random bits of each position, cheap enough to compute where they are used.

  keys [B] -> uint32 [B, *shape]. A hash of position and key: one round each of
  multiplication and shift before and after the key's second half is added
  (multipliers of Wellons, "Prospecting for Hash Functions", 2018). Threefry,
  which makes the keys, takes ten times the operations for each word: more than
  attention's own, where each weight is dropped or kept.
  """
  words = jax.random.key_data(keys).astype(jnp.uint32)
  first, second = (words[:, i].reshape(-1, *(1,) * len(shape)) for i in (0, -1))
  position = jnp.zeros(shape, jnp.uint32)
  for axis in range(len(shape)):
    stride = jnp.uint32(math.prod(shape[axis + 1 :]))
    index = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    position = position + stride * index
  bits = position[None] * jnp.uint32(0x9E3779B9) + first
  bits = (bits ^ (bits >> 16)) * jnp.uint32(0x7FEB352D) + second
  bits = (bits ^ (bits >> 15)) * jnp.uint32(0x846CA68B)
  return bits ^ (bits >> 16)


def row_keys(key: jax.Array, rows: jax.Array) -> jax.Array:
  """A key per clip. rows int32 [B] -> keys [B]."""
  return jax.vmap(jax.random.fold_in, (None, 0))(key, rows)


def fold_in_all(keys: jax.Array, data: jax.Array | int) -> jax.Array:
  """The same number folded into each of keys [B]."""
  return jax.vmap(jax.random.fold_in, (0, None))(keys, data)
