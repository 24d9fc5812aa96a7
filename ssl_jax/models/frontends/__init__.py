"""Frontends: one file each, and the table of them."""

import jax.numpy as jnp
from ml_collections import ConfigDict

from ssl_jax.errors import check_choice
from ssl_jax.knobs import Knob, merge
from ssl_jax.models.frontends import logmel, waveform
from ssl_jax.models.frontends.frontend import Frontend

# A new frontend is one file with a `Frontend`, and one line here.
FRONTENDS: dict[str, type[Frontend]] = {
  "waveform": waveform.Frontend,
  "logmel": logmel.Frontend,
}

_KNOBS = {
  "name": Knob(
    "waveform",
    "`waveform`: seven convolutions; `logmel`: Kaldi filterbanks of 10 ms, two "
    "stacked to a frame of 20 ms.",
    role="architecture",
    choices=lambda: FRONTENDS,
  ),
  "normalize_waveform": Knob(
    False,
    "Clips are scaled to zero mean and unit variance first.",
    role="architecture",
  ),
}


def make(
  config: ConfigDict, dtype: jnp.dtype = jnp.float32, name: str | None = None
) -> Frontend:
  """Returns the frontend `config.name`.

  Args:
    config: config.frontend.
    dtype: of its computation.
    name: as a part of the module that is being called; None: it stands alone,
      to be asked for all that needs no parameters.

  Raises:
    UserError: there is no such frontend.
  """
  check_choice("config.frontend.name", config.name, FRONTENDS)
  place = {"name": name} if name else {"parent": None}
  return FRONTENDS[config.name](config, dtype, **place)


def knobs() -> dict[str, Knob]:
  """Returns the knobs of `config.frontend`."""
  return merge(_KNOBS, *(frontend.knobs for frontend in FRONTENDS.values()))


def check(config: ConfigDict) -> None:
  """Checks the knobs of `config.frontend` against each other.

  Raises:
    UserError: naming the knobs that do not go together.
  """
  make(config.frontend).check()
