"""Parts that losses and their reports share."""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ssl_jax.knobs import Knob
from ssl_jax.models import frontends
from ssl_jax.models.backbone import Encoded

KNOBS = {
  "feature_penalty": Knob(
    10.0, "Weight of the mean square of a learned frontend's output."
  ),
}


def total(values: jax.Array, where: jax.Array) -> jax.Array:
  """Sum over clips and frames. [B, T, ...], bool [B, T] -> [...]."""
  where = where.reshape(where.shape + (1,) * (values.ndim - 2))
  return jnp.where(where, values.astype(jnp.float32), 0).sum(axis=(0, 1))


def feature_penalty(encoded: Encoded, frame_mask: jax.Array) -> jax.Array:
  """Total over frames of the mean square of the stem's output."""
  features = encoded.features.astype(jnp.float32)
  return total(jnp.square(features).mean(axis=-1), frame_mask)


def penalty_weight(config: ConfigDict) -> dict[str, float]:
  """The penalty's entry in `weights`: only a learned frontend has one."""
  if not frontends.make(config.frontend).is_learned:
    return {}
  return {"feature_penalty": config.objective.feature_penalty}


def entropy(probabilities: jax.Array) -> jax.Array:
  """In nats, over the last axis, of what sums to 1 there or to 0."""
  p = probabilities
  return -(p * jnp.log(jnp.maximum(p, 1e-7))).sum(axis=-1)


def cosine(x: jax.Array, y: jax.Array) -> jax.Array:
  """Cosines of all pairs, float32. [..., T, C], [..., K, C] -> [..., T, K]."""
  # The default rounds to bfloat16 on TPU: too coarse for what is divided by a
  # temperature of 0.1.
  return jnp.matmul(
    _unit(x),
    jnp.swapaxes(_unit(y), -1, -2),
    precision=jax.lax.Precision.HIGHEST,
  )


def _unit(x: jax.Array) -> jax.Array:
  x = x.astype(jnp.float32)
  square = jnp.square(x).sum(axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(square, 1e-16))
