"""Runs of a tiny model on the embedded speech, through the real loop."""

import gzip
import json
import logging
import os
import re
import shutil
import signal
import time

import jax
import numpy as np
import optax
import pytest
from tiny import (
  SMALL,
  abstract,
  finish,
  finished_run,
  reproducible,
  start_main,
  tiny,
)

from ssl_jax import num_frames, optimizers
from ssl_jax.checkpoints.manager import Checkpoints
from ssl_jax.data.labels import read_codebook, write_codebook
from ssl_jax.data.sources import open_source
from ssl_jax.errors import UsageError, UserError
from ssl_jax.files import read_jsonl
from ssl_jax.labelling import codebook
from ssl_jax.objectives import OBJECTIVES, inputs, make_objective
from ssl_jax.training import loop, step
from ssl_jax.training.profile import Profile
from ssl_jax.training.setup import set_up


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("run")
  return workdir, loop.train(tiny(20), workdir)


def test_a_run_learns_and_leaves_what_it_promises(finished):
  workdir, result = finished
  assert result["valid_loss"] < 0.97 * result["first_valid_loss"]
  assert result["alarms"] == []
  assert result["updates"] == 20
  assert result["audio_seconds"] == pytest.approx(20 * 6.0, rel=0.2)
  assert result["mfu"] is None  # A CPU's peak is not known.
  assert json.loads((workdir / "result.json").read_text()) == result
  assert (workdir / "loss.png").read_bytes().startswith(b"\x89PNG")
  assert list((workdir / "tensorboard").glob("events*"))
  assert json.loads((workdir / "config.json").read_text())["seed"] == 0
  lines = reproducible(workdir)
  train = [x["update"] for x in lines if x["split"] == "train"]
  valid = [x["update"] for x in lines if x["split"] == "valid"]
  assert train == [*range(2, 21, 2)]
  assert valid == [0, 4, 8, 12, 16, 20]
  for line in lines:
    assert np.isfinite(line["loss"])
  flops = [x["flops"] for x in lines if x["split"] == "train"]
  assert flops == sorted(flops) and flops[-1] == result["flops"]


def test_last_checkpoints_and_the_best_are_kept(finished):
  workdir, result = finished
  saved = {int(p.name) for p in (workdir / "checkpoints").iterdir()}
  evaluated = {
    x["loss"]: x["update"]
    for x in reproducible(workdir)
    if x["split"] == "valid" and x["update"] in (12, 20)
  }
  assert saved == {18, 20, evaluated[min(evaluated)]}
  config = tiny()
  state, spent = Checkpoints(workdir, 2).restore(20, abstract(config))
  assert int(state["update"]) == 20
  assert spent["flops"] == result["flops"]
  assert type(state["params"]["backbone"]["encoder"]) is dict


def test_a_finished_run_says_so_and_is_not_repeated(finished, caplog):
  workdir, result = finished
  before = (workdir / "metrics.jsonl").read_bytes()
  caplog.set_level(logging.INFO)
  assert loop.train(tiny(20), workdir) == result
  assert "complete" in caplog.text
  assert (workdir / "metrics.jsonl").read_bytes() == before


def test_another_config_is_refused_with_the_differing_keys(finished):
  workdir, _ = finished
  config = tiny(20)
  config.encoder.dropout = 0.2
  config.loader.num_threads = 1  # Free to change: only speed.
  with pytest.raises(UserError) as error:
    loop.train(config, workdir)
  assert "encoder.dropout: 0.1 there, 0.2 here" in str(error.value)
  assert "loader" not in str(error.value)


def test_a_dry_run_writes_nothing(tmp_path):
  header = loop.train(tiny(), tmp_path / "run", dry_run=True)
  assert header["updates"] == 6
  assert header["learning_rate"]["100%"] == 0
  assert not (tmp_path / "run").exists()


def logged_compiling(config, workdir, caplog):
  """What a run logs, with every program that JAX compiles."""
  jax.config.update("jax_log_compiles", True)  # In all threads.
  try:
    with caplog.at_level(logging.INFO):
      loop.train(config, workdir)
  finally:
    jax.config.update("jax_log_compiles", False)
  return [record.getMessage() for record in caplog.records]


def test_each_bucket_is_compiled_once_and_in_the_order_of_need(
  tmp_path, caplog
):
  config = tiny(12)
  config.data.bucket_seconds = (0.8, 1.6)
  setup = set_up(config)
  first = setup.plan.batch(0).bucket_length / 16_000
  lines = logged_compiling(config, tmp_path, caplog)
  for name in ("train_step", "valid_step", "init_state"):
    compiled = [x for x in lines if x.startswith(f"Compiling jit({name})")]
    assert len(compiled) == (1 if name == "init_state" else 2)
  told = [x for x in lines if re.match("compiled . of 4 programs", x)]
  assert len(told) == 4
  begun = next(x for x in told if "train_step" in x)
  assert f"x {first:.4g} s" in begun
  # What validation before training takes does not wait for the other one.
  assert "train_step" in told[-1]


