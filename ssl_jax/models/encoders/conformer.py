"""The Conformer block (Gulati et al. 2020, arXiv 2005.08100).

Attention, then a convolution that mixes neighbours, between two halves of the
feed-forward part. Its batch norm is a layer norm here: clips of a batch, and
their padding, must not change each other's frames.

Axes: B clips, T frames, D width, K taps.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from ssl_jax.knobs import Knob
from ssl_jax.models import placement
from ssl_jax.models.dropout import dropout
from ssl_jax.models.encoders import block, transformer
from ssl_jax.models.encoders.positions import grouped_conv
from ssl_jax.models.linear import Linear
from ssl_jax.models.norm import Norm, layer_norm

# Uses of a layer's dropout keys; attention weights are use 0.
_AFTER_ATTENTION, _AFTER_CONV = 1, 2
_INSIDE_FFN = {"first": 3, "second": 4}
_AFTER_FFN = {"first": 5, "second": 6}

KNOBS = {
  "conv_kernel": Knob(
    31,
    "conformer: frames that the convolution of a layer sees.",
    role="architecture",
    low=1,
    high=1_000,
  ),
}


class Block(transformer.Block):
  """x -> half FFN -> attention -> convolution -> half FFN -> norm.

  Each part has its norm first and is added to its input, the two feed-forward
  parts by half. They share `ffn_size`: both together cost what a Transformer
  block's one does.
  """

  knobs = transformer.KNOBS | KNOBS
  tensor_axes = {
    f"{name}/{leaf}": -1
    for name in ("query", "key", "value", "first_up", "second_up")
    for leaf in ("kernel", "bias")
  } | {f"{name}/kernel": -2 for name in ("output", "first_down", "second_down")}
  tensor_knobs = ("num_heads", "ffn_size")
  float32 = (
    *("first_norm", "attention_norm", "conv_norm", "depthwise_norm"),
    *("second_norm", "norm"),
  )
  takes_places = False
  norm_first = False
  hf = None

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    frames: jax.Array,
    words: jax.Array | None,
  ) -> jax.Array:
    rate = self.config.dropout
    x = x + 0.5 * self._half("first", x, words)
    y, bias = self._attention(self._normed("attention_norm", x), frames, words)
    x = x + dropout(y + bias, rate, words, _AFTER_ATTENTION)
    y = self._convolution(self._normed("conv_norm", x), frames)
    x = x + dropout(y, rate, words, _AFTER_CONV)
    x = x + 0.5 * self._half("second", x, words)
    return self._normed("norm", x)

  def _normed(self, name: str, x: jax.Array) -> jax.Array:
    return layer_norm(x, *Norm(x.shape[-1], name=name)())

  def _half(
    self, name: str, x: jax.Array, words: jax.Array | None
  ) -> jax.Array:
    """One of the two feed-forward parts. [B, T, D] -> [B, T, D]."""
    config, width = self.config, x.shape[-1]
    y = self._normed(f"{name}_norm", x)
    kernel, bias = self._linear(f"{name}_up", width, config.ffn_size // 2)
    y = nn.silu(jnp.matmul(y, kernel) + bias)
    y = dropout(y, config.activation_dropout, words, _INSIDE_FFN[name])
    kernel, bias = self._linear(f"{name}_down", config.ffn_size // 2, width)
    y = jnp.matmul(y, kernel) + bias
    return dropout(y, config.dropout, words, _AFTER_FFN[name])

  def _convolution(self, x: jax.Array, frames: jax.Array) -> jax.Array:
    """Gate, convolution of each channel, norm, SiLU. [B, T, D] -> the same."""
    width, taps = x.shape[-1], self.config.conv_kernel
    real = jnp.arange(x.shape[1]) < frames[:, None]
    kernel, bias = self._linear("gate", width, 2 * width)
    value, gate = jnp.split(jnp.matmul(x, kernel) + bias, 2, axis=-1)
    x = jnp.where(real[..., None], value * nn.sigmoid(gate), 0)
    # Laid out as other kernels are, [in, out], with taps as inputs.
    kernel, bias = Linear((taps, width), self.dtype, name="depthwise")()
    spread = placement.current().spread
    y = spread(grouped_conv(spread(x), kernel[:, None]) + bias)
    y = self._normed("depthwise_norm", y)
    kernel, bias = self._linear("conv_output", width, width)
    return jnp.matmul(nn.silu(y), kernel) + bias

  def flops(self, frames: int) -> block.LayerFlops:
    width, taps = self.config.hidden_size, self.config.conv_kernel
    plain = super().flops(frames)
    convolution = 6 * frames * width**2 + 2 * frames * taps * width
    return block.LayerFlops(
      attention=plain.attention + convolution,
      ffn=8 * frames * width * (self.config.ffn_size // 2),
    )
