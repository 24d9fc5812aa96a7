"""What models are traced for, where a kernel is to be chosen."""

import contextlib
import contextvars
import re
from collections.abc import Iterator

import jax

_target: contextvars.ContextVar[tuple[str, str] | None] = (
  contextvars.ContextVar("target", default=None)
)
_TRITON = 8.0  # Compute capability of GPUs that it makes bfloat16 products for.
# Of TPUs with 128 MiB of VMEM: others have less than attention takes.
_ROOMY = re.compile(r"v[56] ?(lite|e)\b")


def platform() -> str:
  """cpu, gpu or tpu: as `tracing_for` says, else JAX's default."""
  return (_target.get() or (jax.default_backend(), ""))[0]


def kernels() -> str:
  """Whose Pallas kernels to use: "gpu", "tpu", or "" for none."""
  name, kind = _target.get() or (jax.default_backend(), "")
  if name == "gpu" and _capability() >= _TRITON:
    return "gpu"
  if name == "tpu" and _ROOMY.search(kind or jax.devices()[0].device_kind):
    return "tpu"
  return ""


def _capability() -> float:
  """Of this machine's GPU; 0 for what is not NVIDIA's."""
  if jax.default_backend() != "gpu":
    return 0.0
  said = str(getattr(jax.devices()[0], "compute_capability", ""))
  return float(said) if re.fullmatch(r"\d+\.\d+", said) else 0.0


@contextlib.contextmanager
def tracing_for(name: str, kind: str = "") -> Iterator[None]:
  """While models are traced in it, they are for a platform.

  Programs compiled ahead of time are for another than JAX's default.

  Args:
    name: of the platform, as devices have it.
    kind: of its devices, as JAX has it; "": of JAX's default.
  """
  name = "gpu" if name in ("cuda", "rocm") else name
  token = _target.set((name, kind))
  try:
    yield
  finally:
    _target.reset(token)
