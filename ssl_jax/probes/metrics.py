"""Error rates of sequences, and of verification."""

from collections.abc import Hashable, Sequence

import numpy as np
from rapidfuzz.distance import Levenshtein


def error_rate(
  references: Sequence[Sequence[Hashable]],
  hypotheses: Sequence[Sequence[Hashable]],
) -> float:
  """Returns all edits over all tokens of the references: WER, CER or PER.

  Raises:
    ValueError: the references have no tokens.
  """
  tokens = sum(map(len, references))
  if not tokens:
    raise ValueError("no reference tokens")
  pairs = zip(references, hypotheses, strict=True)
  return sum(Levenshtein.distance(r, h) for r, h in pairs) / tokens


def equal_error_rate(scores: np.ndarray, same: np.ndarray) -> float:
  """Returns the rate at which false acceptances equal false rejections.

  The two rates are steps of the threshold; between the two steps where they
  cross, they are taken as straight lines.

  Args:
    scores: [N], higher for more alike.
    same: bool [N], whether the speakers are.

  Raises:
    ValueError: not both kinds of trials.
  """
  same = np.asarray(same, bool)
  targets, others = same.sum(), (~same).sum()
  if not targets or not others:
    raise ValueError("trials of one kind only")
  order = np.argsort(-np.asarray(scores), kind="stable")
  scores, same = np.asarray(scores)[order], same[order]
  # After each distinct score: what is accepted at that threshold.
  last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
  accepted = np.append(0, np.cumsum(~same)[last]) / others
  rejected = 1 - np.append(0, np.cumsum(same)[last]) / targets
  after = int(np.argmax(accepted >= rejected))
  before = max(0, after - 1)
  gap = rejected - accepted
  step = gap[before] - gap[after]
  share = gap[before] / step if step else 0.0
  return float(accepted[before] + share * (accepted[after] - accepted[before]))
