"""Runs, caches and settings of any content: refused in a line, or read."""

import functools
import json
import os

import numpy as np
import pytest
from fake_runs import write_run
from hostile import assault, changed, damaged, fuzzed, told
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny

from ssl_jax import config as config_lib
from ssl_jax.budget import planner
from ssl_jax.config import override, validate
from ssl_jax.errors import UserError
from ssl_jax.knobs import flatten
from ssl_jax.probes import features
from ssl_jax.reports import page, runs
from ssl_jax.training import trunk

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
  assert assault(odd / name, read) > 3


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
  assert assault(path, call) > 25
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

FLAT = flatten(config_lib.base())
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
      value = flatten(config)[key]
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
