"""Layers that see 25 frames a second, of an encoder that has 50.

As in the middle of SEW's (Wu et al. 2021, arXiv 2109.06870): neighbours differ
little there, and such a layer costs half or less.

Axes: B clips, T frames, D width.
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ssl_jax.errors import UserError
from ssl_jax.knobs import Knob, is_of

KNOBS = {
  "half_rate": Knob(
    (),
    "(first, last), counted from 1: the layers that see 25 frames a second. "
    "Pairs are averaged on the way in; what these layers add is given to both. "
    "None given: all see 50.",
    role="architecture",
    low=1,
    high=1_000,
  ),
}


def check(config: ConfigDict) -> None:
  """Checks `config.encoder.half_rate`.

  Raises:
    UserError: it names no layers.
  """
  half = config.half_rate
  if half and not (
    len(half) == 2
    and all(is_of(number, int) for number in half)
    and half[0] <= half[1] <= config.num_layers
  ):
    raise UserError(
      f"config.encoder.half_rate={half!r}: expected (first, last) of the "
      f"{config.num_layers} layers, as in (2, 3)"
    )


def spans(config: ConfigDict) -> list[tuple[int, int, bool]]:
  """Returns (first layer, the one after the last, whether at half the rate)."""
  count = config.num_layers
  if not config.half_rate:
    return [(0, count, False)]
  # An encoder that was cut after a layer may lack some of them.
  begin, end = (
    min(config.half_rate[0] - 1, count),
    min(config.half_rate[1], count),
  )
  spans = [(0, begin, False), (begin, end, True), (end, count, False)]
  return [span for span in spans if span[0] < span[1]]


def halve(x: jax.Array, frames: jax.Array) -> jax.Array:
  """Averages pairs of real frames. [B, T, D] -> [B, T / 2, D]."""
  real = (jnp.arange(x.shape[1]) < frames[:, None]).astype(x.dtype)
  real = real.reshape(x.shape[0], -1, 2, 1)
  pairs = x.reshape(x.shape[0], -1, 2, x.shape[-1])
  return (pairs * real).sum(axis=2) / jnp.maximum(real.sum(axis=2), 1)


def double(x: jax.Array) -> jax.Array:
  """Gives each frame twice. [..., T / 2, D] -> [..., T, D]."""
  return jnp.repeat(x, 2, axis=-2)
