"""Self-supervised speech pretraining on a compute budget.

Axis letters used in shape comments throughout the package:

  B batch (clips), S samples, T frames, C channels, D hidden width, F mel bins,
  K clusters, N negatives, H heads, L layers.

Units: audio is 16 kHz mono; lengths are samples unless the name says frames
or seconds; FLOPs count a multiply-add as 2.
"""

from typing import Any

__version__ = "0.1.0"

SAMPLE_RATE = 16_000  # Hz, of all audio after decoding.

# Every encoder makes a frame of 25 ms every 20 ms; in samples.
FRAME_WINDOW, FRAME_HOP = 400, 320


def load(path: str) -> Any:
  """A trained encoder: `encoder = load(path); h = encoder(waveform)`.

  Args:
    path: a run's workdir, WORKDIR/checkpoints/UPDATE, or hf:DIR.

  Returns:
    An `ssl_jax.pretrained.load.Encoder`.

  Raises:
    UserError: it holds no encoder.
  """
  from ssl_jax.pretrained.load import load_encoder  # Here: it imports JAX.

  return load_encoder(path)


def num_frames(num_samples: Any) -> Any:
  """Frames of a clip. An int, or an int array of NumPy or JAX: the same."""
  frames = (num_samples - FRAME_WINDOW) // FRAME_HOP + 1
  return frames * (frames > 0)
