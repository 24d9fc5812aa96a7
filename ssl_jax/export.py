"""Exports an encoder for use elsewhere.

  python -m ssl_jax.export --checkpoint=runs/slim --format=hf --out=slim
  python -m ssl_jax.export --checkpoint=runs/slim --format=stablehlo \\
      --out=program

hf: a directory that transformers' HubertModel or Wav2Vec2ForPreTraining loads,
and s3prl with it, with a model card; torch is not needed. stablehlo: a program
that JAX alone runs, on CPU, CUDA and TPU: encode(waveform, length). The last
line on stdout is a JSON object.
"""

import os
from pathlib import Path

from absl import flags

from ssl_jax import cli

_CHECKPOINT = flags.DEFINE_string(
  "checkpoint",
  None,
  "Encoder: a training run's workdir (its newest checkpoint), or "
  "WORKDIR/checkpoints/UPDATE, or hf:DIR.",
)
cli.rename_flag("workdir", "checkpoint")
_FORMAT = flags.DEFINE_enum(
  "format", "hf", ["hf", "stablehlo"], "Format of --out."
)
_OUT = flags.DEFINE_string("out", None, "Directory to make.")
_LICENSE = flags.DEFINE_string(
  "license",
  "unknown",
  "Licence of the weights, for the model card, as hubs name it: cc-by-4.0, "
  "apache-2.0 ...",
)


def main() -> dict:
  """Exports; returns the JSON object."""
  # Imported late: --help and usage errors need no JAX.
  from ssl_jax.errors import UsageError
  from ssl_jax.pretrained.export import export
  from ssl_jax.pretrained.load import load_encoder

  if not _CHECKPOINT.value or not _OUT.value:
    raise UsageError("--checkpoint and --out are needed; see --help")
  out = Path(_OUT.value)
  encoder = load_encoder(_CHECKPOINT.value)
  return export(encoder, _FORMAT.value, out, _LICENSE.value)


if __name__ == "__main__":
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  cli.run(main)
