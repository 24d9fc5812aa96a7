"""What models are traced for, where a kernel is to be chosen."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_target: contextvars.ContextVar[str | None] = contextvars.ContextVar(
  "target", default=None
)
_TRITON = 8.0  # Compute capability of GPUs that it makes bfloat16 products for.


def platform() -> str:
  """cpu, gpu or tpu: as `tracing_for` says, else JAX's default."""
  return _target.get() or jax.default_backend()


def kernels() -> str:
  """Whose Pallas kernels to use: "gpu", "tpu", or "" for none."""
  name = platform()
  if name != "gpu":
    return "tpu" if name == "tpu" else ""
  if jax.default_backend() == "gpu":
    capability = getattr(jax.devices()[0], "compute_capability", "0")
    if float(capability) < _TRITON:
      return ""
  return "gpu"


@contextlib.contextmanager
def tracing_for(name: str) -> Iterator[None]:
  """While models are traced in it, they are for a platform.

  Programs compiled ahead of time are for another than JAX's default.
  """
  token = _target.set("gpu" if name in ("cuda", "rocm") else name)
  try:
    yield
  finally:
    _target.reset(token)
