"""HuBERT: predict the labels of masked frames (Hsu et al. 2021; paper.md).

A label set is k-means on MFCC, computed in the step from a small codebook
(iteration 1), labels of a trained encoder's hidden states, which come with the
batch (iteration 2; `ssl_jax.label`), or a random projection of log-mel frames
(BEST-RQ; `rq`). Several at once are predicted each by a head of its own, after
any layer (intermediate supervision: Wang et al. 2022, arXiv 2112.08778); their
losses add up.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from ssl_jax import num_frames
from ssl_jax.errors import UserError
from ssl_jax.knobs import Knob
from ssl_jax.models import encoders
from ssl_jax.models.backbone import Backbone
from ssl_jax.models.linear import torch_linear_init
from ssl_jax.models.norm import Norm, layer_norm
from ssl_jax.objectives import label_sets, terms
from ssl_jax.objectives.label_sets import LabelSet
from ssl_jax.objectives.objective import FirstStage, Objective
from ssl_jax.signal import masking

KNOBS = label_sets.KNOBS | {
  "loss": Knob(
    "cosine",
    "`cosine`: frames and labels are compared in a space of `final_dim`, as "
    "published. `linear`: a matrix gives the logits, computed for masked "
    "frames only.",
    choices=("cosine", "linear"),
  ),
  "final_dim": Knob(
    256,
    "Dimensions of the space that frames and labels are compared in (loss "
    "`cosine`).",
    role="architecture",
    low=1,
    high=1 << 17,
  ),
  "logit_temperature": Knob(
    0.1, "Cosines are divided by it.", low=1e-3, high=1e3
  ),
  "unmasked_weight": Knob(0.0, "Weight of the mean loss over unmasked frames."),
}


class _Target(NamedTuple):
  """One head's task: to predict label set `index` of `_sets` after a layer."""

  index: int
  clusters: int
  layer: int
  weight: float