def test_runs_on_the_same_audio_share_a_codebook(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  fits, fit = [], codebook.fit
  monkeypatch.setattr(
    codebook, "fit", lambda *args: fits.append(0) or fit(*args)
  )

  def run(name, **changed):
    config = tiny(2)
    config.update_from_flattened_dict(changed)
    source = open_source(config.data, "train")
    (fitted,) = codebook.mfcc_codebooks(config, tmp_path / name, source)
    kept = read_codebook(tmp_path / name / "mfcc-20")
    np.testing.assert_array_equal(kept, fitted)
    return fitted

  first, again = run("first"), run("again")
  np.testing.assert_array_equal(first, again)
  assert len(fits) == 1
  run("other seed", seed=1)
  run("other clips", **{"data.hours": 0.1})
  assert len(fits) == 3
  # One that is damaged is fitted again.
  for path in (tmp_path / "cache").rglob("codebook.npy"):
    path.write_bytes(b"torn")
  np.testing.assert_array_equal(run("damaged"), first)
  assert len(fits) == 4


def test_runs_of_another_seed_compile_nothing(tmp_path, caplog, finished):
  config = tiny(20)  # As `finished`.
  config.seed = time.time_ns() % 10**6 + 1  # Of no session before.
  lines = logged_compiling(config, tmp_path, caplog)
  for name in ("train_step", "valid_step", "init_state"):
    assert any(x.startswith(f"Compiling jit({name})") for x in lines)
    hits = f"Persistent compilation cache hit for 'jit_{name}'"
    assert any(x.startswith(hits) for x in lines)


def test_the_parts_of_a_runs_time_are_all_of_it(finished):
  _, result = finished
  assert sum(result["seconds"].values()) == pytest.approx(
    result["wall_seconds"]
  )
  parts = ("start", "codebook", "compile", "train", "eval", "checkpoint")
  assert all(result["seconds"][part] > 0 for part in parts)
  assert result["seconds"]["redone"] == 0
  assert result["train_seconds"] == pytest.approx(
    result["seconds"]["train"] + result["seconds"]["data"]
  )
  assert result["first_update_seconds"] < result["wall_seconds"]


def test_updates_done_again_are_told_from_others(tmp_path):
  shutil.copytree(finished_run(tiny(20)), tmp_path / "run")
  (tmp_path / "run" / "result.json").unlink()
  # As if killed before the checkpoint of update 20 was whole; 18 is there.
  shutil.rmtree(tmp_path / "run/checkpoints/20")
  result = loop.train(tiny(20), tmp_path / "run")
  assert result["seconds"]["redone"] > 0
  assert sum(result["seconds"].values()) == pytest.approx(
    result["wall_seconds"]
  )


def test_a_profile_has_its_updates(tmp_path):
  profile = Profile("3:2", tmp_path)
  result = loop.train(tiny(6), tmp_path, profile=profile)
  assert result["updates"] == 6
  (trace,) = tmp_path.glob("profile/**/*.trace.json.gz")
  assert list(tmp_path.glob("profile/**/*.xplane.pb"))
  events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
  steps = {
    event["args"]["step_num"]
    for event in events
    if event.get("name") == "update"
  }
  assert steps == {"3", "4"}


def test_a_profile_of_updates_that_are_done_warns(tmp_path, caplog):
  with Profile("3:2", tmp_path).among(3, 9):
    pass
  assert "update 3 is not among those left, 4 to 9" in caplog.text
  for wrong in ("3", "0:2", "3:0", "a:b", "3:2:1"):
    with pytest.raises(UsageError, match="expected FIRST:COUNT"):
      Profile(wrong, tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, monkeypatch):
  make_schedule = optimizers.make_schedule

  def broken(config):
    schedule = make_schedule(config)
    return lambda update: jax.numpy.where(update == 7, np.nan, schedule(update))

  monkeypatch.setattr(optimizers, "make_schedule", broken)
  monkeypatch.setattr(loop, "make_schedule", broken)
  with pytest.raises(UserError) as error:
    loop.train(tiny(20), tmp_path)
  assert "update 8: loss " in str(error.value)
  assert "parameter norm nan, learning rate nan" in str(error.value)
  assert "last good checkpoint is update 6" in str(error.value)
  saved = {int(p.name) for p in (tmp_path / "checkpoints").iterdir()}
  assert max(saved) == 6
  assert all(np.isfinite(x["loss"]) for x in reproducible(tmp_path))


@pytest.mark.parametrize(
  "objective",
  [
    # Its diversity is the one term that is not linear in its means.
    "wav2vec2",
    *(
      pytest.param(x, marks=pytest.mark.slow)
      for x in OBJECTIVES
      if x != "wav2vec2"
    ),
  ],
)
def test_microbatches_give_the_gradient_of_the_whole_batch(objective):
  config = tiny(objective=objective)
  config.encoder.layerdrop = 0.3
  model = make_objective(config, np.dtype("float32"))
  keep = optax.trace(decay=0.0)  # The gradient itself, as its state.
  state = jax.jit(lambda: step.init_state(model, keep, config))()
  # Codes and quantized vectors far from all alike.
  state["params"] = jax.tree.map(lambda x: 3 * x, state["params"])
  rng = np.random.default_rng(0)
  batch = {
    "waveform": rng.integers(-3_000, 3_000, (6, 8_000)).astype(np.int16),
    "length": np.array([8_000, 7_000, 8_000, 0, 5_000, 6_000], np.int32),
    "draw_id": np.arange(6, dtype=np.int32),
  }
  results = []
  for parts in (1, 3):
    config.batch.microbatches = parts
    update = jax.jit(step.make_train_step(model, keep, config))
    results.append(jax.device_get(update(state, batch)))
  (whole, _), (split, _) = results
  gradients = [state["opt_state"].trace for state in (whole, split)]
  # Absolute: some are 0 but for rounding, as those of the keys' biases.
  largest = max(np.abs(x).max() for x in jax.tree.leaves(gradients[0]))
  assert largest > 0
  for ours, theirs in zip(*map(jax.tree.leaves, gradients)):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * largest)
  for ours, theirs in zip(
    jax.tree.leaves(split["sums"]), jax.tree.leaves(whole["sums"])
  ):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=3e-5)


