"""TERA's loss in float64, and the alterations of the original."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import config as config_lib
from ssl_jax import num_frames
from ssl_jax.objectives import make_objective, tera
from ssl_jax.objectives.inputs import prepare
from ssl_jax.signal import fbank

ROWS, SAMPLES, CHANNELS = 4, 16_000, 24
LENGTHS = np.array([16_000, 12_000, 9_000, 3_000])
FRAMES = num_frames(LENGTHS)


def make(**options):
  config = config_lib.base()
  config.objective.name = "tera"
  config.frontend.name = "logmel"
  config_lib.set_size(config, "30")
  config.encoder.num_layers = 1
  config.tera.update(options)
  return config, make_objective(config, jnp.float32)


@pytest.fixture(scope="module")
def inputs():
  waveform = np.random.default_rng(0).normal(0, 3_000, (ROWS, SAMPLES))
  waveform[np.arange(SAMPLES) >= LENGTHS[:, None]] = 0
  batch = {
    "waveform": jnp.asarray(waveform, jnp.int16),
    "length": jnp.asarray(LENGTHS, jnp.int32),
    "draw_id": jnp.arange(ROWS),
  }
  config, objective = make()
  return prepare(objective, config, batch, jax.random.key(1))


@pytest.fixture(scope="module")
def params(inputs):
  return make()[1].init(jax.random.key(2), inputs, None, 0)["params"]


def totals(objective, params, inputs, key=None):
  apply = jax.jit(lambda p, i: objective.apply({"params": p}, i, key, 0))
  return jax.device_get(apply(params, inputs))


def test_the_loss_is_the_mean_distance_at_masked_frames(inputs, params):
  _, objective = make()
  mask = np.asarray(inputs["mask"])
  mfcc = np.asarray(
    fbank.mfcc_with_deltas(inputs["waveform"], inputs["length"]), np.float64
  )
  zeros = jax.tree.map(jnp.zeros_like, params["head"])
  bias = np.random.default_rng(3).normal(size=78)
  zeros["bias"] = jnp.asarray(bias, jnp.float32)
  expected, places, frames = 0.0, 0, []
  for row in range(ROWS):
    for t in np.flatnonzero(mask[row]):
      assert t < FRAMES[row]
      last = fbank.num_fbank_frames(int(LENGTHS[row])) - 1
      pair = mfcc[row, [2 * t, min(2 * t + 1, last)]]  # Repeated at the end.
      frames.append(pair.reshape(-1))
      expected += np.abs(bias - frames[-1]).mean()
      places += 1
  guess = np.mean(frames, axis=0)
  sums = totals(objective, params | {"head": zeros}, inputs)
  counts = objective.counts(inputs)
  assert counts["l1"] == places
  assert sums["l1"] == pytest.approx(expected, rel=1e-4)
  chance = np.abs(np.array(frames) - guess).mean(axis=1).sum()
  assert sums["chance"] == pytest.approx(chance, rel=1e-4)


def alter(inputs, features, **options):
  """(frames that become the mask vector, features as the encoder has them)"""
  config = make(**options)[0].tera
  keys = jax.random.split(jax.random.key(5), features.shape[0])
  mask, change = tera._alteration(config, inputs, keys)
  return np.asarray(mask), np.asarray(change(jnp.asarray(features)))


@pytest.fixture(scope="module")
def features(inputs):
  """Each frame says which clip and frame it is."""
  shape = inputs["mask"].shape
  row, time = np.indices(shape)
  return np.repeat((1_000 * (1 + row) + time)[..., None], CHANNELS, -1) * 1.0


def test_without_options_the_input_is_as_it_was(inputs, features):
  mask, altered = alter(inputs, features)
  np.testing.assert_array_equal(mask, inputs["mask"])
  np.testing.assert_array_equal(altered, features)


def test_kept_frames_are_not_masked(inputs, features):
  mask, altered = alter(inputs, features, time_keep=1.0)
  assert not mask.any()
  np.testing.assert_array_equal(altered, features)


def many(inputs, rows, clip=0):
  return {
    name: jnp.repeat(inputs[name][clip : clip + 1], rows, 0)
    for name in ("mask", "frame_mask")
  }


def test_swapped_frames_are_others_of_the_clip(inputs, features):
  for clip in range(ROWS):
    batch = many(inputs, 500, clip)
    own = np.repeat(features[clip : clip + 1], 500, 0)
    mask, altered = alter(batch, own, time_swap=1.0)
    assert not mask.any()
    masked = np.asarray(inputs["mask"][clip])
    np.testing.assert_array_equal(altered[:, ~masked], own[:, ~masked])
    source = altered[:, masked, 0] - 1_000 * (1 + clip)
    # One shift a clip, around its end; runs stay runs. Never by nothing.
    shift = (source - np.flatnonzero(masked)) % FRAMES[clip]
    assert (shift == shift[:, :1]).all()
    assert {*shift[:, 0]} == {*range(1, FRAMES[clip])}
    assert (source < FRAMES[clip]).all() and (source >= 0).all()


def test_shares_of_clips_are_as_asked(inputs, features):
  rows = 2_000
  batch = many(inputs, rows)
  whole = np.repeat(features[:1], rows, 0)
  mask, altered = alter(batch, whole, time_swap=0.1, time_keep=0.2)
  masked = mask.any(axis=1)
  changed = (altered != whole).any(axis=(1, 2))
  assert not (masked & changed).any()
  assert changed.mean() == pytest.approx(0.1, abs=0.03)
  assert (~masked & ~changed).mean() == pytest.approx(0.2, abs=0.04)


def test_a_block_of_channels_is_zeroed_in_the_whole_clip(inputs, features):
  rows = 3_000
  mask, altered = alter(
    many(inputs, rows),
    np.repeat(features[:1], rows, 0),
    channel_alteration=0.25,
  )
  assert mask.any(axis=1).all()
  zeroed = altered == 0
  assert (zeroed == zeroed[:, :1]).all()  # In every frame alike.
  blocks = zeroed[:, 0]
  widths = blocks.sum(axis=1)
  # Uniform over 0 to a quarter of the channels, both included.
  share = np.bincount(widths, minlength=7) / rows
  np.testing.assert_allclose(share, 1 / 7, atol=0.025)
  for block in blocks[widths > 0]:
    where = np.flatnonzero(block)
    assert where[-1] - where[0] + 1 == len(where)
  assert blocks[:, 0].any() and blocks[:, -1].any()


def test_nothing_is_altered_in_validation(inputs, params):
  options = {"time_swap": 0.5, "time_keep": 0.5, "channel_alteration": 0.5}
  plain = totals(make()[1], params, inputs)
  altered = totals(make(**options)[1], params, inputs)
  np.testing.assert_array_equal(plain["l1"], altered["l1"])


@pytest.mark.parametrize("option", ["time_swap", "time_keep"])
def test_altered_frames_are_still_what_is_predicted(inputs, params, option):
  objective = make(**{option: 1.0})[1]
  sums = totals(objective, params, inputs, jax.random.key(0))
  plain = totals(make()[1], params, inputs, jax.random.key(0))
  assert objective.counts(inputs)["l1"] == inputs["mask"].sum()
  assert sums["l1"] != plain["l1"]
  assert sums["chance"] == plain["chance"]
