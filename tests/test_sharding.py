"""Meshes, devices and processes change where numbers are, not what they are."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import mesh_runs
import numpy as np
import pytest
from tiny import ROOT, abstract, free_port, reproducible, state_of

from ssl_jax import config as config_lib
from ssl_jax.devices import sharding
from ssl_jax.errors import UserError
from ssl_jax.models import encoders
from ssl_jax.training import loop

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("objective", ["hubert", "wav2vec2", "tera"])
def test_arrays_are_cut_as_the_golden_list_has_it(objective):
  config = config_lib.load(f"{ROOT}/configs/slim.py:objective={objective}")
  tensor_axes = encoders.make_block(config.encoder).tensor_axes
  lines = []
  for path, x in jax.tree_util.tree_leaves_with_path(abstract(config)):
    path = jax.tree_util.keystr(path, simple=True, separator="/")
    cut = tuple(sharding.spec(path, x.shape, 4, 2, tensor_axes))
    lines.append(f"{path} {x.shape} {cut}\n")
  golden = GOLDEN / f"sharding.objective-{objective}.txt"
  if os.environ.get("UPDATE_GOLDEN"):
    golden.write_text("".join(lines))
  assert golden.read_text().splitlines(keepends=True) == lines


def start(out, objective, *meshes, devices):
  return subprocess.Popen(
    [sys.executable, mesh_runs.__file__, str(out), objective, *meshes],
    env=os.environ
    | {
      "JAX_NUM_CPU_DEVICES": str(devices),
      "JAX_PLATFORMS": "cpu",
      "PYTHONPATH": str(ROOT),
    },
    cwd=ROOT,
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(process):
  _, err = process.communicate(timeout=600)
  assert process.returncode == 0, err[-3000:]


MESHES, MESHES_OF_PAIR = ["8,1,1", "1,8,1", "2,2,2"], ["8,1,1", "2,2,2"]


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["hubert", "wav2vec2", "tera"])
def test_every_mesh_trains_the_same_model(tmp_path, objective):
  loop.train(mesh_runs.settings(objective, (-1, 1, 1)), tmp_path / "one")
  finish(start(tmp_path, objective, *MESHES, devices=8))
  port = free_port()
  pair = [
    start(
      tmp_path / "pair",
      objective,
      *MESHES_OF_PAIR,
      f"@localhost:{port},2,{i}",
      devices=4,
    )
    for i in range(2)
  ]
  for process in pair:
    finish(process)
  assert_alike(
    tmp_path, [*MESHES, *(f"pair/{mesh}" for mesh in MESHES_OF_PAIR)]
  )


@pytest.mark.slow
@pytest.mark.parametrize("encoder", mesh_runs.ENCODERS)
def test_parts_of_an_encoder_are_summed_once_over_a_mesh(tmp_path, encoder):
  loop.train(mesh_runs.settings(encoder, (-1, 1, 1)), tmp_path / "one")
  finish(start(tmp_path, encoder, "2,2,2", devices=8))
  assert_alike(tmp_path, ["2,2,2"])


def assert_alike(tmp_path, names):
  expected, lines = state_of(tmp_path / "one"), reproducible(tmp_path / "one")
  for name in names:
    for ours, theirs in zip(reproducible(tmp_path / name), lines, strict=True):
      assert ours.pop("split") == theirs["split"]
      assert ours == pytest.approx(
        {k: v for k, v in theirs.items() if k != "split"}, rel=1e-5
      )
    found = state_of(tmp_path / name)["params"]
    found, theirs = (
      np.concatenate([np.ravel(x) for x in jax.tree.leaves(params)])
      for params in (found, expected["params"])
    )
    assert np.linalg.norm(found - theirs) < 1e-5 * np.linalg.norm(theirs)
    # Adam makes of gradients near 0 what it makes of others: 1e-3 an update.
    np.testing.assert_allclose(found, theirs, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize(
  ("mesh", "said"),
  [
    ((3, 1, 1), "needs a multiple of 3 devices; there are 1"),
    ((-1, 2, 1), "needs a multiple of 2 devices"),
    ((-1, -1, 1), "of which one may be -1"),
    ((0, 1, 1), "of which one may be -1"),
  ],
)
def test_a_mesh_that_does_not_fit_is_refused(tmp_path, mesh, said):
  with pytest.raises(UserError, match=said):
    loop.train(mesh_runs.settings("tera", mesh), tmp_path)
  assert not [*tmp_path.iterdir()]


def test_tensor_must_divide_the_heads():
  config = mesh_runs.settings("tera", (1, 1, 1))
  config.encoder.num_heads = 3
  mesh = jax.sharding.AbstractMesh((1, 1, 2), sharding.AXES)
  with pytest.raises(UserError, match="tensor=2 does not divide"):
    sharding.check(config, mesh)
