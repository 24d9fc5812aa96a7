"""Span masks by fairseq's convention (paper.md, "Masking")."""

import math

import jax
import jax.numpy as jnp

from ssl_jax.knobs import Knob

KNOBS = {
  "mask_prob": Knob(
    0.8,
    "Expected spans of a clip: `mask_prob` x its frames / `mask_length`.",
    high=1.0,
  ),
  "mask_length": Knob(10, "Frames of a span, 20 ms each.", low=1, high=10_000),
  "min_masks": Knob(2, "Least spans of a clip.", low=1, high=10_000),
}


def sample_spans(
  keys: jax.Array,
  num_frames: jax.Array,
  max_frames: int,
  mask_prob: float,
  mask_length: int,
  min_masks: int = 2,
) -> jax.Array:
  """Spans of `mask_length` frames at random starts, trimmed to a common share.

  A row of N frames gets floor(mask_prob N / mask_length + u) spans, u uniform
  in [0, 1), and at least `min_masks`; their starts are distinct, uniform in
  [0, N - mask_length), and the spans may overlap. Masked frames are then
  dropped at random until every row has the smallest masked share of the batch
  (in rows of equal length, the same number of masked frames), though a row with
  frames keeps at least one. Before that trim a row depends on its own key and
  length alone; neither `max_frames` nor rows of no frames change anything.

  Args:
    keys: [B] PRNG keys.
    num_frames: [B], real frames of each row; 0 for a row of padding.
    max_frames: T.
    mask_prob: masked share of the frames, were there no overlaps.
    mask_length: frames.
    min_masks: spans.

  Returns:
    bool [B, T], True where masked.
  """
  # A key a frame: one draw of shape [T] need not begin alike for every T.
  noise = jax.vmap(jax.vmap(_frame_noise, (0, None)), (None, 0))(
    jnp.arange(max_frames), keys
  )  # [B, T, 3]
  start_score, keep_score, rounding = jnp.moveaxis(noise, -1, 0)
  frame = jnp.arange(max_frames)
  length = num_frames[:, None]  # [B, 1]

  expected = mask_prob * length / mask_length
  count = jnp.floor(expected + rounding[:, :1]).astype(jnp.int32)
  count = jnp.maximum(count, min_masks)  # [B, 1]
  # fairseq's answer to a row too short for so many starts: one more place than
  # starts. In rows shorter still, every frame is a start.
  places = length - mask_length
  places = jnp.where(places > count, places, jnp.minimum(count + 1, length))
  start = _lowest(start_score, frame < places, count)
  begun = jnp.cumsum(start, axis=1)
  ended = jnp.pad(begun, ((0, 0), (mask_length, 0)))[:, :max_frames]
  mask = (begun > ended) & (frame < length)

  return _lowest(keep_score, mask, _common_share(mask.sum(axis=1), num_frames))


def most_masked(
  max_frames: int, mask_prob: float, mask_length: int, min_masks: int
) -> int:
  """Returns how many frames of a row `sample_spans` masks, or a few more.

  Spans at random starts leave exp(-mask_prob) of the frames; the trim to the
  least share of a batch makes more than that rare.
  """
  share = 1.05 * (1 - math.exp(-mask_prob))
  most = math.ceil(share * max_frames) + mask_length
  return min(max_frames, max(most, min_masks * mask_length))


def first_masked(mask: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
  """Returns the places of a row's first masked frames, in order.

  Args:
    mask: bool [B, T].
    count: M.

  Returns:
    int32 [B, M], and bool [B, M], False where a row has fewer masked frames.
  """
  places = jnp.argsort(~mask, axis=1, stable=True)[:, :count]
  return places, jnp.take_along_axis(mask, places, axis=1)


def _frame_noise(frame: jax.Array, key: jax.Array) -> jax.Array:
  return jax.random.uniform(jax.random.fold_in(key, frame), (3,))


def _common_share(masked: jax.Array, num_frames: jax.Array) -> jax.Array:
  """Frames each row keeps, min_j floor(masked_j N_i / N_j). [B] -> [B, 1]."""
  # Integers, [B, B]: a share in floats could round a row one frame down.
  kept = masked * num_frames[:, None] // jnp.maximum(num_frames, 1)
  unbounded = jnp.iinfo(kept.dtype).max
  kept = jnp.where(num_frames > 0, kept, unbounded).min(axis=1)
  return jnp.maximum(kept, 1)[:, None]


def _lowest(score: jax.Array, among: jax.Array, count: jax.Array) -> jax.Array:
  """The `count` entries of lowest score `among` those allowed. [B, T]."""
  order = jnp.argsort(jnp.where(among, score, jnp.inf), axis=1)
  rank = jnp.argsort(order, axis=1)
  return among & (rank < count)
