"""HuBERT and wav2vec 2.0 encoders in directories of transformers.

A directory holds config.json, preprocessor_config.json and safetensors; models
with a head on top (ForCTC, ForPreTraining ...) give their encoder.
"""

import logging
import math
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ssl_jax import SAMPLE_RATE
from ssl_jax import config as config_lib
from ssl_jax.config import validate
from ssl_jax.errors import UserError, one_line
from ssl_jax.files import read_object
from ssl_jax.models import frontends
from ssl_jax.models.backbone import Backbone
from ssl_jax.pretrained import hf_names


def read(folder: Path) -> tuple[ConfigDict, Any]:
  """Reads an encoder.

  Args:
    folder: as `save_pretrained` writes it.

  Returns:
    A config whose `objective`, `frontend` and `encoder` describe it, and the
    float32 parameters of its `Backbone`.

  Raises:
    UserError: it is no such directory, of another architecture, or damaged.
  """
  config, layout = _read_config(folder)
  shapes = jax.eval_shape(
    Backbone(config, jnp.float32).init,
    jax.random.key(0),
    jnp.zeros((1, 3200)),
    jnp.full(1, 3200),
  )["params"]
  weights, used = _of_encoder(_read_weights(folder)), set()

  def take(names: tuple[str, ...], shape: tuple[int, ...]) -> np.ndarray:
    name = next((name for name in names if name in weights), None)
    if name is None:
      if names == (hf_names.MASK,):
        return np.zeros(shape, np.float32)
      raise UserError(f"{folder}: no weights {names[0]!r} in its safetensors")
    used.add(name)
    return _checked(folder, name, weights[name].T, shape)

  def leaf(path: Any, wanted: jax.ShapeDtypeStruct) -> np.ndarray:
    *modules, name = [entry.key for entry in path]
    if modules[:2] != ["encoder", "layers"]:
      return take(layout.names(modules, name), wanted.shape)
    each = [
      take((layout.layer_name(modules[2], name, i),), wanted.shape[1:])
      for i in range(wanted.shape[0])
    ]
    return np.stack(each)

  params = jax.tree_util.tree_map_with_path(leaf, shapes)
  inside = ("adapter.", "encoder.", "feature_extractor.", "feature_projection.")
  if left := sorted(n for n in weights.keys() - used if n.startswith(inside)):
    raise UserError(f"{folder}: weights {left[0]!r} have no place in it here")
  return config, params


