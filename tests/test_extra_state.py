"""What an objective carries from update to update beside its parameters."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ssl_jax import config as config_lib
from ssl_jax import num_frames
from ssl_jax.budget import planner
from ssl_jax.checkpoints.manager import Checkpoints
from ssl_jax.devices import sharding
from ssl_jax.errors import UserError
from ssl_jax.models import encoders
from ssl_jax.models.backbone import Backbone
from ssl_jax.objectives import OBJECTIVES, make_objective, objective, terms
from ssl_jax.optimizers import make_optimizer
from ssl_jax.pretrained.load import load_encoder
from ssl_jax.reports import loss_picture
from ssl_jax.training import loop, step

ROOT = Path(__file__).parents[1]
DECAY = 0.9


class Student(objective.Objective):
  """Predicts the last state of a teacher that hears the unmasked clip."""

  main = "distance"

  @property
  def weights(self):
    return {"distance": 1.0}

  def targets(self, inputs, keys):
    del keys
    if "extra" not in inputs:  # Parameters are being made.
      frames = num_frames(inputs["waveform"].shape[1])
      width = self.config.encoder.hidden_size
      return jnp.zeros((len(inputs["length"]), frames, width))
    teacher = {"params": inputs["extra"]["teacher"]}
    backbone = Backbone(self.config, self.dtype, parent=None)
    return backbone.apply(teacher, inputs["waveform"], inputs["length"]).hidden

  def counts(self, inputs):
    masked = inputs["mask"].sum()
    return {"distance": masked, "chance": masked}

  @nn.compact
  def __call__(self, inputs, key, update):
    del update
    encoded = Backbone(self.config, self.dtype, name="backbone")(
      inputs["waveform"],
      inputs["length"],
      inputs["mask"],
      key,
      inputs["draw_id"],
    )
    distance = jnp.square(encoded.hidden - inputs["targets"]).mean(axis=-1)
    power = jnp.square(inputs["targets"]).mean(axis=-1)
    return {
      "distance": terms.total(distance, inputs["mask"]),
      "chance": terms.total(power, inputs["mask"]),
    }

  def init_extra(self, params):
    return {"teacher": params["backbone"], "distance": jnp.zeros(())}

  def update_extra(self, extra, params, means, update):
    del update
    return {
      "teacher": jax.tree.map(
        lambda old, new: DECAY * old + (1 - DECAY) * new,
        extra["teacher"],
        params["backbone"],
      ),
      "distance": means["distance"],
    }

  def head_flops(self, num_samples):
    return 0


@pytest.fixture(autouse=True)
def table(monkeypatch):
  monkeypatch.setitem(OBJECTIVES, "student", Student)


def settings(**changes):
  config = config_lib.base()
  config_lib.set_size(config, "1x16x32x4")
  config.objective.name = "student"
  config.frontend.name = "logmel"
  config.encoder.position_kernel = 8
  config.data.source = "embedded"
  config.data.min_seconds = 0.3
  config.data.bucket_seconds = (1.0,)
  config.batch.seconds = 4.0
  config.optimizer.learning_rate = 1e-2
  config.budget.updates = 4
  config.log.every = config.checkpoint.every = 2
  config.eval.every = 4
  config.update_from_flattened_dict(changes)
  return config


def batch(rows=4):
  noise = np.random.default_rng(0).normal(size=(rows, 8000)) * 3000
  return {
    "waveform": noise.astype(np.int16),
    "length": np.full(rows, 8000, np.int32),
    "draw_id": np.arange(rows, dtype=np.int32),
  }


def machine(config, mesh=None):
  model, optimizer = make_objective(config), make_optimizer(config)
  state = jax.jit(lambda: step.init_state(model, optimizer, config))()
  update = jax.jit(step.make_train_step(model, optimizer, config, mesh))
  return model, state, update


def test_a_teacher_is_the_mean_of_the_parameters_so_far():
  _, state, update = machine(settings())
  teacher = jax.device_get(state["params"]["backbone"])
  for _ in range(3):
    before = jax.device_get(state["extra"])
    state, metrics = update(state, batch())
    teacher = jax.tree.map(
      lambda old, new: DECAY * old + (1 - DECAY) * np.asarray(new),
      teacher,
      state["params"]["backbone"],
    )
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
      teacher,
      state["extra"]["teacher"],
    )
    np.testing.assert_allclose(
      state["extra"]["distance"], metrics["loss"], rtol=1e-6
    )
    assert before["distance"] != state["extra"]["distance"]


def test_microbatches_see_the_whole_of_it():
  runs = []
  for parts in (1, 2):
    _, state, update = machine(settings(**{"batch.microbatches": parts}))
    for _ in range(2):
      state, _ = update(state, batch())
    runs.append(jax.device_get(state["extra"]))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *runs
  )


def test_a_skipped_update_leaves_it():
  _, state, update = machine(settings())
  state, _ = update(state, batch())
  before = jax.device_get(state["extra"])
  state["params"]["backbone"]["mask_vector"] *= np.nan
  state, metrics = update(state, batch())
  assert not np.isfinite(metrics["loss"])
  jax.tree.map(np.testing.assert_array_equal, before, state["extra"])


def test_it_is_placed_as_parameters_are():
  config = settings()
  model, optimizer = make_objective(config), make_optimizer(config)
  shapes = jax.eval_shape(lambda: step.init_state(model, optimizer, config))
  paths = jax.tree_util.tree_leaves_with_path(shapes["extra"]["teacher"])
  axes = encoders.make_block(config.encoder).tensor_axes
  assert paths and axes
  for path, x in paths:
    end = jax.tree_util.keystr(path, simple=True, separator="/")
    ours, theirs = (
      sharding.spec(f"{start}/{end}", x.shape, 2, 2, axes)
      for start in ("extra/teacher", "params/backbone")
    )
    assert ours == theirs, end


# Runs on a mesh that cuts parameters over `fsdp` and `tensor`.
ON_FOUR = """
import sys
import jax, numpy as np
import test_extra_state as subject
from ssl_jax.devices import sharding
from ssl_jax.objectives import OBJECTIVES, make_objective
from ssl_jax.optimizers import make_optimizer
from ssl_jax.training import step

