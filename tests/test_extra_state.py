"""What an objective carries from update to update beside its parameters."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ssl_jax import config as config_lib
from ssl_jax import num_frames
from ssl_jax.checkpoints.manager import Checkpoints
from ssl_jax.devices import sharding
from ssl_jax.models import encoders
from ssl_jax.models.backbone import Backbone
from ssl_jax.objectives import OBJECTIVES, make_objective, objective, terms
from ssl_jax.optimizers import make_optimizer
from ssl_jax.training import loop, step

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


def state_at(workdir, config, update):
  shapes = jax.eval_shape(
    lambda: step.init_state(
      make_objective(config), make_optimizer(config), config
    )
  )
  return Checkpoints(workdir, None).restore(update, shapes)[0]


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
