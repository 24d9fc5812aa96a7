"""Several corpora as one, each drawn as often as asked."""

import re
from collections.abc import Callable, Iterable
from pathlib import PurePath

import numpy as np
from ml_collections import ConfigDict

from ssl_jax import SAMPLE_RATE
from ssl_jax.data.sources.source import Source
from ssl_jax.errors import UserError

Open = Callable[[ConfigDict, str], Source]

# Of a part: the key that says where it is.
_WHERE = {
  "folder": "dir",
  "manifest": "dir",
  "records": "dir",
  "tfds": "name",
  "embedded": "",
}

_MOST = 1e9  # A weight.


class Mixture:
  """A `Source` of several; see `source.Source`.

  Ids are those of the corpora behind their names, so none comes twice.
  """

  def __init__(
    self,
    names: list[str],
    parts: list[Source],
    weights: tuple[float, ...],
    longest: int,
  ):
    """Of whole corpora.

    Args:
      names: [C], all different.
      parts: [C].
      weights: [C] shares of the audio that is drawn, to any sum; (): every clip
        alike.
      longest: what longer clips are cropped to, in samples.
    """
    self._names, self._parts = names, parts
    self._weights, self._longest = weights, longest
    self._firsts = np.cumsum([0, *(len(part.ids) for part in parts)])
    self.ids = [
      f"{name}/{clip}" for name, part in zip(names, parts) for clip in part.ids
    ]
    self.num_samples = np.concatenate([part.num_samples for part in parts])
    self.metadata = [clip for part in parts for clip in part.metadata]
    self.skipped = [
      (f"{name}/{clip}", reason)
      for name, part in zip(names, parts)
      for clip, reason in part.skipped
    ]
    self.damaged: dict[str, str] = {}

  @property
  def rates(self) -> np.ndarray | None:
    """See `Source.rates`: an epoch is as long as all corpora together."""
    if not self._weights:
      return None
    seconds = np.minimum(self.num_samples, self._longest)
    of_part = [
      seconds[a:b].sum() for a, b in zip(self._firsts, self._firsts[1:])
    ]
    shares = np.array(self._weights) / sum(self._weights)
    rates = shares * seconds.sum() / np.maximum(1, of_part)
    return np.repeat(rates, np.diff(self._firsts))

  def read(self, index: int, start: int, num_samples: int) -> np.ndarray:
    """See `Source.read`."""
    part = int(np.searchsorted(self._firsts, index, side="right")) - 1
    place = int(index - self._firsts[part])
    return self._parts[part].read(place, start, num_samples)

  def select(self, indices: Iterable[int]) -> "Mixture":
    """See `Source.select`; in the order of the corpora."""
    kept = np.sort(np.fromiter(indices, np.int64))
    parts = [
      part.select(kept[(kept >= a) & (kept < b)] - a)
      for part, a, b in zip(self._parts, self._firsts, self._firsts[1:])
    ]
    return Mixture(self._names, parts, self._weights, self._longest)


def open_split(
  config: ConfigDict, split: str, sources: dict[str, Open]
) -> Mixture:
  """The corpora of `dir`: "records:ls960,folder:/my/audio,tfds:fleurs".

  Args:
    config: `config.data`; `dir`, `valid_dir`, `weights`, `bucket_seconds` and
      what the corpora read.
    split: each corpus' own, or the corpora of `valid_dir`.
    sources: what a corpus may be.

  Raises:
    UserError: what is not SOURCE:WHERE; as many weights as corpora are not
      given, or one is not above 0; what a corpus refuses.
  """
  other = config.valid_dir and split == "valid"
  key = "valid_dir" if other else "dir"
  said = f"--config.data.{key}={config[key]!r}"
  names, parts = [], []
  for entry in filter(None, re.split(r"\s*,\s*", config[key].strip())):
    kind, _, where = entry.partition(":")
    if kind not in _WHERE or bool(where) != bool(_WHERE[kind]):
      raise UserError(
        f"{said}: {entry!r} is no SOURCE:WHERE with one of "
        f"{', '.join(_WHERE)}, as in records:ls960,tfds:librispeech,embedded"
      )
    part = config.copy_and_resolve_references()
    part.source, part.dir, part.valid_dir = kind, "", ""
    part.train_split = part.valid_split = ""
    if where:
      part[_WHERE[kind]] = where
    if config.valid_dir:  # Then nothing is held out of any.
      part.valid_dir = where if other and _WHERE[kind] == "dir" else "-"
      part.valid_split = "" if other else "-"
    parts.append(sources[kind](part, split))
    name = PurePath(where).name or kind
    while name in names:
      name += f".{len(names)}"
    names.append(name)
  weights = tuple(config.weights)
  if not parts or (weights and len(weights) != len(parts)):
    raise UserError(
      f"{said}: {len(parts)} corpora, and {len(weights)} weights in "
      f"--config.data.weights={weights!r}"
    )
  if not all(0 < weight <= _MOST for weight in weights):
    raise UserError(
      f"--config.data.weights={weights!r}: all must be above 0, and up to "
      f"{_MOST:g}"
    )
  if other:
    weights = ()
  longest = round(config.bucket_seconds[-1] * SAMPLE_RATE)
  return Mixture(names, parts, weights, longest)
