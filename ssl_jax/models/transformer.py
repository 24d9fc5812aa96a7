"""The encoder: convolutional positions, then Transformer layers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from ssl_jax.models.dropout import dropout, fold_in_all, row_keys
from ssl_jax.models.frontend import layer_norm

_bert_init = nn.initializers.normal(0.02)
_BLOCK = 8  # Frames, of the positional convolution's matrix products.


# What the backward pass finds saved, by config.encoder.remat.
_REMAT_POLICIES = {
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  "full": jax.checkpoint_policies.nothing_saveable,
}


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
    return nn.gelu(x + bias.astype(self.dtype), approximate=False)


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
  x [B, T, D], frame_mask [B, T] (True: real frame), keys [B] or None.
  """

  config: ConfigDict  # config.encoder
  dtype: jnp.dtype

  @nn.compact
  def __call__(
    self, x: jax.Array, frame_mask: jax.Array, keys: jax.Array | None
  ) -> jax.Array:
    config = self.config

    def dense(size: int, name: str) -> nn.Dense:
      return nn.Dense(size, dtype=self.dtype, kernel_init=_bert_init, name=name)

    def norm(x: jax.Array, name: str, here: bool) -> jax.Array:
      return layer_norm(self.dtype, name)(x) if here else x

    first = config.norm_first
    y = norm(x, "attention_norm", first)

    def heads(name: str, x: jax.Array = y) -> jax.Array:  # [B, T, H, D / H]
      y = dense(config.hidden_size, name)(x)
      return y.reshape(*y.shape[:2], config.num_heads, -1)

    query, key, value = heads("query"), heads("key"), heads("value")
    query = query * query.shape[-1] ** -0.5
    logits = jnp.einsum("bthd,bshd->bhts", query, key).astype(jnp.float32)
    # A finite floor: rows without a real frame must not become NaN.
    logits = jnp.where(frame_mask[:, None, None, :], logits, -1e9)
    weights = nn.softmax(logits).astype(self.dtype)
    weights = dropout(weights, config.attention_dropout, keys, 0)
    y = jnp.einsum("bhts,bshd->bthd", weights, value).reshape(x.shape)
    y = dropout(dense(config.hidden_size, "output")(y), config.dropout, keys, 1)
    x = norm(x + y, "attention_norm", not first)

    y = norm(x, "ffn_norm", first)
    y = nn.gelu(dense(config.ffn_size, "up")(y), approximate=False)
    y = dropout(y, config.activation_dropout, keys, 2)
    y = dropout(dense(config.hidden_size, "down")(y), config.dropout, keys, 3)
    return norm(x + y, "ffn_norm", not first)


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
    # Zeroed, or the convolution would carry padding into real frames.
    x = jnp.where(frame_mask[..., None], x, 0)
    x = x + PositionalConv(
      config.position_kernel,
      config.position_groups,
      self.dtype,
      name="positions",
    )(x)
    norm = layer_norm(self.dtype, "norm")
    x = x if config.norm_first else norm(x)
    layer = Layer(config, self.dtype, parent=None)
    params = self.param("layers", _stacked_init(layer, config.num_layers), x)

    keys, keep = None, jnp.ones(config.num_layers, bool)
    if key is not None:
      keys = row_keys(key, rows)
      # One draw a layer and update, shared by all clips: what makes skipping
      # possible.
      keep = jax.random.bernoulli(key, 1 - config.layerdrop, keep.shape)
    x = dropout(x, config.dropout, keys, config.num_layers)

    def apply_layer(
      x: jax.Array, params: Any, index: jax.Array | int, keep: jax.Array
    ) -> jax.Array:
      def run(x: jax.Array) -> jax.Array:
        layer_keys = None if keys is None else fold_in_all(keys, index)
        return layer.apply({"params": params}, x, frame_mask, layer_keys)

      if config.remat != "none":
        run = jax.checkpoint(
          run,
          # Inside a scan XLA cannot undo it.
          prevent_cse=not config.scan_layers,
          policy=_REMAT_POLICIES[config.remat],
        )
      if keys is None or config.layerdrop == 0:
        return run(x)
      return jax.lax.cond(keep, run, lambda x: x, x)

    if config.scan_layers:

      def body(x: jax.Array, layer_inputs: Any) -> tuple[jax.Array, Any]:
        return apply_layer(x, *layer_inputs), x if all_states else None

      indices = jnp.arange(config.num_layers)
      x, states = jax.lax.scan(body, x, (params, indices, keep))
      x = norm(x) if config.norm_first else x
      return jnp.concatenate([states, x[None]]) if all_states else x

    states = [x]
    for i, layer_params in enumerate(_unstack(params, config.num_layers)):
      states.append(apply_layer(states[-1], layer_params, i, keep[i]))
    if config.norm_first:
      states[-1] = norm(states[-1])
    return jnp.stack(states) if all_states else states[-1]


def _stacked_init(layer: Layer, num_layers: int) -> Callable[..., Any]:
  def init(key: jax.Array, x: jax.Array) -> Any:
    frame_mask = jnp.ones(x.shape[:2], bool)

    def init_one(key: jax.Array) -> Any:
      return layer.init(key, x, frame_mask, None)["params"]

    return jax.vmap(init_one)(jax.random.split(key, num_layers))

  return init


def _unstack(params: Any, num_layers: int) -> list[Any]:
  # Split rather than index: its transpose is one concatenation, not a sum of
  # num_layers zero-padded stacks.
  leaves, treedef = jax.tree.flatten(params)
  split = [
    [p[0] for p in jax.lax.split(leaf, (1,) * num_layers)] for leaf in leaves
  ]
  return [treedef.unflatten(layer) for layer in zip(*split)]
