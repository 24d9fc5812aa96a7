"""Heads that are trained on frozen features, as SUPERB has them.

B clips, T frames, L + 1 layers of width D. `T` is 1 where features were pooled:
mean, projection and sum over layers are linear and commute.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from ssl_jax.models.linear import torch_linear_init


class Weighted(nn.Module):
  """Softmax-weighted sum over layers, then a projection.

  [B, T, L + 1, D] -> [B, T, width].
  """

  width: int

  @nn.compact
  def __call__(self, features: jax.Array) -> jax.Array:
    layers = features.shape[2]
    logits = self.param("layers", nn.initializers.zeros, (layers,))
    mixed = jnp.einsum(
      "l,btld->btd", jax.nn.softmax(logits), features.astype(jnp.float32)
    )
    return _linear(self.width, "projector")(mixed)


class Classifier(nn.Module):
  """Pooled features [B, 1, L + 1, D] -> logits, a list of [B, classes]."""

  width: int
  classes: tuple[int, ...]  # The classes of each slot.

  @nn.compact
  def __call__(
    self, features: jax.Array, length: jax.Array, key: jax.Array | None
  ) -> list[jax.Array]:
    x = Weighted(self.width, name="weighted")(features)[:, 0]
    return [
      _linear(count, f"slot{i}")(x) for i, count in enumerate(self.classes)
    ]


class Frames(nn.Module):
  """Features [B, T, L + 1, D], length [B] -> logits [B, T, tokens].

  With no recurrent layers a linear head, SUPERB's for phones; with some, a
  BiLSTM with dropout, its head for characters, whose input is masked in
  training as SpecAugment does (Park et al. 2019), without the warp in time.
  """

  width: int
  tokens: int
  recurrent_layers: int
  recurrent_size: int  # A direction.
  dropout: float

  @nn.compact
  def __call__(
    self, features: jax.Array, length: jax.Array, key: jax.Array | None
  ) -> jax.Array:
    if self.recurrent_layers and key is not None:
      features = spec_augment(features, length, jax.random.fold_in(key, 0))
    x = Weighted(self.width, name="weighted")(features)
    for i in range(self.recurrent_layers):
      x = nn.Bidirectional(
        nn.RNN(nn.OptimizedLSTMCell(self.recurrent_size)),
        nn.RNN(nn.OptimizedLSTMCell(self.recurrent_size)),
        name=f"lstm{i}",
      )(x, seq_lengths=length)
      if key is not None:
        kept = jax.random.bernoulli(
          jax.random.fold_in(key, 1 + i), 1 - self.dropout, x.shape
        )
        x = jnp.where(kept, x / (1 - self.dropout), 0)
    return _linear(self.tokens, "output")(x)


class XVector(nn.Module):
  """Snyder et al. 2018: features [B, T, L + 1, D] -> embeddings [B, 512].

  Of training, the second of two; of scoring (no key), the first, as in SUPERB.
  """

  width: int

  @nn.compact
  def __call__(
    self, features: jax.Array, length: jax.Array, key: jax.Array | None
  ) -> jax.Array:
    x = Weighted(self.width, name="weighted")(features)
    real = jnp.arange(x.shape[1]) < length[:, None]  # [B, T]
    for i, (size, context, dilation) in enumerate(
      ((512, 5, 1), (512, 3, 2), (512, 3, 3), (512, 1, 1), (1500, 1, 1))
    ):
      x = jnp.where(real[..., None], x, 0)
      # Frames side by side, then a product: XLA's CPU convolutions crawl in
      # loops.
      reach = context // 2 * dilation
      around = jnp.pad(x, ((0, 0), (reach, reach), (0, 0)))
      shifted = [
        around[:, j * dilation : j * dilation + x.shape[1]]
        for j in range(context)
      ]
      x = nn.relu(_linear(size, f"tdnn{i}")(jnp.concatenate(shifted, axis=-1)))
    count = jnp.maximum(1, length)[:, None]
    mean = jnp.where(real[..., None], x, 0).sum(axis=1) / count
    squares = jnp.square(x - mean[:, None])
    variance = jnp.where(real[..., None], squares, 0).sum(axis=1)
    deviation = jnp.sqrt(variance / jnp.maximum(1, count - 1) + 1e-8)
    x = nn.relu(_linear(512, "first")(jnp.concatenate([mean, deviation], -1)))
    later = nn.relu(_linear(512, "second")(x))
    return x if key is None else later


def spec_augment(
  features: jax.Array,
  length: jax.Array,
  key: jax.Array,
  time_masks: tuple[int, int] = (2, 40),
  channel_masks: tuple[int, float] = (4, 50 / 768),
) -> jax.Array:
  """Zeroes (how many, at most how many) frames in a row, and channels.

  Channels are counted in shares of all: SUPERB's 50 are of 768. The same of all
  layers of a clip. [B, T, L + 1, D] -> the same shape.
  """
  batch, frames, _, width = features.shape

  def masked(
    key: jax.Array, size: int, limit: jax.Array | int, many: int, most: float
  ) -> jax.Array:
    """Bool [size], within the first `limit`."""
    share, place = jax.random.uniform(key, (2, many))
    span = jnp.floor(share * (jnp.minimum(most, limit) + 1))
    start = jnp.floor(place * (limit - span + 1))
    at = jnp.arange(size)[:, None]
    return ((at >= start) & (at < start + span)).any(axis=1)

  many, share = channel_masks
  keys = jax.random.split(key, 2 * batch).reshape(2, batch)
  of_time = jax.vmap(lambda k, n: masked(k, frames, n, *time_masks))
  of_channels = jax.vmap(lambda k: masked(k, width, width, many, share * width))
  time = of_time(keys[0], length)[:, :, None, None]
  channels = of_channels(keys[1])[:, None, None, :]
  return jnp.where(time | channels, 0, features)


def _linear(size: int, name: str) -> nn.Dense:
  return nn.Dense(size, kernel_init=torch_linear_init, name=name)
