"""Names and peaks of accelerators, as their makers state them."""

import pytest

from ssl_jax.devices import chips
from ssl_jax.errors import UserError


@pytest.mark.parametrize(
  ("device", "count", "peak"),
  [
    ("v5e-8", 8, 8 * 197e12),
    ("v5e", 1, 197e12),
    ("v4-8", 4, 4 * 275e12),  # 8 cores.
    ("v5p-16", 8, 8 * 459e12),
    ("v6e-256", 256, 256 * 918e12),
    ("tpu7x-8", 8, 4 * 2307e12),  # Two devices a chip.
    ("H100", 1, 989e12),
    ("a100-4", 4, 4 * 312e12),
  ],
)
def test_slices_and_hosts_are_so_many_chips(device, count, peak):
  assert chips.parse(device)[1] == count
  assert chips.peak(device) == peak


@pytest.mark.parametrize(
  ("kind", "peak"),
  [
    ("TPU v5 lite", 197e12),
    ("TPU v5p", 459e12),
    ("TPU v6 lite", 918e12),
    ("TPU7x", 2307e12 / 2),
    ("NVIDIA H100 80GB HBM3", 989e12),
    ("NVIDIA A100-SXM4-40GB", 312e12),
    ("NVIDIA L4", 121e12),
    ("NVIDIA L40S", 362e12),
    ("NVIDIA GeForce RTX 4090", 165.2e12),
    ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
    ("cpu", None),
  ],
)
def test_peaks_of_what_jax_reports(kind, peak):
  assert chips.peak_flops_per_second(kind) == peak


@pytest.mark.parametrize(
  ("device", "said"),
  [("v5", "did you mean 'v5"), ("v5e-x", "a number"), ("v5e-0", "a number")],
)
def test_unknown_devices_are_refused(device, said):
  with pytest.raises(UserError, match=said):
    chips.parse(device)
