"""The smoke runs learn speech: what no run that cannot learn it reaches."""

import functools
from pathlib import Path

import jax
import optax
import pytest

from ssl_jax import config as config_lib
from ssl_jax.files import read_jsonl
from ssl_jax.objectives import OBJECTIVES, wav2vec2
from ssl_jax.training import loop, step

ROOT = Path(__file__).parents[1]
# Of the main term on validation clips, after UPDATES of configs/smoke.py.
UPDATES = 240
BOUNDS = {"hubert": 4.15, "wav2vec2": 3.95, "tera": 5.35}


def smoke(objective: str, workdir: Path) -> float:
  config = config_lib.load(f"{ROOT}/configs/smoke.py:objective={objective}")
  config.budget.updates, config.budget.flops = UPDATES, 0.0
  config.eval.every = config.checkpoint.every = UPDATES
  loop.train(config, workdir)
  last = read_jsonl(workdir / "metrics.jsonl")[-1]
  assert last["split"] == "valid" and last["update"] == UPDATES
  return last[OBJECTIVES[objective].main]


@pytest.fixture(autouse=True)
def optimized(monkeypatch):
  """These runs are long enough that compiling them well is time saved."""
  options = {"xla_backend_optimization_level": 3}
  compile_ = functools.partialmethod(
    jax.stages.Lowered.compile, compiler_options=options
  )
  monkeypatch.setattr(jax.stages.Lowered, "compile", compile_)


@pytest.fixture
def frozen(monkeypatch):
  """Of an encoder that stays as it was drawn only the head learns."""
  make = loop.make_optimizer
  monkeypatch.setattr(
    loop,
    "make_optimizer",
    lambda config: optax.multi_transform(
      {"head": make(config), "backbone": optax.set_to_zero()},
      lambda params: {k: k if k == "backbone" else "head" for k in params},
    ),
  )


@pytest.fixture
def shuffled(monkeypatch):
  """Frames get the targets of others in training, not in validation."""

  def in_turn(kind):
    if kind is OBJECTIVES["wav2vec2"]:
      return type("Shuffled", (kind,), {"__call__": other_codes(kind)})
    return type("Shuffled", (kind,), {"targets": other_targets(kind)})

  def other_targets(kind):
    def targets(self, inputs, keys):
      own = kind.targets(self, inputs, keys)
      shape = inputs["mask"].shape
      order = jax.random.permutation(keys[0], shape[0] * shape[1])
      return jax.tree.map(
        lambda x: x.reshape(-1, *x.shape[2:])[order].reshape(x.shape), own
      )

    return targets

  def other_codes(kind):
    def call(self, inputs, key, update):
      def shuffled(context, *args):
        order = jax.random.permutation(key, context.shape[1])
        return info_nce(context[:, order], *args)

      info_nce = wav2vec2.info_nce
      with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wav2vec2, "info_nce", shuffled)
        return kind.__call__(self, inputs, key, update)

    return call

  make = step.make_train_step
  monkeypatch.setattr(
    step,
    "make_train_step",
    lambda objective, *args: make(
      in_turn(type(objective))(
        objective.config,
        objective.dtype,
        *([objective.codebooks] if hasattr(objective, "codebooks") else []),
      ),
      *args,
    ),
  )


@pytest.mark.slow
@pytest.mark.parametrize("objective", [*BOUNDS])
def test_the_smoke_run_learns(tmp_path, objective):
  assert smoke(objective, tmp_path) < BOUNDS[objective]


@pytest.mark.slow
@pytest.mark.parametrize("objective", [*BOUNDS])
def test_a_frozen_random_encoder_does_not(tmp_path, objective, frozen):
  assert smoke(objective, tmp_path) > BOUNDS[objective]


@pytest.mark.slow
@pytest.mark.parametrize("objective", [*BOUNDS])
def test_shuffled_targets_do_not(tmp_path, objective, shuffled):
  assert smoke(objective, tmp_path) > BOUNDS[objective]
