"""Encoders: frames to hidden states."""

from ml_collections import ConfigDict

from ssl_jax.knobs import Knob
from ssl_jax.models.encoders import transformer


def knobs() -> dict[str, Knob]:
  """Returns the knobs of `config.encoder`."""
  return transformer.KNOBS


def check(config: ConfigDict) -> None:
  """Checks the knobs of `config.encoder` against each other.

  Raises:
    UserError: naming the knobs that do not go together.
  """
  transformer.check(config)
