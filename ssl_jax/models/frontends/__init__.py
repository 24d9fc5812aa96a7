"""Frontends: waveform to frames."""

from ml_collections import ConfigDict

from ssl_jax.knobs import Knob
from ssl_jax.models.frontends import logmel, waveform

_KNOBS = {
  "name": Knob(
    "waveform",
    "`waveform`: seven convolutions; `logmel`: Kaldi filterbanks of 10 ms, two "
    "stacked to a frame of 20 ms.",
    role="architecture",
    choices=("waveform", "logmel"),
  ),
  "normalize_waveform": Knob(
    False,
    "Clips are scaled to zero mean and unit variance first.",
    role="architecture",
  ),
}


def knobs() -> dict[str, Knob]:
  """Returns the knobs of `config.frontend`."""
  return _KNOBS | waveform.KNOBS | logmel.KNOBS


def check(config: ConfigDict) -> None:
  """Checks the knobs of `config.frontend` against each other."""
  del config
