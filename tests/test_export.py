"""Encoders taken elsewhere: to transformers, and to JAX alone."""

import json
import os
import shutil
import subprocess
import sys

import hf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from doors import door
from hf import LAYOUTS, saved
from tiny import clips, finished_run, on_waveforms, tiny

import ssl_jax
from ssl_jax import config as config_lib
from ssl_jax import num_frames
from ssl_jax.errors import UserError
from ssl_jax.files import new_folder
from ssl_jax.models.backbone import Backbone
from ssl_jax.pretrained import hf_read as importer
from ssl_jax.pretrained import hf_write
from ssl_jax.pretrained.export import export


def ours(config, params, waveform, length):
  backbone = Backbone(config, jnp.float32)
  return backbone.apply(
    {"params": params}, waveform, length, all_states=True
  ).hidden


def theirs(model, waveform, mask=None):
  """Their hidden states, the last one after the last norm."""
  model = getattr(model, "wav2vec2", model).eval()
  with torch.no_grad():
    found = model(
      torch.from_numpy(waveform),
      attention_mask=None if mask is None else torch.from_numpy(mask),
      output_hidden_states=True,
    )
  return [*found.hidden_states[:-1], found.last_hidden_state]


def run(kind, source, out, license="unknown"):
  return export(ssl_jax.load(str(source)), kind, out, license)


def trained(objective):
  """The workdir of a short run on waveforms."""
  return finished_run(on_waveforms(2, objective))


@pytest.mark.slow
@pytest.mark.parametrize(
  ("objective", "model"),
  [
    ("hubert", transformers.HubertModel),
    ("tera", transformers.HubertModel),
    ("wav2vec2", transformers.Wav2Vec2ForPreTraining),
  ],
)
def test_transformers_loads_what_was_trained(objective, model, tmp_path):
  workdir = trained(objective)
  result = run("hf", workdir, tmp_path / "out", license="cc-by-4.0")
  assert result["architecture"] == model.__name__
  loaded, info = model.from_pretrained(
    tmp_path / "out", output_loading_info=True
  )
  assert not any(info.values()), info
  assert sum(p.numel() for p in loaded.parameters()) == result["params"]
  encoder = ssl_jax.load(workdir)
  extractor = transformers.AutoFeatureExtractor.from_pretrained(
    tmp_path / "out"
  )
  for clip in clips(3):
    heard = extractor(clip, sampling_rate=16_000, return_tensors="np")
    found = theirs(loaded, heard["input_values"])
    expected = encoder(clip, layer="all")
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
      np.testing.assert_allclose(a[0], b, atol=1e-4, rtol=0)
  card = (tmp_path / "out" / "README.md").read_text()
  for said in ("license: cc-by-4.0", "| updates | 2 |", "training FLOPs"):
    assert said in card
  assert str(workdir) not in card


@pytest.mark.slow
def test_a_card_has_the_scores_of_this_encoder_alone(tmp_path):
  workdir = shutil.copytree(trained("hubert"), tmp_path / "run")
  (workdir / "probes").mkdir()
  score = {"test": 0.5, "std": 0.01}
  mine = ssl_jax.load(workdir).origin["params"]
  for task, params in (("ks", mine), ("sid", "another")):
    result = {
      "task": task,
      "metric": "accuracy",
      "profile": "mini",
      "origin": {"params": params},
      "baselines": {"random": {"test": 0.25, "std": 0.0}},
    } | score
    (workdir / "probes" / f"{task}.json").write_text(json.dumps(result))
  run("hf", workdir, tmp_path / "out")
  card = (tmp_path / "out" / "README.md").read_text()
  assert "| ks | mini | accuracy, % | 50.0 ± 1.0 | random 25.0 ± 0.0 |" in card
  assert "| sid |" not in card


def random_pair(size, norm, folder):
  """A random encoder of a published size, and what transformers loads of it."""
  config = config_lib.base()
  config_lib.set_size(config, size)
  config.frontend.norm = norm
  init = Backbone(config, jnp.float32).init
  clip = jnp.zeros((1, 3200)), jnp.full(1, 3200)
  params = jax.jit(init)(jax.random.key(0), *clip)["params"]
  # What is the identity or 0 at first would hide mistakes.
  leaves, tree = jax.tree.flatten(params)
  rng = np.random.default_rng(0)
  leaves = [
    x + 0.05 * rng.normal(size=x.shape).astype(np.float32) * (x.ndim < 3)
    for x in leaves
  ]
  params = jax.tree.unflatten(tree, leaves)
  folder.mkdir()
  hf_write.write(folder, config, params, {})
  return config, params, transformers.HubertModel.from_pretrained(folder)


@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize(
  "size",
  [
    "small",
    *(pytest.param(x, marks=pytest.mark.slow) for x in ("100", "base")),
  ],
)
def test_published_sizes_give_the_same_states(size, norm, tmp_path):
  config, params, model = random_pair(size, norm, tmp_path / "out")
  some = clips(2)
  length = np.array([len(x) for x in some], np.int32)
  padded = np.stack([np.pad(x, (0, max(length) - len(x))) for x in some])
  found = ours(config, params, padded, length)
  if norm == "group":  # Theirs pools over padding: one clip at a time.
    expected = [theirs(model, x[None]) for x in some]
    expected = [[state[0] for state in clip] for clip in expected]
  else:
    mask = (np.arange(max(length)) < length[:, None]).astype(np.int64)
    batch = theirs(model, padded, mask)
    expected = [[state[i] for state in batch] for i in range(2)]
  for clip, (states, n) in enumerate(zip(expected, num_frames(length))):
    for layer, state in enumerate(states):
      np.testing.assert_allclose(
        found[layer, clip, :n], state[:n], atol=1e-4, rtol=1e-4
      )


