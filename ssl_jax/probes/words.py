"""Retrieval of the same word said by another speaker, by mean precision.

A word is its frames' means in eight equal parts, one after the other,
standardised over all words of its speaker, so that what is common to a voice
and its recording is taken off. Each word asks: the words of other speakers of
its language are ranked by the cosine, and those of the same name are to come
first (average precision; Manning et al. 2008, section 8.4).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from ssl_jax import SAMPLE_RATE, num_frames
from ssl_jax.data.alignments import frame_range
from ssl_jax.data.sources.source import Source
from ssl_jax.errors import UserError, check_choice
from ssl_jax.probes.segments import (
  Aligned,
  aligned,
  alignment_path,
  speakers,
)
from ssl_jax.probes.zero_shot import Frames, Measure, MeasureKind
from ssl_jax.tally import Tally, mean_of_ratios

_PARTS = 8  # Parts of a word.
_LEAST_PHONES = 3  # Shorter words of running speech are swallowed.
_FEW = 16  # With fewer speakers that ask, the spread is over words.
_KEYS = ("word", "label")  # Metadata that name the word of a clip.
_WORDS = {None, "word", "keyword", "digit", "number", "letter", "color"}


class Word(NamedTuple):
  """A word: its frames in a split, what it is, who says it in which language.

  first, end: of the split's frames.
  """

  split: str
  first: int
  end: int
  name: str
  speaker: str
  language: str


class Retrieval:
  """Words that ask for the same word of another speaker.

  Attributes:
    queries: how many words ask: those that another speaker says too.
    kinds: how many different ones.
    speakers: of those that ask.
    units: what the spread is taken over: speakers, or words where few speak.
    chance: the precision of an order at random.
  """

  def __init__(self, words: Sequence[Word]):
    """Plans who asks whom.

    Raises:
      ValueError: no word is said by two speakers.
    """
    # en-US is English.
    language = [w.language.partition("-")[0] for w in words]
    names, self._name = np.unique(
      [f"{spoken} {w.name}" for spoken, w in zip(language, words)],
      return_inverse=True,
    )
    voices, self._voice = np.unique(
      [w.speaker for w in words], return_inverse=True
    )
    self._language = np.unique(language, return_inverse=True)[1]
    # Nothing is common to all words of a voice that says one.
    self._alone = np.bincount(self._voice)[self._voice] < 2
    rows = range(len(words))
    self._asks = [i for i in rows if self._relevant(i)[1].any()]
    if not self._asks:
      raise ValueError("no word is said by two speakers of a language")
    self.queries = len(self._asks)
    kinds, self._kind = np.unique(self._name[self._asks], return_inverse=True)
    self.kinds = len(kinds)
    asking, who = np.unique(self._voice[self._asks], return_inverse=True)
    self.speakers = len(asking)
    self._of_words = self.speakers < min(_FEW, self.kinds)
    if self._of_words:
      self.units, self._unit = names[kinds].tolist(), self._kind
    else:
      self.units, self._unit = voices[asking].tolist(), who
    self.chance = float(
      np.mean([self._relevant(i)[1].mean() for i in self._asks])
    )

  def tally(self, vectors: np.ndarray) -> Tally:
    """Returns the mean precision of the words that ask, by unit.

    Args:
      vectors: float [N, E], of all words.
    """
    vectors = vectors.astype(np.float32)
    for voice in np.unique(self._voice):
      own = vectors[self._voice == voice]
      own = (own - own.mean(axis=0)) / (own.std(axis=0) + 1e-5)
      vectors[self._voice == voice] = own
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-8
    shape = self.kinds, len(self.units)
    hits, counts = np.zeros(shape), np.zeros(shape)
    asks = np.array(self._asks)
    # All words of a voice in a language are compared with the same others.
    alike = np.stack([self._language[asks], self._voice[asks]])
    groups, group = np.unique(alike, axis=1, return_inverse=True)
    for place in range(groups.shape[1]):
      rows = np.flatnonzero(group.ravel() == place)
      others, _ = self._relevant(asks[rows[0]])
      scores = vectors[asks[rows]] @ vectors[others].T
      names = self._name[others]
      for row, own in zip(rows, scores):
        cell = self._kind[row], self._unit[row]
        hits[cell] += average_precision(own, names == self._name[asks[row]])
        counts[cell] += 1
    if self._of_words:  # Each unit is a word: one of what is averaged.
      hits = (hits.sum(axis=0) / counts.sum(axis=0))[None]
      counts = np.ones((1, len(self.units)))
    return Tally(self.units, {"map": mean_of_ratios(hits, counts)})

  def _relevant(self, i: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the words that word i is compared with, and which are its own."""
    others = (self._language == self._language[i]) & (
      self._voice != self._voice[i]
    )
    others &= not self._alone[i]
    others &= ~self._alone
    return others, self._name[others] == self._name[i]


