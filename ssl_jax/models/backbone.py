"""What every objective shares: waveform in, hidden states out.

frontend -> (norm) -> projection -> mask -> encoder.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from ssl_jax import num_frames
from ssl_jax.models.dropout import dropout, key_words, row_keys
from ssl_jax.models.encoders.transformer import Transformer
from ssl_jax.models.frontends import logmel
from ssl_jax.models.frontends.waveform import WaveformStem
from ssl_jax.models.norm import Norm, layer_norm


class Encoded(NamedTuple):
  """What the backbone returns.

  hidden: [B, T, D], or [L + 1, B, T, D] when all states were asked for.
  features: [B, T, C] the frontend's output, before its norm.
  normed: [B, T, C] the same after it: what is projected and masked.
  """

  hidden: jax.Array
  features: jax.Array
  normed: jax.Array


class Backbone(nn.Module):
  """waveform [B, S] float in [-1, 1], length [B] samples -> `Encoded`.

  Args of a call:
    mask: bool [B, T], True where the frame is replaced by the mask vector;
      None masks nothing.
    key: of the dropouts and layerdrop; None turns them off.
    rows: int32 [B], what tells the clips' random draws apart.
    all_states: return every layer's input and the last state.
    alter: a function of the normed features [B, T, C] applied on their way to
      the projection.
  """

  config: ConfigDict
  dtype: jnp.dtype

  @nn.compact
  def __call__(
    self,
    waveform: jax.Array,
    length: jax.Array,
    mask: jax.Array | None = None,
    key: jax.Array | None = None,
    rows: jax.Array | None = None,
    all_states: bool = False,
    alter: Callable[[jax.Array], jax.Array] = lambda normed: normed,
  ) -> Encoded:
    config = self.config
    rows = jnp.arange(waveform.shape[0]) if rows is None else rows
    if config.frontend.normalize_waveform:
      waveform = logmel.normalize_waveform(waveform, length)
    if config.frontend.name == "waveform":
      features = WaveformStem(
        config.frontend.norm,
        config.frontend.conv_bias,
        self.dtype,
        name="stem",
      )(waveform, length)
      features = logmel.scale_gradient(features, config.frontend.grad_mult)
      norm = Norm(features.shape[-1], name="feature_norm")()
      normed = layer_norm(features, *norm)
    else:
      features = logmel.log_mel_frames(
        waveform,
        length,
        config.frontend.num_mel_bins,
        config.frontend.mel_norm,
      )
      normed = features
    x = nn.Dense(
      config.encoder.hidden_size,
      dtype=self.dtype,
      kernel_init=logmel.torch_linear_init,
      name="projection",
    )(alter(normed))  # [B, T, D]
    if key is not None:
      keys = row_keys(jax.random.fold_in(key, 0), rows)
      x = dropout(x, config.encoder.input_dropout, key_words(keys))
      key = jax.random.fold_in(key, 1)
    mask_vector = self.param(
      "mask_vector", nn.initializers.uniform(1.0), x.shape[-1:]
    )
    if mask is not None:
      x = jnp.where(mask[..., None], mask_vector.astype(x.dtype), x)
    hidden = Transformer(config.encoder, self.dtype, name="encoder")(
      x, frame_mask(length, x.shape[1]), key, rows, all_states
    )
    return Encoded(hidden, features, normed)


def frame_mask(length: jax.Array, max_frames: int) -> jax.Array:
  """length [B] samples -> bool [B, T], True on real frames."""
  return jnp.arange(max_frames) < num_frames(length)[:, None]


def compute_dtype(config: ConfigDict) -> jnp.dtype:
  """`config.compute_dtype`, where auto is bfloat16 on accelerators."""
  if config.compute_dtype == "auto":
    on_cpu = jax.default_backend() == "cpu"
    return jnp.dtype(jnp.float32 if on_cpu else jnp.bfloat16)
  return jnp.dtype(config.compute_dtype)
