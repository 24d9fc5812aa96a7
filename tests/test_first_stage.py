"""Runs that train an encoder first, label their audio by it, and go on."""

import shutil
import threading

import jax
import numpy as np
import pytest
from tiny import ROOT, reproducible, staged

import ssl_jax
from ssl_jax import config as config_lib
from ssl_jax import process
from ssl_jax.budget import cost, planner
from ssl_jax.budget import updates as updates_lib
from ssl_jax.checkpoints.manager import Checkpoints
from ssl_jax.config import validate
from ssl_jax.data.labels import open_labels, read_codebook
from ssl_jax.devices import sharding
from ssl_jax.errors import UserError
from ssl_jax.files import read_jsonl, read_object
from ssl_jax.labelling import corpus
from ssl_jax.objectives import make_objective
from ssl_jax.optimizers import make_optimizer
from ssl_jax.reports import runs
from ssl_jax.training import first_stage, loop, step, sweep
from ssl_jax.training import workdir as workdir_lib
from ssl_jax.training.clock import Clock
from ssl_jax.training.setup import set_up


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  config, workdir = staged(), tmp_path_factory.mktemp("staged") / "run"
  return config, workdir, loop.train(config, workdir)


def test_all_that_it_takes_is_of_one_budget(finished):
  config, workdir, result = finished
  first = read_object(workdir / "first" / "result.json")
  setup = set_up(config)
  assert min(first["updates"], result["updates"]) > 4
  crop = updates_lib.clip_flops(setup.config, 224_000)
  layers = (crop.attention + crop.ffn) / 2  # One of two.
  others = crop.stem + crop.projection + crop.positions
  heard = setup.num_samples + min(setup.num_samples, 4_000 * 320)
  labelling = heard / 224_000 * (layers + others)
  own = result["flops"] - first["flops"]
  # The first encoder has another head, of less than a fiftieth.
  assert own - result["updates"] * setup.header["padded_flops_per_update"] == (
    pytest.approx(labelling, rel=0.1)  # Buckets are not met in their shares.
  )
  budget = config.budget.flops
  assert 0.9 * budget < result["flops"] <= budget
  assert 0.2 * budget < first["flops"] <= 0.3 * budget
  assert setup.header["flops"] == pytest.approx(result["flops"], rel=0.1)
  both = result["audio_seconds"], result["train_seconds"]
  assert both > (first["audio_seconds"], first["train_seconds"])
  assert result["wall_seconds"] > first["wall_seconds"]


def test_its_labels_are_the_clusters_of_its_first_encoder(finished):
  config, workdir, _ = finished
  folder = workdir / "labels-1-15"
  codebook = read_codebook(folder)
  source = set_up(config).train_source
  labels = open_labels(folder, "train", source, 15)
  encoder = ssl_jax.load(workdir / "first")
  for clip in range(0, len(source.ids), 300):
    waveform = source.read(clip, 0, int(source.num_samples[clip]))
    states = encoder(waveform, 1).astype(np.float64)
    distance = np.square(states[:, None] - codebook).sum(axis=-1)
    found = labels.read(clip, 0, len(states))
    assert (found == distance.argmin(axis=-1)).mean() > 0.99
  assert read_object(workdir / "config.json")["hubert"]["labels"] == "self,mfcc"


