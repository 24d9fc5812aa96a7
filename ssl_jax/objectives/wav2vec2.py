"""wav2vec 2.0: tell a masked frame's own code from those of other frames.

Targets are the stem's normalised output, quantized; the loss is InfoNCE against
codes of other masked frames of the clip, plus the diversity of codes (Baevski
et al. 2020, eq. 3 and 4; paper.md, "wav2vec 2.0").
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from ssl_jax import num_frames
from ssl_jax.errors import UserError
from ssl_jax.knobs import Knob
from ssl_jax.models import frontends
from ssl_jax.models.backbone import Backbone
from ssl_jax.models.dropout import (
  dropout,
  fold_in_all,
  key_words,
  row_keys,
)
from ssl_jax.models.linear import torch_linear_init
from ssl_jax.models.quantizer import Quantizer
from ssl_jax.objectives import terms
from ssl_jax.objectives.objective import Objective

KNOBS = {
  "num_groups": Knob(
    2,
    "Groups of the product quantizer.",
    role="architecture",
    low=1,
    high=10_000,
  ),
  "num_codes": Knob(
    320, "Codes of a group.", role="architecture", low=2, high=1 << 17
  ),
  "code_dim": Knob(
    256,
    "Dimensions of a code, all groups together.",
    role="architecture",
    low=1,
    high=1 << 17,
  ),
  "final_dim": Knob(
    256,
    "Dimensions of the space that frames and codes are compared in.",
    role="architecture",
    low=1,
    high=1 << 17,
  ),
  "temperature_start": Knob(
    2.0,
    "Temperature of the Gumbel softmax at the first update.",
    low=1e-3,
    high=1e3,
  ),
  "temperature_end": Knob(0.5, "Its least temperature.", low=1e-3, high=1e3),
  "temperature_decay": Knob(
    0.999995, "Factor of the temperature an update.", low=1e-6, high=1.0
  ),
  "num_negatives": Knob(
    100, "Other masked frames of the clip to tell from.", low=1, high=10_000
  ),
  "logit_temperature": Knob(
    0.1, "Cosines are divided by it.", low=1e-3, high=1e3
  ),
  "diversity_weight": Knob(0.1, "Weight of the diversity of codes."),
  "feature_dropout": Knob(
    0.1, "Dropout of the frames before the quantizer.", high=0.9
  ),
}


class Wav2Vec2(Objective):
  """InfoNCE of quantized frames (`Objective` is the contract)."""

  title = "wav2vec 2.0"
  main = "contrastive"
  knobs = KNOBS
  continues_heads = True
  hf_type = "wav2vec2"

  @property
  def weights(self) -> dict[str, float]:
    diversity = self.config.wav2vec2.diversity_weight
    return {"contrastive": 1.0, "diversity": diversity} | terms.penalty_weight(
      self.config
    )

  def targets(self, inputs: dict, keys: jax.Array) -> jax.Array:
    """-> int32 [B, T, N], the frames that are each frame's negatives."""
    return jax.vmap(_sample_negatives, (0, 0, None))(
      keys, inputs["mask"], self.config.wav2vec2.num_negatives
    )

  def counts(self, inputs: dict) -> dict:
    masked = inputs["mask"].sum()
    names = ("contrastive", "accuracy", "chance", "code_probs", "code_usage")
    counts = {name: masked for name in names}
    return counts | {"feature_penalty": inputs["frame_mask"].sum()}

  @nn.compact
  def __call__(
    self, inputs: dict, key: jax.Array | None, update: jax.Array
  ) -> dict:
    config, mask = self.config.wav2vec2, inputs["mask"]
    encoded = Backbone(self.config, self.dtype, name="backbone")(
      inputs["waveform"], inputs["length"], mask, key, inputs["draw_id"]
    )
    words = gumbel_keys = None
    if key is not None:
      keys = row_keys(jax.random.fold_in(key, 2), inputs["draw_id"])
      words, gumbel_keys = key_words(fold_in_all(keys, 0)), fold_in_all(keys, 1)
    features = dropout(encoded.normed, config.feature_dropout, words)
    quantized = Quantizer(config, name="quantizer")(
      features, self._temperature(update), gumbel_keys
    )

    def dense(name: str) -> nn.Dense:
      return nn.Dense(
        config.final_dim,
        dtype=jnp.float32,
        kernel_init=torch_linear_init,
        name=name,
      )

    loss, correct, chance = info_nce(
      dense("final_proj")(encoded.hidden),
      dense("quantizer_proj")(quantized.vectors),
      quantized.codes,
      inputs["targets"],
      config.logit_temperature,
    )
    return {
      "contrastive": terms.total(loss, mask),
      "accuracy": terms.total(correct, mask),
      "chance": terms.total(chance, mask),
      "code_probs": terms.total(quantized.probabilities, mask),
      "code_usage": terms.total(
        jax.nn.one_hot(quantized.codes, config.num_codes), mask
      ),
      "feature_penalty": terms.feature_penalty(encoded, inputs["frame_mask"]),
    }

  def values(self, means: dict) -> dict:
    values = dict(means)
    usage, probs = values.pop("code_usage"), values.pop("code_probs")  # [G, V]
    soft = jnp.exp(terms.entropy(probs)).sum()
    values["diversity"] = (probs.size - soft) / probs.size
    values["code_perplexity"] = jnp.exp(terms.entropy(usage)).sum()
    values["unused_codes"] = (usage == 0).sum()
    return values

  def symptoms(self, values: dict) -> dict[str, str]:
    config, symptoms = self.config.wav2vec2, {}
    codes = config.num_groups * config.num_codes
    if values["code_perplexity"] < 0.05 * codes:
      symptoms["code_perplexity"] = (
        f"code perplexity is {values['code_perplexity']:.1f} of {codes}: the "
        "quantizer has collapsed to a few codes. Raise config.wav2vec2."
        "diversity_weight or temperature_end, or lower config.optimizer."
        "learning_rate"
      )
    if values["contrastive"] < 0.05 * math.log(1 + config.num_negatives):
      symptoms["contrastive"] = (
        f"the contrastive loss is {values['contrastive']:.3f}, accuracy "
        f"{values['accuracy']:.2f}: too easy to be real. The negatives are "
        "hardly told apart (collapsed codes, silent or padded clips); see the "
        "code perplexity, and lower config.optimizer.learning_rate"
      )
    return symptoms

  def schedules(self, update: int) -> dict[str, float]:
    return {"temperature": float(self._temperature(update))}

  def head_flops(self, num_samples: int) -> int:
    config, frames = self.config.wav2vec2, num_frames(num_samples)
    channels = frontends.make(self.config.frontend).channels
    per_frame = (
      self.config.encoder.hidden_size * config.final_dim
      + channels * config.num_groups * config.num_codes
      + config.num_codes * config.code_dim
      + config.code_dim * config.final_dim
      + frames * config.final_dim  # All similarities of a clip.
    )
    return 2 * frames * per_frame

  def check(self) -> None:
    config = self.config.wav2vec2
    if config.code_dim % config.num_groups:
      raise UserError(
        f"config.wav2vec2.code_dim={config.code_dim} is not divisible "
        f"by config.wav2vec2.num_groups={config.num_groups}"
      )

  def _temperature(self, update: jax.Array | int) -> jax.Array:
    config = self.config.wav2vec2
    return jnp.maximum(
      config.temperature_start
      # A power would be wrong: 0.999995 is not a float32.
      * jnp.exp(jnp.float32(update) * math.log(config.temperature_decay)),
      config.temperature_end,
    )


