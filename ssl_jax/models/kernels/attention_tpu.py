"""Attention on TPUs: neither weights nor their dropout reach HBM.

A clip's heads are computed one after the other, each whole: a head's weights
of 16 s fill 2.4 MB of the core's own memory (VMEM). The backward pass makes
them again. A kernel claims no more of VMEM than it takes, as XLA moves out of
it what else is there.

Axes: B clips, T frames, H heads, D width of a head.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ssl_jax.models.dropout import COLUMNS, hash_bits, is_kept

_LOWEST = -1e30
# Float32 arrays [T, T] that the forward and the backward kernel have room for,
# about twice of what was seen (libtpu 0.0.42).
_SQUARES = (3, 5)
# The compiler for v5p takes more: Slim's backward kernel of 15.6 s did not fit
# what it takes elsewhere, and fits one and a half times as much.
_SMALL_VMEM = 64 * 2**20


def fits(packed: jax.Array, vmem: int) -> bool:
  """Tells whether a core's VMEM, in bytes, has room for a clip's kernels."""
  _, time, _, heads, width = packed.shape
  # The backward kernel takes queries, keys, values and the result's gradient,
  # and makes the gradients of the first three.
  row_bytes = 7 * heads * width * packed.dtype.itemsize
  return _vmem(time, row_bytes, _SQUARES[1]) <= 0.75 * vmem


def _vmem(time: int, row_bytes: int, squares: int) -> int:
  """Bytes of VMEM for rows, of which a next clip's are under way, and weights.

  Args:
    time: T.
    row_bytes: of a frame in all that a kernel takes and makes.
    squares: arrays [T, T].
  """
  return 2 * time * row_bytes + 4 * squares * time**2


def _claim(time: int, row_bytes: int, squares: int, vmem: int) -> int:
  """Bytes of VMEM that a kernel asks for; the rest as of `_vmem`.

  Args:
    vmem: of a core, in bytes; 0: unknown.
  """
  bytes_ = _vmem(time, row_bytes, squares)
  if 0 < vmem <= _SMALL_VMEM:
    return max(bytes_, min(bytes_ * 3 // 2, vmem * 9 // 10))
  return bytes_


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def attention(
  packed: jax.Array,
  frames: jax.Array,
  words: jax.Array,
  heads: jax.Array,
  rate: float,
  vmem: int = 0,
  interpret: bool = False,
) -> jax.Array:
  """Computes what `ssl_jax.models.attention.plain` does.

  packed [B, T, 3, H, D], frames int32 [B], words uint32 [B, 2],
  heads int32 [H] -> [B, T, H, D]. `vmem`: bytes that a core has; 0: unknown.
  """
  batch, time, _, num_heads, width = packed.shape
  return _call(
    _forward_kernel,
    (packed,),
    (batch, time, num_heads, width),
    (frames, words, heads),
    rate,
    vmem,
    interpret,
  )


def _forward(*arguments: Any) -> tuple[jax.Array, tuple]:
  return attention(*arguments), arguments[:4]


def _backward(
  rate: float, vmem: int, interpret: bool, saved: tuple, d_out: jax.Array
) -> tuple:
  packed, *scalars = saved
  gradient = _call(
    _backward_kernel,
    (packed, d_out),
    packed.shape,
    tuple(scalars),
    rate,
    vmem,
    interpret,
  )
  return gradient, None, None, None


attention.defvjp(_forward, _backward)


def _call(
  kernel: Any,
  inputs: tuple[jax.Array, ...],
  out_shape: tuple[int, ...],
  scalars: tuple[jax.Array, ...],
  rate: float,
  vmem: int,
  interpret: bool,
) -> jax.Array:
  """Runs a kernel clip by clip on arrays [B, T, ..., H, D]."""
  batch, time, *_, heads, width = out_shape
  flat = [x.reshape(batch, time, -1) for x in inputs]
  out = jax.ShapeDtypeStruct(
    (batch, time, math.prod(out_shape[2:])), flat[0].dtype
  )

  def clip(x: Any) -> pl.BlockSpec:
    return pl.BlockSpec((None, *x.shape[1:]), lambda b, *_: (b, 0, 0))

  backward = len(inputs) > 1
  products = 5 if backward else 2  # Pairs of [T, D] and [T, T] a head.
  rows = sum(x.shape[-1] * x.dtype.itemsize for x in (*flat, out))
  made = pl.pallas_call(
    functools.partial(kernel, heads=heads, width=width, rate=rate),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=len(scalars),
      grid=(batch,),
      in_specs=[clip(x) for x in flat],
      out_specs=clip(out),
    ),
    out_shape=out,
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel",),
      vmem_limit_bytes=_claim(time, rows, _SQUARES[backward], vmem),
    ),
    cost_estimate=pl.CostEstimate(
      flops=2 * products * batch * heads * width * time**2,
      transcendentals=batch * heads * time**2,
      bytes_accessed=sum(x.nbytes for x in flat)
      + math.prod(out.shape) * out.dtype.itemsize,
    ),
    interpret=interpret,
    name=kernel.__name__.strip("_"),
  )(*scalars, *flat)
  return made.reshape(out_shape)


def _parts(heads: int, width: int) -> list[list[slice]]:
  """Places each head's query, key and value in a row of all of them."""
  return [
    [
      slice((part * heads + head) * width, (part * heads + head + 1) * width)
      for part in range(3)
    ]
    for head in range(heads)
  ]


