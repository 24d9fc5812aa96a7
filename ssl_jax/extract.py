"""Extracts features of audio: hidden states, 50 a second, in files.

  python -m ssl_jax.extract --checkpoint=runs/slim --layer=9 --out=features \\
      AUDIO
  python -m ssl_jax.extract --checkpoint=hf:hubert-base-ls960 --layer=all \\
      --format=npy --out=features clip.wav folder manifest.jsonl

Each clip gets a file, in the same folders: float32 [T, D], with --layer=all
[L + 1, T, D], and in .npz and Parquet the time of each frame's middle in
seconds. `index.jsonl` lists them. Run again, it goes on, and extracts
anew what has changed. The last line on stdout is a JSON object.
"""

import logging
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
_LAYER = flags.DEFINE_string(
  "layer",
  "all",
  "Layer whose output is written: a number, 0 being the first layer's input; "
  "all; or weighted, the sum that a probe's head learned.",
)
_PROBE = flags.DEFINE_string(
  "probe",
  None,
  "Result of ssl_jax.probe, for --layer=weighted. Default: the only one of the "
  "run.",
)
_OUT = flags.DEFINE_string("out", None, "Folder of the features.")
_FORMAT = flags.DEFINE_enum(
  "format", "npz", ["npz", "npy", "parquet"], "Format of the files."
)
_DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "Print how much it would be, and stop."
)


def main(inputs: list[str]) -> dict:
  """Extracts; returns the JSON object."""
  # Imported late: --help and usage errors need no JAX.
  from ssl_jax import FRAME_HOP, num_frames
  from ssl_jax.devices import sharding
  from ssl_jax.errors import UsageError
  from ssl_jax.files import alone
  from ssl_jax.pretrained import extract
  from ssl_jax.pretrained.load import load_encoder

  if not _CHECKPOINT.value or not _OUT.value:
    raise UsageError("--checkpoint and --out are needed; see --help")
  encoder = load_encoder(_CHECKPOINT.value)
  probe = Path(_PROBE.value) if _PROBE.value else None
  states, identity = extract.states_of(encoder, _LAYER.value, probe)
  source = extract.open_inputs(inputs)
  result = {"layer": _LAYER.value, "out": _OUT.value}
  layers = encoder.config.encoder.num_layers + 1
  width = encoder.config.encoder.hidden_size
  width *= layers if _LAYER.value == "all" else 1
  if _DRY_RUN.value:
    frames = int(num_frames(source.num_samples).sum())
    result |= {
      "files": len(source.ids),
      "skipped": len(source.skipped),
      "audio_seconds": frames * FRAME_HOP / 16_000,
      "bytes": 4 * frames * width,
    }
  else:
    by_row = sharding.by_row(sharding.make_mesh())
    out = Path(_OUT.value)
    with alone(out, f"--out={_OUT.value}"):
      result |= extract.extract(
        source, states, identity, _FORMAT.value, out, by_row
      )
  logging.getLogger("ssl_jax").info(
    "%s files of %.4g h, %.3g GB%s; %d clips skipped",
    f"{result['files']:,}",
    result["audio_seconds"] / 3600,
    result["bytes"] / 1e9,
    " (dry run)" if _DRY_RUN.value else f" in {_OUT.value}",
    result["skipped"],
  )
  return result


if __name__ == "__main__":
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  cli.run(main, "an input (file, folder or manifest)")
