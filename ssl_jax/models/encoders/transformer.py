"""The Transformer block (Vaswani et al. 2017) of HuBERT and wav2vec 2.0.

Axes: B clips, T frames, D width.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from ssl_jax.errors import UserError
from ssl_jax.knobs import Knob
from ssl_jax.models.attention import attention
from ssl_jax.models.dropout import dropout
from ssl_jax.models.encoders import block
from ssl_jax.models.gelu import gelu
from ssl_jax.models.hf import HfNames
from ssl_jax.models.linear import Linear
from ssl_jax.models.norm import Norm, add_norm, layer_norm

# Uses of a layer's dropout keys; attention weights are use 0.
_AFTER_ATTENTION, _INSIDE_FFN, _AFTER_FFN = 1, 2, 3

Vectors = tuple[jax.Array, jax.Array]

KNOBS = {
  "ffn_size": Knob(
    768,
    "Width inside the feed-forward part of a layer.",
    role="architecture",
    low=1,
    high=1 << 17,
  ),
  "num_heads": Knob(
    8, "Attention heads of a layer.", role="architecture", low=1, high=10_000
  ),
  "attention_dropout": Knob(0.1, "Dropout of attention weights.", high=0.9),
  "activation_dropout": Knob(
    0.0, "Dropout inside the feed-forward part.", high=0.9
  ),
}

# Only the sums after `output` and `down` are then shared between devices.
_TENSOR_AXES = {
  f"{name}/{leaf}": -1
  for name in ("query", "key", "value", "up")
  for leaf in ("kernel", "bias")
} | {"output/kernel": -2, "down/kernel": -2}


class Block(block.Block):
  """x -> attention -> add & norm -> feed-forward -> add & norm.

  With `norm_first`: x -> norm, attention -> add -> norm, feed-forward -> add.
  """

  takes_places = True
  knobs = KNOBS
  tensor_axes = _TENSOR_AXES
  tensor_knobs = ("num_heads", "ffn_size")
  float32 = ("attention_norm", "ffn_norm")
  hf = HfNames(
    modules={
      "attention_norm": "layer_norm",
      "down": "feed_forward.output_dense",
      "ffn_norm": "final_layer_norm",
      "key": "attention.k_proj",
      "output": "attention.out_proj",
      "query": "attention.q_proj",
      "up": "feed_forward.intermediate_dense",
      "value": "attention.v_proj",
    },
    keys={
      "intermediate_size": ("ffn_size", 3072),
      "num_attention_heads": ("num_heads", 12),
      "attention_dropout": ("attention_dropout", 0.1),
      "activation_dropout": ("activation_dropout", 0.1),
    },
    fixed={"hidden_act": "gelu"},
  )

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    frames: jax.Array,
    words: jax.Array | None,
    places: jax.Array | None = None,
  ) -> jax.Array:
    del places  # The stack's convolution told the frames apart.
    rate = self.config.dropout
    attention_norm = Norm(x.shape[-1], name="attention_norm")()
    ffn_norm = Norm(x.shape[-1], name="ffn_norm")()

    if self.config.norm_first:
      y, bias = self._attention(layer_norm(x, *attention_norm), frames, words)
      x = x + dropout(y + bias, rate, words, _AFTER_ATTENTION)
      y, bias = self._feed_forward(layer_norm(x, *ffn_norm), words)
      return x + dropout(y + bias, rate, words, _AFTER_FFN)

    y, bias = self._attention(x, frames, words)
    x = add_norm(x, y, bias, *attention_norm, words, rate, _AFTER_ATTENTION)
    y, bias = self._feed_forward(x, words)
    return add_norm(x, y, bias, *ffn_norm, words, rate, _AFTER_FFN)

  def _attention(
    self, x: jax.Array, frames: jax.Array, words: jax.Array | None
  ) -> Vectors:
    """Multi-head attention. [B, T, D] -> [B, T, D], and a bias [D] to add."""
    config, width = self.config, x.shape[-1]
    kernels, biases = zip(
      *(self._linear(name, width, width) for name in ("query", "key", "value"))
    )
    packed = jnp.einsum("btd,dke->btke", x, jnp.stack(kernels, axis=1))
    packed += jnp.stack(biases)  # [B, T, 3, D]
    packed = packed.reshape(*packed.shape[:3], config.num_heads, -1)
    y = attention(packed, frames, words, config.attention_dropout)
    kernel, bias = self._linear("output", width, width)
    return jnp.matmul(y.reshape(x.shape), kernel), bias

  def _feed_forward(self, x: jax.Array, words: jax.Array | None) -> Vectors:
    """Two layers, frame by frame. [B, T, D] -> [B, T, D], and a bias [D]."""
    config, width = self.config, x.shape[-1]
    kernel, bias = self._linear("up", width, config.ffn_size)
    y = gelu(jnp.matmul(x, kernel) + bias)  # [B, T, ffn_size]
    y = dropout(y, config.activation_dropout, words, _INSIDE_FFN)
    kernel, bias = self._linear("down", config.ffn_size, width)
    return jnp.matmul(y, kernel), bias

  def _linear(self, name: str, inputs: int, outputs: int) -> Vectors:
    return Linear((inputs, outputs), self.dtype, name=name)()

  def flops(self, frames: int) -> block.LayerFlops:
    width = self.config.hidden_size
    return block.LayerFlops(
      attention=8 * frames * width**2 + 4 * frames**2 * width,
      ffn=4 * frames * width * self.config.ffn_size,
    )

  def check(self) -> None:
    config = self.config
    width = config.hidden_size
    if width % config.num_heads:
      raise UserError(
        f"config.encoder.hidden_size={width} is not divisible by "
        f"config.encoder.num_heads={config.num_heads}"
      )
    layer = 4 * width**2 + 2 * width * config.ffn_size
    if config.num_layers * layer > 10**12:
      raise UserError(
        f"config.encoder: {config.num_layers} layers of {width} have "
        f"{config.num_layers * layer:.3g} parameters, above 1e12"
      )
