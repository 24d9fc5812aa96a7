"""Encoders of any bytes: refused in a line, or read."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from hostile import (
  ODD,
  assault,
  changed,
  damaged,
  few,
  fuzzed,
  told,
)
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny

from ssl_jax import config as config_lib
from ssl_jax.checkpoints.manager import Checkpoints
from ssl_jax.config import validate
from ssl_jax.models.backbone import Backbone
from ssl_jax.pretrained import extract, hf_read, hf_write
from ssl_jax.pretrained.load import load_encoder


def backbone(config):
  return Backbone(config, jnp.float32).init(
    jax.random.key(0), jnp.zeros((1, 3200)), jnp.full(1, 3200)
  )["params"]


# Directories of transformers.


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
  """A wav2vec 2.0 of one small layer, with its heads."""
  config = tiny(objective="wav2vec2")
  config.frontend.name = "waveform"
  config.encoder.num_layers = 1
  config.wav2vec2.num_codes = 8
  params = backbone(config)
  groups, codes = config.wav2vec2.num_groups, config.wav2vec2.num_codes
  heads = {
    "quantizer": {
      "logits": dense(512, groups * codes),
      "vectors": np.zeros((groups, codes, 256 // groups), np.float32),
    },
    "quantizer_proj": dense(256, 256),
    "final_proj": dense(32, 256),
  }
  folder = tmp_path_factory.mktemp("exported")
  hf_write.write(folder, config, params, heads)
  return folder


def dense(inputs, outputs):
  kernel = np.zeros((inputs, outputs), np.float32)
  return {"kernel": kernel, "bias": kernel[0]}


def imported(folder):
  load_encoder(f"hf:{folder}")
  hf_read.read_heads(folder)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_no_settings_are_in_their_place(exported, name):
  call = functools.partial(imported, exported)
  assert told(call) == ""
  assert assault(
    exported / name, functools.partial(hf_read._read_config, exported)
  )
  assert assault(
    exported / name, functools.partial(hf_read.read_heads, exported)
  ) > 20 or (name != "config.json")


@fuzzed
@given(st.data())
def test_settings_of_any_json(tmp_path_factory, exported, data):
  folder = tmp_path_factory.getbasetemp() / "hf"
  folder.mkdir(exist_ok=True)
  for name in ("config.json", "preprocessor_config.json"):
    content = (exported / name).read_bytes()
    content = data.draw(changed(json.loads(content)))
    (folder / name).write_bytes(content)
  weights = folder / "model.safetensors"
  if not weights.exists():
    weights.symlink_to(exported / "model.safetensors")
  made = []
  if not told(lambda: made.append(hf_read._read_config(folder))):
    validate(made[0][0])
  told(hf_read.read_heads, folder)


@few
@given(st.data())
def test_encoders_of_any_json(tmp_path_factory, exported, data):
  folder = tmp_path_factory.getbasetemp() / "hf_whole"
  shutil.copytree(exported, folder, dirs_exist_ok=True)
  content = json.loads((exported / "config.json").read_bytes())
  (folder / "config.json").write_bytes(data.draw(changed(content)))
  told(imported, folder)


@pytest.mark.parametrize(
  "changes",
  [
    {"num_hidden_layers": 10**9},
    {"num_hidden_layers": 9_999},
    {"hidden_size": 10**12},
    {"hidden_size": 1 << 17, "num_hidden_layers": 100},
    {"intermediate_size": 10**15},
    {"num_attention_heads": 0},
    {"num_attention_heads": 10**9},
    {"num_conv_pos_embeddings": 10**9},
    {"num_hidden_layers": True},
    {"num_hidden_layers": None},
    {"conv_bias": 1},
    {"layerdrop": float("nan")},
    {"num_codevectors_per_group": 10**12},
    {"codevector_dim": -256},
    {"proj_codevector_dim": 0.5},
    {"num_codevector_groups": 0},
  ],
)
def test_absurd_encoders_are_refused_before_memory_is_taken(
  exported, tmp_path, changes
):
  shutil.copytree(exported, tmp_path, dirs_exist_ok=True)
  content = json.loads((tmp_path / "config.json").read_bytes())
  (tmp_path / "config.json").write_text(json.dumps(content | changes))
  assert told(imported, tmp_path)


WEIGHTS = safetensors.numpy.save({"a": np.ones((2, 3), np.float32)})


def tensors(header, content=b"\0" * 24):
  said = json.dumps(header).encode() if isinstance(header, dict) else header
  return len(said).to_bytes(8, "little") + said + content


def entry(dtype="F32", shape=(2, 3), offsets=(0, 24)):
  return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize(
  "content",
  [
    *(tensors(entry(shape=x)) for x in ([2**62, 2], [10**18], [-1], [0.5], 7)),
    *(tensors(entry(offsets=(0, x))) for x in (2**60, 10**18, 2**64, -1, "x")),
    *(tensors(entry(dtype=x)) for x in ("F8_E4M3", "X", 7, "I64", "BOOL")),
    tensors(entry("F16", [2, 6])),
    tensors(entry("C64", [3])),
    (2**63).to_bytes(8, "little") + b"{}",
    (2**40).to_bytes(8, "little") + b"{}",
    tensors(b"{" * 99_999),
    tensors(b"\xff" * 99),
    tensors({"__metadata__": 7}),
    tensors({"__metadata__": {"x": 10**400}}),
  ],
)
def test_weights_of_absurd_headers(tmp_path, content):
  (tmp_path / "model.safetensors").write_bytes(content)
  told(hf_read._read_weights, tmp_path)


@fuzzed
@given(st.data())
def test_weights_of_any_bytes(tmp_path_factory, data):
  folder = tmp_path_factory.getbasetemp() / "weights"
  folder.mkdir(exist_ok=True)
  path = folder / "model.safetensors"
  path.write_bytes(data.draw(damaged(WEIGHTS)))
  index = {"weight_map": {"a": "model.safetensors", "b": "x"}, "metadata": {}}
  if data.draw(st.booleans()):
    index = data.draw(changed(index))
    (folder / "model.safetensors.index.json").write_bytes(index)
  told(hf_read._read_weights, folder)


def test_no_weights_are_in_their_place(tmp_path):
  path = tmp_path / "model.safetensors"
  path.write_bytes(WEIGHTS)
  call = functools.partial(hf_read._read_weights, tmp_path)
  assert told(call) == "" and assault(path, call) > 25
  index = tmp_path / "model.safetensors.index.json"
  index.write_text(json.dumps({"weight_map": {"a": path.name}}))
  assert told(call) == "" and assault(index, call) > 20


# Workdirs.


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("run")
  config = tiny()
  (folder / "config.json").write_text(config_lib.to_json(config))
  checkpoints = Checkpoints(folder, keep=1)
  state = {"params": {"backbone": backbone(config)}}
  checkpoints.save(3, state, {"flops": 1.0}, 1.0)
  checkpoints.close()
  return folder


def test_no_config_is_in_a_configs_place(workdir):
  call = functools.partial(load_encoder, workdir)
  assert told(call) == ""
  assert assault(workdir / "config.json", call) > 25


@few
@given(st.data())
def test_workdirs_of_any_config(workdir, data):
  kept = (workdir / "config.json").read_bytes()
  content = json.loads(kept)
  sections = ("encoder", "frontend", "objective", "wav2vec2", "compute_dtype")
  content = {key: content[key] for key in sections}
  (workdir / "config.json").write_bytes(data.draw(changed(content)))
  try:
    told(load_encoder, workdir)
  finally:
    (workdir / "config.json").write_bytes(kept)


@few
@given(st.data())
def test_checkpoints_of_any_bytes(workdir, data):
  paths = [p for p in (workdir / "checkpoints").rglob("*") if p.is_file()]
  path = data.draw(st.sampled_from(sorted(paths)))
  kept = path.read_bytes()
  path.write_bytes(data.draw(damaged(kept)))
  try:
    told(load_encoder, workdir)
    told(load_encoder, workdir / "checkpoints" / "3")
  finally:
    path.write_bytes(kept)


def test_folders_beside_checkpoints(workdir, tmp_path):
  shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
  for name in ("\u00b2", "-1", "0x9", "3.tmp", "x"):
    (tmp_path / "checkpoints" / name).mkdir()
  assert told(load_encoder, tmp_path) == ""
  (tmp_path / "checkpoints" / ("9" * 30)).mkdir()
  assert told(load_encoder, tmp_path)
  for path in (
    "",
    "\0",
    "a" * 5_000,
    "/dev/zero",
    "hf:",
    "hf:\0",
    "hf:/dev/null",
  ):
    assert told(load_encoder, path)


def test_probes_whose_layers_are_asked_for(workdir, tmp_path):
  encoder = load_encoder(workdir)
  result = {"layer_weights": [0.2, 0.3, 0.5], "normalized": True}
  result["origin"] = {"params": encoder.origin["params"]}
  path = tmp_path / "ks.json"
  path.write_text(json.dumps(result))

  def used():
    states, _ = extract.states_of(encoder, "weighted", path)
    jax.eval_shape(states, jnp.zeros((1, 3200)), jnp.full(1, 3200))

  assert told(used) == ""
  assert assault(path, used) > 25
  for odd in ODD:
    for weights in (odd, [odd] * 3, [0.5, odd, 0.5]):
      path.write_text(json.dumps(result | {"layer_weights": weights}))
      told(used)
  for layer in ("", "x", "-1", "9" * 9_999, "\u00b2", "1.0", "nan", "\0"):
    assert told(extract.states_of, encoder, layer, None)


@pytest.mark.parametrize("name", ["x" * 300, "../x", "/x", "..", "a.npz/b"])
def test_features_of_odd_names_stay_in_their_folder(tmp_path, name):
  lines = [{"file": "a.wav", "id": "a.wav"}, {"file": "a.wav", "id": name}]
  path = tmp_path / "m.jsonl"
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  told(extract.open_inputs, [str(path)])
  for odd in ("\0", "a" * 5_000, "/dev/zero", ""):
    told(extract.open_inputs, [odd])