def _weights(query: jax.Array, key: jax.Array, frames: jax.Array) -> jax.Array:
  """Softmax over the real frames. Two of [T, D] -> float32 [T, T]."""
  logits = _product(query, key, 1, 1) * query.shape[-1] ** -0.5
  column = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
  logits = jnp.where(column < frames, logits, _LOWEST)
  weights = jnp.exp(logits - logits.max(axis=1, keepdims=True))
  return weights / weights.sum(axis=1, keepdims=True)


def _keep(
  x: jax.Array, words_ref: Any, head: jax.Array, rate: float
) -> jax.Array:
  """Dropout of one head's weights [T, T], or of their gradients."""
  if not rate:
    return x
  time, clip = x.shape[0], pl.program_id(0)

  def line(shape: tuple[int, int], axis: int, first: Any) -> jax.Array:
    index = jax.lax.broadcasted_iota(jnp.int32, shape, axis) + first
    index = index.astype(jnp.uint32) + jnp.uint32(axis * COLUMNS)
    return hash_bits(index, words_ref[clip, 0], words_ref[clip, 1])

  rows, columns = line((time, 1), 0, head * time), line((1, time), 1, 0)
  return jnp.where(is_kept(rows, columns, rate), x * (1 / (1 - rate)), 0.0)


def _product(x: jax.Array, y: jax.Array, axis: int, other: int) -> jax.Array:
  """Over an axis of each, summed in float32."""
  return jax.lax.dot_general(
    x,
    y,
    (((axis,), (other,)), ((), ())),
    preferred_element_type=jnp.float32,
  )


def _forward_kernel(
  frames_ref: Any,
  words_ref: Any,
  heads_ref: Any,
  packed_ref: Any,
  out_ref: Any,
  *,
  heads: int,
  width: int,
  rate: float,
) -> None:
  frames = frames_ref[pl.program_id(0)]
  for head, parts in enumerate(_parts(heads, width)):
    query, key, value = (packed_ref[:, part] for part in parts)
    weights = _weights(query, key, frames)
    weights = _keep(weights, words_ref, heads_ref[head], rate)
    out = _product(weights.astype(value.dtype), value, 1, 0)
    out_ref[:, parts[0]] = out.astype(out_ref.dtype)


def _backward_kernel(
  frames_ref: Any,
  words_ref: Any,
  heads_ref: Any,
  packed_ref: Any,
  d_out_ref: Any,
  gradient_ref: Any,
  *,
  heads: int,
  width: int,
  rate: float,
) -> None:
  frames = frames_ref[pl.program_id(0)]
  for head, parts in enumerate(_parts(heads, width)):
    query, key, value = (packed_ref[:, part] for part in parts)
    d_out = d_out_ref[:, parts[0]]
    weights = _weights(query, key, frames)
    dropped = _keep(weights, words_ref, heads_ref[head], rate)
    d_value = _product(dropped.astype(d_out.dtype), d_out, 0, 0)
    d_weights = _product(d_out, value, 1, 1)
    d_weights = _keep(d_weights, words_ref, heads_ref[head], rate)
    d_logits = d_weights - (d_weights * weights).sum(axis=1, keepdims=True)
    d_logits = (weights * d_logits * width**-0.5).astype(query.dtype)
    d_query = _product(d_logits, key, 1, 0)
    d_key = _product(d_logits, query, 0, 0)
    for part, gradient in zip(parts, (d_query, d_key, d_value)):
      gradient_ref[:, part] = gradient.astype(gradient_ref.dtype)
