"""The stem's first layer on GPUs: what GELU is taken of never reaches memory.

Triton, through Pallas. The layer is a product of ten samples for each of 512
channels: all of its time goes into memory. The backward pass makes the products
again.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from ssl_jax.models.gelu import slope
from ssl_jax.models.kernels.gpu_math import gelu, gelu_slope

_FRAMES, _CHANNELS = 32, 128  # Sizes of a block.
_CHUNKS = 16  # Parts that the backward pass sums a clip's frames in.
_WINDOW = 16  # Samples of a padded window: the least that is multiplied.


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def first_layer(
  windows: jax.Array, kernel: jax.Array, interpret: bool = False
) -> jax.Array:
  """gelu(windows kernel). [B, T, W], [B, W, C] -> [B, T, C]; W up to 16."""
  batch, time, _ = windows.shape
  channels = kernel.shape[-1]
  return pl.pallas_call(
    functools.partial(
      _forward_kernel, shape=windows.shape, interpret=interpret
    ),
    grid=(channels // _CHANNELS, pl.cdiv(time, _FRAMES), batch),
    in_specs=[
      pl.BlockSpec((None, _FRAMES, _WINDOW), lambda c, t, b: (b, t, 0)),
      pl.BlockSpec((None, _WINDOW, _CHANNELS), lambda c, t, b: (b, 0, c)),
    ],
    out_specs=pl.BlockSpec(
      (None, _FRAMES, _CHANNELS), lambda c, t, b: (b, t, c)
    ),
    out_shape=jax.ShapeDtypeStruct((batch, time, channels), windows.dtype),
    compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=1),
    interpret=interpret,
    name="stem_first_layer",
  )(windows, kernel)


def _forward(
  windows: jax.Array, kernel: jax.Array, interpret: bool
) -> tuple[jax.Array, tuple]:
  return first_layer(windows, kernel, interpret), (windows, kernel)


def _backward(interpret: bool, saved: tuple, d_out: jax.Array) -> tuple:
  windows, kernel = saved
  batch, time, width = windows.shape
  channels = kernel.shape[-1]
  blocks = pl.cdiv(pl.cdiv(time, _FRAMES), _CHUNKS)  # Blocks of a chunk.
  chunk = blocks * _FRAMES
  sums = pl.pallas_call(
    functools.partial(
      _backward_kernel,
      shape=windows.shape,
      blocks=blocks,
      interpret=interpret,
    ),
    grid=(channels // _CHANNELS, _CHUNKS, batch),
    in_specs=[
      pl.BlockSpec((None, chunk, _WINDOW), lambda c, t, b: (b, t, 0)),
      pl.BlockSpec((None, _WINDOW, _CHANNELS), lambda c, t, b: (b, 0, c)),
      pl.BlockSpec((None, chunk, _CHANNELS), lambda c, t, b: (b, t, c)),
    ],
    out_specs=pl.BlockSpec(
      (None, None, _WINDOW, _CHANNELS), lambda c, t, b: (b, t, 0, c)
    ),
    out_shape=jax.ShapeDtypeStruct(
      (batch, _CHUNKS, _WINDOW, channels), jnp.float32
    ),
    compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=3),
    interpret=interpret,
    name="stem_first_layer_backward",
  )(windows, kernel, d_out)
  d_kernel = sums.sum(axis=1)[:, :width].astype(kernel.dtype)
  # XLA leaves this out of training, where nothing is learned from it.
  d_products = d_out * slope(jnp.matmul(windows, kernel).astype(jnp.float32))
  d_windows = jnp.matmul(d_products, kernel.swapaxes(1, 2).astype(jnp.float32))
  return d_windows.astype(windows.dtype), d_kernel


first_layer.defvjp(_forward, _backward)


def _load(ref: Any, start: Any, time: Any, width: int) -> jax.Array:
  """Rows of an array, zeros past its ends."""
  inside = (start + jnp.arange(_FRAMES) < time)[:, None]
  inside &= (jnp.arange(ref.shape[-1]) < width)[None]
  return plgpu.load(ref.at[pl.ds(start, _FRAMES), :], mask=inside, other=0.0)


def _kernel(ref: Any, width: int) -> jax.Array:
  inside = (jnp.arange(_WINDOW) < width)[:, None]
  return plgpu.load(ref, mask=inside, other=0.0)


def _forward_kernel(
  windows_ref: Any,
  kernel_ref: Any,
  out_ref: Any,
  *,
  shape: tuple[int, ...],
  interpret: bool,
) -> None:
  _, time, width = shape
  left = time - pl.program_id(1) * _FRAMES
  windows = _load(windows_ref, 0, left, width)
  products = plgpu.dot(windows, _kernel(kernel_ref, width))
  inside = (jnp.arange(_FRAMES) < left)[:, None]
  out = gelu(products, interpret).astype(out_ref.dtype)
  plgpu.store(out_ref, out, mask=inside)


def _backward_kernel(
  windows_ref: Any,
  kernel_ref: Any,
  d_out_ref: Any,
  sums_ref: Any,
  *,
  shape: tuple[int, ...],
  blocks: int,
  interpret: bool,
) -> None:
  _, time, width = shape
  left = time - pl.program_id(1) * blocks * _FRAMES
  kernel = _kernel(kernel_ref, width)

  def body(i: jax.Array, total: jax.Array) -> jax.Array:
    windows = _load(windows_ref, i * _FRAMES, left, width)
    d_out = _load(d_out_ref, i * _FRAMES, left, _CHANNELS)
    slope = gelu_slope(plgpu.dot(windows, kernel), interpret)
    d_products = (d_out * slope).astype(windows.dtype)
    return total + plgpu.dot(windows.T, d_products)

  zeros = jnp.zeros((_WINDOW, _CHANNELS), jnp.float32)
  sums_ref[...] = jax.lax.fori_loop(0, blocks, body, zeros)
