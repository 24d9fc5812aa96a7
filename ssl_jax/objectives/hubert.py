"""HuBERT: predict the cluster of masked frames (Hsu et al. 2021; paper.md).

A label set is k-means on MFCC, computed in the step from a small codebook
(iteration 1), or labels of a trained encoder's hidden states, which come with
the batch (iteration 2; `ssl_jax.label`). Several at once each get their own
projection and embeddings; their losses add up.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ssl_jax import num_frames
from ssl_jax.errors import UserError
from ssl_jax.knobs import Knob, is_of
from ssl_jax.models.backbone import Backbone
from ssl_jax.models.linear import torch_linear_init
from ssl_jax.objectives import terms
from ssl_jax.objectives.objective import Objective
from ssl_jax.signal import fbank, kmeans

KNOBS = {
  "labels": Knob(
    "mfcc",
    "Label sets, comma-separated: `mfcc` (k-means on MFCC, fitted at start; "
    "labels are made in the step), or a folder that ssl_jax.label wrote.",
  ),
  "clusters": Knob(
    (100,), "Clusters of each label set.", low=2, high=2**16 - 2
  ),
  "final_dim": Knob(
    256,
    "Dimensions of the space that frames and labels are compared in.",
    role="architecture",
    low=1,
    high=1 << 17,
  ),
  "logit_temperature": Knob(
    0.1, "Cosines are divided by it.", low=1e-3, high=1e3
  ),
  "unmasked_weight": Knob(0.0, "Weight of the mean loss over unmasked frames."),
  "earlier": Knob(
    "",
    "The config of the run whose encoder made the labels, to count its FLOPs.",
    role="logging",
  ),
}


class Hubert(Objective):
  """Cross entropy of the masked frames' labels (`Objective` is the contract).

  A codebook belongs to each "mfcc" label set, in their order; zeros stand in
  where only shapes matter.
  """

  title = "HuBERT"
  main = "cross_entropy"
  knobs = KNOBS

  @property
  def weights(self) -> dict[str, float]:
    weights = {"cross_entropy": 1.0} | terms.penalty_weight(self.config)
    if self.config.hubert.unmasked_weight:
      weights["unmasked_cross_entropy"] = self.config.hubert.unmasked_weight
    return weights

  def targets(self, inputs: dict, keys: jax.Array) -> jax.Array:
    """-> int32 [B, T, sets], -1 where there is no label."""
    del keys
    waveform, length = inputs["waveform"], inputs["length"]
    labels, stored, fitted = [], 0, 0
    for name, clusters in self._sets():
      if name == "mfcc":
        codebook = np.zeros((clusters, 39), np.float32)
        if self.codebooks:
          codebook = self.codebooks[fitted]
        mfcc = fbank.mfcc_at_frames(waveform, length)
        labels.append(kmeans.nearest(mfcc, codebook))
        fitted += 1
      else:
        label = inputs["labels"][..., stored].astype(jnp.int32)
        labels.append(jnp.where(label < clusters, label, -1))
        stored += 1
    labels = jnp.stack(labels, axis=-1)
    return jnp.where(inputs["frame_mask"][..., None], labels, -1)

  def counts(self, inputs: dict) -> dict:
    labelled = (inputs["targets"] >= 0).all(axis=-1)
    masked = (inputs["mask"] & labelled).sum()
    unmasked = (~inputs["mask"] & labelled).sum()
    counts = {
      "cross_entropy": masked,
      "accuracy": masked,
      "unmasked_cross_entropy": unmasked,
      "unmasked_accuracy": unmasked,
      "feature_penalty": inputs["frame_mask"].sum(),
    }
    return counts | {n: masked for n in self._usages()}

  @nn.compact
  def __call__(
    self, inputs: dict, key: jax.Array | None, update: jax.Array
  ) -> dict:
    del update
    hubert = self.config.hubert
    encoded = Backbone(self.config, self.dtype, name="backbone")(
      inputs["waveform"],
      inputs["length"],
      inputs["mask"],
      key,
      inputs["draw_id"],
    )
    sets = len(hubert.clusters)
    projected = nn.Dense(
      sets * hubert.final_dim,
      dtype=jnp.float32,
      kernel_init=torch_linear_init,
      name="final_proj",
    )(encoded.hidden)
    projected = jnp.split(projected, sets, axis=-1)  # Each [B, T, D'].
    labels = inputs["targets"]
    labelled = (labels >= 0).all(axis=-1)
    masked = inputs["mask"] & labelled
    cross_entropy, correct, totals = 0, 0, {}
    for i, (clusters, usage) in enumerate(zip(hubert.clusters, self._usages())):
      embeddings = self.param(
        f"label_embeddings_{i}",
        nn.initializers.uniform(1.0),
        (clusters, hubert.final_dim),
      )
      logits = terms.cosine(projected[i], embeddings)  # [B, T, K]
      logits /= hubert.logit_temperature
      label = jnp.maximum(labels[..., i], 0)
      chosen = jnp.take_along_axis(logits, label[..., None], axis=-1)[..., 0]
      cross_entropy += jax.nn.logsumexp(logits, axis=-1) - chosen
      correct += (jnp.argmax(logits, axis=-1) == label) / sets
      totals[usage] = jnp.zeros(clusters).at[label.ravel()].add(masked.ravel())
    unmasked = ~inputs["mask"] & labelled
    return totals | {
      "cross_entropy": terms.total(cross_entropy, masked),
      "accuracy": terms.total(correct, masked),
      "unmasked_cross_entropy": terms.total(cross_entropy, unmasked),
      "unmasked_accuracy": terms.total(correct, unmasked),
      "feature_penalty": terms.feature_penalty(encoded, inputs["frame_mask"]),
    }

  def values(self, means: dict) -> dict:
    values = dict(means)
    usages = {n: values.pop(n) for n in self._usages()}
    values["chance"] = 0.0
    for i, usage in enumerate(usages.values()):
      which = f"_{i}" if len(usages) > 1 else ""
      entropy = terms.entropy(usage)
      values["chance"] += entropy
      values[f"label_perplexity{which}"] = jnp.exp(entropy)
      values[f"unused_labels{which}"] = (usage == 0).sum()
    return values

  def symptoms(self, values: dict) -> dict[str, str]:
    symptoms = {}
    for i, clusters in enumerate(self.config.hubert.clusters):
      which = f"_{i}" if len(self.config.hubert.clusters) > 1 else ""
      perplexity = values[f"label_perplexity{which}"]
      if perplexity < 0.1 * clusters:
        symptoms[f"label_perplexity{which}"] = (
          f"label perplexity is {perplexity:.1f} of {clusters} clusters: "
          "nearly all frames share a few labels. Check that the audio is "
          "speech at its full level, fit the codebook on more of it "
          "(config.kmeans.num_frames), or label with another layer or fewer "
          "clusters"
        )
      unused = values[f"unused_labels{which}"]
      if unused > 0.5 * clusters:
        symptoms[f"unused_labels{which}"] = (
          f"{unused:.0f} of {clusters} clusters never occur: fit them on this "
          "audio, or ask for fewer (config.hubert.clusters, ssl_jax.label "
          "--clusters)"
        )
    return symptoms

  def head_flops(self, num_samples: int) -> int:
    hubert = self.config.hubert
    width = self.config.encoder.hidden_size
    per_frame = len(hubert.clusters) * width + sum(hubert.clusters)
    return 2 * num_frames(num_samples) * hubert.final_dim * per_frame

  def target_flops(self, num_samples: int) -> int:
    fitted = self.fitted_codebooks()
    nearest = 2 * num_frames(num_samples) * 39 * sum(fitted)
    return len(fitted) * fbank.mfcc_flops(num_samples) + nearest

  def check(self) -> None:
    hubert = self.config.hubert
    if len(_names(hubert.labels)) != len(hubert.clusters):
      raise UserError(
        f"config.hubert.clusters={hubert.clusters!r} must name as many "
        f"numbers as config.hubert.labels={hubert.labels!r} label sets"
      )
    if not all(is_of(clusters, int) for clusters in hubert.clusters):
      raise UserError(
        f"config.hubert.clusters={hubert.clusters!r}: expected whole numbers"
      )

  def guess(self) -> float | None:
    return sum(math.log(clusters) for _, clusters in self._sets())

  def setting(self) -> str:
    hubert = self.config.hubert
    return f"{hubert.labels}, {(*hubert.clusters,)}"

  def stored_labels(self) -> list[tuple[str, int]]:
    return [(name, k) for name, k in self._sets() if name != "mfcc"]

  def fitted_codebooks(self) -> list[int]:
    return [k for name, k in self._sets() if name == "mfcc"]

  def earlier(self) -> str:
    return self.config.hubert.earlier if self.stored_labels() else ""

  def _sets(self) -> list[tuple[str, int]]:
    hubert = self.config.hubert
    return list(zip(_names(hubert.labels), hubert.clusters, strict=True))

  def _usages(self) -> list[str]:
    return [f"usage_{i}" for i in range(len(self.config.hubert.clusters))]


def _names(labels: str) -> list[str]:
  """Returns the entries of `hubert.labels`: "mfcc" or a folder."""
  return [entry.strip() for entry in labels.split(",")]
