"""Span masks: fairseq's (paper.md, "Masking"), or of an exact share."""

import math

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ssl_jax.knobs import Knob

KNOBS = {
  "mask_prob": Knob(
    0.8,
    "Expected spans of a clip: `mask_prob` x its frames / `mask_length`.",
    high=1.0,
  ),
  "mask_length": Knob(10, "Frames of a span, 20 ms each.", low=1, high=10_000),
  "min_masks": Knob(2, "Least spans of a clip.", low=1, high=10_000),
  "share": Knob(
    0.0,
    "Masks exactly this share of a clip's frames, in spans of `mask_length`, "
    "the last of which is cut short; 0: as many as `mask_prob` makes.",
    high=0.95,
  ),
}


def sample(
  config: ConfigDict, keys: jax.Array, num_frames: jax.Array, max_frames: int
) -> jax.Array:
  """Draws the masks of a batch. -> bool [B, T], True where masked.

  Args:
    config: config.masking.
    keys: [B] PRNG keys.
    num_frames: [B], real frames of each row; 0 for a row of padding.
    max_frames: T.
  """
  if config.share:
    return sample_share(
      keys, num_frames, max_frames, config.share, config.mask_length
    )
  return sample_spans(
    keys,
    num_frames,
    max_frames,
    config.mask_prob,
    config.mask_length,
    config.min_masks,
  )


def most(config: ConfigDict, max_frames: int) -> int:
  """Returns how many frames of a row `sample` masks, or a few more.

  Args:
    config: config.masking.
    max_frames: T.
  """
  if config.share:
    return masked_of(config.share, max_frames)
  return most_masked(
    max_frames, config.mask_prob, config.mask_length, config.min_masks
  )


def masked_of(share: float, frames: int | jax.Array) -> int | jax.Array:
  """Returns how many of a row's frames `sample_share` masks: one at least."""
  # In ten-thousandths: a product of floats could be a frame less elsewhere.
  masked = frames * round(1e4 * share) // 10_000
  return masked + (masked == 0)


def sample_share(
  keys: jax.Array,
  num_frames: jax.Array,
  max_frames: int,
  share: float,
  mask_length: int,
) -> jax.Array:
  """Spans at random places, one after the other, up to a share of the frames.

  As if starts were drawn one by one without replacement, each masking what its
  span finds unmasked, until a row of N frames has `masked_of(share, N)`; the
  last span ends there. Spans may begin before the first frame, so that none is
  masked less often than others.

  Args:
    keys: [B] PRNG keys.
    num_frames: [B], real frames of each row; 0 for a row of padding.
    max_frames: T.
    share: of the frames, above 0.
    mask_length: frames of a span.

  Returns:
    bool [B, T], True where masked.
  """
  starts = max_frames + mask_length - 1  # From 1 - mask_length on.
  noise = _noise(keys, starts, ())  # [B, starts]
  # A frame is masked by the first drawn of the spans that hold it.
  drawn = jax.lax.reduce_window(
    noise, jnp.inf, jax.lax.min, (1, mask_length), (1, 1), "VALID"
  )  # [B, T]
  frame = jnp.arange(max_frames)
  real = frame < num_frames[:, None]
  count = jnp.where(num_frames > 0, masked_of(share, num_frames), 0)
  return _lowest(drawn, real, count[:, None])


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
  noise = _noise(keys, max_frames, (3,))  # [B, T, 3]
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


def first_true(mask: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
  """Returns the places of a row's first frames that a mask holds, in order.

  Args:
    mask: bool [B, T].
    count: M.

  Returns:
    int32 [B, M], and bool [B, M], False where a row has fewer such frames.
  """
  places = jnp.argsort(~mask, axis=1, stable=True)[:, :count]
  return places, jnp.take_along_axis(mask, places, axis=1)


def _noise(keys: jax.Array, count: int, shape: tuple[int, ...]) -> jax.Array:
  """Draws from [0, 1) for `count` places of each row. -> [B, count, *shape]."""

  # A key a place: one draw of shape [T] need not begin alike for every T.
  def draw(place: jax.Array, key: jax.Array) -> jax.Array:
    return jax.random.uniform(jax.random.fold_in(key, place), shape)

  return jax.vmap(jax.vmap(draw, (0, None)), (None, 0))(jnp.arange(count), keys)


def _common_share(masked: jax.Array, num_frames: jax.Array) -> jax.Array:
  """Frames each row keeps, min_j floor(masked_j N_i / N_j). [B] -> [B, 1]."""
  # Integers, [B, B]: a share in floats could round a row one frame down.
  kept = masked * num_frames[:, None] // jnp.maximum(num_frames, 1)
  unbounded = jnp.iinfo(kept.dtype).max
  kept = jnp.where(num_frames > 0, kept, unbounded).min(axis=1)
  return jnp.maximum(kept, 1)[:, None]


def _lowest(score: jax.Array, among: jax.Array, count: jax.Array) -> jax.Array:
  """The `count` entries of lowest score `among` those allowed. [B, T].

  Of equal ones the first.
  """
  order = jnp.argsort(jnp.where(among, score, jnp.inf), axis=1)
  rank = jnp.argsort(order, axis=1)
  return among & (rank < count)