def test_the_encoder_and_its_moments_go_on_and_heads_are_new(finished):
  config, workdir, _ = finished
  setup = set_up(config)
  mesh = sharding.make_mesh()
  objective = make_objective(setup.config)
  state = step.init_state(objective, make_optimizer(setup.config), setup.config)
  begun, spent = first_stage.go_on(setup, mesh, workdir, state)
  first = updates_lib.first_stage(setup.config)
  first.budget.updates = 2
  theirs = jax.eval_shape(
    lambda: step.init_state(make_objective(first), make_optimizer(first), first)
  )
  theirs = sharding.abstract(theirs, sharding.of_state(first, mesh, theirs))
  checkpoints = Checkpoints(workdir / "first", keep=None)
  _, trained, counters = checkpoints.restore_newest(theirs)
  checkpoints.close()
  trained = dict(jax.tree_util.tree_leaves_with_path(trained))
  fresh = dict(jax.tree_util.tree_leaves_with_path(state))
  kept = new = 0
  for path, leaf in jax.tree_util.tree_leaves_with_path(begun):
    name = jax.tree_util.keystr(path)
    if "backbone" in name:
      np.testing.assert_array_equal(leaf, trained[path])
      kept += bool(np.any(leaf)) and "opt_state" in name
    else:
      np.testing.assert_array_equal(leaf, fresh[path])
      new += 1
  assert kept > 20 and new > 5
  assert begun["params"]["label_embeddings_0"].shape == (15, 256)
  counts = [x for x in jax.tree.leaves(begun["opt_state"]) if x.ndim == 0]
  assert counts and all(x == 0 for x in counts)  # The warm-up is its own.
  assert spent["flops"] > counters["flops"]
  assert spent["audio_samples"] == counters["audio_samples"] > 0


def test_stopped_in_labelling_and_after_it_goes_on_to_the_same_end(
  finished, tmp_path, monkeypatch
):
  config, workdir, result = finished
  label_split, fit = corpus._label_split, first_stage.go_on

  def killed(*_):
    raise RuntimeError("killed")

  monkeypatch.setattr(corpus, "_label_split", killed)
  with pytest.raises(RuntimeError, match="killed"):
    loop.train(config, tmp_path / "run")
  monkeypatch.setattr(corpus, "_label_split", label_split)
  monkeypatch.setattr(first_stage, "go_on", killed)
  before = (tmp_path / "run" / "first" / "metrics.jsonl").read_bytes()
  with pytest.raises(RuntimeError, match="killed"):
    loop.train(config, tmp_path / "run")
  monkeypatch.setattr(first_stage, "go_on", fit)
  again = loop.train(config, tmp_path / "run")
  assert before == (tmp_path / "run" / "first" / "metrics.jsonl").read_bytes()
  assert reproducible(tmp_path / "run") == reproducible(workdir)
  assert again["flops"] == result["flops"]
  # Its own checkpoints now, not the first stage's.
  (tmp_path / "run" / "result.json").unlink()
  monkeypatch.setattr(first_stage, "go_on", killed)
  assert loop.train(config, tmp_path / "run")["flops"] == result["flops"]


def test_it_is_told_before_and_reported_as_one_run(finished, tmp_path, capsys):
  config, workdir, result = finished
  header = loop.train(config, tmp_path / "none", dry_run=True)
  assert not (tmp_path / "none").exists()
  assert 0 < header["before_flops"] < header["flops"]
  found, broken = runs.read([workdir.parent])
  assert [run.workdir for run in found] == [str(workdir)] and not broken
  lines = read_jsonl(workdir / "metrics.jsonl")
  train = [line for line in lines if line["split"] == "train"]
  assert train[-1]["flops"] == result["flops"]
  assert train[0]["flops"] > header["before_flops"] * 0.8


@pytest.mark.parametrize(
  ("knobs", "message"),
  [
    ({"self_labels": "self"}, "other labels"),
    ({"self_layer": 3}, "has 2 layers"),
    ({"self_clusters": (5, 6)}, "as many"),
  ],
)
def test_knobs_that_do_not_go_together_are_named(knobs, message):
  config = staged()
  config.hubert.update(knobs)
  with pytest.raises(UserError, match=message):
    validate(config)


