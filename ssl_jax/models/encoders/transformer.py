"""The encoder: convolutional positions, then Transformer layers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from ssl_jax.errors import UserError
from ssl_jax.knobs import Knob
from ssl_jax.models import target
from ssl_jax.models.attention import Attention
from ssl_jax.models.dropout import dropout, fold_in_all, key_words, row_keys
from ssl_jax.models.gelu import gelu
from ssl_jax.models.norm import AddNorm, Norm, layer_norm

_bert_init = nn.initializers.normal(0.02)
_MULTIPLE = 8  # Frames.
_BLOCK = 8  # Frames, of the positional convolution's matrix products.


# What the backward pass finds saved, by config.encoder.remat.
_REMAT_POLICIES = {
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  "full": jax.checkpoint_policies.nothing_saveable,
}

_DROPOUT = {"low": 0.0, "high": 0.9}

KNOBS = {
  "num_layers": Knob(12, "Layers.", role="architecture", low=1, high=1_000),
  "hidden_size": Knob(
    384, "Width of the hidden states.", role="architecture", low=1, high=1 << 17
  ),
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
  "position_kernel": Knob(
    128,
    "Frames that the convolution for positions sees.",
    role="architecture",
    low=1,
    high=10_000,
  ),
  "position_groups": Knob(
    16,
    "Groups of channels of that convolution.",
    role="architecture",
    low=1,
    high=10_000,
  ),
  "norm_first": Knob(
    False,
    "Norms come before attention and feed-forward, and one after the last "
    "layer (pre-norm).",
    role="architecture",
  ),
  "input_dropout": Knob(0.1, "Dropout of the projected frames.", **_DROPOUT),
  "dropout": Knob(
    0.1, "Dropout of the first layer's input and of each part.", **_DROPOUT
  ),
  "attention_dropout": Knob(0.1, "Dropout of attention weights.", **_DROPOUT),
  "activation_dropout": Knob(
    0.0, "Dropout inside the feed-forward part.", **_DROPOUT
  ),
  "layerdrop": Knob(
    0.05, "Chance of a layer to be skipped in an update.", **_DROPOUT
  ),
  "scan_layers": Knob(
    False,
    "Layers are compiled once, as a loop: compiles faster, with the same "
    "parameters.",
    role="speed",
  ),
  "remat": Knob(
    "none",
    "What the backward pass computes again to save memory: `none`; `dots`: all "
    "but matrix products; `full`: all within a layer.",
    role="speed",
    choices=("none", "dots", "full"),
  ),
}


def check(config: ConfigDict) -> None:
  """Checks the knobs of `config.encoder` against each other.

  Raises:
    UserError: the width does not divide, or the encoder is too large.
  """
  for divisor in ("num_heads", "position_groups"):
    if config.encoder.hidden_size % config.encoder[divisor]:
      raise UserError(
        f"config.encoder.hidden_size={config.encoder.hidden_size} is not "
        f"divisible by config.encoder.{divisor}={config.encoder[divisor]}"
      )
  layers, width = config.encoder.num_layers, config.encoder.hidden_size
  params = layers * (4 * width**2 + 2 * width * config.encoder.ffn_size)
  if params > 10**12:
    raise UserError(
      f"config.encoder: {layers} layers of {width} have {params:.3g} "
      "parameters, above 1e12"
    )


class PositionalConv(nn.Module):
  """x -> grouped convolution over time with weight norm -> GELU.

  [B, T, D] -> [B, T, D]. The kernel is `scale * direction / |direction|`, with
  the norm over all but the kernel's time axis. An even kernel makes one frame
  too many: the last is dropped.
  """

  kernel: int
  groups: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    width = x.shape[-1]
    std = (4 / (self.kernel * width)) ** 0.5
    shape = (self.kernel, width // self.groups, width)
    direction = self.param("direction", nn.initializers.normal(std), shape)
    norm = jnp.sqrt(jnp.square(direction).sum(axis=(1, 2), keepdims=True))
    scale = self.param("scale", lambda _: norm)  # [kernel, 1, 1]
    bias = self.param("bias", nn.initializers.zeros, (width,))
    kernel = (direction * (scale / norm)).astype(self.dtype)
    x = grouped_conv(x.astype(self.dtype), kernel)
    return gelu(x + bias.astype(self.dtype))


def grouped_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """A grouped convolution over time, as matrix products of whole blocks.

  x [B, T, D], kernel [K, D / groups, D] -> [B, T, D]; frame t sees frames
  t - K // 2 to t + (K - 1) // 2. `_BLOCK` frames in and out at a time, or the
  groups' few channels would leave a TPU's matrix unit idle; and XLA's own
  gradient of grouped kernels takes 15 times as long on CPUs.
  """
  taps, channels, width = kernel.shape
  groups = width // channels
  rows, frames, _ = x.shape
  out = -(-frames // _BLOCK)
  seen = (taps + _BLOCK - 2) // _BLOCK + 1  # Blocks an output block sees.
  size = (out + seen - 1) * _BLOCK
  left = taps // 2
  x = jnp.pad(x, ((0, 0), (left, max(0, size - left - frames)), (0, 0)))
  x = x[:, :size].reshape(rows, -1, _BLOCK, groups, channels)
  x = x.transpose(3, 0, 1, 2, 4).reshape(groups, rows, -1, _BLOCK * channels)
  x = jnp.concatenate([x[:, :, i : i + out] for i in range(seen)], axis=-1)
  # Frame p of a block finds tap k in the block's frame p + k.
  after = seen * _BLOCK - taps
  kernel = kernel.reshape(taps, channels, groups, channels)
  kernel = jnp.pad(kernel, ((_BLOCK - 1, after), (0, 0), (0, 0), (0, 0)))
  first = _BLOCK - 1
  kernel = jnp.stack(
    [kernel[first - p :][: seen * _BLOCK] for p in range(_BLOCK)], axis=-2
  )  # [seen * _BLOCK, channels, groups, _BLOCK, channels]
  kernel = kernel.transpose(2, 0, 1, 3, 4).reshape(
    groups, seen * _BLOCK * channels, _BLOCK * channels
  )
  y = jnp.einsum("gbti,gio->gbto", x, kernel)
  y = y.reshape(groups, rows, out, _BLOCK, channels)
  y = y.transpose(1, 2, 3, 0, 4).reshape(rows, out * _BLOCK, width)
  return y[:, :frames]


class Layer(nn.Module):
  """x -> attention -> add, norm -> feed-forward -> add, norm.

  With `norm_first`, x -> norm, attention -> add -> norm, feed-forward -> add.
  x [B, T, D], frames int32 [B] (of each clip that are real), words uint32
  [B, 2] of the clips' dropout keys, or None.
  """

  config: ConfigDict  # config.encoder
  dtype: jnp.dtype

  @nn.compact
  def __call__(
    self, x: jax.Array, frames: jax.Array, words: jax.Array | None
  ) -> jax.Array:
    config, width = self.config, self.config.hidden_size
    names = ("query", "key", "value", "output")
    linear = {name: Linear((width, width), name=name)() for name in names}
    linear["up"] = Linear((width, config.ffn_size), name="up")()
    linear["down"] = Linear((config.ffn_size, width), name="down")()
    norms = [
      Norm(width, name=name)() for name in ("attention_norm", "ffn_norm")
    ]
    rates = (
      config.attention_dropout,
      config.dropout,
      config.activation_dropout,
      config.dropout,
    )
    if words is None:
      words, rates = jnp.zeros((x.shape[0], 2), jnp.uint32), (0.0,) * 4

    def multiply(x: jax.Array, name: str) -> jax.Array:
      return jnp.matmul(x, linear[name][0].astype(self.dtype))

    def bias(name: str) -> jax.Array:
      return linear[name][1].astype(self.dtype)

    def add(x: jax.Array, y: jax.Array, name: str, site: int) -> jax.Array:
      """The sum with dropout of y, and its norm where norms come after."""
      if not config.norm_first:
        norm = AddNorm(rates[site], site)
        return norm(x, y, bias(name), *norms[site // 2], words)
      return x + dropout(y + bias(name), rates[site], words, site)

    first = config.norm_first
    y = layer_norm(x, *norms[0]) if first else x
    kernels, biases = zip(*(linear[name] for name in names[:3]))
    packed = jnp.einsum(
      "btd,dke->btke", y, jnp.stack(kernels, axis=1).astype(self.dtype)
    )  # [B, T, 3, D]
    packed += jnp.stack(biases).astype(self.dtype)
    y = Attention(rates[0])(
      packed.reshape(*packed.shape[:3], config.num_heads, -1),
      frames,
      words,
      jnp.arange(config.num_heads),
    )
    x = add(x, multiply(y.reshape(x.shape), "output"), "output", 1)
    y = layer_norm(x, *norms[1]) if first else x
    y = gelu(multiply(y, "up") + bias("up"))
    y = dropout(y, rates[2], words, 2)
    return add(x, multiply(y, "down"), "down", 3)


class Linear(nn.Module):
  """The parameters (kernel, bias) of a linear map."""

  shape: tuple[int, int]

  @nn.compact
  def __call__(self) -> tuple[jax.Array, jax.Array]:
    return (
      self.param("kernel", _bert_init, self.shape),
      self.param("bias", nn.initializers.zeros, self.shape[1:]),
    )


class Transformer(nn.Module):
  """Positions, norm, dropout, layers; returns every hidden state asked for.

  With `norm_first` the norm comes after the layers.

  x [B, T, D], frame_mask [B, T] -> the last state [B, T, D], or with
  `all_states` L+1 of them [L + 1, B, T, D]: each layer's input, then the last.

  Parameters of the layers are stacked on a leading axis L whether the layers
  are unrolled or scanned, so that the switch changes no checkpoint.
  """

  config: ConfigDict  # config.encoder
  dtype: jnp.dtype

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    frame_mask: jax.Array,
    key: jax.Array | None,
    rows: jax.Array,
    all_states: bool = False,
  ) -> jax.Array:
    config = self.config
    time, frames = x.shape[1], frame_mask.sum(axis=1)
    # Zeroed, or the convolution would carry padding into real frames.
    x = jnp.where(frame_mask[..., None], x, 0)
    # To what matrix units take whole; else each product would pad for itself.
    x = jnp.pad(x, ((0, 0), (0, -time % _MULTIPLE), (0, 0)))
    x = x + PositionalConv(
      config.position_kernel,
      config.position_groups,
      self.dtype,
      name="positions",
    )(x)
    norm = Norm(x.shape[-1], name="norm")()
    x = x if config.norm_first else layer_norm(x, *norm)
    layer = Layer(config, self.dtype, parent=None)
    params = self.param("layers", _stacked_init(layer, config.num_layers), x)
    params = _cast(params, self.dtype)

    words, keep = None, jnp.ones(config.num_layers, bool)
    if key is not None:
      # Of each layer [L, B, 2]; then of what goes into the first.
      keys = row_keys(key, rows)
      words = jax.vmap(lambda i: key_words(fold_in_all(keys, i)))(
        jnp.arange(config.num_layers + 1)
      )
      x = dropout(x, config.dropout, words[-1])
      words = words[:-1]
      # One draw a layer and update, shared by all clips: what makes skipping
      # possible.
      keep = jax.random.bernoulli(key, 1 - config.layerdrop, keep.shape)

    # Traced once for all layers: tracing takes longer than loading what was
    # compiled.
    @jax.jit
    def apply_layer(
      x: jax.Array, params: Any, words: jax.Array | None, keep: jax.Array
    ) -> jax.Array:
      def run(x: jax.Array) -> jax.Array:
        return layer.apply({"params": params}, x, frames, words)

      if config.remat != "none":
        run = jax.checkpoint(
          run,
          # Inside a scan XLA cannot undo it.
          prevent_cse=not config.scan_layers,
          policy=_REMAT_POLICIES[config.remat],
        )
      if words is None or config.layerdrop == 0:
        return run(x)
      if target.platform() == "gpu":
        # A branch would have the host wait for the draw.
        return jnp.where(keep, run(x), x)
      return jax.lax.cond(keep, run, lambda x: x, x)

    if config.scan_layers:

      def body(x: jax.Array, layer_inputs: Any) -> tuple[jax.Array, Any]:
        return apply_layer(x, *layer_inputs), x if all_states else None

      x, states = jax.lax.scan(body, x, (params, words, keep))
      x = layer_norm(x, *norm) if config.norm_first else x
      x = jnp.concatenate([states, x[None]]) if all_states else x
      return x[..., :time, :]

    states = [x]
    for i, layer_params in enumerate(_unstack(params, config.num_layers)):
      layer_words = None if words is None else words[i]
      states.append(apply_layer(states[-1], layer_params, layer_words, keep[i]))
    if config.norm_first:
      states[-1] = layer_norm(states[-1], *norm)
    x = jnp.stack(states) if all_states else states[-1]
    return x[..., :time, :]


def _stacked_init(layer: Layer, num_layers: int) -> Callable[..., Any]:
  def init(key: jax.Array, x: jax.Array) -> Any:
    frames = jnp.full(x.shape[0], x.shape[1])

    def init_one(key: jax.Array) -> Any:
      return layer.init(key, x, frames, None)["params"]

    return jax.vmap(init_one)(jax.random.split(key, num_layers))

  return init


def _cast(params: Any, dtype: jnp.dtype) -> Any:
  """All layers' at once, but the norms', which are used in float32."""
  return {
    name: part
    if "norm" in name
    else jax.tree.map(lambda x: x.astype(dtype), part)
    for name, part in params.items()
  }


def _unstack(params: Any, num_layers: int) -> list[Any]:
  # Split rather than index: its transpose is one concatenation, not a sum of
  # num_layers zero-padded stacks.
  leaves, treedef = jax.tree.flatten(params)
  split = [
    [p[0] for p in jax.lax.split(leaf, (1,) * num_layers)] for leaf in leaves
  ]
  return [treedef.unflatten(layer) for layer in zip(*split)]
