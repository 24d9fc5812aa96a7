"""Buckets: the few lengths that clips are padded to."""

from ml_collections import ConfigDict

from ssl_jax.errors import UserError
from ssl_jax.knobs import Knob

KNOBS = {
  "bucket_seconds": Knob(
    (5.0, 9.0, 12.5, 14.0, 15.625),
    "Lengths that clips are padded to, seconds; longer ones are cropped at "
    "random to the last. Each is one compiled shape.",
    role="data",
  ),
}


def check(config: ConfigDict) -> None:
  """Checks `config.data.bucket_seconds`, and `min_seconds` against it.

  Raises:
    UserError: they do not increase, or every clip would be skipped or cut.
  """
  buckets = config.data.bucket_seconds
  if (
    not buckets
    or min(buckets) < 0.025
    or max(buckets) > 3_600
    or list(buckets) != sorted({*buckets})
  ):
    raise UserError(
      f"config.data.bucket_seconds={buckets!r}: expected increasing lengths in "
      "seconds, each above 0.025 and up to 3600"
    )
  if config.data.min_seconds > buckets[-1]:
    raise UserError(
      f"config.data.min_seconds={config.data.min_seconds} is longer than the "
      f"last bucket ({buckets[-1]} s): every clip would be skipped or cut"
    )