def test_it_needs_flops_to_share():
  config = staged()
  config.budget.update(updates=10, flops=0.0)
  with pytest.raises(UserError, match=r"give config\.budget\.flops"):
    set_up(config)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"budget.trunk": "run"}, "branches off none"),
    ({"hubert.labels": "self,nowhere"}, "nowhere"),
    (
      {
        "optimizer.warmup_updates": 12,
        "hubert.self_share": 0.2,
        "budget.flops": 4e10,
      },
      "first stage, 20% of the budget",
    ),
  ],
)
def test_what_would_fail_later_fails_before_anything_is_spent(changes, message):
  config = staged()
  config.optimizer.decay_fraction = 0.2
  if "budget.trunk" in changes:
    config.optimizer.warmup_updates = 1
  config.update_from_flattened_dict(changes)
  with pytest.raises(UserError, match=message):
    set_up(config)


def test_complete_labels_and_a_finished_run_need_no_first_stage(
  finished, tmp_path, monkeypatch
):
  config, workdir, result = finished
  again = tmp_path / "again"
  shutil.copytree(workdir, again)
  shutil.rmtree(again / "first")
  (again / "lock").unlink()
  assert loop.train(config, again) == result
  (again / "result.json").unlink()
  config = config.copy_and_resolve_references()
  config.encode.batch_seconds = 7.0  # Only of speed.
  resumed = loop.train(config, again)
  assert resumed["flops"] == result["flops"]
  assert not (again / "first").exists()


def test_a_sweep_branches_no_run_that_makes_its_labels(tmp_path):
  family = config_lib.load(f"{ROOT}/configs/isoflop.py:scale=smoke")
  family.config = f"{ROOT}/configs/smoke.py"
  family.update(size=("1x16x32x4",), flops=(3e11, 6e11))
  given = ["hubert.labels=self", "data.hours=0.05"]
  (group,) = sweep.expand(family, given, tmp_path)
  assert len(group) == 2 and not any(run.trunk for run in group)
  for run in group:
    assert run.facts["own_flops"] == run.facts["flops"]


def test_its_cost_is_told_without_data():
  config = config_lib.load(f"{ROOT}/configs/slim.py:iteration=2")
  config.hubert.labels, config.hubert.clusters = "self", (500,)
  config.budget.update(updates=0, flops=1e18)
  facts = cost.facts(config, 1, 960.0, False)
  assert facts["total_flops"] == pytest.approx(1e18, rel=1e-4)
  # 960 h and the 5.6 h of a million frames, through half of the layers.
  crop = updates_lib.clip_flops(config, 224_000)
  passed = crop.stem + crop.projection + crop.positions
  passed += (crop.attention + crop.ffn) / 2
  heard = 960 * 3600 * 16_000 + 320e6
  assert facts["before_flops"] == pytest.approx(
    0.25e18 + heard / 224_000 * passed, rel=1e-3
  )
  assert facts["earlier_flops"] == 0


def test_told_to_stop_at_the_end_of_the_first_stage_it_goes_no_further(
  tmp_path, monkeypatch
):
  train = loop.train

  def told(config, workdir, *_):
    process.stopping.set()
    return train(config, workdir)

  config = staged()
  config.hubert.labels, config.hubert.clusters = "self", (15,)
  config.hubert.layers = ()
  monkeypatch.setattr(process, "stopping", threading.Event())
  setup, clock = set_up(config), Clock()
  made = first_stage.make_labels(setup, tmp_path / "run", clock, told)
  assert made[1]["preempted"] and made[1]["workdir"] == str(tmp_path / "run")
  assert not (tmp_path / "run" / "labels-1-15").exists()
  # Told once, a process may still train what comes after.
  setup, stopped = first_stage.make_labels(
    setup, tmp_path / "run", clock, train
  )
  assert stopped is None and len(setup.train_labels) == 1


def test_a_run_in_a_folder_of_that_name_is_a_run(finished, tmp_path):
  _, workdir, result = finished
  alone = tmp_path / "runs" / "first"  # As in the README.
  shutil.copytree(workdir, alone)
  (point,) = planner.read_runs(tmp_path)
  assert point.loss == result["valid_loss"]
  assert f"--workdir={alone} " in workdir_lib.goes_on(alone)
  assert f"--workdir={alone} " in workdir_lib.goes_on(alone / "first")
