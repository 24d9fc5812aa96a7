"""What accelerators can do, by the names people use: v5e-8, h100, a100-4."""

import re

from ssl_jax.config import nearest
from ssl_jax.errors import UserError

# Dense peak FLOP/s a device, as their makers state it for bfloat16, under the
# name users give and the prefixes that JAX's device kinds have.
_PEAK = {
  "a100": (312e12, ("NVIDIA A100",)),
  "h100": (989e12, ("NVIDIA H100",)),
  "h200": (989e12, ("NVIDIA H200",)),
  "v4": (275e12, ("TPU v4",)),
  "v5e": (197e12, ("TPU v5 lite", "TPU v5e")),
  "v5p": (459e12, ("TPU v5p", "TPU v5")),
  "v6e": (918e12, ("TPU v6 lite", "TPU v6e")),
}


def peak_flops_per_second(device_kind: str) -> float | None:
  """Peak of one device in bfloat16, by JAX's `device_kind`.

  Returns:
    None where it is unknown (CPUs).
  """
  found = [
    (len(prefix), peak)
    for peak, prefixes in _PEAK.values()
    for prefix in prefixes
    if device_kind.startswith(prefix)
  ]
  return max(found)[1] if found else None


def parse(device: str) -> tuple[str, int]:
  """("v5e", 8) of "v5e-8"; one device where no number is given.

  TPU v4 and v5p slices are named by their cores, two a chip: v4-8 is 4 chips.

  Raises:
    UserError: an unknown name, or no such number.
  """
  name, _, count = device.lower().partition("-")
  if name not in _PEAK:
    raise UserError(f"unknown --device={device!r}; {nearest(name, _PEAK)}")
  if not re.fullmatch(r"[1-9]\d*|", count):
    raise UserError(f"--device={device!r}: expected a number after the dash")
  number = int(count or 1)
  if name in ("v4", "v5p") and count:
    number = max(1, number // 2)
  return name, number


def peak(device: str) -> float:
  """FLOP/s of all of "v5e-8" together."""
  name, number = parse(device)
  return _PEAK[name][0] * number