OBJECTIVES["student"] = subject.Student
sharding._MIN_FSDP_SIZE = 2**8  # Else little of so small a model were cut.
config = subject.settings(mesh=(1, 2, 2))
mesh = sharding.make_mesh(config.mesh)
model, optimizer = make_objective(config), make_optimizer(config)
init = lambda: step.init_state(model, optimizer, config)
placed = sharding.of_state(config, mesh, jax.eval_shape(init))
assert placed["extra"]["teacher"] == placed["params"]["backbone"]
specs = {str(x.spec) for x in jax.tree.leaves(placed["extra"])}
assert any("fsdp" in x for x in specs) and any("tensor" in x for x in specs)
by_row = sharding.by_row(mesh)
update = jax.jit(
  step.make_train_step(model, optimizer, config, mesh),
  in_shardings=(placed, by_row),
  out_shardings=(placed, sharding.replicated(mesh)),
  donate_argnums=0,
)
state = jax.jit(init, out_shardings=placed)()
for _ in range(2):
  state, _ = update(state, jax.device_put(subject.batch(), by_row))
np.savez(sys.argv[1], *jax.tree.leaves(jax.device_get(state["extra"])))
"""


def test_four_devices_agree_with_one(tmp_path):
  _, state, update = machine(settings())
  for _ in range(2):
    state, _ = update(state, batch())
  out = tmp_path / "extra.npz"
  subprocess.run(
    [sys.executable, "-c", ON_FOUR, str(out)],
    env=os.environ
    | {
      "JAX_NUM_CPU_DEVICES": "4",
      "JAX_PLATFORMS": "cpu",
      "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
    },
    check=True,
    timeout=600,
  )
  with np.load(out) as cut:
    for i, whole in enumerate(jax.tree.leaves(state["extra"])):
      np.testing.assert_allclose(cut[f"arr_{i}"], whole, rtol=1e-4, atol=1e-6)


def test_validation_sees_it():
  config = settings()
  model, state, _ = machine(config)
  valid = jax.jit(step.make_valid_step(model, config))
  seen = step.model_of(state)
  teacher = jax.tree.map(lambda x: 0.5 * x, seen["extra"]["teacher"])
  other = seen | {"extra": seen["extra"] | {"teacher": teacher}}
  ours, theirs = (valid(x, batch())["chance"][0] for x in (seen, other))
  assert abs(ours / theirs - 1) > 1e-3


def test_an_objective_that_nothing_is_published_of():
  with pytest.raises(UserError, match="no runs of student are published"):
    planner.fit("student", [])
  assert planner.setting_of(settings()) == "student, logmel, embedded"
  for path in ("slim.py", "slim.py:size=large", "smoke.py"):
    arg = f"{path}{',' if ':' in path else ':'}objective=student"
    config = config_lib.load(f"{ROOT}/configs/{arg}")
    hubert = config_lib.load(f"{ROOT}/configs/{path}")
    assert config.objective.name == "student"
    assert config.optimizer.learning_rate == hubert.optimizer.learning_rate


def state_at(workdir, config, update):
  shapes = jax.eval_shape(
    lambda: step.init_state(
      make_objective(config), make_optimizer(config), config
    )
  )
  return Checkpoints(workdir, None).restore(update, shapes)[0]


@pytest.mark.slow
def test_runs_are_resumed_and_branched_with_it(tmp_path):
  schedule = {
    "optimizer.warmup_updates": 1,
    "optimizer.decay_fraction": 0.6,
    "checkpoint.at": (2,),
  }
  trunk, resumed, branch, scratch = (tmp_path / name for name in "abcd")
  config = settings(**schedule, **{"budget.updates": 6})
  loop.train(config, trunk)
  shutil.copytree(trunk, resumed)
  for update in (4, 6):
    shutil.rmtree(resumed / "checkpoints" / str(update))
  (resumed / "result.json").unlink()
  loop.train(config, resumed)
  last = state_at(trunk, config, 6)
  jax.tree.map(
    np.testing.assert_array_equal, last, state_at(resumed, config, 6)
  )
  # The teacher is not the student: it lags behind.
  teacher = last["extra"]["teacher"]["mask_vector"]
  student = last["params"]["backbone"]["mask_vector"]
  assert np.abs(teacher - student).max() > 0

  smaller = settings(**schedule)
  loop.train(smaller, scratch)
  smaller.budget.trunk = str(trunk)
  assert loop.train(smaller, branch)["trunk_flops"] > 0
  jax.tree.map(
    np.testing.assert_array_equal,
    state_at(scratch, smaller, 4),
    state_at(branch, smaller, 4),
  )

  # Another run starts from it: its teacher is the encoder that was loaded.
  started = settings(**{"optimizer.learning_rate": 0.0})
  started.init_from = str(trunk)
  loop.train(started, tmp_path / "e")
  found, loaded = state_at(tmp_path / "e", started, 4), load_encoder(trunk)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
    found["extra"]["teacher"],
    loaded.params,
  )


def test_a_run_that_cannot_be_drawn_has_its_result(
  tmp_path, monkeypatch, caplog
):
  def broken(workdir):
    assert (workdir / "result.json").exists()
    raise ValueError("no\nink")

  monkeypatch.setattr(loss_picture, "draw_losses", broken)
  config = settings(**{"budget.updates": 2})
  result = loop.train(config, tmp_path)
  assert json.loads((tmp_path / "result.json").read_text()) == result
  assert type(result["flops"]) is int
  assert "loss.png cannot be drawn: no ink" in caplog.text