def info_nce(
  context: jax.Array,
  targets: jax.Array,
  codes: jax.Array,
  negatives: jax.Array,
  temperature: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Cross entropy of a frame's target among its negatives' targets.

  A negative of the same code as the target is left out. All similarities of a
  clip are one matrix product, from which the negatives' are picked.

  Args:
    context: [B, T, C] predictions.
    targets: [B, T, C].
    codes: int [B, T, G], of the targets.
    negatives: int [B, T, N] frames of the same clip.
    temperature: the cosines are divided by it.

  Returns:
    Three of [B, T]: loss, whether the target won, and the loss of guessing.
  """
  cosines = terms.cosine(context, targets) / temperature  # [B, T, T]
  same = (codes[:, :, None] == codes[:, None]).all(axis=-1)
  positive = jnp.diagonal(cosines, axis1=1, axis2=2)
  negative = jnp.take_along_axis(
    jnp.where(same, -jnp.inf, cosines), negatives, axis=2
  )  # [B, T, N]
  logits = jnp.concatenate([positive[..., None], negative], axis=-1)
  loss = jax.nn.logsumexp(logits, axis=-1) - positive
  correct = positive > negative.max(axis=-1)
  return loss, correct, jnp.log(jnp.isfinite(logits).sum(axis=-1))


def _sample_negatives(
  key: jax.Array, mask: jax.Array, num_negatives: int
) -> jax.Array:
  """Uniform draws from a clip's other masked frames. bool [T] -> int32 [T, N].

  A clip's only masked frame gets an unmasked one.
  """
  frames = mask.shape[0]
  masked_first = jnp.argsort(~mask, stable=True)
  rank = jnp.cumsum(mask)[:, None] - 1
  others = jnp.maximum(mask.sum() - 1, 1)
  drawn = jax.random.randint(key, (frames, num_negatives), 0, others)
  drawn += drawn >= rank  # Skips the frame itself.
  return masked_first[jnp.minimum(drawn, frames - 1)].astype(jnp.int32)
