"""Encoders: a stack of blocks, one file each, and the table of them."""

import jax.numpy as jnp
from ml_collections import ConfigDict

from ssl_jax.errors import check_choice
from ssl_jax.knobs import Knob, merge
from ssl_jax.models.encoders import (
  conformer,
  half_rate,
  positions,
  rope,
  stack,
  transformer,
)
from ssl_jax.models.encoders.block import Block

# A new block is one file with a `Block`, and one line here.
ENCODERS: dict[str, type[Block]] = {
  "transformer": transformer.Block,
  "rope": rope.Block,
  "conformer": conformer.Block,
}

_KNOBS = {
  "name": Knob(
    "transformer",
    "The block of each layer. `transformer`: attention, then feed-forward, as "
    "published. `rope`: norms first, rotary positions, normed queries and "
    "keys, gated feed-forward. `conformer`: a convolution in each layer as "
    "well.",
    role="architecture",
    choices=lambda: ENCODERS,
  ),
}


def make(
  config: ConfigDict, dtype: jnp.dtype = jnp.float32, name: str | None = None
) -> stack.Stack:
  """Returns the stack of blocks `config.name`.

  Args:
    config: config.encoder.
    dtype: of its computation.
    name: as a part of the module that is being called; None: it stands alone,
      to be asked for all that needs no parameters.

  Raises:
    UserError: there is no such block.
  """
  place = {"name": name} if name else {"parent": None}
  return stack.Stack(config, dtype, type(make_block(config)), **place)


def make_block(config: ConfigDict) -> Block:
  """Returns one block, to be asked for all that needs no parameters.

  Args:
    config: config.encoder.

  Raises:
    UserError: there is no such block.
  """
  check_choice("config.encoder.name", config.name, ENCODERS)
  return ENCODERS[config.name](config, parent=None)


def knobs() -> dict[str, Knob]:
  """Returns the knobs of `config.encoder`."""
  blocks = [block.knobs for block in ENCODERS.values()]
  return merge(_KNOBS, stack.KNOBS, half_rate.KNOBS, positions.KNOBS, *blocks)


def check(config: ConfigDict) -> None:
  """Checks the knobs of `config.encoder` against each other.

  Raises:
    UserError: naming the knobs that do not go together.
  """
  block = make_block(config.encoder)
  block.check()
  positions.Positions(config.encoder, parent=None).check()
  stack.check(config, type(block))
