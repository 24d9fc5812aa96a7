"""The protocol of a source of audio, an entry of their table, shared knobs."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple, Protocol

import numpy as np
from ml_collections import ConfigDict

from ssl_jax import SAMPLE_RATE
from ssl_jax.data.sources import audio
from ssl_jax.data.sources import skipped as skipped_lib
from ssl_jax.errors import UserError
from ssl_jax.knobs import Knob

# Knobs of `config.data` that all sources share.
KNOBS = {
  "dir": Knob(
    "",
    "The audio's folder or file. tfds: the folder of datasets; empty: its own "
    "default. mixture: SOURCE:WHERE, separated by commas.",
    role="place",
  ),
  "valid_dir": Knob(
    "", "Where the validation audio is; empty: held out of `dir`.", role="place"
  ),
  "valid_fraction": Knob(
    0.01, "Share of the clips that is held out.", role="data", high=0.9
  ),
  "min_seconds": Knob(
    2.0,
    "Shorter clips are skipped, seconds.",
    role="data",
    low=0.025,
    high=3_600.0,
  ),
}

# The knob that `choose_split` reads, for sources whose clips have metadata.
SPLIT_KEY = {
  "split_key": Knob(
    "", "manifest, records: the metadata key of a clip's split.", role="data"
  )
}


_WHOLE = 1 << 40  # Samples: more than any file has.


# Metadata that are lists: times of phones and words, where in a clip speech is.
LISTS = frozenset(("phones", "words", "speech"))


class Source(Protocol):
  """N clips, each readable at any point; all lengths in samples at 16 kHz.

  Attributes:
    ids: [N] stable printable names.
    num_samples: int64 [N], each at least 1.
    metadata: [N] what is known of each clip: `speaker`, `text`, `label`,
      `language` ...; {} if nothing is.
    skipped: (id, reason) of what was found and left out when opening.
    damaged: id -> reason of clips that failed when read, as they are met.
    rates: [N] how often, on average, an epoch draws each clip; None: once.
  """

  ids: list[str]
  num_samples: np.ndarray
  metadata: list[dict[str, Any]]
  skipped: list[tuple[str, str]]
  damaged: dict[str, str]
  rates: np.ndarray | None

  def read(self, index: int, start: int, num_samples: int) -> np.ndarray:
    """Returns int16 [<=num_samples] of clip `index`, from sample `start`.

    Raises:
      audio.DamagedAudio: the clip cannot be read.
    """

  def select(self, indices: Iterable[int]) -> "Source":
    """Returns the clips at `indices`, in that order."""


class Part(NamedTuple):
  """The part of a file that is a clip.

  first, num_samples: at 16 kHz. channel: counted from 0; None: their mean.
  """

  first: int
  num_samples: int
  channel: int | None = None


def folder_name(config: ConfigDict) -> str:
  """Returns what most corpora are called: the name of the folder `dir`."""
  return PurePath(config.dir).name


@dataclasses.dataclass(frozen=True)
class SourceKind:
  """An entry of the table of sources (`SOURCES`).

  Attributes:
    open_split: (config.data, split) -> the split's clips; a UserError names
      what it cannot use, and the remedy.
    meaning: for people: what it reads.
    knobs: of `config.data`, that it has beside the shared ones; sources that
      have one in common share its declaration.
    where: the knob that says where a corpus is, "dir" or "name"; "": there is
      but one corpus.
    corpus_name: config.data -> what the corpus is called in headers, plans and
      reports.
  """

  open_split: Callable[[ConfigDict, str], Source]
  meaning: str
  knobs: Mapping[str, Knob] = dataclasses.field(default_factory=dict)
  where: str = "dir"
  corpus_name: Callable[[ConfigDict], str] = folder_name


@dataclasses.dataclass(frozen=True)
class AudioFiles:
  """A `Source` of one file a clip, or a part of one.

  Attributes:
    paths: [N].
    parts: [N] what of its file each clip is; None: all of it.
    decode_once: files stay in memory as samples once they are decoded, 115 MB
      an hour; for small corpora that are slow to decode, without parts.
  """

  ids: list[str]
  paths: list[str]
  num_samples: np.ndarray
  metadata: list[dict[str, Any]]
  skipped: list[tuple[str, str]]
  damaged: dict[str, str] = dataclasses.field(default_factory=dict)
  rates: None = None
  parts: list[Part | None] | None = None
  decode_once: bool = False

  def read(self, index: int, start: int, num_samples: int) -> np.ndarray:
    """See `Source.read`."""
    path = self.paths[index]
    if self.decode_once:
      return _decoded(path)[start : start + num_samples]
    part = self.parts and self.parts[index]
    if not part:
      return audio.read(path, start, num_samples)
    first, length, channel = part
    num_samples = min(num_samples, length - start)
    return audio.read(path, first + start, num_samples, channel)

  def select(self, indices: Iterable[int]) -> "AudioFiles":
    """See `Source.select`; `skipped` stays whole."""
    indices = list(indices)
    return AudioFiles(
      ids=[self.ids[i] for i in indices],
      paths=[self.paths[i] for i in indices],
      num_samples=self.num_samples[indices],
      metadata=[self.metadata[i] for i in indices],
      skipped=self.skipped,
      parts=self.parts and [self.parts[i] for i in indices],
      decode_once=self.decode_once,
    )


# Two threads may decode a file at once; then one of the two results stays.
@functools.cache
def _decoded(path: str) -> np.ndarray:
  """Returns the samples of a whole file, int16 [S]."""
  samples = audio.read(path, 0, _WHOLE)
  samples.flags.writeable = False
  return samples


def keep_usable(
  name: str,
  ids: Sequence[str],
  paths: Sequence[str],
  lengths: Sequence[int | Part | str],
  metadata: Sequence[dict[str, Any]],
  min_seconds: float,
) -> AudioFiles:
  """Returns the clips that can be used; warns once of those that cannot.

  Args:
    name: the source, as the user gave it.
    ids: [N].
    paths: [N].
    lengths: [N] samples at 16 kHz, or the parts of files that are clips, or
      why the file cannot be used.
    metadata: [N].
    min_seconds: shorter clips are skipped.

  Raises:
    UserError: nothing is left.
  """
  kept, skipped = [], []
  lengths, parts = parts_of(lengths)
  for i, length in enumerate(lengths):
    if isinstance(length, str):
      skipped.append((ids[i], length))
    elif length < min_seconds * SAMPLE_RATE:
      skipped.append((ids[i], skipped_lib.too_short(length, min_seconds)))
    else:
      kept.append(i)
  known = sum(length for length in lengths if not isinstance(length, str))
  heard = sum(lengths[i] for i in kept)
  share = (known - heard) / max(1, known)
  skipped_lib.report(name, len(kept), skipped, share)
  return AudioFiles(
    ids=[ids[i] for i in kept],
    paths=[paths[i] for i in kept],
    num_samples=np.array([lengths[i] for i in kept], np.int64),
    metadata=[metadata[i] for i in kept],
    skipped=skipped,
    parts=parts and [parts[i] for i in kept],
  )


def parts_of(
  lengths: Sequence[int | Part | str],
) -> tuple[list[int | str], list[Part | None] | None]:
  """Splits what is known of files into lengths, and parts if there are any."""
  parts = [x if isinstance(x, Part) else None for x in lengths]
  lengths = [x.num_samples if isinstance(x, Part) else x for x in lengths]
  return lengths, parts if any(parts) else None


def heard(source: Source, clips: Iterable[int]) -> list[tuple]:
  """Returns which clips are parts of files, and of those which.

  [] where each is a whole file, as where nothing is known of files.
  """
  parts = getattr(source, "parts", None)
  return [(i, *parts[i]) for i in clips if parts and parts[i]]


def is_whole(config: ConfigDict, split: str) -> bool:
  """Tells whether all clips of `dir`, or of `valid_dir`, are of the split."""
  return bool(config.valid_dir) and (
    split == "valid" or (split == "train" and not config.split_key)
  )


def choose_split(
  name: str,
  ids: Sequence[str],
  metadata: Sequence[dict[str, Any]],
  config: ConfigDict,
  split: str,
) -> list[int]:
  """Returns the places of a split's clips: by metadata, or held out.

  Args:
    name: of the source, as the user gave it.
    ids: of all clips.
    metadata: of all clips.
    config: `config.data`; `split_key` and `valid_fraction` are read.
    split: of the clips.

  Raises:
    UserError: there is no such split.
  """
  if not config.split_key:
    if split not in ("train", "valid"):
      raise UserError(
        f"{name} has no split {split!r}: name the metadata key that says a "
        "clip's split by --config.data.split_key"
      )
    return hold_out(name, ids, config.valid_fraction, split)
  splits = [str(known.get(config.split_key)) for known in metadata]
  if split not in splits:
    raise UserError(
      f"{name}: no clip has {split!r} as its {config.split_key!r} "
      f"(--config.data.split_key), but {', '.join(sorted({*splits}))}"
    )
  return [i for i, own in enumerate(splits) if own == split]


def hold_out(
  name: str, ids: Sequence[str], fraction: float, split: str
) -> list[int]:
  """Returns the places of the clips of "train" or "valid", in order.

  Held-out clips are those whose ids hash lowest: the same on every machine, and
  hardly changed by adding clips.

  Args:
    name: of the source, as the user gave it.
    ids: of all clips.
    fraction: of them that is held out; at least one.
    split: of the two.

  Raises:
    UserError: there is but one clip.
  """
  if len(ids) == 1:
    raise UserError(
      f"{name}: only one usable audio file, so none can be held out for "
      "validation; add files or set --config.data.valid_dir"
    )
  order = sorted(range(len(ids)), key=lambda i: name_hash(ids[i]))
  count = min(max(1, round(fraction * len(order))), len(order) - 1)
  return sorted(order[:count] if split == "valid" else order[count:])


def name_hash(name: str) -> bytes:
  """Returns 16 bytes, the same on every machine."""
  return hashlib.blake2b(
    name.encode(errors="surrogatepass"), digest_size=16
  ).digest()
