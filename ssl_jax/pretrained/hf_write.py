"""Directories that transformers loads; torch is not needed to write them."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ssl_jax import SAMPLE_RATE
from ssl_jax.errors import UserError
from ssl_jax.objectives import OBJECTIVES
from ssl_jax.pretrained import hf_names


def architecture(config: ConfigDict, heads: Any) -> str:
  """Returns the class there that loads what `write` writes.

  Raises:
    UserError: transformers has no such encoder.
  """
  kind = OBJECTIVES[config.objective.name].hf_type
  if not kind:
    raise UserError(
      f"transformers has no config.objective.name={config.objective.name}: "
      "export the encoder with --format=stablehlo, or extract its features"
    )
  if kind == "hubert":
    return "HubertModel"
  return "Wav2Vec2ForPreTraining" if heads else "Wav2Vec2Model"


def write(folder: Path, config: ConfigDict, params: Any, heads: Any) -> None:
  """Writes config.json, preprocessor_config.json and model.safetensors.

  Args:
    folder: to write into; there, and empty.
    config: of the run that trained it.
    params: of its `Backbone`.
    heads: of wav2vec 2.0, the objective's parameters beside the backbone's;
      empty to write the encoder alone.

  Raises:
    UserError: transformers has no such encoder.
  """
  from safetensors.numpy import save_file

  name, layout = architecture(config, heads), hf_names.Layout(config)
  kind = OBJECTIVES[config.objective.name].hf_type
  tensors = _of_encoder(layout, params, f"{kind}." if heads else "")
  keys = layout.keys
  if heads:
    keys = keys | hf_names.HEAD_KEYS
    for path, value in jax.tree_util.tree_leaves_with_path(heads):
      path = [entry.key for entry in path]
      value = (
        value.reshape(1, -1, value.shape[-1])
        if path[-1] == "vectors"
        else value.T
      )
      tensors[hf_names.head_name(path)] = value
  flat = {key: _at(config, ours) for key, (ours, _) in keys.items()}
  _write_json(
    folder / "config.json",
    {
      "architectures": [name],
      "model_type": kind,
      **layout.fixed,
      **flat,
      "dtype": "float32",
    },
  )
  _write_json(
    folder / "preprocessor_config.json",
    {
      "feature_extractor_type": "Wav2Vec2FeatureExtractor",
      "feature_size": 1,
      "sampling_rate": SAMPLE_RATE,
      "do_normalize": config.frontend.normalize_waveform,
      "padding_value": 0.0,
      "padding_side": "right",
      "return_attention_mask": True,
    },
  )
  save_file(
    {
      name: np.ascontiguousarray(value, np.float32)
      for name, value in tensors.items()
    },
    folder / hf_names.WEIGHTS,
    {"format": "pt"},
  )


def _of_encoder(
  layout: hf_names.Layout, params: Any, prefix: str
) -> dict[str, np.ndarray]:
  tensors = {}
  for path, value in jax.tree_util.tree_leaves_with_path(params):
    *modules, leaf = [entry.key for entry in path]
    value = np.asarray(value)
    if modules[:2] == ["encoder", "layers"]:
      for i, one in enumerate(value):
        tensors[prefix + layout.layer_name(modules[2], leaf, i)] = one.T
    else:
      tensors[prefix + layout.names(modules, leaf)[0]] = value.T
  return tensors


def _at(config: ConfigDict, key: str) -> Any:
  section, name = key.split(".")
  return config[section][name]


def _write_json(path: Path, content: dict[str, Any]) -> None:
  path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
