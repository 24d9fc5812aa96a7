"""Quality of labels: use of the clusters, runs, and agreement with speech.

Purity and mutual information as Hsu et al. 2021, section IV-C.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ssl_jax import FRAME_HOP, SAMPLE_RATE, num_frames
from ssl_jax.data.labels import NO_LABEL
from ssl_jax.data.sources.source import Source


def of_usage(usage: np.ndarray) -> dict[str, float]:
  """Returns perplexity and unused clusters of the frames in each, int [K]."""
  share = usage / max(1, usage.sum())
  entropy = -(share * np.log(np.maximum(share, 1e-12))).sum()
  return {
    "perplexity": float(np.exp(entropy)),
    "unused_clusters": int((usage == 0).sum()),
  }


def of_records(
  folder: Path, sources: dict[str, Source], clusters: int
) -> dict[str, Any]:
  """Returns lengths of runs, and agreement with what the records say.

  Returns:
    run_frames: mean length of runs of one label. Where metadata name a class
    of frames (`phones`: (phone, first second, end) lines, else the `label` of
    the clip, a word, say), also `quality`: that of `of_joint`, with `classes`
    ("phones" or "label"), `num_classes` and `frames`.
  """
  runs = frames = 0
  rows: dict[str, int] = {}
  joint = np.zeros((0, clusters), np.int64)
  kind = "phones" if _any(sources, "phones") else "label"
  for metadata, labels in _records(folder, sources):
    known = labels != NO_LABEL
    frames += int(known.sum())
    begins = np.append(True, labels[1:] != labels[:-1])
    runs += int((begins & known).sum())
    for name, first, end in _classes(metadata, kind, len(labels)):
      row = rows.setdefault(name, len(rows))
      if row == len(joint):
        joint = np.pad(joint, ((0, 1 + row), (0, 0)))
      here = labels[first:end]
      joint[row] += np.bincount(here[here != NO_LABEL], minlength=clusters)
  result = {"run_frames": frames / max(1, runs)}
  if joint.sum():
    result["quality"] = of_joint(joint[: len(rows)]) | {
      "classes": kind,
      "num_classes": len(rows),
      "frames": int(joint.sum()),
    }
  return result


def of_joint(joint: np.ndarray) -> dict[str, float]:
  """Returns purity and mutual information of counts, int [classes, K].

  Returns:
    purity: chance to guess a frame's class from its cluster.
    cluster_purity: the other way round.
    normalised_mutual_information: I(class; cluster) / H(class).
  """
  p = joint / joint.sum()
  p_class, p_cluster = p.sum(axis=1), p.sum(axis=0)

  def entropy(q: np.ndarray) -> float:
    return float(-(q * np.log(np.maximum(q, 1e-300))).sum())

  shared = entropy(p_class) + entropy(p_cluster) - entropy(p)
  return {
    "purity": float(p.max(axis=0).sum()),
    "cluster_purity": float(p.max(axis=1).sum()),
    "normalised_mutual_information": shared / max(entropy(p_class), 1e-12),
  }


def _any(sources: dict[str, Source], key: str) -> bool:
  return any(
    metadata.get(key) for s in sources.values() for metadata in s.metadata
  )


def _records(
  folder: Path, sources: dict[str, Source]
) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
  for split, source in sources.items():
    labels = np.memmap(folder / f"{split}.labels", "<u2", "r")
    ends = np.cumsum(num_frames(np.asarray(source.num_samples, np.int64)))
    yield from zip(source.metadata, np.split(labels, ends[:-1]))


def _classes(
  metadata: dict[str, Any], kind: str, frames: int
) -> Iterator[tuple[str, int, int]]:
  """Yields (class, first frame, end)."""
  if kind == "label" and metadata.get("label"):
    yield metadata["label"], 0, frames
  rate = SAMPLE_RATE / FRAME_HOP
  for name, first, end in (
    metadata.get("phones") or () if kind != "label" else ()
  ):
    yield name, round(first * rate), min(frames, round(end * rate))
