"""Label sets: what frames are classified as, named by `hubert.labels`.

A set is k-means on MFCC or the like (a key of `mfcc.FRAMES`), a random
projection (`rq`, or `rq:N`), or stored labels, which come with the batches:
those of a folder, or those that the run's first stage makes (`self`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ssl_jax import num_frames
from ssl_jax.errors import UserError
from ssl_jax.knobs import Knob, is_of
from ssl_jax.objectives import mfcc, rq
from ssl_jax.signal import fbank, kmeans

KNOBS = {
  "labels": Knob(
    "mfcc",
    "Label sets, comma-separated: `mfcc` (k-means on MFCC, fitted at start; "
    "labels are made in the step), `mfcc_clip` (the same of MFCC less each "
    "clip's mean and variance), `dct_clip` (of the 2-D DCT of log-mel frames "
    "over 80 ms, less the same), `rq:N` (the N-th random projection of log-mel "
    "frames, as in BEST-RQ), `self` (k-means on an encoder that the run trains "
    "first), or a folder that ssl_jax.label wrote. A set named twice is "
    "predicted after two layers.",
  ),
  "clusters": Knob(
    (100,), "Clusters of each label set.", low=2, high=2**16 - 2
  ),
  "layers": Knob(
    (),
    "Layer after which each label set is predicted; 0, or none given: after "
    "the last.",
    high=1_000,
  ),
  "label_weights": Knob(
    (), "Weight of each label set's loss; none given: 1.", high=1e3
  ),
  "self_share": Knob(
    0.25,
    "self: share of budget.flops that the first encoder is trained with.",
    low=0.01,
    high=0.99,
  ),
  "self_labels": Knob(
    "mfcc", "self: label sets that the first encoder is trained on."
  ),
  "self_clusters": Knob(
    (100,), "self: clusters of each of those.", low=2, high=2**16 - 2
  ),
  "self_layer": Knob(
    0,
    "self: layer of the first encoder whose states are clustered; 0: the one "
    "in the middle.",
    high=1_000,
  ),
  "earlier": Knob(
    "",
    "The config of the run whose encoder made the labels, to count its FLOPs.",
    role="logging",
  ),
}


class LabelSet(NamedTuple):
  """Labels of one kind.

  Attributes:
    name: entry of `hubert.labels`.
    clusters: how many labels there are.
  """

  name: str
  clusters: int

  @property
  def is_fitted(self) -> bool:
    """Tells whether its codebook is fitted at the start."""
    return self.name in mfcc.FRAMES

  @property
  def is_drawn(self) -> bool:
    """Tells whether it is a random projection."""
    return rq.number(self.name) is not None

  @property
  def is_own(self) -> bool:
    """Tells whether an encoder of the same run makes them."""
    return self.name == "self"

  @property
  def is_stored(self) -> bool:
    """Tells whether its labels come with the batches."""
    return not self.is_fitted and not self.is_drawn


def names(labels: str) -> list[str]:
  """Returns the entries of `hubert.labels`."""
  return [entry.strip() for entry in labels.split(",")]


def check(config: ConfigDict, num_layers: int) -> None:
  """Checks the knobs of label sets against each other.

  Args:
    config: config.hubert.
    num_layers: of the encoder.

  Raises:
    UserError: naming the knobs that do not go together.
  """
  count = len(names(config.labels))
  if count != len(config.clusters):
    raise UserError(
      f"config.hubert.clusters={config.clusters!r} must name as many numbers "
      f"as config.hubert.labels={config.labels!r} label sets"
    )
  for knob in "layers", "label_weights":
    if len(config[knob]) not in (0, count):
      raise UserError(
        f"config.hubert.{knob}={config[knob]!r} must name as many numbers as "
        f"config.hubert.labels={config.labels!r} label sets, or none"
      )
  for knob in "clusters", "layers":
    if not all(is_of(number, int) for number in config[knob]):
      raise UserError(
        f"config.hubert.{knob}={config[knob]!r}: expected whole numbers"
      )
  for name in names(config.labels):
    if name.startswith("rq") and ":" in name and rq.number(name) is None:
      raise UserError(
        f"config.hubert.labels={config.labels!r}: {name!r} should be rq:N, "
        "with a number below 1,000,000"
      )
  if "self" in names(config.labels) and "self" in names(config.self_labels):
    raise UserError(
      "config.hubert.self_labels='self': the first encoder needs other labels, "
      "as mfcc"
    )
  for knob in "layers", "self_layer":
    if np.max(config[knob], initial=0) > num_layers:
      raise UserError(
        f"config.hubert.{knob}={config[knob]!r}: the encoder has {num_layers} "
        "layers"
      )


def labels(
  sets: Sequence[LabelSet], inputs: dict, codebooks: Sequence[np.ndarray]
) -> jax.Array:
  """Returns the labels of a batch, int32 [B, T, sets], -1 where there is none.

  Args:
    sets: to compute, or to take from the batch.
    inputs: of an objective.
    codebooks: [K, 39] of each fitted set; () where only shapes matter.
  """
  waveform, length = inputs["waveform"], inputs["length"]
  found, stored, fitted = [], 0, 0
  for one in sets:
    if one.is_fitted:
      codebook = np.zeros((one.clusters, mfcc.CHANNELS), np.float32)
      if codebooks:
        codebook = codebooks[fitted]
      frames = mfcc.at_frames(one.name, waveform, length)
      found.append(kmeans.nearest(frames, codebook))
      fitted += 1
    elif one.is_drawn:
      seed = rq.number(one.name)
      found.append(rq.labels(waveform, length, one.clusters, seed))
    else:
      label = inputs["labels"][..., stored].astype(jnp.int32)
      found.append(jnp.where(label < one.clusters, label, -1))
      stored += 1
  found = jnp.stack(found, axis=-1)
  return jnp.where(inputs["frame_mask"][..., None], found, -1)


def flops(sets: Sequence[LabelSet], num_samples: int) -> int:
  """Counts what the labels of a clip cost, a multiply-add as 2.

  Power spectra are counted once: XLA computes them once for all sets.
  """
  frames, spectra = (
    num_frames(num_samples),
    fbank.spectrum_flops(num_samples, 0),
  )
  made = [one for one in sets if not one.is_stored]
  total = spectra if made else 0
  for one in made:
    if one.is_fitted:
      total += mfcc.flops(one.name, num_samples) - spectra
      total += 2 * frames * mfcc.CHANNELS * one.clusters
    else:
      total += rq.flops(num_samples, one.clusters)
  if any(one.is_drawn for one in made):
    total += rq.mel_flops(num_samples) - spectra
  return total


def symptoms(sets: Sequence[LabelSet], values: dict) -> dict[str, str]:
  """Returns {name: what is wrong and what to change} of labels little used."""
  symptoms = {}
  for i, one in enumerate(sets):
    which = f"_{i}" if len(sets) > 1 else ""
    perplexity = values[f"label_perplexity{which}"]
    if perplexity < 0.1 * one.clusters:
      symptoms[f"label_perplexity{which}"] = (
        f"label perplexity is {perplexity:.1f} of {one.clusters} clusters: "
        "nearly all frames share a few labels. Check that the audio is "
        "speech at its full level, fit the codebook on more of it "
        "(config.kmeans.num_frames), or label with another layer or fewer "
        "clusters"
      )
    unused = values[f"unused_labels{which}"]
    if unused > 0.5 * one.clusters:
      symptoms[f"unused_labels{which}"] = (
        f"{unused:.0f} of {one.clusters} clusters never occur: fit them on "
        "this audio, or ask for fewer (config.hubert.clusters, ssl_jax.label "
        "--clusters)"
      )
  return symptoms
