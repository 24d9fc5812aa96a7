"""The platform that models are traced for, and the devices they run on.

Models call what is here at the few places where that matters: a kernel, whose
work XLA cannot share out between devices, and convolutions, which it shares out
badly. They name roles of axes ("rows", "all_rows", "heads") and no device:
`ssl_jax.devices.sharding` says what the roles are on a mesh.
"""

import contextlib
import contextvars
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax

# A role for each of an array's first axes; None and axes left out stay whole.
#   rows: clips, shared out as the batch is.
#   all_rows: clips, shared out over all devices, also those that hold the same
#     clips, where there are enough.
#   heads: attention heads, as the layer's kernels are cut.
Roles = tuple[str | None, ...]

TPU_ROWS = 8  # XLA wants a multiple of it as rows of a convolution.
_TRITON = 8.0  # Least compute capability that Triton multiplies bfloat16 on.


class Placement:
  """A single device of a platform.

  Attributes:
    platform: cpu, gpu or tpu.
  """

  def __init__(self, platform: str):
    """Makes it of a device's platform, as JAX names it.

    Args:
      platform: cpu, gpu, cuda, rocm or tpu.
    """
    self.platform = "gpu" if platform in ("cuda", "rocm") else platform

  @property
  def kernels(self) -> str:
    """Names the Pallas kernels to use: "gpu", "tpu", or "" for none."""
    if self.platform == "gpu" and _capability() >= _TRITON:
      return "gpu"
    return "tpu" if self.platform == "tpu" else ""

  @property
  def vmem(self) -> int:
    """Bytes of the memory on a TPU core, where kernels work; 0 if unknown."""
    from jax.experimental.pallas import tpu as pltpu

    try:
      return pltpu.get_tpu_info().vmem_capacity_bytes
    except ValueError:  # A chip that this JAX does not know, or none.
      return 0

  def kernel(
    self,
    function: Callable[..., jax.Array],
    *args: jax.Array,
    axes: tuple[Roles, ...],
    out: Roles,
  ) -> jax.Array:
    """Calls a kernel, on a mesh once a device with that device's part.

    Args:
      function: of the arrays alone.
      *args: its arguments.
      axes: the roles of each argument's axes.
      out: the roles of the result's axes.
    """
    del axes, out
    return function(*args)

  def spread(self, x: jax.Array) -> jax.Array:
    """Returns x [B, ...], its rows shared out over all devices."""
    return x

  def segments(self, rows: int, size: int) -> int:
    """Returns how many segments a stem should cut clips into.

    Args:
      rows: clips of the batch.
      size: bytes of the largest array that the stem makes of a clip.
    """
    del rows, size
    return 1


_current: contextvars.ContextVar[Placement | None] = contextvars.ContextVar(
  "placement", default=None
)


def current() -> Placement:
  """Returns the placement set by `use`, else one of JAX's default device."""
  return _current.get() or Placement(jax.default_backend())


@contextlib.contextmanager
def use(placement: Placement) -> Iterator[None]:
  """Traces models for a placement.

  Programs that are compiled ahead of time are for another platform than JAX's
  default.
  """
  token = _current.set(placement)
  try:
    yield
  finally:
    _current.reset(token)


def by_rows(
  function: Callable[..., jax.Array], params: Any, *rows: jax.Array
) -> jax.Array:
  """Computes function(params, *rows), on TPUs of `TPU_ROWS` rows at a time.

  What it makes on the way then stays in the cores' own memory.

  Args:
    function: the rows of its result depend on those rows alone.
    params: nested arrays.
    *rows: arrays [R, ...].

  Returns:
    [R, ...].
  """
  place = current()
  if place.platform != "tpu":
    return function(params, *rows)
  leaves, tree = jax.tree.flatten(params)

  def on_device(*arrays: jax.Array) -> jax.Array:
    params = tree.unflatten(arrays[len(rows) :])
    held = arrays[: len(rows)]
    groups, rest = divmod(len(held[0]), TPU_ROWS)
    if rest or groups < 2:
      return function(params, *held)
    parts = [x.reshape(groups, TPU_ROWS, *x.shape[1:]) for x in held]
    made = jax.lax.map(lambda part: function(params, *part), parts)
    return made.reshape(-1, *made.shape[2:])

  return place.kernel(
    on_device,
    *(*rows, *leaves),
    axes=(*[("all_rows",)] * len(rows), *[()] * len(leaves)),
    out=("all_rows",),
  )


def _capability() -> float:
  """Returns the compute capability of this machine's GPU; 0 if not NVIDIA's."""
  if jax.default_backend() != "gpu":
    return 0.0
  text = str(getattr(jax.devices()[0], "compute_capability", ""))
  return float(text) if re.fullmatch(r"\d+\.\d+", text) else 0.0
