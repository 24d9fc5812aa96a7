"""Encoders, runs and settings of any bytes: refused in a line, or read."""

import functools
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from hostile import ODD, assault, changed, damaged, few, fuzzed, told
from hypothesis import given
from hypothesis import strategies as st
from test_report import write_run
from test_training import tiny

from ssl_jax import config as config_lib
from ssl_jax.budget import page, planner, runs
from ssl_jax.errors import UserError
from ssl_jax.interop import hf, hf_write
from ssl_jax.models.backbone import Backbone
from ssl_jax.overrides import override
from ssl_jax.probes import features
from ssl_jax.training import extract, trunk
from ssl_jax.training.checkpoint import Checkpoints
from ssl_jax.training.encoder import load_encoder
from ssl_jax.validation import validate


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
  hf.read_heads(folder)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_no_settings_are_in_their_place(exported, name):
  call = functools.partial(imported, exported)
  assert told(call) == ""
  assert assault(exported / name, functools.partial(hf._read_config, exported))
  assert assault(
    exported / name, functools.partial(hf.read_heads, exported)
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
  if not told(lambda: made.append(hf._read_config(folder))):
    validate(made[0])
  told(hf.read_heads, folder)


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
  told(hf._read_weights, tmp_path)


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
  told(hf._read_weights, folder)


def test_no_weights_are_in_their_place(tmp_path):
  path = tmp_path / "model.safetensors"
  path.write_bytes(WEIGHTS)
  call = functools.partial(hf._read_weights, tmp_path)
  assert told(call) == "" and assault(path, call) > 30
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


# Runs, and what is made of them.


def reported(folder):
  found, broken = runs.read([folder])
  page.summary(found, broken)
  planner.read_runs(folder)


RUN_FILES = ["result.json", "config.json", "metrics.jsonl", "probes/ks.json"]
PROBE = {"encoder": "model", "task": "ks", "metric": "accuracy"}
PROBE |= {"profile": "smoke", "test": 0.5}


def two_runs(folder):
  for name in ("good", "odd"):
    if not (folder / name).exists():
      write_run(folder / name)
    (folder / name / "probes").mkdir(exist_ok=True)
    (folder / name / "probes" / "ks.json").write_text(json.dumps(PROBE))
  return folder / "odd"


@pytest.mark.parametrize("name", RUN_FILES)
def test_no_run_hides_the_others(tmp_path, name):
  odd = two_runs(tmp_path)

  def read():
    found, broken = runs.read([tmp_path])
    assert "good" in {run.name for run in found}
    assert all("\n" not in said for said in broken.values())
    if broken:  # Counted by `assault`.
      raise UserError(*broken.values())
    page.summary(found, broken)

  assert told(read) == ""
  assert assault(odd / name, read) > 10


@fuzzed
@given(st.data())
def test_runs_of_any_json(tmp_path_factory, data):
  folder = tmp_path_factory.getbasetemp() / "runs"
  odd = two_runs(folder)
  kept = {name: (odd / name).read_bytes() for name in RUN_FILES}
  name = data.draw(st.sampled_from(RUN_FILES))
  if name == "metrics.jsonl":
    lines = map(json.loads, kept[name].splitlines())
    content = b"\n".join(data.draw(changed(line)) for line in lines)
  else:
    content = data.draw(changed(json.loads(kept[name])))
  (odd / name).write_bytes(content)
  try:
    assert told(runs.read, [folder]) == ""
    told(reported, folder)
  finally:
    (odd / name).write_bytes(kept[name])


def test_trunks_of_any_config(tmp_path):
  config = tiny(20)
  config.optimizer.warmup_updates = 2
  config.optimizer.decay_fraction = 0.5
  config.budget.trunk = str(tmp_path)
  path = tmp_path / "config.json"
  path.write_text(config_lib.to_json(config))
  (tmp_path / "checkpoints").mkdir()
  call = functools.partial(trunk.check, config)
  assert "no checkpoint at update" in told(call)
  assert assault(path, call) > 30
  content = json.loads(path.read_text())

  @fuzzed
  @given(changed(content))
  def of_any(text):
    path.write_bytes(text)
    assert told(call)

  of_any()


def test_caches_of_any_progress(tmp_path):
  shape, plan = (6, 2, 3), [60.0, 5.0]
  values = np.lib.format.open_memmap(
    tmp_path / "features.npy", "w+", np.float16, shape
  )
  values.flush()
  path, done = tmp_path / "progress.json", {"batches": 4, "plan": plan}
  path.write_text(json.dumps(done))

  def read():
    count = features._batches_done(tmp_path, shape, plan)
    assert count is None or (type(count) is int and count >= 0)
    return count

  assert read() == 4
  assault(path, read)
  assault(tmp_path / "features.npy", read)

  @fuzzed
  @given(changed(done), damaged((tmp_path / "features.npy").read_bytes()))
  def of_any(text, content):
    path.write_bytes(text)
    told(read)
    path.write_text(json.dumps(done))
    (tmp_path / "features.npy").write_bytes(content)
    told(read)

  of_any()


# Settings.

FLAT = config_lib.flatten(config_lib.base())
WORDS = [
  *("1", "-1", "0", "True", "None", "nan", "1e300", "1e999", "1e-300", "''"),
  *("9" * 18, "9" * 5_000, "-" * 9_999 + "1", "(" * 999, "[" * 99 + "]" * 99),
  *("x", "", " ", "\0", "\ud800", "()", "(1,)", "(-1,)", "(1e300,)", "('x',)"),
  *("[1]", "{}", "{1}", "b'x'", "(1,2,3)", "('a','b')", "(True,)", "(None,)"),
  *("(0.1, 0.2)", "2**9", "__import__('os')", "1 if 1 else 2", "f'{1}'"),
  *("(" + "1," * 4_999 + ")", "1_000", "0x10", "1j", "...", "10" * 20),
]


@pytest.mark.parametrize("key", FLAT)
def test_values_of_any_kind(key):
  for word in WORDS:
    config = config_lib.base()
    if not told(override, config, [f"{key}={word}"]) and not told(
      validate, config
    ):
      config_lib.to_json(config)
      value = config_lib.flatten(config)[key]
      assert isinstance(FLAT[key], tuple) == isinstance(value, tuple)
      assert (type(value) in (int, float)) == (type(FLAT[key]) in (int, float))
      if isinstance(value, int | float):
        assert abs(value) <= 1e30


@pytest.mark.parametrize(
  "given",
  [
    ["batch.seconds=1e300"],
    ["encoder.num_layers=1" + "0" * 18],
    ["encoder.num_layers=10000", "encoder.hidden_size=131072"],
    ["data.bucket_seconds=(1.0, 1e9)"],
    ["data.bucket_seconds=(1.0, float('nan'))"],
    ["data.bucket_seconds=" + str(tuple(range(1, 100_000)))],
    ["checkpoint.at=" + str(tuple(range(100_000)))],
    ["mesh=(1,1,1,1)"],
    ["mesh=(True,1,1)"],
    ["hubert.clusters=(1" + "0" * 18 + ",)"],
    ["kmeans.num_frames=1" + "0" * 18],
    ["augment.reverb_seconds=(0.1, 1e9)"],
    ["loader.num_threads=1000000000"],
    ["seed=None"],
    ["seed=-1"],
    ["nothing=1"],
    ["=1"],
    [""],
    ["encoder=1"],
    ["encoder.num_layers.x=1"],
    ["x" * 9_999 + "=1"],
  ],
)
def test_absurd_settings_are_refused(given):
  def use():
    config = config_lib.base()
    override(config, given)
    validate(config)

  assert told(use)


@fuzzed
@given(
  st.text(max_size=40) | st.sampled_from(["9" * 5_000, "1x2x3x" + "4" * 99])
)
def test_arguments_of_any_words(text):
  told(config_lib.parse_arg, text, *[], **{})
  told(config_lib.set_size, config_lib.base(), text)
  for prefix in ("size=", "objective=", "task=", "scale=", ""):
    for name in ("slim", "smoke", "probe", "isoflop"):
      told(config_lib.load, f"configs/{name}.py:{prefix}{text}")


@pytest.mark.parametrize("size", ["0x1x1x1", "1x1x1", "-1x2x3x4", "1x2x3x4x5"])
def test_shapes_that_are_none(size):
  assert told(config_lib.set_size, config_lib.base(), size)


@pytest.mark.parametrize(
  "content",
  [
    *("", "def", "import nothing", "get_config = 7", "\0", "\ud800", "1 / 0"),
    "def get_config(x): return 7",
    "def get_config(x): raise KeyError(x)",
    "def get_config(x): return get_config(x)",
  ],
)
def test_config_files_of_any_code(tmp_path, content):
  path = tmp_path / "x.py"
  path.write_bytes(content.encode(errors="surrogatepass"))
  assert told(config_lib.load, str(path))
  assert told(config_lib.load, f"{path}:a=1")


def test_configs_that_are_no_files(tmp_path):
  os.mkfifo(tmp_path / "f.py")
  (tmp_path / "d.py").mkdir()
  (tmp_path / "x.json").write_text("{}")
  for name in ("f.py", "d.py", "x.json", "none.py", "\0.py", "a" * 5_000):
    assert told(config_lib.load, f"{tmp_path}/{name}")
