"""A process of tiny runs, one on each mesh named; see test_sharding.py.

python mesh_runs.py OUT OBJECTIVE 8,1,1 1,8,1 ... [@HOST:PORT,COUNT,ID]
"""

import sys
from pathlib import Path

from tiny import tiny

from ssl_jax.devices import processes, sharding
from ssl_jax.training import loop

# HuBERT's, by the name that stands in for an objective's.
ENCODERS = {
  "conformer": {"encoder.name": "conformer"},
  "half_rate": {"encoder.half_rate": (2, 2)},
  "visible": {"encoder.visible_only": True, "masking.share": 0.5},
}


def settings(objective: str, mesh: tuple[int, int, int]):
  encoder = ENCODERS.get(objective, {})
  config = tiny(4, "hubert" if encoder else objective)
  config.update_from_flattened_dict(encoder)
  if objective == "wav2vec2":
    config.frontend.name = "waveform"
  config.data.bucket_seconds, config.batch.seconds = (0.4,), 3.2
  config.encoder.hidden_size, config.encoder.ffn_size = 64, 128
  config.eval.every = config.checkpoint.every = 4
  config.optimizer.learning_rate = 1e-3
  config.mesh = mesh
  return config


def main(out: str, objective: str, *meshes: str) -> None:
  sharding._MIN_FSDP_SIZE = 2**8  # Else little of so small a model were cut.
  if meshes[-1].startswith("@"):
    *meshes, joined = meshes
    coordinator, count, process = joined[1:].split(",")
    processes.join(coordinator, int(count), int(process), 100)
  for name in meshes:
    mesh = tuple(map(int, name.split(",")))
    loop.train(settings(objective, mesh), Path(out) / name)


if __name__ == "__main__":
  main(*sys.argv[1:])
