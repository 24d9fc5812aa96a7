"""transformers' side of the benchmarks is the same work as ours."""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from ssl_jax import SAMPLE_RATE
from ssl_jax.measure import speed
from ssl_jax.models import frontends
from ssl_jax.objectives.inputs import num_params

torch = pytest.importorskip("torch")
rival, rival_models = (
  pytest.importorskip(f"ssl_jax.measure.{name}")
  for name in ("rival", "rival_models")
)

RIVALS = [
  ("hubert", "waveform"),
  ("hubert", "logmel"),
  ("wav2vec2", "waveform"),
]


def comparable(objective, frontend):
  """Returns a tiny config of a step that transformers has, too."""
  config = tiny.on_waveforms(objective=objective)
  config.frontend.name = frontend
  return config


def rival_of(config, seconds=1.0):
  """Returns transformers' model of a config, and its inputs."""
  masked = speed._masked(config, 2, round(seconds * SAMPLE_RATE))
  return rival_models.make(config, speed._architecture(config), masked)


@pytest.mark.parametrize(("objective", "frontend"), RIVALS)
def test_the_rival_is_the_same_model(objective, frontend):
  config = comparable(objective, frontend)
  theirs, _ = rival_of(config)
  count = sum(parameter.numel() for parameter in theirs.parameters())
  assert count == num_params(config)


@pytest.mark.parametrize(("objective", "frontend"), RIVALS)
def test_the_rival_learns(objective, frontend):
  """Its labels and audio are noise, but the same at every update."""
  torch.manual_seed(0)
  config = comparable(objective, frontend)
  config.optimizer.learning_rate = 2e-3
  length = round(0.6 * SAMPLE_RATE)
  subject = rival.step(
    config,
    speed._architecture(config),
    rows=2,
    length=length,
    masked=speed._masked(config, 2, length),
  )
  first, last = subject.run(1).item(), subject.run(12).item()
  assert last < 0.9 * first


@pytest.mark.parametrize("objective", ["hubert", "wav2vec2"])
def test_the_rivals_stem_learns_at_its_own_pace(objective):
  """Its penalty is in the loss, and all of its gradient is scaled."""
  config, gradients, losses = comparable(objective, "waveform"), [], []
  waveform = 0.1 * torch.randn(2, SAMPLE_RATE)
  for grad_mult, penalty in ((1.0, 0.0), (0.1, 0.0), (0.1, 100.0)):
    config.frontend.grad_mult = grad_mult
    config.objective.feature_penalty = penalty
    torch.manual_seed(0)
    np.random.seed(0)  # transformers' of negatives.
    model, inputs = rival_of(config)
    torch.manual_seed(0)
    loss = model.eval()(waveform, *inputs)
    loss.backward()
    losses.append(loss.item())
    kernels = [p for name, p in model.named_parameters() if ".stem." in name]
    squares = sum(p.grad.square().sum().item() for p in kernels)
    gradients.append(squares**0.5)
  assert losses[0] == pytest.approx(losses[1], rel=1e-6)
  assert gradients[1] == pytest.approx(0.1 * gradients[0], rel=1e-3)
  assert losses[2] > losses[1] and gradients[2] != gradients[1]


@pytest.mark.parametrize("length", [16_000, 16_160])  # The last lacks half.
def test_the_rivals_log_mel_is_ours(length):
  config = comparable("hubert", "logmel")
  speech = np.concatenate(tiny.clips(8))
  waveform = np.stack([speech[:length], speech[-length:]])
  ours = frontends.make(config.frontend).apply(
    {}, jnp.asarray(waveform), jnp.full(2, length)
  )
  theirs = rival_models.LogMel(80)(torch.from_numpy(waveform))
  np.testing.assert_allclose(theirs.transpose(1, 2), ours, atol=2e-3)
