"""Encoders written for use elsewhere, with what is known of them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax

from ssl_jax import FRAME_HOP, FRAME_WINDOW, SAMPLE_RATE
from ssl_jax.files import new_folder
from ssl_jax.pretrained import hf_names, hf_write, model_card, stablehlo
from ssl_jax.pretrained.heads import load_heads
from ssl_jax.pretrained.load import Encoder


def export(
  encoder: Encoder, kind: str, out: Path, license: str = "unknown"
) -> dict[str, Any]:
  """Makes the directory `out`.

  Args:
    encoder: to be written.
    kind: hf, for transformers, or stablehlo, a program.
    out: not there yet, or empty.
    license: of the weights, for the model card.

  Returns:
    format, out, bytes, params and, of hf, architecture: the class there.

  Raises:
    UserError: transformers has no such encoder; `out` is not empty, or cannot
      be written.
  """
  with new_folder(out) as folder:
    if kind == "hf":
      facts = _write_hf(folder, out.name, encoder, license)
    else:
      facts = _write_program(folder, out.name, encoder)
  size = sum(file.stat().st_size for file in out.iterdir())
  return {"format": kind, "out": str(out), "bytes": size} | facts


def _write_hf(
  folder: Path, name: str, encoder: Encoder, license: str
) -> dict[str, Any]:
  config, heads = encoder.config.copy_and_resolve_references(), {}
  hf_names.Layout(config)  # Refuses what transformers has not.
  if loaded := load_heads(encoder):
    config[config.objective.name].update(loaded[0])
    heads = loaded[1]
  made = hf_write.architecture(config, heads)
  hf_write.write(folder, config, encoder.params, heads)
  params = _size(encoder.params) + _size(heads)
  about = model_card.text(name, made, params, *_history(encoder), license)
  (folder / "README.md").write_text(about)
  return {"architecture": made, "params": params}


def _write_program(folder: Path, name: str, encoder: Encoder) -> dict[str, Any]:
  config = encoder.config.copy_and_resolve_references()
  config.compute_dtype = "float32"
  facts = {
    "name": name,
    "origin": encoder.origin | {"path": Path(encoder.origin["path"]).name},
    "params": _size(encoder.params),
    "num_layers": config.encoder.num_layers,
    "hidden_size": config.encoder.hidden_size,
    "sample_rate": SAMPLE_RATE,
    "frame_window": FRAME_WINDOW,
    "frame_hop": FRAME_HOP,
  }
  stablehlo.write(
    folder, dataclasses.replace(encoder, config=config).all_states(), facts
  )
  return {"params": facts["params"]}


def _size(params: Any) -> int:
  return sum(x.size for x in jax.tree.leaves(params))


def _history(encoder: Encoder) -> tuple[dict | None, dict | None, list[dict]]:
  """Reads what a run left: its config, what it spent, scores of probes."""
  update = encoder.origin["update"]
  if update is None:
    return None, None, []
  config = json.loads((encoder.workdir / "config.json").read_text())
  spent = encoder.spent | {"updates": update}
  probes = sorted((encoder.workdir / "probes").glob("*.json"))
  scores = [json.loads(path.read_text()) for path in probes]
  mine = [
    score
    for score in scores
    if score["origin"].get("params") == encoder.origin["params"]
    and len(score.get("origins", "1")) == 1
  ]
  return config, spent, mine
