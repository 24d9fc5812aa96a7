"""TERA as the study has it: predict the MFCC of masked frames.

Targets are Kaldi MFCC with deltas and delta-deltas (39 dimensions, 10 ms), two
frames stacked (78 dimensions, 20 ms); the loss is the mean absolute error over
masked frames, plus the penalty on the stem's output (paper.md, "TERA").

Options are the alterations of the original (Liu, Li & Lee 2021, section III):
in time, the masked frames of some clips are swapped for other frames of the
clip or kept; in channel, a block of the input's channels is zeroed.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from ssl_jax import num_frames
from ssl_jax.errors import UserError
from ssl_jax.knobs import Knob
from ssl_jax.models.backbone import Backbone
from ssl_jax.models.dropout import row_keys
from ssl_jax.models.linear import torch_linear_init
from ssl_jax.objectives import terms
from ssl_jax.objectives.objective import Objective
from ssl_jax.signal import fbank

_TARGET_SIZE = 2 * 3 * 13

KNOBS = {
  "time_swap": Knob(
    0.0,
    "Share of clips whose masked frames are swapped for other frames of the "
    "clip (training only).",
    high=1.0,
  ),
  "time_keep": Knob(
    0.0,
    "Share of clips whose masked frames are left in place (training only).",
    high=1.0,
  ),
  "channel_alteration": Knob(
    0.0,
    "Largest share of the input's channels that is zeroed (training only).",
    high=1.0,
  ),
}


class Tera(Objective):
  """Distance to the masked frames' MFCC (`Objective` is the contract)."""

  title = "TERA"
  main = "l1"
  knobs = KNOBS

  @property
  def weights(self) -> dict[str, float]:
    return {"l1": 1.0} | terms.penalty_weight(self.config)

  def targets(self, inputs: dict, keys: jax.Array) -> dict[str, jax.Array]:
    """-> frames [B, T, 78] of the clean waveform, and the batch's mean one."""
    del keys
    waveform, length = inputs["waveform"], inputs["length"]
    count = fbank.num_fbank_frames(length)
    frames = fbank.stack_pairs(
      fbank.mfcc_with_deltas(waveform, length),
      count,
      num_frames(waveform.shape[1]),
    )
    mean = terms.total(frames, inputs["mask"])
    mean /= jnp.maximum(1, inputs["mask"].sum())
    return {"frames": frames, "guess": jnp.broadcast_to(mean, frames.shape)}

  def counts(self, inputs: dict) -> dict:
    masked = inputs["mask"].sum()
    penalty = inputs["frame_mask"].sum()
    return {"l1": masked, "chance": masked, "feature_penalty": penalty}

  @nn.compact
  def __call__(
    self, inputs: dict, key: jax.Array | None, update: jax.Array
  ) -> dict:
    del update
    mask, alter = inputs["mask"], lambda normed: normed
    if key is not None:
      keys = row_keys(jax.random.fold_in(key, 2), inputs["draw_id"])
      mask, alter = _alteration(self.config.tera, inputs, keys)
    encoded = Backbone(self.config, self.dtype, name="backbone")(
      inputs["waveform"],
      inputs["length"],
      mask,
      key,
      inputs["draw_id"],
      alter=alter,
    )
    predicted = nn.Dense(
      _TARGET_SIZE,
      dtype=jnp.float32,
      kernel_init=torch_linear_init,
      name="head",
    )(encoded.hidden)  # [B, T, 78]
    frames, guess = inputs["targets"]["frames"], inputs["targets"]["guess"]
    return {
      "l1": terms.total(
        jnp.abs(predicted - frames).mean(axis=-1), inputs["mask"]
      ),
      "chance": terms.total(
        jnp.abs(guess - frames).mean(axis=-1), inputs["mask"]
      ),
      "feature_penalty": terms.feature_penalty(encoded, inputs["frame_mask"]),
    }

  def check(self) -> None:
    tera = self.config.tera
    if tera.time_swap + tera.time_keep > 1:
      raise UserError(
        f"config.tera.time_swap={tera.time_swap} and "
        f"config.tera.time_keep={tera.time_keep} are shares of the same "
        "clips: lower one"
      )
    if self.config.encoder.visible_only:
      raise UserError(
        "config.encoder.visible_only: TERA also swaps masked frames or leaves "
        "them in place, so that it has to encode all of them"
      )

  def head_flops(self, num_samples: int) -> int:
    width = self.config.encoder.hidden_size
    return 2 * num_frames(num_samples) * width * _TARGET_SIZE

  def target_flops(self, num_samples: int) -> int:
    return fbank.mfcc_flops(num_samples)


def _alteration(config: ConfigDict, inputs: dict, keys: jax.Array) -> tuple:
  """The frames to replace by the mask vector, and what to do to the input.

  Args:
    config: of the options, config.tera.
    inputs: of the objective.
    keys: [B].

  Returns:
    bool [B, T], and a function of the normed features [B, T, C].
  """
  mask, frames = inputs["mask"], inputs["frame_mask"].sum(axis=1)
  draws = jax.vmap(lambda key: jax.random.uniform(key, (4,)))(keys)  # [B, 4]
  kind, offset, size, place = jnp.moveaxis(draws, -1, 0)
  swapped = kind < config.time_swap
  kept = ~swapped & (kind < config.time_swap + config.time_keep)

  def alter(normed: jax.Array) -> jax.Array:
    time, channel = jnp.arange(normed.shape[1]), jnp.arange(normed.shape[2])
    # Other frames of the clip in runs as long as the masked spans.
    shift = 1 + jnp.floor(offset * (frames - 1)).astype(jnp.int32)
    other = (time + shift[:, None]) % jnp.maximum(1, frames)[:, None]
    others = jnp.take_along_axis(normed, other[..., None], axis=1)
    swap = mask & swapped[:, None]
    normed = jnp.where(swap[..., None], others, normed)
    width = jnp.floor(size * (config.channel_alteration * channel.size + 1))
    first = jnp.floor(place * (channel.size - width + 1))
    zeroed = (channel >= first[:, None]) & (channel < (first + width)[:, None])
    return jnp.where(zeroed[:, None], 0, normed)

  if not (config.time_swap or config.channel_alteration):
    alter = lambda normed: normed  # noqa: E731
  return mask & ~(swapped | kept)[:, None], alter
