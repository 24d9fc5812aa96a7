"""Encoders of transformers directories."""

import json

import hf
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from ssl_jax import config as config_lib
from ssl_jax.errors import UserError
from ssl_jax.models.backbone import Backbone
from ssl_jax.pretrained import hf_names
from ssl_jax.pretrained.load import load_encoder

LARGE = {
  "feat_extract_norm": "layer",
  "conv_bias": True,
  "do_stable_layer_norm": True,
}


def make(kind, **layout):
  torch.manual_seed(0)
  config, model = {
    "hubert": (transformers.HubertConfig, transformers.HubertModel),
    "wav2vec2": (
      transformers.Wav2Vec2Config,
      transformers.Wav2Vec2ForPreTraining,
    ),
    "ctc": (transformers.HubertConfig, transformers.HubertForCTC),
  }[kind]
  return hf.perturbed(model(config(**hf.TINY, num_hidden_layers=2, **layout)))


def states_here(folder, waveform):
  encoder = load_encoder(f"hf:{folder}")
  length = np.full(len(waveform), waveform.shape[1])
  return (
    Backbone(encoder.config, jnp.float32)
    .apply({"params": encoder.params}, waveform, length, all_states=True)
    .hidden
  )


def speech(seed=0):
  rng = np.random.default_rng(seed)
  x = np.cumsum(rng.normal(size=(2, 8_000)), axis=1) * 0.01
  return (x * (np.sin(np.arange(8_000) / 900) > -0.3)).astype(np.float32)


@pytest.mark.parametrize("kind", ["hubert", "wav2vec2", "ctc"])
@pytest.mark.parametrize("layout", [{}, LARGE], ids=["base", "large"])
@pytest.mark.parametrize("normalize", [False, True])
def test_hidden_states_equal_those_of_the_model_that_was_saved(
  kind, layout, normalize, tmp_path
):
  model = make(kind, **layout)
  model.save_pretrained(tmp_path)
  extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=normalize)
  extractor.save_pretrained(tmp_path)
  waveform = speech()
  heard = extractor(list(waveform), sampling_rate=16_000, return_tensors="pt")
  with torch.no_grad():
    said = model.base_model(heard.input_values, output_hidden_states=True)
  # Of large models, version 5 gives the last state before the last norm.
  expected = [*said.hidden_states[:-1], said.last_hidden_state]
  found = states_here(tmp_path, waveform)
  assert len(found) == len(expected) == 3
  for ours, theirs in zip(found, expected):
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


def test_an_offset_of_the_microphone_costs_no_digits(tmp_path):
  model = make("hubert", **LARGE | {"conv_bias": False})
  model.save_pretrained(tmp_path)
  extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)
  extractor.save_pretrained(tmp_path)
  rng = np.random.default_rng(0)
  waveform = 0.4 + 0.003 * rng.normal(size=(1, 160_000)).astype(np.float32)
  heard = extractor(list(waveform), sampling_rate=16_000, return_tensors="pt")
  with torch.no_grad():
    said = model(heard.input_values, output_hidden_states=True)
  found = states_here(tmp_path, waveform)
  np.testing.assert_allclose(
    found[-1], said.last_hidden_state, atol=1e-4, rtol=0
  )


@pytest.mark.parametrize("normalize", [False, True])
def test_a_feature_extractor_in_a_processors_file_is_heeded(
  normalize, tmp_path
):
  make("ctc").save_pretrained(tmp_path)
  (tmp_path / "vocab.json").write_text('{"<pad>": 0, "a": 1, "|": 2}')
  processor = transformers.Wav2Vec2Processor(
    transformers.Wav2Vec2FeatureExtractor(do_normalize=normalize),
    transformers.Wav2Vec2CTCTokenizer(tmp_path / "vocab.json"),
  )
  processor.save_pretrained(tmp_path)
  if not (tmp_path / "preprocessor_config.json").exists():  # Version 5.
    assert "do_normalize" in (tmp_path / "processor_config.json").read_text()
  config = load_encoder(f"hf:{tmp_path}").config
  assert config.frontend.normalize_waveform == normalize


def test_what_is_assumed_is_said_and_what_would_be_wrong_refused(
  tmp_path, caplog
):
  make("hubert").save_pretrained(tmp_path / "bare")
  load_encoder(f"hf:{tmp_path}/bare")
  assert "clips are taken to be normalised" in caplog.text
  extractor = transformers.Wav2Vec2FeatureExtractor(sampling_rate=8_000)
  extractor.save_pretrained(tmp_path / "bare")
  with pytest.raises(UserError, match="audio at 8000 Hz"):
    load_encoder(f"hf:{tmp_path}/bare")
  adapted = make("wav2vec2", add_adapter=True, output_hidden_size=32)
  adapted.save_pretrained(tmp_path / "adapted")
  with pytest.raises(UserError, match="adapter"):
    load_encoder(f"hf:{tmp_path}/adapted")


