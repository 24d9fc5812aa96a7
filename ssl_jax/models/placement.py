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

import jax

# A role for each of an array's first axes; None and axes left out stay whole.
#   rows: clips, shared out as the batch is.
#   all_rows: clips, shared out over all devices, also those that hold the same
#     clips, where there are enough.
#   heads: attention heads, as the layer's kernels are cut.
Roles = tuple[str | None, ...]

_TRITON = 8.0  # Least compute capability that Triton multiplies bfloat16 on.
# TPUs with 128 MiB of VMEM: others have less than attention takes.
_ROOMY = re.compile(r"v[56] ?(lite|e)\b")


class Placement:
  """A single device of a platform.

  Attributes:
    platform: cpu, gpu or tpu.
  """

  def __init__(self, platform: str, kind: str = ""):
    """Makes it of a device's platform and kind, as JAX names them.

    Args:
      platform: cpu, gpu, cuda, rocm or tpu.
      kind: the device's kind; "" for that of JAX's default.
    """
    self.platform = "gpu" if platform in ("cuda", "rocm") else platform
    self._kind = kind

  @property
  def kernels(self) -> str:
    """Names the Pallas kernels to use: "gpu", "tpu", or "" for none."""
    if self.platform == "gpu" and _capability() >= _TRITON:
      return "gpu"
    if self.platform == "tpu":
      kind = self._kind or jax.devices()[0].device_kind
      return "tpu" if _ROOMY.search(kind) else ""
    return ""

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

  def segments(self, rows: int) -> int:
    """Returns how many segments a stem should cut each of `rows` clips into."""
    del rows
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


def _capability() -> float:
  """Returns the compute capability of this machine's GPU; 0 if not NVIDIA's."""
  if jax.default_backend() != "gpu":
    return 0.0
  text = str(getattr(jax.devices()[0], "compute_capability", ""))
  return float(text) if re.fullmatch(r"\d+\.\d+", text) else 0.0
