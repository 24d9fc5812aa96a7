"""Dropout's own random bits: independent, balanced, and of the clip alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.models.dropout import dropout, position_bits, row_keys

SHAPE = (8, 60, 60)


@pytest.fixture(scope="module")
def kept():
  """As 90 % are kept, less its mean. [32, positions]."""
  bits = np.asarray(
    position_bits(row_keys(jax.random.key(3), jnp.arange(32)), SHAPE)
  )
  return (bits < 0.9 * 2**32).reshape(32, -1) - 0.9


def score(x: np.ndarray) -> float:
  """Of the mean of values of mean 0 and variance 1, in standard errors."""
  return abs(x.mean()) * x.size**0.5


def test_each_clip_keeps_its_share(kept):
  for clip in kept:
    assert score(clip / 0.3) < 4.5


def test_neighbours_in_every_direction_are_independent(kept):
  for lag in (1, 2, 3, 59, 60, 61, 64, 256, 3600):
    assert score(kept[:, lag:] * kept[:, :-lag] / 0.09) < 4.5


def test_clips_are_independent(kept):
  correlations = np.corrcoef(kept)[np.triu_indices(32, 1)]
  assert np.abs(correlations).max() * kept.shape[1] ** 0.5 < 5


def test_every_bit_is_even():
  keys = row_keys(jax.random.key(0), jnp.array([7]))
  bits = np.asarray(position_bits(keys, SHAPE))
  for bit in range(32):
    assert score(2.0 * (bits >> bit & 1) - 1) < 4.5


def test_what_is_kept_is_scaled_and_of_the_clip_alone():
  x = jnp.ones((4, 50, 40))
  keys = row_keys(jax.random.key(1), jnp.array([5, 6, 7, 5]))
  y = np.asarray(dropout(x, 0.25, keys, 2))
  assert set(np.unique(y)) == {0, np.float32(4 / 3)}
  assert abs(y.mean() - 1) < 0.03
  np.testing.assert_array_equal(y[0], y[3])
  np.testing.assert_array_equal(y[2:3], dropout(x[:1], 0.25, keys[2:3], 2))
  assert (y[0] != y[1]).mean() > 0.3
  assert (y != np.asarray(dropout(x, 0.25, keys, 3))).mean() > 0.3
  assert dropout(x, 0.25, None, 2) is x
  assert dropout(x, 0.0, keys, 2) is x