def make(config: ConfigDict, splits: dict[str, Source]) -> Measure:
  """Returns the measure, on words of the splits that `config.scored` names.

  Raises:
    UserError: no word is said by two speakers.
  """
  words, sources = [], {}
  for split in config.scored:
    check_choice("config.scored", split, splits)
    if alignment_path(config):
      own = aligned(config, splits, (split,))[split]
      sources[split] = own.source
      words += _spoken(split, own)
    else:
      sources[split], found = single(config, split, splits[split])
      words += found
  sources = {split: x for split, x in sources.items() if len(x.ids)}
  try:
    retrieval = Retrieval(words)
  except ValueError as error:
    raise UserError(
      f"task {config.task}: {error}: give clips with `word` (or `label`), "
      "`speaker` and `language` in their metadata, or --config.alignments with "
      "words"
    ) from error

  def tally(frames: Mapping[str, Frames]) -> Tally:
    return retrieval.tally(
      np.stack([_vector(frames[w.split].values, w) for w in words])
    )

  return Measure(
    "map",
    True,
    sources,
    tally,
    {
      "speakers": retrieval.speakers,
      "units": len(retrieval.units),
      "clips": {split: len(x.ids) for split, x in sources.items()},
      "queries": retrieval.queries,
      "words": retrieval.kinds,
    },
    retrieval.chance,
  )


def average_precision(scores: np.ndarray, relevant: np.ndarray) -> float:
  """Returns the mean precision at the rank of each that is relevant.

  Ties are ranked in the order given, which no encoder decides.

  Args:
    scores: [N], higher first.
    relevant: bool [N], at least one.
  """
  hits = relevant[np.argsort(-scores, kind="stable")]
  ranks = np.flatnonzero(hits) + 1
  return float((np.arange(1, len(ranks) + 1) / ranks).mean())


def _spoken(split: str, own: Aligned) -> list[Word]:
  """Returns the words of running speech that are long enough."""
  words, begin = [], 0
  for clip, speaker, metadata, samples in zip(
    own.alignments, own.speakers, own.source.metadata, own.source.num_samples
  ):
    frames = int(num_frames(samples))
    for word in clip.words:
      inside = [
        p for p in clip.phones if word.start - 1e-6 <= p.start < word.end - 1e-6
      ]
      first, end = frame_range(word.start, word.end, frames)
      if len(inside) >= _LEAST_PHONES and end - first >= 2:
        words.append(
          Word(
            split,
            begin + first,
            begin + end,
            word.name.lower(),
            speaker,
            str(metadata.get("language")),
          )
        )
    begin += frames
  return words


def single(
  config: ConfigDict, split: str, source: Source
) -> tuple[Source, list[Word]]:
  """Returns the clips that are a word, and where `speech` in them is.

  Args:
    config: of the probe; its `label` takes the place of the usual keys.
    split: of the clips.
    source: of the clips.
  """
  keys = (config.label,) if config.label else _KEYS
  rows, words, begin = [], [], 0
  for row, metadata in enumerate(source.metadata):
    name = next(
      (str(metadata[k]) for k in keys if metadata.get(k) not in (None, "")),
      None,
    )
    if name is None or metadata.get("label_type") not in _WORDS:
      continue
    samples = int(source.num_samples[row])
    frames = int(num_frames(samples))
    span = metadata.get("speech") or (0, samples / SAMPLE_RATE)
    first, end = frame_range(*span, frames)
    if end > first:
      (speaker,) = speakers(config.task, source.select([row]))
      language = str(metadata.get("language"))
      rows.append(row)
      words.append(
        Word(split, begin + first, begin + end, name, speaker, language)
      )
      begin += frames
  return source.select(rows), words


def part_weights(first: int, end: int, frames: int) -> np.ndarray:
  """Returns the weight of each frame in the mean of each part. [parts, T].

  Part i of n frames is from i n / 8 to (i + 1) n / 8; a frame that is on a
  border counts in both by its share, so that short words have all parts.
  """
  edges = first + (end - first) / _PARTS * np.arange(_PARTS + 1)
  at = np.arange(frames)
  inside = np.minimum(at + 1, edges[1:, None]) - np.maximum(
    at, edges[:-1, None]
  )
  return np.maximum(inside, 0) * (_PARTS / (end - first))


def _vector(frames: np.ndarray, word: Word) -> np.ndarray:
  """Returns the means of a word's parts, one after the other. [parts D]."""
  own = frames[word.first : word.end]
  weights = part_weights(0, len(own), len(own))
  return (weights.astype(np.float32) @ own).ravel()


WORDS = MeasureKind(
  make,
  "the same word by another speaker, found",
  smoke={"scored": ("train", "valid", "test")},
  packaged=True,
)
