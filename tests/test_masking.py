"""Span masks against the convention written out with numpy, and their rules."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.signal.masking import first_true, most_masked, sample_spans

DRAWS = 10_000
SPAN = 10


@functools.cache
def reference_rows(length, mask_prob):
  """DRAWS untrimmed rows by the convention: bool [DRAWS, length]."""
  rng = np.random.default_rng(1)
  masks = np.zeros((DRAWS, length), bool)
  for mask in masks:
    count = max(2, int(np.floor(mask_prob * length / SPAN + rng.random())))
    places = length - SPAN if length - SPAN > count else count + 1
    starts = rng.choice(places, count, replace=False)
    frames = (starts[:, None] + np.arange(SPAN)).ravel()
    mask[frames[frames < length]] = True
  return masks


def reference_batches(rows, length, mask_prob):
  """The same, trimmed to the smallest of each batch of `rows`."""
  rng = np.random.default_rng(2)
  masks = reference_rows(length, mask_prob).copy()
  for batch in masks.reshape(-1, rows, length):
    keep = batch.sum(axis=1).min()
    for mask in batch:
      mask[rng.permutation(np.flatnonzero(mask))[keep:]] = False
  return masks


@functools.partial(jax.jit, static_argnums=2)
def sample_batches(keys, lengths, max_frames, mask_prob=0.8):
  """keys, lengths [N, B] -> [N, B, T]."""
  return jax.vmap(lambda k, n: sample_spans(k, n, max_frames, mask_prob, SPAN))(
    keys, lengths
  )


@functools.cache
def draw(rows, length, mask_prob):
  """DRAWS rows in batches of `rows`: bool [DRAWS, length]."""
  keys = jax.random.split(jax.random.key(0), (DRAWS // rows, rows))
  lengths = jnp.full(keys.shape, length)
  max_frames = max(length, 120)  # A compilation less.
  masks = sample_batches(keys, lengths, max_frames, mask_prob)
  return np.asarray(masks).reshape(DRAWS, max_frames)[:, :length]


def sample(seed, lengths, max_frames):
  """One batch from {row: frames}, where a row's number makes its key."""
  fold = jax.vmap(jax.random.fold_in, (None, 0))
  keys = fold(jax.random.key(seed), jnp.array(list(lengths)))
  lengths = jnp.array(list(lengths.values()))
  return np.asarray(sample_batches(keys[None], lengths[None], max_frames)[0])


def runs(mask):
  """Lengths of the masked runs of a row."""
  edges = np.flatnonzero(np.diff(np.pad(mask.astype(int), 1)))
  return edges[1::2] - edges[::2]


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("mask_prob", [0.8, 0.65])
@pytest.mark.parametrize(
  "length", [pytest.param(500, marks=pytest.mark.slow), 120, 12]
)
def test_statistics_equal_the_convention(rows, length, mask_prob):
  ours = draw(rows, length, mask_prob)
  reference = reference_batches(rows, length, mask_prob)
  # Rows of a batch share their count, so that counts are drawn once a batch.
  counts, expected = (x[::rows].sum(axis=1) for x in (ours, reference))
  error = np.sqrt((counts.var() + expected.var()) / len(counts))
  assert abs(counts.mean() - expected.mean()) <= 4 * error
  # Kolmogorov-Smirnov's distance, at a level of 1e-4.
  levels = np.arange(length + 1)[:, None]
  distance = (counts <= levels).mean(axis=1) - (expected <= levels).mean(axis=1)
  assert np.abs(distance).max() < 2.23 * np.sqrt(2 / len(counts))
  # Each frame's frequency; those never masked must agree exactly.
  p, q = ours.mean(axis=0), reference.mean(axis=0)
  error = np.sqrt((p * (1 - p) + q * (1 - q)) / DRAWS)
  assert (np.abs(p - q) <= 4.5 * error).all()


