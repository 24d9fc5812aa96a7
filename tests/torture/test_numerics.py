"""Numbers that go wrong: what is skipped, what is told, what ends a run."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import soundfile
from tiny import abstract, reproducible, tiny

from ssl_jax.errors import UserError
from ssl_jax.files import read_jsonl
from ssl_jax.objectives import OBJECTIVES, make_objective
from ssl_jax.training import loop, step
from ssl_jax.training.health import Health


def lines_of(workdir, split):
  return [
    x for x in read_jsonl(workdir / "metrics.jsonl") if x["split"] == split
  ]


def break_loss(monkeypatch, at, times=math.nan):
  """Multiplies the loss and gradient of the updates in `at`, from 0 on."""
  gradient = step._gradient

  def broken(totals_of, loss_of, params, parts, unroll):
    loss, grads, totals = gradient(totals_of, loss_of, params, parts, unroll)
    factor = jnp.where(_is_in(broken.update, at), times, 1.0)
    return loss * factor, jax.tree.map(lambda x: x * factor, grads), totals

  make = step.make_train_step

  def made(*args, **kwargs):
    train_step = make(*args, **kwargs)

    def with_update(state, batch):
      broken.update = state["update"]
      return train_step(state, batch)

    return with_update

  monkeypatch.setattr(step, "_gradient", broken)
  monkeypatch.setattr(step, "make_train_step", made)


def _is_in(update, at):
  return functools.reduce(jnp.logical_or, [update == x for x in at])


def test_updates_that_are_not_finite_are_skipped_and_told(
  tmp_path, monkeypatch, capsys
):
  break_loss(monkeypatch, (3, 4, 10, 11))
  result = loop.train(tiny(20), tmp_path)
  assert result["skipped_updates"] == 4
  skipped = lines_of(tmp_path, "skipped")
  assert [x["update"] for x in skipped] == [4, 5, 11, 12]
  source = loop.set_up(tiny(20)).train_source
  for line in skipped:
    assert line["loss"] is None and set(line["records"]) <= {*source.ids}
    assert "the update is skipped" in line["text"]
  assert skipped[0]["records"][0] in capsys.readouterr().err
  train = {x["update"]: x for x in lines_of(tmp_path, "train")}
  assert train[12]["loss"] is None  # Both of its updates were skipped.
  assert all(train[at]["loss"] > 0 for at in train if at != 12)
  assert train[20]["skipped_updates"] == 4
  assert math.isfinite(result["valid_loss"])
  assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_a_skipped_update_changes_counts_alone(monkeypatch):
  break_loss(monkeypatch, (1,))
  config = tiny()
  objective = make_objective(config, np.dtype("float32"), codebooks())
  adam = loop.make_optimizer(config)
  update = jax.jit(step.make_train_step(objective, adam, config))
  state = jax.jit(lambda: step.init_state(objective, adam, config))()
  batch = random_batch()
  before, _ = update(state, batch)
  after, values = update(before, batch)
  assert math.isnan(values["loss"])
  assert int(after["update"]) == 2
  for (path, old), (_, new) in zip(
    jax.tree_util.tree_leaves_with_path(before),
    jax.tree_util.tree_leaves_with_path(after),
  ):
    if jnp.issubdtype(old.dtype, jnp.integer):
      assert new == old + 1, path
    else:
      np.testing.assert_array_equal(new, old, str(path))
  again, values = update(after, batch)
  assert math.isfinite(values["loss"])
  moved = jax.tree.map(
    lambda a, b: abs(a - b).max(), again["params"], after["params"]
  )
  assert max(jax.tree.leaves(moved)) > 0


@pytest.mark.slow
def test_more_in_a_row_than_configured_end_the_run(tmp_path, monkeypatch):
  break_loss(monkeypatch, range(7, 20))
  config = tiny(20)
  config.optimizer.max_skipped_updates = 3
  with pytest.raises(UserError) as error:
    loop.train(config, tmp_path)
  said = str(error.value)
  assert said.startswith("update 11: loss nan, gradient norm nan; 4 updates in")
  assert "max_skipped_updates=3" in said and "is update 9;" in said
  state, _ = loop.Checkpoints(tmp_path, 2).restore(9, abstract(config))
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))


@pytest.mark.slow
def test_the_count_in_a_row_outlives_a_resume(tmp_path, monkeypatch):
  break_loss(monkeypatch, range(5, 20))
  config = tiny(20)
  config.optimizer.max_skipped_updates = 3
  with pytest.raises(UserError, match=r"update 9: .* 4 updates in a row"):
    loop.train(config, tmp_path)
  before = reproducible(tmp_path)
  with pytest.raises(UserError, match=r"update 9: .* 4 updates in a row"):
    loop.train(config, tmp_path)  # From update 6, of which one was skipped.
  assert reproducible(tmp_path) == before
  config.optimizer.max_skipped_updates = 20  # May be raised, to go on.
  assert loop.train(config, tmp_path)["skipped_updates"] == 15


@pytest.mark.slow
@pytest.mark.parametrize("times", [1e6, 1e30])
def test_exploding_gradients_are_clipped_or_skipped(
  tmp_path, monkeypatch, times
):
  break_loss(monkeypatch, (5,), times)
  config = tiny(8)
  config.log.every = 1
  result = loop.train(config, tmp_path)
  train = {x["update"]: x for x in lines_of(tmp_path, "train")}
  # The norm of 1e30 overflows, so that nothing could be clipped to it.
  assert result["skipped_updates"] == (0 if times == 1e6 else 1)
  for at, line in train.items():
    if line["loss"] is not None:
      assert line["param_norm"] < 1.5 * train[1]["param_norm"], at
  if times == 1e6:
    assert train[6]["grad_norm"] > 1e4 * train[5]["grad_norm"]


@pytest.mark.slow
def test_a_spike_is_told_with_the_records_of_its_batch(tmp_path, monkeypatch):
  break_loss(monkeypatch, (30,), 3.0)
  config = tiny(36)
  loop.train(config, tmp_path)
  (spike,) = lines_of(tmp_path, "spike")
  assert spike["update"] == 31 and "usual is" in spike["text"]
  setup = loop.set_up(config)
  clips = setup.plan.batch(30).clips
  assert spike["records"] == [
    setup.train_source.ids[i] for i in clips if i >= 0
  ]


def test_spikes_are_told_of_leaps_and_not_of_noise():
  rng = np.random.default_rng(0)
  health = Health(10, {})
  usual = [3 - 0.0005 * i + 0.05 * rng.standard_normal() for i in range(2_000)]
  whole = {"grad_norm": 1.0, "param_norm": 1.0}
  found = [health.check(i, whole | {"loss": x})[0] for i, x in enumerate(usual)]
  assert not any(found)
  assert health.check(2_000, whole | {"loss": 3.5})[0] == "spike"
  resumed = Health(10, json.loads(json.dumps(health.state)))
  assert resumed.check(2_001, whole | {"loss": 3.5})[0] == "spike"
  assert resumed.check(2_002, whole | {"loss": 2.0})[0] == ""


def codebooks():
  rng = np.random.default_rng(1)
  return (rng.standard_normal((20, 39)).astype(np.float32),)


def random_batch(rows=4, length=8_000):
  rng = np.random.default_rng(0)
  return {
    "waveform": rng.integers(-3_000, 3_000, (rows, length)).astype(np.int16),
    "length": np.full(rows, length, np.int32),
    "draw_id": np.arange(rows, dtype=np.int32),
  }


def one_frame():
  batch = random_batch()
  batch["length"][:] = 0, 400, 0, 0
  batch["waveform"][:] = 0
  batch["waveform"][1, :400] = 1_000
  return batch


def of_value(value):
  batch = random_batch()
  batch["waveform"][:] = value
  return batch


def nothing():
  batch = of_value(0)
  batch["length"][:] = 0
  return batch


def square():
  batch = random_batch()
  batch["waveform"] = np.where(batch["waveform"] > 0, 32767, -32768).astype(
    "i2"
  )
  return batch


BATCHES = {
  "silence": lambda: of_value(0),
  "one frame": one_frame,
  "nothing": nothing,
  "an offset": lambda: of_value(32767),
  "clipped": square,
}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("frontend", ["waveform", "logmel"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_batches_of_no_speech_train_without_a_skip(objective, frontend, dtype):
  config = tiny(objective=objective)
  config.frontend.name = frontend
  model = make_objective(
    config, jnp.dtype(dtype), *([codebooks()] if objective == "hubert" else [])
  )
  adam = loop.make_optimizer(config)
  state = jax.jit(lambda: step.init_state(model, adam, config))()
  update = jax.jit(step.make_train_step(model, adam, config))
  for name, batch in BATCHES.items():
    state, values = update(state, batch())
    for key in ("loss", "grad_norm", "param_norm"):
      assert math.isfinite(values[key]), (name, key)
  valid = jax.jit(step.make_valid_step(model, config))
  for name, batch in BATCHES.items():
    totals = valid(step.model_of(state), batch())
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(totals)), name


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_activations_beyond_half_precision_do_not_overflow(objective):
  config = tiny(objective=objective)
  config.encoder.dropout = config.encoder.layerdrop = 0.0
  model = make_objective(
    config, jnp.bfloat16, *([codebooks()] if objective == "hubert" else [])
  )
  still = optax.set_to_zero()
  state = jax.jit(lambda: step.init_state(model, still, config))()
  layers = state["params"]["backbone"]["encoder"]["layers"]
  seen = jax.tree.map(lambda x: 1e4 * x, (layers["up"], layers["down"]))
  layers["up"], layers["down"] = seen  # Products of 1e8, above 65504.
  update = jax.jit(step.make_train_step(model, still, config))
  _, values = update(state, random_batch())
  assert math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])


def test_audio_that_is_not_finite_is_left_out_and_named(tmp_path, caplog):
  rng = np.random.default_rng(0)
  folder = tmp_path / "audio"
  folder.mkdir()
  for i in range(12):
    clip = 0.1 * rng.standard_normal(16_000).astype(np.float32)
    if i in (2, 5):
      clip[8_000] = (math.nan, math.inf)[i == 5]
    elif i == 7:
      clip *= 1e30  # Is cut to full scale.
    elif i == 8:
      clip[:] = 0
    soundfile.write(folder / f"{i:02}.wav", clip, 16_000, "FLOAT")
  config = tiny(12)
  config.data.source, config.data.dir = "folder", str(folder)
  config.data.valid_fraction = 0.1
  result = loop.train(config, tmp_path / "run")
  assert result["updates"] == 12 and result["skipped_updates"] == 0
  for name in ("02.wav", "05.wav"):
    assert f"{name!r} cannot be read and is left out" in caplog.text
  assert all(x["loss"] > 0 for x in lines_of(tmp_path / "run", "train"))
