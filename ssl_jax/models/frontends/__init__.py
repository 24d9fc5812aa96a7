"""Frontends: waveform to frames."""

from ssl_jax.knobs import Knob
from ssl_jax.models.frontends import logmel, waveform

KNOBS = {
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
  **waveform.KNOBS,
  **logmel.KNOBS,
}
