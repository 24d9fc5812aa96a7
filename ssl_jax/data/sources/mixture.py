"""Several corpora as one, each drawn as often as asked."""

import re
from collections.abc import Iterable, Iterator
from pathlib import PurePath

import numpy as np
from ml_collections import ConfigDict

from ssl_jax import SAMPLE_RATE
from ssl_jax.data.sources.source import Source, SourceKind
from ssl_jax.errors import UserError
from ssl_jax.knobs import Knob

_MOST = 1e9  # The largest weight.


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
    """Mixes whole corpora.

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


def open_split(config: ConfigDict, split: str) -> Mixture:
  """Opens the corpora of `dir`: "records:ls960,folder:/my/audio,tfds:fleurs".

  Args:
    config: `config.data`; `dir`, `valid_dir`, `weights`, `bucket_seconds` and
      what the corpora read.
    split: each corpus' own, or the corpora of `valid_dir`.

  Raises:
    UserError: what is not SOURCE:WHERE; as many weights as corpora are not
      given, or one is not above 0; what a corpus refuses.
  """
  # Imported late: the table has this source, too.
  from ssl_jax.data.sources import SOURCES

  kinds = {name: kind for name, kind in SOURCES.items() if kind is not KIND}
  other = config.valid_dir and split == "valid"
  key = "valid_dir" if other else "dir"
  given = f"--config.data.{key}={config[key]!r}"
  names, parts = [], []
  for entry, kind, where in _entries(config[key]):
    if kind not in kinds or bool(where) != bool(kinds[kind].where):
      raise UserError(
        f"{given}: {entry!r} is no SOURCE:WHERE with one of "
        f"{', '.join(kinds)}, as in records:ls960,tfds:librispeech,embedded"
      )
    part = config.copy_and_resolve_references()
    part.source, part.dir, part.valid_dir = kind, "", ""
    part.train_split = part.valid_split = ""
    if where:
      part[kinds[kind].where] = where
    if config.valid_dir:  # Then nothing is held out of any.
      part.valid_dir = where if other and kinds[kind].where == "dir" else "-"
      part.valid_split = "" if other else "-"
    parts.append(kinds[kind].open_split(part, split))
    name = PurePath(where).name or kind
    while name in names:
      name += f".{len(names)}"
    names.append(name)
  weights = tuple(config.weights)
  if not parts or (weights and len(weights) != len(parts)):
    raise UserError(
      f"{given}: {len(parts)} corpora, and {len(weights)} weights in "
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


def _entries(corpora: str) -> Iterator[tuple[str, str, str]]:
  """Yields (SOURCE:WHERE, SOURCE, WHERE) of each of several corpora."""
  for entry in filter(None, re.split(r"\s*,\s*", corpora.strip())):
    source, _, where = entry.partition(":")
    yield entry, source, where


def _corpus_name(config: ConfigDict) -> str:
  return "+".join(
    PurePath(where).name or source for _, source, where in _entries(config.dir)
  )


KIND = SourceKind(
  open_split,
  "several, as `records:ls960,folder:/my/audio`",
  {
    "weights": Knob(
      (),
      "mixture: each part's share of the audio; (): all clips alike.",
      role="data",
    ),
  },
  corpus_name=_corpus_name,
)