def test_older_keys_shards_and_half_precision_are_read(tmp_path):
  model = make("hubert")
  model.save_pretrained(tmp_path / "whole")
  expected = states_here(tmp_path / "whole", speech())

  weights = safetensors.numpy.load_file(tmp_path / "whole/model.safetensors")
  place = "encoder.pos_conv_embed.conv."
  for new, old in (("original0", "weight_g"), ("original1", "weight_v")):
    weights[place + old] = weights.pop(f"{place}parametrizations.weight.{new}")
  del weights["masked_spec_embed"]
  (tmp_path / "old").mkdir()
  config = (tmp_path / "whole/config.json").read_text()
  (tmp_path / "old/config.json").write_text(config)
  safetensors.numpy.save_file(weights, tmp_path / "old/model.safetensors")
  np.testing.assert_array_equal(
    states_here(tmp_path / "old", speech()), expected
  )

  model.save_pretrained(tmp_path / "shards", max_shard_size="1MB")
  assert not (tmp_path / "shards/model.safetensors").exists()
  np.testing.assert_array_equal(
    states_here(tmp_path / "shards", speech()), expected
  )

  model.to(torch.bfloat16).save_pretrained(tmp_path / "half")
  np.testing.assert_allclose(
    states_here(tmp_path / "half", speech()), expected, atol=0.1
  )


def test_a_key_that_a_config_leaves_out_has_the_value_it_has_there(tmp_path):
  defaults = transformers.HubertConfig().to_dict()
  layout = hf_names.Layout(config_lib.base())
  for key, (_, default) in layout.keys.items():
    assert defaults[key] == default
  for key, value in layout.fixed.items():
    if key in defaults:
      known = defaults[key]
      assert (list(known) if isinstance(known, tuple) else known) == value


def damage_truncated(folder, config, weights):
  path = folder / "model.safetensors"
  path.write_bytes(path.read_bytes()[:-100])


def damage_missing_key(folder, config, weights):
  del weights["encoder.layers.1.attention.k_proj.weight"]


def damage_shape(folder, config, weights):
  weights["feature_projection.projection.weight"] = np.zeros((48, 500), "f4")


def damage_extra_layer(folder, config, weights):
  config["num_hidden_layers"] = 1


def damage_other_model(folder, config, weights):
  config["model_type"] = "whisper"


def damage_activation(folder, config, weights):
  config["hidden_act"] = "relu"


def damage_type(folder, config, weights):
  config["hidden_size"] = "wide"


def damage_heads(folder, config, weights):
  config["num_attention_heads"] = 5


def damage_no_weights(folder, config, weights):
  (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def damage_config(folder, config, weights):
  (folder / "config.json").write_text("{")


@pytest.mark.parametrize(
  ("damage", "said"),
  [
    (damage_truncated, "model.safetensors is damaged"),
    (damage_missing_key, "no weights 'encoder.layers.1.attention.k_proj.weig"),
    (damage_shape, r"projection.weight' is of shape \(48, 500\), and its co"),
    (damage_extra_layer, "weights 'encoder.layers.1.attention.k_proj.bias' h"),
    (damage_other_model, "holds a model of type 'whisper': expected one of"),
    (damage_activation, "hidden_act is 'relu'; encoders here have 'gelu'"),
    (damage_type, "config.json: .*hidden_size"),
    (damage_heads, "config.json: .*num_heads"),
    (damage_no_weights, "load it in transformers and save_pretrained it"),
    (damage_config, "config.json cannot be read"),
  ],
)
def test_a_directory_that_does_not_fit_is_an_error_of_one_line(
  damage, said, tmp_path
):
  make("hubert").save_pretrained(tmp_path)
  path = tmp_path / "model.safetensors"
  config = json.loads((tmp_path / "config.json").read_text())
  weights = safetensors.numpy.load_file(path)
  safetensors.numpy.save_file(weights, path)
  damage(tmp_path, changed := dict(config), kept := dict(weights))
  if changed != config:
    (tmp_path / "config.json").write_text(json.dumps(changed))
  if kept.keys() != weights.keys() or any(
    kept[name] is not weights[name] for name in kept
  ):
    safetensors.numpy.save_file(kept, path)
  with pytest.raises(UserError, match=said) as error:
    load_encoder(f"hf:{tmp_path}")
  assert "\n" not in str(error.value)


def test_a_folder_that_is_not_there_and_a_missing_prefix(tmp_path):
  with pytest.raises(UserError, match=r"none/config\.json cannot"):
    load_encoder(f"hf:{tmp_path}/none")
  make("hubert").save_pretrained(tmp_path)
  with pytest.raises(UserError, match=f"hf:{tmp_path} for a directory"):
    load_encoder(tmp_path)
