"""The backbone that every objective shares: waveform in, hidden states out.

frontend -> (norm) -> projection -> mask -> encoder (-> decoder, in training
with `encoder.visible_only`).

Axes: B clips, S samples, T frames, C channels, D width, L layers.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from ssl_jax import num_frames
from ssl_jax.models import encoders, frontends
from ssl_jax.models.decoder import Decoder
from ssl_jax.models.dropout import dropout, key_words, row_keys
from ssl_jax.models.linear import torch_linear_init
from ssl_jax.models.norm import Norm, layer_norm, normalize_waveform
from ssl_jax.signal import masking


class Encoded(NamedTuple):
  """The backbone's result.

  hidden: [B, T, D], or [L + 1, B, T, D] when all states were asked for; those
    of masked clips with `encoder.visible_only` hold the visible frames alone.
  features: [B, T, C] the frontend's output, before its norm.
  normed: [B, T, C] the same after it: what is projected and masked.
  """

  hidden: jax.Array
  features: jax.Array
  normed: jax.Array


class Backbone(nn.Module):
  """Frontend, projection and encoder of a config."""

  config: ConfigDict
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self,
    waveform: jax.Array,
    length: jax.Array,
    mask: jax.Array | None = None,
    key: jax.Array | None = None,
    draw_ids: jax.Array | None = None,
    all_states: bool = False,
    alter: Callable[[jax.Array], jax.Array] = lambda normed: normed,
  ) -> Encoded:
    """Encodes clips.

    Args:
      waveform: [B, S], floats in [-1, 1].
      length: int32 [B], samples.
      mask: bool [B, T], True where the frame is replaced by the mask vector;
        None masks nothing. With `encoder.visible_only` it masks the share of
        each clip's frames that `masking.share` says, or more.
      key: of the dropouts and layerdrop; None turns them off.
      draw_ids: int32 [B], which tell the clips' random draws apart; None: their
        places in the batch.
      all_states: return every layer's input and the last state.
      alter: a function of the normed features [B, T, C] applied on their way to
        the projection.
    """
    config = self.config
    draw_ids = jnp.arange(waveform.shape[0]) if draw_ids is None else draw_ids
    if config.frontend.normalize_waveform:
      waveform = normalize_waveform(waveform, length)
    frontend = frontends.make(config.frontend, self.dtype, name="stem")
    normed = features = frontend(waveform, length)  # [B, T, C]
    if frontend.is_learned:
      norm = Norm(frontend.channels, name="feature_norm")()
      normed = layer_norm(features, *norm)
    x = nn.Dense(
      config.encoder.hidden_size,
      dtype=self.dtype,
      kernel_init=torch_linear_init,
      name="projection",
    )(alter(normed))  # [B, T, D]
    if key is not None:
      keys = row_keys(jax.random.fold_in(key, 0), draw_ids)
      x = dropout(x, config.encoder.input_dropout, key_words(keys))
      key = jax.random.fold_in(key, 1)
    mask_vector = self.param(
      "mask_vector", nn.initializers.uniform(1.0), x.shape[-1:]
    )
    if mask is not None:
      x = jnp.where(mask[..., None], mask_vector.astype(x.dtype), x)
    real, seen = frame_mask(length, x.shape[1]), None
    if config.encoder.visible_only and mask is not None:
      seen = real & ~mask
    hidden = encoders.make(config.encoder, self.dtype, name="encoder")(
      *(x, real, key, draw_ids, all_states),
      seen=seen,
      most=self._visible(x.shape[1]),
    )
    if seen is not None and not all_states:
      decoder = Decoder(config.encoder, self.dtype, name="decoder")
      hidden = decoder(hidden, seen, real)
    return Encoded(hidden, features, normed)

  def _visible(self, frames: int) -> int:
    """Returns how many of a clip's frames are not masked, at most."""
    share = self.config.masking.share
    # A shorter clip has no more visible frames than that.
    return frames - masking.masked_of(share, frames)

  def flops(self, num_samples: int, masked: bool = False) -> dict[str, int]:
    """Counts a clip's forward pass by part, a multiply-add as 2.

    Args:
      num_samples: of the clip.
      masked: as in training, where some frames may not pass the encoder.
    """
    frames, width = num_frames(num_samples), self.config.encoder.hidden_size
    frontend = frontends.make(self.config.frontend)
    encoder = encoders.make(self.config.encoder)
    parts = {
      "stem": frontend.flops(num_samples),
      "projection": 2 * frames * frontend.channels * width,
    }
    if not (masked and self.config.encoder.visible_only):
      return parts | encoder.flops(frames, frames)
    visible = self._visible(frames)
    decoder = Decoder(self.config.encoder, parent=None).flops(frames, visible)
    return parts | encoder.flops(frames, visible) | {"decoder": decoder}


def frame_mask(length: jax.Array, max_frames: int) -> jax.Array:
  """length [B] samples -> bool [B, T], True on real frames."""
  return jnp.arange(max_frames) < num_frames(length)[:, None]


def compute_dtype(config: ConfigDict) -> jnp.dtype:
  """Returns `config.compute_dtype`, where auto is bfloat16 on accelerators."""
  if config.compute_dtype == "auto":
    on_cpu = jax.default_backend() == "cpu"
    return jnp.dtype(jnp.float32 if on_cpu else jnp.bfloat16)
  return jnp.dtype(config.compute_dtype)
