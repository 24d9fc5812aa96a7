"""A Transformer block as language models have it today.

Norms come first, frames are told apart by rotating queries and keys (RoPE: Su
et al. 2021, arXiv 2104.09864, section 3.4.2), queries and keys have norms of
their own (Henry et al. 2020, arXiv 2010.04245), and the feed-forward part is
gated (SwiGLU: Shazeer 2020, arXiv 2002.05202).

Axes: B clips, T frames, D width, H heads, W width of a head.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from ssl_jax.errors import UserError
from ssl_jax.knobs import Knob
from ssl_jax.models.attention import attention
from ssl_jax.models.dropout import dropout
from ssl_jax.models.encoders import block, transformer
from ssl_jax.models.linear import Linear
from ssl_jax.models.norm import Norm, layer_norm

# Uses of a layer's dropout keys; attention weights are use 0.
_AFTER_ATTENTION, _INSIDE_FFN, _AFTER_FFN = 1, 2, 3
_MULTIPLE = 8  # The gated part's width is a multiple of it.
_EPSILON = 1e-6

Vectors = tuple[jax.Array, jax.Array]

KNOBS = {
  "rope_theta": Knob(
    10_000.0,
    "rope: the slowest pair of channels turns by one radian in nearly so many "
    "frames.",
    role="architecture",
    low=1.0,
    high=1e9,
  ),
}


class Block(block.Block):
  """x -> norm, attention -> add -> norm, gated feed-forward -> add.

  The gated part has three matrices of 2/3 `ffn_size` each: as many products as
  the two of `ffn_size` that a plain one has.
  """

  takes_places = True
  knobs = transformer.KNOBS | KNOBS
  tensor_axes = {
    f"{name}/{leaf}": -1
    for name in ("query", "key", "value", "gate", "up")
    for leaf in ("kernel", "bias")
  } | {"output/kernel": -2, "down/kernel": -2}
  tensor_knobs = ("num_heads",)
  float32 = ("attention_norm", "ffn_norm", "query_norm", "key_norm")
  norm_first = True

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    frames: jax.Array,
    words: jax.Array | None,
    places: jax.Array | None = None,
  ) -> jax.Array:
    rate = self.config.dropout
    if places is None:
      places = jnp.arange(x.shape[1])[None]
    norm = Norm(x.shape[-1], name="attention_norm")()
    y = self._attention(layer_norm(x, *norm), frames, words, places)
    x = x + dropout(y, rate, words, _AFTER_ATTENTION)
    norm = Norm(x.shape[-1], name="ffn_norm")()
    y = self._feed_forward(layer_norm(x, *norm), words)
    return x + dropout(y, rate, words, _AFTER_FFN)

  def _attention(
    self,
    x: jax.Array,
    frames: jax.Array,
    words: jax.Array | None,
    places: jax.Array,
  ) -> jax.Array:
    """Multi-head attention. [B, T, D] -> [B, T, D]."""
    config, width = self.config, x.shape[-1]
    kernels, biases = zip(
      *(self._linear(name, width, width) for name in ("query", "key", "value"))
    )
    packed = jnp.einsum("btd,dke->btke", x, jnp.stack(kernels, axis=1))
    packed += jnp.stack(biases)  # [B, T, 3, D]
    packed = packed.reshape(*packed.shape[:3], config.num_heads, -1)
    query, key, value = jnp.moveaxis(packed, 2, 0)  # Each [B, T, H, W].
    query = _Scale(query.shape[-1], name="query_norm")(query)
    key = _Scale(key.shape[-1], name="key_norm")(key)
    query, key = self._turn(query, places), self._turn(key, places)
    packed = jnp.stack(
      [query.astype(value.dtype), key.astype(value.dtype), value], axis=2
    )
    y = attention(packed, frames, words, config.attention_dropout)
    kernel, bias = self._linear("output", width, width)
    return jnp.matmul(y.reshape(x.shape), kernel) + bias

  def _turn(self, x: jax.Array, places: jax.Array) -> jax.Array:
    """Turns channels w and w + W / 2 of frame t by t theta^(-2 w / W).

    Args:
      x: [B, T, H, W].
      places: t of each frame, [1 or B, T].
    """
    half = x.shape[-1] // 2
    speed = self.config.rope_theta ** -(jnp.arange(half) / half)
    angle = places[..., None, None] * speed  # [1 or B, T, 1, W / 2]
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate(
      [first * cosine - second * sine, second * cosine + first * sine], axis=-1
    )

  def _feed_forward(self, x: jax.Array, words: jax.Array | None) -> jax.Array:
    """Three layers, frame by frame. [B, T, D] -> [B, T, D]."""
    width = x.shape[-1]
    kernel, bias = self._linear("gate", width, self._inner)
    gate = nn.silu(jnp.matmul(x, kernel) + bias)
    kernel, bias = self._linear("up", width, self._inner)
    y = gate * (jnp.matmul(x, kernel) + bias)
    y = dropout(y, self.config.activation_dropout, words, _INSIDE_FFN)
    kernel, bias = self._linear("down", self._inner, width)
    return jnp.matmul(y, kernel) + bias

  def _linear(self, name: str, inputs: int, outputs: int) -> Vectors:
    return Linear((inputs, outputs), self.dtype, name=name)()

  @property
  def _inner(self) -> int:
    return max(1, round(self.config.ffn_size * 2 / 3 / _MULTIPLE)) * _MULTIPLE

  def flops(self, frames: int) -> block.LayerFlops:
    width = self.config.hidden_size
    return block.LayerFlops(
      attention=8 * frames * width**2 + 4 * frames**2 * width,
      ffn=6 * frames * width * self._inner,
    )

  def check(self) -> None:
    config = self.config
    transformer.Block(config, parent=None).check()
    if config.hidden_size // config.num_heads % 2:
      raise UserError(
        f"config.encoder.num_heads={config.num_heads} leaves heads of "
        f"{config.hidden_size // config.num_heads} channels: rope turns them "
        "in pairs"
      )


class _Scale(nn.Module):
  """x / rms(x) over channels, times a learned scale; float32 [..., W]."""

  channels: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    scale = self.param("scale", nn.initializers.ones, (self.channels,))
    x = x.astype(jnp.float32)
    square = jnp.square(x).mean(axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(square + _EPSILON) * scale
