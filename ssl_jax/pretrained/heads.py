"""The parameters of an objective beside its backbone's, read back."""

from pathlib import Path
from typing import Any

from ssl_jax.checkpoints.manager import restore_params
from ssl_jax.objectives.inputs import abstract_params
from ssl_jax.pretrained import hf_read
from ssl_jax.pretrained.load import Encoder


def load_heads(encoder: Encoder) -> tuple[dict[str, Any], Any] | None:
  """Reads wav2vec 2.0's quantizer and projections that belong to an encoder.

  Returns:
    What config.wav2vec2 was, and the parameters of the objective beside its
    backbone's; None where there are none.

  Raises:
    UserError: they are damaged.
  """
  if encoder.origin["update"] is None:
    return hf_read.read_heads(Path(encoder.origin["path"].partition(":")[2]))
  if encoder.config.objective.name != "wav2vec2":
    return None
  shapes = dict(abstract_params(encoder.config))
  del shapes["backbone"]
  folder = encoder.workdir / "checkpoints" / str(encoder.origin["update"])
  heads, _ = restore_params(folder, shapes)
  return encoder.config.wav2vec2.to_dict(), heads