@pytest.mark.slow
def test_killed_three_times_and_resumed_equals_uninterrupted(tmp_path):
  args = [
    *SMALL,
    "--config.budget.updates=40",
    "--config.log.every=7",  # Apart from the checkpoints: sums are saved too.
    "--config.eval.every=20",
    "--config.checkpoint.every=5",
  ]
  expected = finish(start_main(tmp_path / "whole", *args))
  killed = tmp_path / "killed"
  for update in (7, 16, 28):
    process = start_main(killed, *args)
    while (lines := read_jsonl(killed / "metrics.jsonl")) == [] or lines[-1][
      "update"
    ] < update:
      assert process.poll() is None, process.communicate()[1]
      time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert "checkpoints" in os.listdir(killed)
    assert "result.json" not in os.listdir(killed)
  result = finish(start_main(killed, *args))
  assert reproducible(killed) == reproducible(tmp_path / "whole")
  for key in ("updates", "flops", "audio_seconds", "valid_loss"):
    assert result[key] == expected[key]


def test_a_collapsed_codebook_is_an_alarm(tmp_path, monkeypatch, capsys):
  collapsed = (np.zeros((20, 39), np.float32),)  # Every frame is of the first.
  monkeypatch.setattr(loop, "mfcc_codebooks", lambda *args: collapsed)
  config = tiny(4)
  config.log.every = 1
  result = loop.train(config, tmp_path)
  lines = read_jsonl(tmp_path / "metrics.jsonl")
  train = [line for line in lines if line["split"] == "train"]
  assert {line["label_perplexity"] for line in train} == {1.0}
  assert {line["unused_labels"] for line in train} == {19.0}
  assert result["alarms"] == ["label_perplexity", "unused_labels"]
  (alarm,) = [x for x in lines if x.get("name") == "label_perplexity"]
  assert "1.0 of 20 clusters" in alarm["text"]
  assert "config.kmeans.num_frames" in alarm["text"]  # What to change.
  assert alarm["text"] in capsys.readouterr().err


def shared(updates: int):
  config = tiny(updates)
  config.optimizer.warmup_updates = 3
  config.optimizer.decay_fraction = 0.5
  return config


@pytest.fixture(scope="module")
def long_run(tmp_path_factory):
  """20 updates, decaying from 12; a run of 12 would decay from 8."""
  config = shared(20)
  config.checkpoint.at = (8,)
  config.checkpoint.keep = 1
  workdir = tmp_path_factory.mktemp("trunk")
  return workdir, loop.train(config, workdir)


def test_a_branch_is_the_run_it_saves(tmp_path, long_run):
  alone = loop.train(shared(12), tmp_path / "alone")
  config = shared(12)
  config.budget.trunk = str(long_run[0])
  branch = loop.train(config, tmp_path / "branch")
  for key in ("updates", "flops", "audio_seconds", "valid_loss"):
    assert branch[key] == alone[key]
  assert branch["trunk_flops"] == pytest.approx(
    8 / 12 * alone["flops"], rel=0.2
  )
  assert alone["trunk_flops"] == 0
  ours = reproducible(tmp_path / "branch")
  assert ours[0]["update"] == 8
  late = [x for x in reproducible(tmp_path / "alone") if x["update"] > 8]
  assert ours[1:] == late


