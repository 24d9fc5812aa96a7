"""AdamW, clipping and the schedule against torch."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssl_jax import config as config_lib
from ssl_jax.training import optimizer


def test_updates_equal_torch():
  torch = pytest.importorskip("torch")
  config = config_lib.base()
  config.budget.updates = 20
  config.optimizer.warmup_fraction = 0.25
  config.optimizer.learning_rate = 1e-2
  config.optimizer.clip_norm = 1.0
  rng = np.random.default_rng(0)
  start = rng.normal(size=(5, 3)).astype(np.float32)
  gradients = rng.normal(size=(20, 5, 3)).astype(np.float32)
  gradients[::2] *= 0.01  # Some below the clip norm, some above.

  theirs = torch.nn.Parameter(torch.from_numpy(start.copy()))
  adam = torch.optim.AdamW(
    [theirs], lr=1e-2, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01
  )
  # lr of update u: u / 5 in the warm-up, then a line to 0 at 20.
  scheduler = torch.optim.lr_scheduler.LambdaLR(
    adam, lambda u: u / 5 if u < 5 else (20 - u) / 15
  )
  for gradient in gradients:
    theirs.grad = torch.from_numpy(gradient.copy())
    torch.nn.utils.clip_grad_norm_([theirs], 1.0)
    adam.step()
    scheduler.step()

  ours = jnp.asarray(start)
  ours_adam = optimizer.make_optimizer(config)
  state = ours_adam.init(ours)
  for gradient in gradients:
    updates, state = ours_adam.update(gradient, state, ours)
    ours = optax.apply_updates(ours, updates)
  np.testing.assert_allclose(ours, theirs.detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("warmup", [0, 32_000])
def test_schedule_of_slim_is_the_published_one(warmup):
  config = config_lib.base()
  config.optimizer.warmup_updates = warmup  # 8 % or the count: the same.
  schedule = optimizer.make_schedule(config)
  for update, rate in [
    (0, 0.0),
    (16_000, 2.5e-4),
    (32_000, 5e-4),
    (216_000, 2.5e-4),
    (400_000, 0.0),
  ]:
    assert float(schedule(update)) == pytest.approx(rate, abs=1e-9)


def test_between_warm_up_and_decay_the_rate_stays():
  config = config_lib.base()
  config.optimizer.decay_fraction = 0.25
  schedule = optimizer.make_schedule(config)
  for update, rate in [
    (16_000, 2.5e-4),
    (32_000, 5e-4),
    (308_000, 5e-4),  # 92,000 before the end.
    (354_000, 2.5e-4),
    (400_000, 0.0),
  ]:
    assert float(schedule(update)) == pytest.approx(rate, abs=1e-9)