class Hubert(Objective):
  """Cross entropy of the masked frames' labels (`Objective` is the contract).

  A codebook belongs to each label set of MFCC, in their order; zeros stand in
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
    return label_sets.labels(self._sets(), inputs, self.codebooks)

  def counts(self, inputs: dict) -> dict:
    masked, unmasked = self._scored(inputs)
    masked = masked.sum()
    counts = {
      "cross_entropy": masked,
      "accuracy": masked,
      "feature_penalty": inputs["frame_mask"].sum(),
    }
    if not self._is_linear():
      unmasked = unmasked.sum()
      counts["unmasked_cross_entropy"] = unmasked
      counts["unmasked_accuracy"] = unmasked
    counts |= {n: masked for n in self._of_each_target()}
    return counts | {n: masked for n in self._usages()}

  @nn.compact
  def __call__(
    self, inputs: dict, key: jax.Array | None, update: jax.Array
  ) -> dict:
    del update
    targets = self._targets()
    encoded = Backbone(self.config, self.dtype, name="backbone")(
      inputs["waveform"],
      inputs["length"],
      inputs["mask"],
      key,
      inputs["draw_id"],
      all_states=any(target.layer for target in targets),
    )
    labels = inputs["targets"]  # [B, T, sets]
    masked, unmasked = self._scored(inputs)
    pick = None
    if self._is_linear():
      most = self._most_masked(labels.shape[1])
      places, masked = masking.first_true(masked, most)  # [B, M]
      pick = functools.partial(_take_frames, places)
      labels = pick(labels)

    cross_entropy, correct, totals = 0, 0, {}
    all_logits = self._logits(encoded.hidden, targets, pick)
    for i, (target, logits) in enumerate(zip(targets, all_logits)):
      label = jnp.maximum(labels[..., target.index], 0)
      chosen = jnp.take_along_axis(logits, label[..., None], axis=-1)[..., 0]
      surprise = jax.nn.logsumexp(logits, axis=-1) - chosen
      hit = jnp.argmax(logits, axis=-1) == label
      cross_entropy += target.weight * surprise
      correct += hit / len(targets)
      if len(targets) > 1:
        totals[f"cross_entropy_{i}"] = terms.total(surprise, masked)
        totals[f"accuracy_{i}"] = terms.total(hit, masked)
    for i, usage in enumerate(self._usages()):
      label = jnp.maximum(labels[..., i], 0).ravel()
      counts = jnp.zeros(self._sets()[i][1])
      totals[usage] = counts.at[label].add(masked.ravel())
    if not self._is_linear():
      totals["unmasked_cross_entropy"] = terms.total(cross_entropy, unmasked)
      totals["unmasked_accuracy"] = terms.total(correct, unmasked)
    return totals | {
      "cross_entropy": terms.total(cross_entropy, masked),
      "accuracy": terms.total(correct, masked),
      "feature_penalty": terms.feature_penalty(encoded, inputs["frame_mask"]),
    }

  def _logits(
    self, hidden: jax.Array, targets: list[_Target], pick: Callable | None
  ) -> list[jax.Array]:
    """Computes each target's logits, float32 [B, M, K].

    Args:
      hidden: [B, T, D], or all states [L + 1, B, T, D].
      targets: heads to compute.
      pick: takes frames [B, M, D] of a state [B, T, D]; None: all are taken.
    """
    hubert, logits = self.config.hubert, {}
    block = encoders.make_block(self.config.encoder)
    for layer in dict.fromkeys(target.layer for target in targets):
      state = hidden if hidden.ndim == 3 else hidden[layer or -1]
      state = pick(state) if pick else state
      after = f"_{layer}" if layer else ""
      if layer and block.norm_first:
        # The last state has the encoder's norm.
        norm = Norm(state.shape[-1], name=f"norm{after}")()
        state = layer_norm(state, *norm)
      here = [i for i, target in enumerate(targets) if target.layer == layer]
      if self._is_linear():
        for i in here:
          logits[i] = nn.Dense(
            targets[i].clusters,
            dtype=self.dtype,
            kernel_init=torch_linear_init,
            name=f"label_logits_{i}",
          )(state).astype(jnp.float32)
        continue
      projected = nn.Dense(
        len(here) * hubert.final_dim,
        dtype=jnp.float32,
        kernel_init=torch_linear_init,
        name=f"final_proj{after}",
      )(state)
      for i, x in zip(here, jnp.split(projected, len(here), axis=-1)):
        embeddings = self.param(
          f"label_embeddings_{i}",
          nn.initializers.uniform(1.0),
          (targets[i].clusters, hubert.final_dim),
        )
        logits[i] = terms.cosine(x, embeddings) / hubert.logit_temperature
    return [logits[i] for i in range(len(targets))]

  def values(self, means: dict) -> dict:
    values = dict(means)
    usages = [values.pop(n) for n in self._usages()]
    entropies = [terms.entropy(usage) for usage in usages]
    for i, (usage, entropy) in enumerate(zip(usages, entropies)):
      which = f"_{i}" if len(usages) > 1 else ""
      values[f"label_perplexity{which}"] = jnp.exp(entropy)
      values[f"unused_labels{which}"] = (usage == 0).sum()
    values["chance"] = sum(
      target.weight * entropies[target.index] for target in self._targets()
    )
    return values

  def symptoms(self, values: dict) -> dict[str, str]:
    return label_sets.symptoms(self._sets(), values)

  def head_flops(self, num_samples: int) -> int:
    width, frames = self.config.encoder.hidden_size, num_frames(num_samples)
    clusters = [target.clusters for target in self._targets()]
    if self._is_linear():
      return 2 * self._most_masked(frames) * width * sum(clusters)
    per_frame = len(clusters) * width + sum(clusters)
    return 2 * frames * self.config.hubert.final_dim * per_frame

  def target_flops(self, num_samples: int) -> int:
    return label_sets.flops(self._sets(), num_samples)

  def check(self) -> None:
    hubert = self.config.hubert
    label_sets.check(hubert, self.config.encoder.num_layers)
    if first := self.first_stage():
      if self.config.budget.trunk:
        raise UserError(
          f"config.budget.trunk={self.config.budget.trunk!r}: a run that makes "
          "its own labels (config.hubert.labels=self) branches off none"
        )
      try:
        type(self)(first.config, parent=None).check()
      except UserError as error:
        raise UserError(
          f"config.hubert.self_labels={hubert.self_labels!r} and "
          f"config.hubert.self_clusters={hubert.self_clusters!r}, taken as "
          f"labels and clusters: {error}"
        ) from error
    if self.config.encoder.visible_only and any(
      target.layer for target in self._targets()
    ):
      raise UserError(
        f"config.hubert.layers={(*hubert.layers,)}: with "
        "config.encoder.visible_only labels are predicted from the decoder, "
        "after the last layer; leave layers empty"
      )
    if self._is_linear() and hubert.unmasked_weight:
      raise UserError(
        f"config.hubert.unmasked_weight={hubert.unmasked_weight} needs "
        "config.hubert.loss=cosine: linear sees masked frames only"
      )

  def guess(self) -> float | None:
    return sum(x.weight * math.log(x.clusters) for x in self._targets())

  def setting(self) -> str:
    hubert = self.config.hubert
    parts = [hubert.labels, str((*hubert.clusters,))]
    parts += [f"after {(*hubert.layers,)}"] * bool(hubert.layers)
    weights = hubert.label_weights
    parts += [f"weighted {(*weights,)}"] * bool(weights)
    if any(one.is_own for one in self._sets()):
      theirs = f"{hubert.self_labels}, {(*hubert.self_clusters,)}"
      layer = hubert.self_layer or "middle"
      parts.append(f"layer {layer} of {hubert.self_share:g} on {theirs}")
    return ", ".join(parts + ["linear"] * self._is_linear())

  def stored_labels(self) -> list[tuple[str, int]]:
    return [tuple(one) for one in self._sets() if one.is_stored]

  def fitted_codebooks(self) -> list[tuple[str, int]]:
    return [tuple(one) for one in self._sets() if one.is_fitted]

  def first_stage(self) -> FirstStage | None:
    hubert = self.config.hubert
    makes = [tuple(one) for one in self._sets() if one.is_own]
    if not makes:
      return None
    first = self.config.copy_and_resolve_references()
    first.hubert.labels = hubert.self_labels
    first.hubert.clusters = hubert.self_clusters
    first.hubert.layers = first.hubert.label_weights = ()
    middle = (self.config.encoder.num_layers + 1) // 2
    layer = hubert.self_layer or middle
    return FirstStage(first, hubert.self_share, layer, makes)

  def earlier(self) -> str:
    in_folders = [x for x in self._sets() if x.is_stored and not x.is_own]
    return self.config.hubert.earlier if in_folders else ""

  def _sets(self) -> list[LabelSet]:
    """Returns the label sets; one named twice is one."""
    hubert = self.config.hubert
    names = label_sets.names(hubert.labels)
    pairs = zip(names, hubert.clusters, strict=True)
    return list(dict.fromkeys(LabelSet(*pair) for pair in pairs))

  def _targets(self) -> list[_Target]:
    hubert, sets = self.config.hubert, self._sets()
    count, last = len(hubert.clusters), self.config.encoder.num_layers
    rows = zip(
      label_sets.names(hubert.labels),
      hubert.clusters,
      hubert.layers or (0,) * count,
      hubert.label_weights or (1.0,) * count,
      strict=True,
    )
    return [
      _Target(
        sets.index((name, clusters)),
        clusters,
        0 if layer == last else layer,
        weight,
      )
      for name, clusters, layer, weight in rows
    ]

  def _is_linear(self) -> bool:
    return self.config.hubert.loss == "linear"

  def _most_masked(self, frames: int) -> int:
    """Returns how many masked frames of a clip a linear loss computes."""
    return masking.most(self.config.masking, frames)

  def _scored(self, inputs: dict) -> tuple[jax.Array, jax.Array]:
    """Returns which frames count as masked, and as unmasked; bool [B, T]."""
    labelled = (inputs["targets"] >= 0).all(axis=-1)
    masked = inputs["mask"] & labelled
    if self._is_linear():
      most = self._most_masked(masked.shape[1])
      masked &= jnp.cumsum(masked, axis=1) <= most
    return masked, ~inputs["mask"] & labelled

  def _usages(self) -> list[str]:
    return [f"usage_{i}" for i in range(len(self._sets()))]

  def _of_each_target(self) -> list[str]:
    count = len(self._targets())
    names = "cross_entropy", "accuracy"
    return [f"{x}_{i}" for x in names for i in range(count) if count > 1]


def _take_frames(places: jax.Array, x: jax.Array) -> jax.Array:
  """[B, M], [B, T, C] -> [B, M, C]."""
  return jnp.take_along_axis(x, places[..., None], axis=1)