@pytest.mark.parametrize(
  ("change", "said"),
  [
    (("budget.updates", 24), "decays from update 12, before .* at 14"),
    (("budget.updates", 10), r"no checkpoint at update 6 .*at='\(6,\)'"),
    (("optimizer.learning_rate", 1e-3), "learning_rate: 0.01 there, 0.001"),
    (("budget.trunk", "nowhere"), "no readable config.json"),
    (("optimizer.decay_fraction", 1.0), "decay_fraction below 1"),
  ],
)
def test_a_trunk_that_cannot_be_shared_is_refused(
  tmp_path, long_run, change, said
):
  config = shared(12)
  config.budget.trunk = str(long_run[0])
  section, key = change[0].split(".")
  config[section][key] = change[1]
  with pytest.raises(UserError, match=said):
    loop.train(config, tmp_path)
  assert not read_jsonl(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("part", ["train", "valid", "labels"])
def test_other_data_than_a_run_began_with_is_refused(
  tmp_path, long_run, part, own
):
  begun = shutil.copytree(long_run[0], tmp_path / "begun")
  (begun / "result.json").unlink()
  data = json.loads((begun / "data.json").read_text())
  assert {*data} == {"train", "valid", "labels"}
  data[part] = {"clips": 7, "corpus": "0" * 16} if part != "labels" else []
  (begun / "data.json").write_text(json.dumps(data))
  config = shared(20 if own else 12)
  config.checkpoint = loop.ConfigDict({"at": (8,), "keep": 1, "every": 3})
  config.budget.trunk = "" if own else str(begun)
  which = "--workdir" if own else "config.budget.trunk"
  what = "labels" if part == "labels" else rf"clips \({part}: 7 there, .* now"
  lines = (begun / "metrics.jsonl").read_text()
  with pytest.raises(UserError, match=f"{which}={begun} .* other {what}"):
    loop.train(config, begun if own else tmp_path / "branch")
  assert (begun / "metrics.jsonl").read_text() == lines
  assert not (tmp_path / "branch" / "checkpoints").exists()


def test_a_branch_has_the_labels_of_its_trunk(tmp_path):
  config = tiny()
  config.budget.trunk = str(tmp_path / "trunk")
  theirs = np.random.default_rng(0).normal(size=(20, 39)).astype(np.float32)
  write_codebook(tmp_path / "trunk" / "mfcc-20", theirs)
  (ours,) = loop.mfcc_codebooks(config, tmp_path / "branch", None)
  np.testing.assert_array_equal(ours, theirs)
  kept = read_codebook(tmp_path / "branch" / "mfcc-20")
  np.testing.assert_array_equal(kept, theirs)


@pytest.mark.slow
def test_interrupt_says_how_to_go_on(tmp_path):
  process = start_main(tmp_path, *SMALL, "--config.checkpoint.every=5")
  while not read_jsonl(tmp_path / "metrics.jsonl"):
    assert process.poll() is None, process.communicate()[1]
    time.sleep(0.05)
  process.send_signal(signal.SIGINT)
  _, err = process.communicate(timeout=300)
  assert process.returncode == 130
  assert f"--workdir={tmp_path} goes on from update" in err.splitlines()[-1]


def test_validation_is_the_same_whatever_the_seed():
  config = tiny()
  objective = make_objective(config)
  batch = {
    "waveform": np.random.default_rng(0)
    .integers(-3_000, 3_000, (2, 12_800))
    .astype(np.int16),
    "length": np.array([12_800, 9_000], np.int32),
    "draw_id": np.arange(2, dtype=np.int32),
  }
  params = inputs.init_params(objective, config, jax.random.key(0))[1]
  sums = []
  for config.seed in (0, 1):
    valid_step = jax.jit(step.make_valid_step(objective, config))
    sums.append(jax.device_get(valid_step({"params": params}, batch)))
  for ours, theirs in zip(*map(jax.tree.leaves, sums), strict=True):
    np.testing.assert_array_equal(ours, theirs)


def test_validation_is_over_every_clip(tmp_path, monkeypatch):
  reported, report = [], step.report

  def noted(objective, sums):
    reported.append(sums)
    return report(objective, sums)

  monkeypatch.setattr(step, "report", noted)
  config = tiny(1)
  loop.train(config, tmp_path)
  source = open_source(config.data, "valid")
  frames = num_frames(np.minimum(source.num_samples, 25_600)).sum()
  assert reported[0]["feature_penalty"][1] == frames
