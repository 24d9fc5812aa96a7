"""Augmentation: as loud as asked, and of what the encoder hears only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import config as config_lib
from ssl_jax import optimizers
from ssl_jax.objectives import make_objective
from ssl_jax.signal import augment
from ssl_jax.training import step

ROWS, SAMPLES = 6, 16_000
LENGTHS = np.array([16_000, 16_000, 9_000, 12_000, 16_000, 0])


@pytest.fixture(scope="module")
def clips():
  rng = np.random.default_rng(0)
  clips = rng.normal(size=(ROWS, SAMPLES)) * rng.uniform(0.01, 0.3, (ROWS, 1))
  clips[np.arange(SAMPLES) >= LENGTHS[:, None]] = 0
  return jnp.asarray(clips, jnp.float32)


def altered(clips, lengths=LENGTHS, seed=0, **options):
  config = config_lib.base().augment
  config.update(options)
  keys = jax.random.split(jax.random.key(seed), 64)[: len(clips)]
  return np.asarray(augment.augment(config, clips, jnp.asarray(lengths), keys))


EVERY = {
  "mix_prob": 1.0,
  "noise_prob": 1.0,
  "reverb_prob": 1.0,
  "gain_db": 6.0,
  "drop_prob": 1.0,
  "band_prob": 1.0,
}


def test_nothing_is_done_unasked(clips):
  np.testing.assert_array_equal(altered(clips), clips)


def test_padding_stays_silent_and_clips_change(clips):
  found = altered(clips, **EVERY)
  assert np.isfinite(found).all()
  padding = np.arange(SAMPLES) >= LENGTHS[:, None]
  assert not found[padding].any()
  assert (found != clips)[:5].any(axis=1).all()


@pytest.mark.parametrize("option", EVERY)
def test_draws_are_a_clips_own(clips, option):
  options = {option: EVERY[option]}
  whole = altered(clips, **options)
  np.testing.assert_array_equal(whole, altered(clips, **options))
  assert (whole != altered(clips, seed=1, **options)).any()
  # Rows that only fill up the devices change nothing.
  more = jnp.concatenate([clips, jnp.zeros((2, SAMPLES))])
  padded = altered(more, np.append(LENGTHS, [0, 0]), **options)
  np.testing.assert_allclose(padded[:ROWS], whole, atol=1e-6)
  assert not padded[ROWS:].any()


@pytest.mark.parametrize("option", ["mix", "noise"])
def test_what_is_added_is_as_loud_as_asked(clips, option):
  for snr in (-5.0, 10.0):
    found = altered(
      clips, **{f"{option}_prob": 1.0, f"{option}_snr_db": (snr, snr)}
    )
    added = found - np.asarray(clips)
    for row in range(5):
      where = np.flatnonzero(added[row])
      part = slice(where[0], where[-1] + 1)
      assert len(added[row, part]) <= LENGTHS[row] / 2 + 1
      ratio = np.mean(np.square(clips[row, part], dtype=np.float64)) / np.mean(
        np.square(added[row, part], dtype=np.float64)
      )
      assert 10 * np.log10(ratio) == pytest.approx(snr, abs=0.05)


def test_what_is_mixed_in_is_another_clip(clips):
  found = altered(clips, mix_prob=1.0)
  added = found - np.asarray(clips)
  for row in range(5):
    where = np.flatnonzero(np.abs(added[row]) > 1e-6)
    part = np.arange(where[0], where[-1] + 1)
    like = []
    for other in range(5):
      repeated = np.asarray(clips[other])[part % LENGTHS[other]]
      like.append(np.corrcoef(repeated, added[row, part])[0, 1])
    assert np.argmax(like) != row and max(like) > 0.999


def test_shares_are_as_asked():
  clips = jnp.asarray(np.random.default_rng(1).normal(size=(64, 400)))
  changed = 0
  for seed in range(30):
    found = altered(clips, np.full(64, 400), seed, noise_prob=0.2)
    changed += (found != np.asarray(clips, found.dtype)).any(axis=1).sum()
  assert changed / (30 * 64) == pytest.approx(0.2, abs=0.04)


def test_gain_is_within_its_range(clips):
  found = altered(clips, gain_db=6.0)
  gains = 20 * np.log10(
    np.linalg.norm(found[:5], axis=1) / np.linalg.norm(clips[:5], axis=1)
  )
  assert (np.abs(gains) <= 6.0).all() and np.ptp(gains) > 1


def test_what_falls_silent_is_one_part_and_short(clips):
  found = altered(clips, drop_prob=1.0, drop_seconds=0.25)
  spans = []
  for row in range(5):
    silent = np.flatnonzero(found[row, : LENGTHS[row]] == 0)
    spans.append(len(silent))
    assert 1 <= len(silent) <= 4_000
    assert silent[-1] - silent[0] == len(silent) - 1
    kept = found[row] != 0
    np.testing.assert_array_equal(found[row][kept], clips[row][kept])
  assert len({*spans}) == 5


def test_a_band_is_left_out_and_the_rest_is_not():
  clips = jnp.asarray(np.random.default_rng(1).normal(size=(6, SAMPLES)))
  found = altered(clips, np.full(6, SAMPLES), band_prob=1.0, band_hz=2_000.0)
  lows = []
  for row in range(6):
    before, after = np.fft.rfft(clips[row]), np.fft.rfft(found[row])
    gone = np.flatnonzero(np.abs(after) < 1e-3 * np.abs(before).mean())
    assert 1 <= len(gone) <= 2_001  # A bin is 1 Hz.
    assert gone[-1] - gone[0] == len(gone) - 1
    kept = np.setdiff1d(np.arange(8_001), gone)
    np.testing.assert_allclose(after[kept], before[kept], atol=0.05)
    lows.append(gone[0])
  assert np.ptp(lows) > 1_000


def test_convolution_is_numpys():
  rng = np.random.default_rng(2)
  signal, response = rng.normal(size=1_000), rng.normal(size=300)
  ours = augment.convolve(jnp.asarray(signal), jnp.asarray(response))
  theirs = np.convolve(signal, response)[:1_000]
  np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_a_room_rings_for_its_time():
  click = jnp.zeros((1, 16_000)).at[0, 100].set(1.0)
  found = altered(click, [16_000], reverb_prob=1.0, reverb_seconds=(0.4, 0.4))[
    0
  ]
  assert not np.abs(found[:100]).max() > 1e-6  # Nothing before the sound.
  assert np.argmax(np.abs(found)) == 100
  # The decay of the energy still to come, -5 to -25 dB, as rooms are measured.
  left = np.cumsum(np.square(found[101:], dtype=np.float64)[::-1])[::-1]
  level = 10 * np.log10(left / left[0])
  first, last = np.argmax(level < -5), np.argmax(level < -25)
  assert 3 * (last - first) / 16_000 == pytest.approx(0.4, rel=0.1)


def test_only_what_the_encoder_hears_is_altered(monkeypatch):
  config = config_lib.base()
  config.frontend.name = "logmel"
  config_lib.set_size(config, "1x32x64x4")
  codebook = np.random.default_rng(0).normal(size=(100, 39))
  objective = make_objective(config, jnp.float32, (codebook,))
  adam = optimizers.make_optimizer(config)
  state = jax.jit(lambda: step.init_state(objective, adam, config))()
  batch = {
    "waveform": jnp.full((2, 8_000), 300, jnp.int16),
    "length": jnp.full(2, 8_000),
    "draw_id": jnp.arange(2),
  }
  train_step = jax.jit(step.make_train_step(objective, adam, config))
  clean, as_it_is = train_step(state, batch)
  noise = np.random.default_rng(1).normal(size=(2, 8_000)).astype(np.float32)
  monkeypatch.setattr(step.augment, "augment", lambda config, x, *args: noise)
  train_step = jax.jit(step.make_train_step(objective, adam, config))
  state, current = train_step(state, batch)
  assert abs(current["loss"] - as_it_is["loss"]) > 1e-3
  usage, count = state["sums"]["usage_0"]
  assert usage.sum() == count > 0
  # Of targets, which heard nothing of it.
  np.testing.assert_array_equal(usage, clean["sums"]["usage_0"][0])
  monkeypatch.setattr(
    step.augment, "augment", lambda config, x, *args: jnp.full_like(x, jnp.nan)
  )
  valid_step = jax.jit(step.make_valid_step(objective, config))
  fresh = jax.jit(lambda: step.init_state(objective, adam, config))()
  sums = valid_step({"params": fresh["params"]}, batch)
  assert np.isfinite(sums["cross_entropy"][0])
