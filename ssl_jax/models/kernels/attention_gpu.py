"""Attention on GPUs: neither weights nor their dropout reach memory.

Triton, through Pallas. As in FlashAttention-2 (Dao 2023), the forward pass goes
through the keys in blocks with a running maximum and sum, and the backward pass
makes the weights again from the logarithm of that sum. Whether a weight is
dropped is computed where it is used. Logarithms are of base 2.

Axes: B clips, T frames, H heads, D width of a head.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from ssl_jax.models.dropout import is_kept, weight_bits
from ssl_jax.models.kernels.gpu_math import exp2

_BLOCK = 64  # Queries and keys of a tile.
_LOWEST = -1e30


def attention(
  packed: jax.Array,
  frames: jax.Array,
  words: jax.Array,
  heads: jax.Array,
  rate: float,
  interpret: bool = False,
) -> jax.Array:
  """Computes what `ssl_jax.models.attention.plain` does.

  packed [B, T, 3, H, D], frames int32 [B], words uint32 [B, 2],
  heads int32 [H] -> [B, T, H, D].
  """
  bits = weight_bits(words, heads, packed.shape[1])
  return _attend(packed, frames[:, None], bits, rate, interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _attend(*arguments: Any) -> jax.Array:
  return _forward(*arguments)[0]


def _forward(
  packed: jax.Array,
  frames: jax.Array,
  bits: tuple[jax.Array, jax.Array],
  rate: float,
  interpret: bool,
) -> tuple[jax.Array, tuple]:
  batch, time, _, num_heads, width = packed.shape
  specs = _Specs(time, width)
  out, log_sum = pl.pallas_call(
    functools.partial(
      _forward_kernel, time=time, width=width, rate=rate, interpret=interpret
    ),
    grid=(pl.cdiv(time, _BLOCK), num_heads, batch),
    in_specs=[
      specs.part(0),
      specs.whole_part(1),
      specs.whole_part(2),
      specs.clip,
      specs.line,
      specs.whole_clip_line,
    ],
    out_specs=[specs.tile, specs.line],
    out_shape=[
      jax.ShapeDtypeStruct((batch, time, num_heads, width), packed.dtype),
      jax.ShapeDtypeStruct((batch, num_heads, time), jnp.float32),
    ],
    compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=3),
    interpret=interpret,
    name="attention",
  )(packed, packed, packed, frames, *bits)
  return out, (packed, frames, bits, out, log_sum)


def _backward(
  rate: float, interpret: bool, saved: tuple, d_out: jax.Array
) -> tuple:
  packed, frames, bits, out, log_sum = saved
  batch, time, _, num_heads, width = packed.shape
  product = d_out.astype(jnp.float32) * out.astype(jnp.float32)
  delta = product.sum(axis=-1).swapaxes(1, 2)  # [B, H, T]
  specs = _Specs(time, width)
  gradient = pl.pallas_call(
    functools.partial(
      _backward_kernel, time=time, width=width, rate=rate, interpret=interpret
    ),
    grid=(pl.cdiv(time, _BLOCK), num_heads, batch),
    in_specs=[
      *(specs.whole_part(i) for i in range(3)),
      specs.whole_tile,
      specs.whole_line,
      specs.whole_line,
      specs.clip,
      specs.whole_line,
      specs.whole_clip_line,
    ],
    out_specs=specs.parts,
    out_shape=jax.ShapeDtypeStruct(packed.shape, packed.dtype),
    compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
    interpret=interpret,
    name="attention_backward",
  )(packed, packed, packed, d_out, log_sum, delta, frames, *bits)
  return gradient, None, (None, None)


_attend.defvjp(_forward, _backward)


class _Specs:
  """The parts of arrays that a program (tile, head, clip) sees.

  Tiles are as wide as the next power of 2, and may go past the last frame.
  """

  def __init__(self, time: int, width: int):
    width = pl.next_power_of_2(width)
    padded = pl.cdiv(time, _BLOCK) * _BLOCK

    def part(rows: int, k: int) -> pl.BlockSpec:
      return pl.BlockSpec(
        (None, rows, None, None, width),
        lambda i, h, b: (b, i if rows == _BLOCK else 0, k, h, 0),
      )

    # [B, T, 3, H, D]: a tile of one of the three, all frames, all three.
    self.part = functools.partial(part, _BLOCK)
    self.whole_part = functools.partial(part, padded)
    self.parts = pl.BlockSpec(
      (None, _BLOCK, 3, None, width), lambda i, h, b: (b, i, 0, h, 0)
    )
    # [B, T, H, D].
    self.tile = pl.BlockSpec(
      (None, _BLOCK, None, width), lambda i, h, b: (b, i, h, 0)
    )
    self.whole_tile = pl.BlockSpec(
      (None, padded, None, width), lambda i, h, b: (b, 0, h, 0)
    )
    # [B, H, T], [B, T] and [B, 1].
    self.line = pl.BlockSpec((None, None, _BLOCK), lambda i, h, b: (b, h, i))
    self.whole_line = pl.BlockSpec(
      (None, None, padded), lambda i, h, b: (b, h, 0)
    )
    self.whole_clip_line = pl.BlockSpec((None, padded), lambda i, h, b: (b, 0))
    self.clip = pl.BlockSpec((None, 1), lambda i, h, b: (b, 0))


def _over_tiles(
  end: Any, body: Callable[[Any, Any, bool], Any], carry: Any
) -> Any:
  """Goes over frames 0 to `end` in tiles; only the last is told of its end."""
  whole = end // _BLOCK
  carry = jax.lax.fori_loop(
    0, whole, lambda i, carry: body(i * _BLOCK, carry, False), carry
  )
  return jax.lax.fori_loop(
    whole,
    (end + _BLOCK - 1) // _BLOCK,
    lambda i, carry: body(i * _BLOCK, carry, True),
    carry,
  )


def _inside(start: Any, time: int, width: int, last: bool) -> jax.Array:
  """Tells where a tile is real. -> bool [1 or _BLOCK, D']."""
  inside = (jnp.arange(pl.next_power_of_2(width)) < width)[None]
  if last:
    inside &= (start + jnp.arange(_BLOCK) < time)[:, None]
  return inside


def _load(
  ref: Any, start: Any, time: int, width: int, last: bool = True
) -> jax.Array:
  """A tile of frames [T, D], zeros past its ends. -> [_BLOCK, D']."""
  return plgpu.load(
    ref.at[pl.ds(start, _BLOCK), :],
    mask=_inside(start, time, width, last),
    other=0.0,
  )


def _load_line(ref: Any, start: Any, time: int, last: bool = True) -> jax.Array:
  """A tile's part of [T]. -> [_BLOCK]."""
  mask = start + jnp.arange(_BLOCK) < time if last else None
  return plgpu.load(
    ref.at[pl.ds(start, _BLOCK)], mask=mask, other=0 if last else None
  )


def _forward_kernel(
  query_ref: Any,
  key_ref: Any,
  value_ref: Any,
  frames_ref: Any,
  rows_ref: Any,
  columns_ref: Any,
  out_ref: Any,
  log_sum_ref: Any,
  *,
  time: int,
  width: int,
  rate: float,
  interpret: bool,
) -> None:
  scale, frames = width**-0.5 * math.log2(math.e), frames_ref[0]
  start = pl.program_id(0) * _BLOCK
  real = start + jnp.arange(_BLOCK) < time
  inside = _inside(start, time, width, True)
  query = plgpu.load(query_ref, mask=inside, other=0.0)
  rows = plgpu.load(rows_ref, mask=real, other=0)

  def body(keys: Any, carry: tuple, last: bool) -> tuple:
    out, highest, total = carry
    logits = plgpu.dot(query, _load(key_ref, keys, time, width, last).T)
    if last:
      seen = keys + jnp.arange(_BLOCK) < frames
      logits = jnp.where(seen[None], logits, _LOWEST)
    new = jnp.maximum(highest, logits.max(axis=1) * scale)
    weights = exp2(logits, scale, -new[:, None], interpret)
    shrink = jnp.exp2(highest - new)
    total = total * shrink + weights.sum(axis=1)
    if rate:
      columns = _load_line(columns_ref, keys, time, last)
      kept = is_kept(rows[:, None], columns[None], rate)
      weights = jnp.where(kept, weights, 0.0)
    value = _load(value_ref, keys, time, width, last)
    out = out * shrink[:, None] + plgpu.dot(weights.astype(value.dtype), value)
    return out, new, total

  out, highest, total = _over_tiles(
    frames,
    body,
    (
      jnp.zeros(query.shape, jnp.float32),
      jnp.full(_BLOCK, _LOWEST, jnp.float32),
      jnp.zeros(_BLOCK, jnp.float32),
    ),
  )
  total = jnp.maximum(total, 1e-30)  # A clip without frames.
  out *= (1 / (total * (1 - rate)))[:, None]
  plgpu.store(out_ref, out.astype(out_ref.dtype), mask=inside)
  plgpu.store(log_sum_ref, highest + jnp.log2(total), mask=real)


def _backward_kernel(
  query_ref: Any,
  key_ref: Any,
  value_ref: Any,
  d_out_ref: Any,
  log_sum_ref: Any,
  delta_ref: Any,
  frames_ref: Any,
  rows_ref: Any,
  columns_ref: Any,
  gradient_ref: Any,
  *,
  time: int,
  width: int,
  rate: float,
  interpret: bool,
) -> None:
  """Gradients of a tile's frames as keys and values, then as queries."""
  scale, frames = width**-0.5, frames_ref[0]
  start = pl.program_id(0) * _BLOCK
  inside = _inside(start, time, width, True)

  def store(part: int, gradient: jax.Array) -> None:
    at = gradient_ref.at[:, jnp.int32(part), :]
    plgpu.store(at, gradient.astype(gradient_ref.dtype), mask=inside)

  def by_query(queries: Any, last: bool) -> tuple:
    """Logarithm of the sum, delta and bits of a tile's queries."""
    refs = log_sum_ref, delta_ref, rows_ref
    return tuple(_load_line(ref, queries, time, last) for ref in refs)

  def tile(loaded: tuple, lines: tuple, columns: Any) -> tuple:
    """Weights before dropout, which are kept, and gradients of logits."""
    query, key, value, d_out = loaded
    log_sum, delta, rows = (line[:, None] for line in lines)
    logits = plgpu.dot(query, key.T)
    factor = scale * math.log2(math.e)
    weights = exp2(logits, factor, -log_sum, interpret)
    d_weights = plgpu.dot(d_out, value.T)
    if not rate:
      return weights, None, weights * (d_weights - delta)
    kept = is_kept(rows, columns[None], rate)
    d_weights = jnp.where(kept, d_weights * (1 / (1 - rate)) - delta, -delta)
    return weights, kept, weights * d_weights

  key = _load(key_ref, start, time, width)
  value = _load(value_ref, start, time, width)
  columns = _load_line(columns_ref, start, time)

  def over_queries(queries: Any, carry: tuple, last: bool) -> tuple:
    d_key, d_value = carry
    query = _load(query_ref, queries, time, width, last)
    d_out = _load(d_out_ref, queries, time, width, last)
    weights, kept, d_logits = tile(
      (query, key, value, d_out), by_query(queries, last), columns
    )
    if rate:
      weights = jnp.where(kept, weights, 0.0)
    d_value += plgpu.dot(weights.astype(d_out.dtype).T, d_out)
    d_key += plgpu.dot(d_logits.astype(query.dtype).T, query)
    return d_key, d_value

  zeros = jnp.zeros(key.shape, jnp.float32)
  d_key, d_value = _over_tiles(time, over_queries, (zeros, zeros))
  # Padded keys got a gradient that is not theirs.
  seen = (start + jnp.arange(_BLOCK) < frames)[:, None]
  d_key = jnp.where(seen, d_key * scale, 0.0)
  d_value = jnp.where(seen, d_value * (1 / (1 - rate)), 0.0)
  store(1, d_key)
  store(2, d_value)

  query = _load(query_ref, start, time, width)
  d_out = _load(d_out_ref, start, time, width)
  lines = by_query(start, True)

  def over_keys(keys: Any, d_query: jax.Array, last: bool) -> jax.Array:
    key = _load(key_ref, keys, time, width, last)
    value = _load(value_ref, keys, time, width, last)
    columns = _load_line(columns_ref, keys, time, last)
    _, _, d_logits = tile((query, key, value, d_out), lines, columns)
    if last:
      seen = keys + jnp.arange(_BLOCK) < frames
      d_logits = jnp.where(seen[None], d_logits, 0.0)
    return d_query + plgpu.dot(d_logits.astype(key.dtype), key)

  store(0, _over_tiles(frames, over_keys, zeros) * scale)
