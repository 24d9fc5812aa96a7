"""LayerNorm of a sum on GPUs: one pass over its arrays for all of it.

Triton, through Pallas. Forwards bias, dropout, sum and norm; backwards their
gradients and those of all parameters, for which XLA goes over the arrays eight
times.

Axes: B clips, T frames, D width.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from ssl_jax.models.dropout import is_kept, row_and_column_bits

_ROWS = 8  # Rows of a tile.
_CHUNK = 4  # Tiles that a program of the backward pass sums over.


def add_norm(
  x: jax.Array,
  y: jax.Array,
  y_bias: jax.Array,
  scale: jax.Array,
  bias: jax.Array,
  words: jax.Array,
  rate: float,
  site: int,
  epsilon: float,
  interpret: bool = False,
) -> jax.Array:
  """Computes what `ssl_jax.models.norm.add_norm` does."""
  bits = row_and_column_bits(words, x.shape[1], x.shape[2], site)
  return _add_norm(x, y, y_bias, scale, bias, bits, rate, epsilon, interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7, 8))
def _add_norm(
  x: jax.Array,
  y: jax.Array,
  y_bias: jax.Array,
  scale: jax.Array,
  bias: jax.Array,
  bits: tuple[jax.Array, jax.Array],
  rate: float,
  epsilon: float,
  interpret: bool,
) -> jax.Array:
  batch, time, width = x.shape
  tile, vector, row, column = _specs(_ROWS, width)
  return pl.pallas_call(
    functools.partial(
      _forward_kernel, shape=x.shape, rate=rate, epsilon=epsilon
    ),
    grid=(pl.cdiv(time, _ROWS), batch),
    in_specs=[tile, tile, vector, vector, vector, row, column],
    out_specs=tile,
    out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
    compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=1),
    interpret=interpret,
    name="add_norm",
  )(x, y, y_bias, scale, bias, *bits)


def _forward(
  x: jax.Array,
  y: jax.Array,
  y_bias: jax.Array,
  scale: jax.Array,
  bias: jax.Array,
  bits: tuple[jax.Array, jax.Array],
  rate: float,
  epsilon: float,
  interpret: bool,
) -> tuple[jax.Array, tuple]:
  out = _add_norm(x, y, y_bias, scale, bias, bits, rate, epsilon, interpret)
  return out, (x, y, y_bias, scale, bits)


def _backward(
  rate: float, epsilon: float, interpret: bool, saved: tuple, d_out: jax.Array
) -> tuple:
  x, y, y_bias, scale, bits = saved
  batch, time, width = x.shape
  chunks = pl.cdiv(time, _ROWS * _CHUNK)
  chunk, vector, row, column = _specs(_ROWS * _CHUNK, width)
  gradient = jax.ShapeDtypeStruct(x.shape, x.dtype)
  d_x, d_y, sums = pl.pallas_call(
    functools.partial(
      _backward_kernel, shape=x.shape, rate=rate, epsilon=epsilon
    ),
    grid=(chunks, batch),
    in_specs=[chunk, chunk, chunk, vector, vector, row, column],
    out_specs=[
      chunk,
      chunk,
      pl.BlockSpec(
        (None, None, 3, pl.next_power_of_2(width)), lambda i, b: (b, i, 0, 0)
      ),
    ],
    out_shape=[
      gradient,
      gradient,
      jax.ShapeDtypeStruct((batch, chunks, 3, width), jnp.float32),
    ],
    compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
    interpret=interpret,
    name="add_norm_backward",
  )(x, y, d_out, y_bias, scale, *bits)
  d_y_bias, d_scale, d_bias = sums.sum(axis=(0, 1))
  return d_x, d_y, d_y_bias.astype(y_bias.dtype), d_scale, d_bias, (None, None)


_add_norm.defvjp(_forward, _backward)


def _specs(rows: int, width: int) -> tuple[pl.BlockSpec, ...]:
  """Returns the specs of [B, T, D] by rows, [D], [B, T] by rows, [B, D]."""
  padded = pl.next_power_of_2(width)
  return (
    pl.BlockSpec((None, rows, padded), lambda i, b: (b, i, 0)),
    pl.BlockSpec((padded,), lambda i, b: (0,)),
    pl.BlockSpec((None, rows), lambda i, b: (b, i)),
    pl.BlockSpec((None, padded), lambda i, b: (b, 0)),
  )


class _Tile:
  """Rows of the arrays, in float32, zeros past their ends."""

  def __init__(self, start: Any, left: Any, padded: int, width: int):
    """`start` in the refs, of which `left` rows are real."""
    self._rows = pl.ds(start, _ROWS)
    self._real = start + jnp.arange(_ROWS) < left
    self._columns = jnp.arange(padded) < width
    self.inside = self._real[:, None] & self._columns[None]
    self._width = width

  def load(self, ref: Any) -> jax.Array:
    at = ref.at[self._rows, :]
    return plgpu.load(at, mask=self.inside, other=0.0).astype(jnp.float32)

  def store(self, ref: Any, value: jax.Array) -> None:
    at = ref.at[self._rows, :]
    plgpu.store(at, value.astype(ref.dtype), mask=self.inside)

  def vector(self, ref: Any) -> jax.Array:
    value = plgpu.load(ref, mask=self._columns, other=0)
    return value if value.dtype == jnp.uint32 else value.astype(jnp.float32)

  def dropped(
    self, x: jax.Array, rows_ref: Any, columns: jax.Array, rate: float
  ) -> jax.Array:
    if not rate:
      return x
    rows = plgpu.load(rows_ref.at[self._rows], mask=self._real, other=0)
    kept = is_kept(rows[:, None], columns[None], rate)
    return jnp.where(kept, x * (1 / (1 - rate)), 0.0)

  def mean(self, x: jax.Array) -> jax.Array:
    return x.sum(axis=1, keepdims=True) * (1 / self._width)

  def normalize(
    self, x: jax.Array, epsilon: float
  ) -> tuple[jax.Array, jax.Array]:
    x = jnp.where(self.inside, x - self.mean(x), 0.0)
    gain = jax.lax.rsqrt(self.mean(x * x) + epsilon)
    return x * gain, gain


def _forward_kernel(
  x_ref: Any,
  y_ref: Any,
  y_bias_ref: Any,
  scale_ref: Any,
  bias_ref: Any,
  rows_ref: Any,
  columns_ref: Any,
  out_ref: Any,
  *,
  shape: tuple[int, ...],
  rate: float,
  epsilon: float,
) -> None:
  left = shape[1] - pl.program_id(0) * _ROWS
  tile = _Tile(0, left, x_ref.shape[-1], shape[2])
  y = tile.load(y_ref) + tile.vector(y_bias_ref)[None]
  columns = tile.vector(columns_ref)
  summed = tile.load(x_ref) + tile.dropped(y, rows_ref, columns, rate)
  normed, _ = tile.normalize(summed, epsilon)
  out = normed * tile.vector(scale_ref)[None] + tile.vector(bias_ref)[None]
  tile.store(out_ref, out)


def _backward_kernel(
  x_ref: Any,
  y_ref: Any,
  d_out_ref: Any,
  y_bias_ref: Any,
  scale_ref: Any,
  rows_ref: Any,
  columns_ref: Any,
  d_x_ref: Any,
  d_y_ref: Any,
  sums_ref: Any,
  *,
  shape: tuple[int, ...],
  rate: float,
  epsilon: float,
) -> None:
  left = shape[1] - pl.program_id(0) * _ROWS * _CHUNK
  padded, width = x_ref.shape[-1], shape[2]
  line = _Tile(0, left, padded, width)
  y_bias, scale = line.vector(y_bias_ref), line.vector(scale_ref)
  columns = line.vector(columns_ref)

  def body(i: jax.Array, sums: tuple) -> tuple:
    tile = _Tile(i * _ROWS, left, padded, width)
    y = tile.dropped(tile.load(y_ref) + y_bias[None], rows_ref, columns, rate)
    normed, gain = tile.normalize(tile.load(x_ref) + y, epsilon)
    d_out = tile.load(d_out_ref)
    d_normed = d_out * scale[None]
    along = normed * tile.mean(d_normed * normed)
    d_x = gain * (d_normed - tile.mean(d_normed) - along)
    d_x = jnp.where(tile.inside, d_x, 0.0)
    d_y = tile.dropped(d_x, rows_ref, columns, rate)
    tile.store(d_x_ref, d_x)
    tile.store(d_y_ref, d_y)
    new = d_y.sum(axis=0), (d_out * normed).sum(axis=0), d_out.sum(axis=0)
    return tuple(a + b for a, b in zip(sums, new))

  zeros = jnp.zeros(padded, jnp.float32)
  sums = jax.lax.fori_loop(0, _CHUNK, body, (zeros,) * 3)
  inside = jnp.arange(padded) < width
  for i, total in enumerate(sums):
    plgpu.store(sums_ref.at[jnp.int32(i), :], total, mask=inside)
