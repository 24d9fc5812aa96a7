"""The contract of encoder blocks: one layer of an encoder."""

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from ssl_jax.knobs import Knob
from ssl_jax.models.hf import HfNames


class LayerFlops(NamedTuple):
  """FLOPs of a layer's forward pass for a clip, a multiply-add as 2.

  attention: of what mixes frames, with its projections.
  ffn: of what treats each frame alone.
  """

  attention: int
  ffn: int


class Block(nn.Module):
  """One layer of an encoder. An entry of `encoders.ENCODERS`.

  `ssl_jax.models.encoders.stack` calls it with arrays of its own parameters,
  which are stacked over layers outside of it. It knows nothing of its depth.
  What is below `__call__` needs no parameters.

  Attributes:
    config: config.encoder.
    dtype: of the computation.
    knobs: of this block, which become keys of config.encoder.
    tensor_axes: {"up/kernel": -1, ...}, the axis of each parameter that may be
      cut between devices that share a layer; others are whole on each.
    tensor_knobs: the knobs that the number of those devices must divide.
    takes_places: its `__call__` takes `places`, and treats frames by them: the
      next one in its input need not be the next one of the clip.
    float32: the submodules whose parameters are used in float32; those of
      others are given in `dtype`.
    hf: its names in transformers, modules as within a layer; None: transformers
      has no encoder of such blocks.
  """

  config: ConfigDict
  dtype: jnp.dtype = jnp.float32

  knobs: ClassVar[dict[str, Knob]] = {}
  tensor_axes: ClassVar[dict[str, int]] = {}
  tensor_knobs: ClassVar[tuple[str, ...]] = ()
  takes_places: ClassVar[bool] = False
  float32: ClassVar[tuple[str, ...]] = ()
  hf: ClassVar[HfNames | None] = None

  def __call__(
    self,
    x: jax.Array,
    frames: jax.Array,
    words: jax.Array | None,
    *places: jax.Array,
  ) -> jax.Array:
    """Computes the layer.

    Args:
      x: [B, T, D], the layer's input.
      frames: int32 [B], the real frames of each clip.
      words: uint32 [B, 2], of the clips' dropout keys (`ssl_jax.models.
        dropout`), others for each layer; None for no dropout.
      places: only of a block that `takes_places`, where some frames are left
        out or averaged: int32 [B or 1, T], the frames' places in the clip.

    Returns:
      [B, T, D].
    """
    raise NotImplementedError

  @property
  def norm_first(self) -> bool:
    """Tells whether its output has no norm yet: the stack has the last."""
    return self.config.norm_first

  def flops(self, frames: int) -> LayerFlops:
    """Counts the layer for a clip of `frames` frames."""
    raise NotImplementedError

  def check(self) -> None:
    """Checks the knobs against each other.

    Raises:
      UserError: naming the knobs that do not go together.
    """
