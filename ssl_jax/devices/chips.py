"""Peaks and sizes of accelerators, by the names in use: v5e-8, h100."""

import math
import re
from typing import NamedTuple

from ssl_jax.errors import UserError, nearest

# Dense peak FLOP/s a device, as their makers state it for bfloat16 summed in
# float32, under the name users give and the prefixes that JAX's device kinds
# have. Of GeForce cards: NVIDIA's white papers on the GA102, Ada and Blackwell
# architectures; of others: data sheets.
_PEAK = {
  "a100": (312e12, ("NVIDIA A100",)),
  "h100": (989e12, ("NVIDIA H100",)),
  "h200": (989e12, ("NVIDIA H200",)),
  "l4": (121e12, ("NVIDIA L4",)),
  "l40": (181e12, ("NVIDIA L40",)),
  "l40s": (362e12, ("NVIDIA L40S",)),
  "rtx3090": (71e12, ("NVIDIA GeForce RTX 3090",)),
  "rtx4080": (97.5e12, ("NVIDIA GeForce RTX 4080",)),
  "rtx4090": (165.2e12, ("NVIDIA GeForce RTX 4090",)),
  "rtx5090": (209.5e12, ("NVIDIA GeForce RTX 5090",)),
  "v4": (275e12, ("TPU v4",)),
  "v5e": (197e12, ("TPU v5 lite", "TPU v5e")),
  "v5p": (459e12, ("TPU v5p", "TPU v5")),
  "v6e": (918e12, ("TPU v6 lite", "TPU v6e")),
  "tpu7x": (2307e12 / 2, ("TPU7x",)),  # Two devices a chip.
}

# A chip, as Google states it: memory in bytes, bytes a second from it, and
# bytes a second to its neighbours over all links; the slices that are sold.
_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_DEEP = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8")


class Chip(NamedTuple):
  """A TPU chip, and the shapes that slices of it have.

  A TPU7x chip is two devices to JAX: the numbers are of one of them.
  """

  flops_per_second: float
  hbm_bytes: float
  hbm_bytes_per_second: float
  link_bytes_per_second: float
  topologies: tuple[str, ...]


_CORES = {"v5p": 2, "tpu7x": 2}  # Cores of a chip, where they name slices.
_CHIPS = {
  "v5e": Chip(197e12, 16 * 2**30, 819e9, 1600e9 / 8, _FLAT),
  "v5p": Chip(459e12, 95 * 2**30, 2765e9, 4800e9 / 8, _DEEP),
  "v6e": Chip(918e12, 32 * 2**30, 1640e9, 3584e9 / 8, _FLAT),
  "tpu7x": Chip(2307e12 / 2, 96 * 2**30, 7380e9 / 2, 4800e9 / 8 / 2, _DEEP),
}


def topology(name: str) -> tuple[Chip, str, int]:
  """Returns (chip, "v5e:4x4", 16) for "v5e:4x4" or "v5e-16".

  As Google names them, the number is of cores for v5p and TPU7x: v5p-8 is 4
  chips.

  Raises:
    UserError: unknown; the valid ones are listed.
  """
  kind, _, shape = name.lower().replace("-", ":").partition(":")
  expected = f"--topology={name!r}: expected one of "
  if kind not in _CHIPS:
    raise UserError(expected + ", ".join(f"{k}:SHAPE" for k in _CHIPS))
  for known in _CHIPS[kind].topologies:
    chips = math.prod(map(int, known.split("x")))
    if shape in (known, str(chips * _CORES.get(kind, 1))):
      return _CHIPS[kind], f"{kind}:{known}", chips
  raise UserError(
    expected + ", ".join(f"{kind}:{known}" for known in _CHIPS[kind].topologies)
  )


def peak_flops_per_second(device_kind: str) -> float | None:
  """Returns the peak of one device in bfloat16, by JAX's `device_kind`.

  Returns:
    None where it is unknown (CPUs).
  """
  matches = [
    (len(prefix), peak)
    for peak, prefixes in _PEAK.values()
    for prefix in prefixes
    # A GeForce with more behind its name is another card: Laptop, D ...
    if device_kind.startswith(prefix)
    and ("GeForce" not in prefix or device_kind == prefix)
  ]
  return max(matches)[1] if matches else None


def parse(device: str) -> tuple[str, int]:
  """Returns ("v5e", 8) for "v5e-8"; one device where no number is given.

  TPU v4 and v5p slices are named by their cores, two a chip: v4-8 is 4 chips.
  Each core of a TPU7x is a device.

  Raises:
    UserError: an unknown name, or no such number.
  """
  name, _, count = device.lower().partition("-")
  if name not in _PEAK:
    known = "|".join(_PEAK)
    if undashed := re.fullmatch(rf"({known})[ _x:]*([0-9]{{1,9}})", name):
      name = "-".join(undashed.groups())
      raise UserError(f"unknown --device={device!r}; did you mean {name!r}?")
    raise UserError(
      f"unknown --device={device[:80]!r}; {nearest(name[:80], _PEAK)}"
    )
  if not re.fullmatch(r"[1-9][0-9]{0,8}|", count):
    raise UserError(
      f"--device={device[:80]!r}: expected a number after the dash"
    )
  number = int(count or 1)
  if name in ("v4", "v5p") and count:
    number = max(1, number // 2)
  return name, number


def peak(device: str) -> float:
  """Returns the peak FLOP/s of all of "v5e-8" together."""
  name, number = parse(device)
  return _PEAK[name][0] * number