def read_heads(folder: Path) -> tuple[dict[str, Any], Any] | None:
  """Reads the quantizer and projections of a Wav2Vec2ForPreTraining.

  Returns:
    What `config.wav2vec2` is there, and float32 parameters of the objective
    beside its backbone's; None where the model was saved without them.

  Raises:
    UserError: the directory cannot be read, or is damaged.
  """
  theirs = _read_json(folder / "config.json")
  if "Wav2Vec2ForPreTraining" not in str(theirs.get("architectures")):
    return None
  sizes = {
    ours.split(".")[1]: theirs.get(key, value)
    for key, (ours, value) in hf_names.HEAD_KEYS.items()
  }
  for key in ("num_groups", "num_codes", "code_dim", "final_dim"):
    if type(sizes[key]) is not int or not 0 < sizes[key] <= 1 << 17:
      raise UserError(f"{folder}/config.json: {key} is {sizes[key]!r}")
  groups, codes = sizes["num_groups"], sizes["num_codes"]
  code, final = sizes["code_dim"], sizes["final_dim"]
  channels = frontends.make(_base().frontend).channels
  shapes = {
    "quantizer": {
      "logits": _dense(channels, groups * codes),
      "vectors": (groups, codes, code // groups),
    },
    "quantizer_proj": _dense(code, final),
    "final_proj": _dense(theirs.get("hidden_size", 768), final),
  }
  weights = _read_weights(folder)

  def leaf(path: Any, shape: tuple[int, ...]) -> np.ndarray:
    name = hf_names.head_name(path := [entry.key for entry in path])
    if name not in weights:
      raise UserError(f"{folder}: no weights {name!r} in its safetensors")
    value = weights[name]
    if path[-1] != "vectors":
      value = value.T
    elif value.size == math.prod(shape):
      value = value.reshape(shape)
    return _checked(folder, name, value, shape)

  return sizes, jax.tree_util.tree_map_with_path(
    leaf, shapes, is_leaf=lambda x: isinstance(x, tuple)
  )


def _dense(inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
  return {"kernel": (inputs, outputs), "bias": (outputs,)}


def _checked(
  folder: Path, name: str, value: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
  if value.shape != shape:
    raise UserError(
      f"{folder}: {name!r} is of shape {value.shape[::-1]}, and its "
      f"config.json makes it {shape[::-1]}"
    )
  return value


def _base() -> ConfigDict:
  """Returns the config of what transformers' models consist of."""
  config = config_lib.base()
  config.frontend.name, config.encoder.name = "waveform", "transformer"
  return config


def _read_config(folder: Path) -> tuple[ConfigDict, hf_names.Layout]:
  theirs = _read_json(folder / "config.json")
  kind = theirs.get("model_type")
  if kind not in hf_names.MODELS:
    raise UserError(
      f"{folder} holds a model of type {kind!r}: expected one of "
      f"{', '.join(hf_names.MODELS)}"
    )
  layout = hf_names.Layout(config := _base())
  for key, value in layout.fixed.items():
    if theirs.get(key, value) != value:
      raise UserError(
        f"{folder}/config.json: {key} is {theirs[key]!r}; encoders here have "
        f"{value!r}"
      )
  flat = {
    ours: theirs.get(key, value) for key, (ours, value) in layout.keys.items()
  }
  flat["frontend.grad_mult"] = 1.0
  flat["objective.name"] = kind
  flat["frontend.normalize_waveform"] = _normalizes(folder)
  try:
    for key, value in flat.items():
      section, name = key.split(".")
      kind = type(config[section][name])
      config[section][name] = kind(value) if kind is float else value
    validate(config)
  except (TypeError, ValueError, OverflowError, UserError) as error:
    message = " ".join(str(error).split())
    raise UserError(f"{folder}/config.json: {message}") from error
  return config, layout


def _normalizes(folder: Path) -> bool:
  """Tells whether clips are normalised, as the feature extractor there says.

  Raises:
    UserError: it is for audio of another rate, or cannot be read.
  """
  alone = folder / "preprocessor_config.json"
  # With a tokenizer, transformers 5 saves both in one file.
  joined = folder / "processor_config.json"
  extractor = None
  if alone.exists():
    extractor = _read_json(alone)
  elif joined.exists():
    extractor = _read_json(joined).get("feature_extractor")
  if not isinstance(extractor, dict):
    logging.getLogger("ssl_jax").warning(
      "%s has no %s: clips are taken to be normalised, which is the default of "
      "transformers",
      folder,
      alone.name,
    )
    return True
  rate = extractor.get("sampling_rate", SAMPLE_RATE)
  if rate != SAMPLE_RATE:
    raise UserError(
      f"{folder} is of audio at {rate} Hz; encoders here hear {SAMPLE_RATE} Hz"
    )
  # It normalises unless it says otherwise.
  return extractor.get("do_normalize", True)


def _read_json(path: Path) -> dict[str, Any]:
  try:
    return read_object(path)
  except (OSError, ValueError) as error:
    raise UserError(
      f"{path} cannot be read ({error}): expected a directory that "
      "transformers' save_pretrained wrote"
    ) from error


def _read_weights(folder: Path) -> dict[str, np.ndarray]:
  """Reads all of them, float32, by name."""
  import safetensors  # Imported late: only who reads such a folder needs it.

  index = folder / f"{hf_names.WEIGHTS}.index.json"
  if index.exists():
    placed = _read_json(index).get("weight_map")
    if not isinstance(placed, dict):
      raise UserError(f"{index}: expected a weight_map")
    files = sorted({*map(str, placed.values())})
  else:
    files = [hf_names.WEIGHTS]
  weights = {}
  for name in files:
    path = folder / Path(name).name
    if not os.path.isfile(path):
      raise UserError(
        f"{folder} holds no {path.name}: where it has pytorch_model.bin, load "
        "it in transformers and save_pretrained it again"
      )
    try:
      with safetensors.safe_open(path, framework="flax") as file:
        for name in file.keys():
          tensor = file.get_tensor(name)
          if np.iscomplexobj(tensor):
            raise ValueError(f"complex numbers in {name}")
          weights[name] = np.asarray(tensor, np.float32)
    except Exception as error:  # Tears, types, odd headers.
      message = one_line(error)
      raise UserError(
        f"{path} is damaged ({message}): copy it again"
      ) from error
  return weights


def _of_encoder(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Picks the encoder's, by their name within it."""
  for prefix in (f"{model}." for model in hf_names.MODELS):
    if any(name.startswith(prefix) for name in weights):
      return {
        name.removeprefix(prefix): value
        for name, value in weights.items()
        if name.startswith(prefix)
      }
  return weights
