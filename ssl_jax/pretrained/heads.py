"""The parameters of an objective beside its backbone's, read back."""

from pathlib import Path
from typing import Any

from ssl_jax.checkpoints.manager import restore_params
from ssl_jax.objectives import make_objective
from ssl_jax.objectives.inputs import abstract_params
from ssl_jax.pretrained import hf_read
from ssl_jax.pretrained.load import Encoder


def load_heads(encoder: Encoder) -> tuple[dict[str, Any], Any] | None:
  """Reads the head that belongs to an encoder, of objectives that continue it.

  Returns:
    The objective's section of the config (wav2vec 2.0: config.wav2vec2), and
    its parameters beside its backbone's; None where there are none.

  Raises:
    UserError: they are damaged.
  """
  if encoder.origin["update"] is None:
    return hf_read.read_heads(Path(encoder.origin["path"].partition(":")[2]))
  name = encoder.config.objective.name
  if encoder.config.encoder.visible_only:
    return None  # It was the decoder's, and tells nothing of the encoder.
  if not make_objective(encoder.config).continues_heads:
    return None
  shapes = dict(abstract_params(encoder.config))
  del shapes["backbone"]
  folder = encoder.workdir / "checkpoints" / str(encoder.origin["update"])
  heads, _ = restore_params(folder, shapes)
  return encoder.config[name].to_dict(), heads
