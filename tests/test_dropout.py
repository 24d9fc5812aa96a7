"""Dropout's own random bits: independent, balanced, and of the clip alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.models.dropout import (
  dropout,
  is_kept,
  key_words,
  row_and_column_bits,
  row_keys,
)

CLIPS, ROWS, COLUMNS = 32, 300, 96
RATE = 0.1


def words_of(rows, seed=3):
  return key_words(row_keys(jax.random.key(seed), jnp.asarray(rows)))


@pytest.fixture(scope="module")
def kept():
  """As is_kept decides, scaled to mean 0 and variance 1. [B, rows, columns]."""
  rows, columns = row_and_column_bits(
    words_of(np.arange(CLIPS)), ROWS, COLUMNS, 1
  )
  kept = np.asarray(is_kept(rows[..., None], columns[:, None], RATE))
  return (kept - (1 - RATE)) / (RATE * (1 - RATE)) ** 0.5


def score(x: np.ndarray) -> float:
  """Of the mean of values of mean 0 and variance 1, in standard errors."""
  return abs(x.mean()) * x.size**0.5


def test_each_clip_keeps_its_share(kept):
  for clip in kept:
    assert score(clip) < 4.5


@pytest.mark.parametrize("axis", [1, 2])
def test_lines_vary_as_independent_draws_do(kept, axis):
  """A line of bits shared by a row or column must not tilt all of it."""
  size = kept.shape[axis]
  means = kept.mean(axis=axis) * size**0.5
  # Of n squares of a normal number: variance 2 / n.
  assert abs(np.square(means).mean() - 1) < 4.5 * (2 / means.size) ** 0.5


def test_neighbours_in_every_direction_are_independent(kept):
  for lag in (1, 2, 3, 7, 8, 32, 64):
    assert score(kept[:, lag:] * kept[:, :-lag]) < 4.5
    assert score(kept[:, :, lag:] * kept[:, :, :-lag]) < 4.5
    assert score(kept[:, lag:, lag:] * kept[:, :-lag, :-lag]) < 4.5


def test_corners_of_rectangles_are_independent(kept):
  """What a decision shares with three others says nothing of it."""
  for lag in (1, 4, 17):
    rows = kept[:, lag:] * kept[:, :-lag]
    assert score(rows[:, :, lag:] * rows[:, :, :-lag]) < 4.5


def test_clips_are_independent(kept):
  flat = kept.reshape(CLIPS, -1)
  correlations = np.corrcoef(flat)[np.triu_indices(CLIPS, 1)]
  assert np.abs(correlations).max() * flat.shape[1] ** 0.5 < 5


def test_every_bit_is_even():
  for lines in row_and_column_bits(words_of([7]), 20_000, 20_000):
    bits = np.asarray(lines)
    for bit in range(32):
      assert score(2.0 * (bits >> bit & 1) - 1) < 4.5


def test_what_is_kept_is_scaled_and_of_the_clip_alone():
  x = jnp.ones((4, 50, 40))
  words = words_of([5, 6, 7, 5])
  y = np.asarray(dropout(x, 0.25, words, 2))
  assert set(np.unique(y)) == {0, np.float32(4 / 3)}
  assert abs(y.mean() - 1) < 0.03
  np.testing.assert_array_equal(y[0], y[3])
  np.testing.assert_array_equal(y[2:3], dropout(x[:1], 0.25, words[2:3], 2))
  assert (y[0] != y[1]).mean() > 0.3
  assert (y != np.asarray(dropout(x, 0.25, words, 3))).mean() > 0.3
  assert dropout(x, 0.25, None, 2) is x
  assert dropout(x, 0.0, words, 2) is x


def test_the_gradient_is_of_what_was_kept():
  x = jax.random.normal(jax.random.key(0), (3, 20, 16))
  words = words_of([1, 2, 3])
  y, transpose = jax.vjp(lambda x: dropout(x, 0.5, words), x)
  (dx,) = transpose(jnp.ones_like(y))
  np.testing.assert_array_equal(dx, np.where(np.asarray(y) == 0, 0, 2))