@pytest.mark.parametrize("kind", ["hubert", "wav2vec2"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_import_is_exported_as_it_was(kind, layout, tmp_path):
  source = saved(tmp_path / "in", kind, layout)
  run("hf", source, tmp_path / "out")
  before, after = (
    safetensors.numpy.load_file(tmp_path / name / "model.safetensors")
    for name in ("in", "out")
  )
  assert before.keys() == after.keys()
  for name, value in before.items():
    np.testing.assert_array_equal(after[name], value)
  theirs_, ours_ = (
    json.loads((tmp_path / name / "config.json").read_text())
    for name in ("in", "out")
  )
  for key in ours_.keys() & theirs_.keys():
    assert ours_[key] == theirs_[key], key


_ALONE = """
import sys
class Refuse:
  def find_spec(self, name, path=None, target=None):
    assert name.split(".")[0] not in ("ssl_jax", "flax", "optax", "orbax"), name
sys.meta_path.insert(0, Refuse())
from pathlib import Path
import jax, numpy as np
encode = jax.export.deserialize(Path("encoder.jaxexport").read_bytes()).call
batch = np.load(sys.argv[1])
np.save(sys.argv[2], encode(batch["waveform"], batch["length"]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("origin", ["logmel", "half_rate", "hf"])
def test_a_program_runs_with_jax_alone(origin, tmp_path):
  if origin == "hf":
    source = saved(tmp_path / "in", "hubert", "large")
  else:
    config = tiny(2)
    config.encoder.half_rate = (2, 2) if origin == "half_rate" else ()
    source = finished_run(config)
  result = run("stablehlo", source, tmp_path / "out")
  encoder = ssl_jax.load(source)
  facts = json.loads((tmp_path / "out" / "encoder.json").read_text())
  assert facts["num_layers"] == 2 and facts["params"] == result["params"]
  some = clips(3)
  for count, padding in ((3, 777), (1, 0)):
    length = np.array([len(x) for x in some[:count]], np.int32)
    samples = max(length) + padding
    waveform = np.stack(
      [np.pad(x, (0, samples - len(x))) for x in some[:count]]
    )
    np.savez(tmp_path / "batch.npz", waveform=waveform, length=length)
    subprocess.run(
      [
        sys.executable,
        "-c",
        _ALONE,
        tmp_path / "batch.npz",
        tmp_path / "y.npy",
      ],
      cwd=tmp_path / "out",
      env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
      check=True,
    )
    found = np.load(tmp_path / "y.npy")
    assert found.shape[:3] == (3, count, num_frames(samples))
    for i, clip in enumerate(some[:count]):
      expected = encoder(clip, layer="all")
      states = found[:, i, : num_frames(len(clip))]
      np.testing.assert_allclose(states, expected, atol=1e-5, rtol=1e-5)


def test_what_cannot_be_exported_is_one_line(tmp_path):
  with pytest.raises(UserError, match=r"has no config.frontend.name=logmel"):
    run("hf", finished_run(tiny(2)), tmp_path / "out")
  assert not [*tmp_path.iterdir()]
  (tmp_path / "full").mkdir()
  (tmp_path / "full" / "mine").touch()
  with pytest.raises(UserError, match="is not empty: choose another"):
    run("hf", trained("hubert"), tmp_path / "full")
  with pytest.raises(UserError, match="cannot be used"):
    run("hf", trained("hubert"), tmp_path / "full" / "mine" / "out")
  assert (tmp_path / "full" / "mine").exists()


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
  with pytest.raises(KeyboardInterrupt):
    with new_folder(tmp_path / "a" / "out") as folder:
      (folder / "half").touch()
      raise KeyboardInterrupt
  assert not [*(tmp_path / "a").iterdir()]


def test_a_random_model_of_transformers_equals_itself_here(tmp_path):
  model, *_ = hf.tiny_pair("layer")
  model.save_pretrained(tmp_path / "x")
  encoder = ssl_jax.load(f"hf:{tmp_path}/x")
  assert importer.read(tmp_path / "x")[0].frontend.norm == "layer"
  (clip,) = clips(1)
  clip = (clip - clip.mean()) / np.sqrt(clip.var() + 1e-7)  # As it would.
  for a, b in zip(theirs(model, clip[None]), encoder(clip, layer="all")):
    np.testing.assert_allclose(a[0], b, atol=1e-4, rtol=0)


def test_the_door_exports_and_refuses(tmp_path):
  done = door(
    "export", f"--checkpoint={trained('hubert')}", f"--out={tmp_path}/out"
  )
  assert done.returncode == 0, done.stderr
  assert json.loads(done.stdout)["architecture"] == "HubertModel"
  for args, status, said in (
    (["--out=x"], 2, "--checkpoint and --out are needed"),
    ([f"--checkpoint={tmp_path}", f"--out={tmp_path}/y"], 1, "no checkpoint"),
  ):
    failed = door("export", *args)
    assert failed.returncode == status and said in failed.stderr
    assert len(failed.stderr.splitlines()) == 1
