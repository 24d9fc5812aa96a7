"""The contract of frontends: a clip's waveform to its frames."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from ssl_jax.knobs import Knob
from ssl_jax.models.hf import HfNames


class Frontend(nn.Module):
  """Waveform -> frames of 20 ms. An entry of `frontends.FRONTENDS`.

  Every frontend makes `num_frames(S)` frames of S samples, so that targets,
  masks and labels fit any; features of a clip's real frames do not depend on
  the padding after them. What is below `__call__` needs no parameters.

  Attributes:
    config: config.frontend.
    dtype: of the computation.
    knobs: of this frontend, which become keys of config.frontend.
    is_learned: it has parameters. Then its frames are normalised before the
      projection, the objectives' feature penalty applies, and its FLOPs have a
      backward pass.
    hf: its names in transformers; None: transformers has no such frontend.
  """

  config: ConfigDict
  dtype: jnp.dtype = jnp.float32

  knobs: ClassVar[dict[str, Knob]] = {}
  is_learned: ClassVar[bool] = False
  hf: ClassVar[HfNames | None] = None

  def __call__(self, waveform: jax.Array, length: jax.Array) -> jax.Array:
    """Makes frames. [B, S] floats, [B] samples -> [B, T, channels]."""
    raise NotImplementedError

  @property
  def channels(self) -> int:
    """The width of a frame."""
    raise NotImplementedError

  def flops(self, num_samples: int) -> int:
    """Counts the forward pass of a clip, a multiply-add as 2."""
    raise NotImplementedError

  def check(self) -> None:
    """Checks the knobs against each other.

    Raises:
      UserError: naming the knobs that do not go together.
    """
