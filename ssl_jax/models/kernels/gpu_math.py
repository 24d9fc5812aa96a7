"""Arithmetic of NVIDIA GPUs, in fewer instructions than XLA has for it.

What is approximate is so by 2 ** -22 of its value; denormal numbers are 0.
`interpret` is of a kernel that runs without a GPU, by XLA's own operations.
"""

import math
import struct

import jax
import jax.numpy as jnp
from jax.experimental.pallas import triton as plgpu

from ssl_jax.models import gelu as exact


def exp2(
  x: jax.Array, factor: float, y: jax.Array, interpret: bool
) -> jax.Array:
  """2 ** (factor x + y), where y broadcasts to x. Float32, any shape."""
  if interpret:
    return jnp.exp2(x * factor + y)
  program = (
    f"fma.rn.ftz.f32 a, $1, {_literal(factor)}, $2; ex2.approx.ftz.f32 $0, a;"
  )
  return _run(program, x, jnp.broadcast_to(y, x.shape))


def gelu(x: jax.Array, interpret: bool) -> jax.Array:
  """GELU. Float32, any shape."""
  if interpret:
    return exact.value(x)
  return _run(
    _TAIL + "max.f32 b, $1, 0f00000000; neg.f32 a, a; fma.rn.f32 $0, a, t, b;",
    x,
  )


def gelu_slope(x: jax.Array, interpret: bool) -> jax.Array:
  """GELU's derivative. Float32, any shape."""
  if interpret:
    return exact.slope(x)
  half, density = _literal(0.5), _literal(exact.DENSITY)
  return _run(
    _TAIL
    + f"sub.f32 t, {half}, t; copysign.f32 t, $1, t; add.f32 t, t, {half}; "
    f"mul.f32 b, $1, e; fma.rn.f32 $0, b, {density}, t;",
    x,
  )


def _literal(x: float) -> str:
  (bits,) = struct.unpack("<I", struct.pack("<f", x))
  return f"0f{bits:08X}"


def _series() -> str:
  *rest, last = map(_literal, exact.SERIES)
  steps = f"mov.f32 s, {last}; "
  for a in rest[::-1]:
    steps += f"fma.rn.f32 s, s, t, {a}; "
  return steps


# |x| in a, exp(-x**2 / 2) in e, the normal distribution at -|x| in t.
_TAIL = (
  "abs.f32 a, $1; "
  f"fma.rn.f32 b, a, {_literal(exact.DIVISOR)}, 0f3F800000; "
  "rcp.approx.ftz.f32 t, b; "
  f"mul.f32 b, $1, $1; mul.f32 b, b, {_literal(-0.5 * math.log2(math.e))}; "
  "ex2.approx.ftz.f32 e, b; " + _series() + "mul.f32 t, t, e; mul.f32 t, t, s; "
)


def _run(program: str, *arguments: jax.Array) -> jax.Array:
  """PTX, element by element: $0 of $1 and $2, with registers to work in."""
  (result,) = plgpu.elementwise_inline_asm(
    "{ .reg .f32 a, b, e, s, t; " + program + " }",
    args=arguments,
    constraints=",".join(["=f"] + ["f"] * len(arguments)),
    pack=1,
    result_shape_dtypes=[jax.ShapeDtypeStruct(arguments[0].shape, jnp.float32)],
  )
  return result