def test_spans_are_whole_before_the_trim():
  for length in (500, 120):
    masks = draw(1, length, 0.65)[:1000]
    assert min(runs(mask).min() for mask in masks) == SPAN
    # Two spans apart leave a gap, and two that overlap a longer run.
    assert max(runs(mask).max() for mask in masks) > 2 * SPAN


def test_rows_of_equal_length_keep_equal_counts():
  counts = draw(8, 500, 0.8).sum(axis=1).reshape(-1, 8)
  assert (counts == counts[:, :1]).all()
  # The smallest of eight, where a row's own key is all that moves its count.
  alone = draw(1, 500, 0.8).sum(axis=1).reshape(-1, 8).min(axis=1)
  np.testing.assert_array_equal(counts[:, 0], alone)


def test_trim_keeps_a_subset_of_a_rows_own_mask():
  alone, together = draw(1, 500, 0.8), draw(8, 500, 0.8)
  assert not (together & ~alone).any()
  assert (together != alone).any(axis=1).mean() > 0.8


def test_ragged_rows_keep_the_smallest_share():
  lengths = {i: n for i, n in enumerate([499, 120, 333, 30, 250, 1])}
  for seed in range(5):
    alone = [sample(seed, {i: n}, 499).sum() for i, n in lengths.items()]
    kept = sample(seed, lengths, 499).sum(axis=1)
    for i, n in lengths.items():
      share = min(alone[j] * n // m for j, m in lengths.items())
      assert kept[i] == max(1, share)


def test_empty_rows_are_invisible():
  lengths = {0: 120, 1: 77, 2: 100}
  with_empty = {5: 0, **lengths, 6: 0}
  masks = sample(0, with_empty, 120)
  np.testing.assert_array_equal(masks[1:4], sample(0, lengths, 120))
  assert not masks[[0, 4]].any()
  assert not sample(0, {5: 0, 6: 0}, 120).any()


def test_padding_is_invisible():
  lengths = {0: 120, 1: 77, 2: 100}
  masks, longer = sample(0, lengths, 120), sample(0, lengths, 500)
  np.testing.assert_array_equal(longer[:, :120], masks)
  assert not longer[:, 120:].any()
  for mask, length in zip(masks, lengths.values()):
    assert not mask[length:].any()


def test_tiny_rows_mask_some_real_frame():
  lengths = jnp.arange(1, 16).repeat(100)[:, None]
  keys = jax.random.split(jax.random.key(0), lengths.shape)
  masks = np.asarray(sample_batches(keys, lengths, 20, 0.65))[:, 0]
  assert masks.any(axis=1).all()
  assert not masks[np.arange(20) >= lengths].any()


def test_a_mask_is_a_function_of_its_key():
  lengths = {i: 120 for i in range(4)}
  first, again, other = (sample(seed, lengths, 120) for seed in (0, 0, 1))
  np.testing.assert_array_equal(first, again)
  assert (first != other).any(axis=1).all()
  assert len({row.tobytes() for row in first}) == len(first)


@pytest.mark.parametrize(
  "mask_prob, mask_length", [(0.8, 10), (0.65, 10), (0.6, 4)]
)
def test_few_frames_are_masked_beyond_what_a_head_takes(mask_prob, mask_length):
  frames = np.array([500, 499, 250, 50])
  most = most_masked(500, mask_prob, mask_length, 2)
  assert most < 0.65 * 500
  total = lost = 0
  draw = jax.jit(
    lambda keys: sample_spans(
      keys, jnp.asarray(frames), 500, mask_prob, mask_length
    )
  )
  for seed in range(50):
    mask = np.asarray(draw(jax.random.split(jax.random.key(seed), 4)))
    places, there = first_true(jnp.asarray(mask), most)
    for row in range(4):
      expected = np.flatnonzero(mask[row])[:most]
      np.testing.assert_array_equal(
        np.asarray(places)[row][there[row]], expected
      )
    total += mask.sum()
    lost += mask.sum() - int(there.sum())
  assert lost < 1e-3 * total
