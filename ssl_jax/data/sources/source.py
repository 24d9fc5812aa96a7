"""What a source of audio is, and the one made of files."""

import dataclasses
import difflib
import hashlib
import logging
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
from ml_collections import ConfigDict

from ssl_jax import SAMPLE_RATE
from ssl_jax.data.sources import audio
from ssl_jax.errors import UserError

_NAMED = 5  # Skipped clips named in the summary.


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
    """Int16 [<=num_samples] of clip `index`, from sample `start`.

    Raises:
      audio.DamagedAudio: the clip cannot be read.
    """

  def select(self, indices: Iterable[int]) -> "Source":
    """The clips at `indices`, in that order."""


@dataclasses.dataclass(frozen=True)
class AudioFiles:
  """A `Source` of one file a clip."""

  ids: list[str]
  paths: list[str]
  num_samples: np.ndarray
  metadata: list[dict[str, Any]]
  skipped: list[tuple[str, str]]
  damaged: dict[str, str] = dataclasses.field(default_factory=dict)
  rates: None = None

  def read(self, index: int, start: int, num_samples: int) -> np.ndarray:
    """See `Source.read`."""
    return audio.read(self.paths[index], start, num_samples)

  def select(self, indices: Iterable[int]) -> "AudioFiles":
    """See `Source.select`; `skipped` stays whole."""
    indices = list(indices)
    return AudioFiles(
      ids=[self.ids[i] for i in indices],
      paths=[self.paths[i] for i in indices],
      num_samples=self.num_samples[indices],
      metadata=[self.metadata[i] for i in indices],
      skipped=self.skipped,
    )


def keep_usable(
  name: str,
  ids: Sequence[str],
  paths: Sequence[str],
  lengths: Sequence[int | str],
  metadata: Sequence[dict[str, Any]],
  min_seconds: float,
) -> AudioFiles:
  """The clips that can be used, in order; warns once of those that cannot.

  Args:
    name: the source, as the user gave it.
    ids: [N].
    paths: [N].
    lengths: [N] samples at 16 kHz, or why the file cannot be used.
    metadata: [N].
    min_seconds: shorter clips are skipped.

  Raises:
    UserError: nothing is left.
  """
  kept, skipped = [], []
  for i, length in enumerate(lengths):
    if isinstance(length, str):
      skipped.append((ids[i], length))
    elif length < min_seconds * SAMPLE_RATE:
      seconds = f"{length / SAMPLE_RATE:.3f} s"
      skipped.append((ids[i], f"{seconds} < data.min_seconds={min_seconds}"))
    else:
      kept.append(i)
  report_skipped(name, len(kept), skipped)
  return AudioFiles(
    ids=[ids[i] for i in kept],
    paths=[paths[i] for i in kept],
    num_samples=np.array([lengths[i] for i in kept], np.int64),
    metadata=[metadata[i] for i in kept],
    skipped=skipped,
  )


def report_skipped(
  name: str, num_kept: int, skipped: Sequence[tuple[str, str]]
) -> None:
  """Warns once of the clips that cannot be used.

  Args:
    name: the source, as the user gave it.
    num_kept: clips that can.
    skipped: (id, reason).

  Raises:
    UserError: nothing is left.
  """
  total = num_kept + len(skipped)
  if not num_kept:
    clip, reason = skipped[0] if skipped else ("", "it is empty")
    raise UserError(
      f"{name}: all {total} clips were skipped, the first being {clip!r} "
      f"({reason}); lower --config.data.min_seconds or give others"
    )
  if skipped:
    logging.getLogger("ssl_jax").warning(
      "%s: skipped %d of %d clips: %s%s",
      name,
      len(skipped),
      total,
      ", ".join(f"{clip!r} ({reason})" for clip, reason in skipped[:_NAMED]),
      ", ..." if len(skipped) > _NAMED else "",
    )


def is_whole(config: ConfigDict, split: str) -> bool:
  """Whether all clips of `dir`, or of `valid_dir`, are of the split."""
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
  """Places of a split's clips: by their metadata, or held out.

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
  """Places of the clips of "train" or "valid", in order.

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
  """16 bytes, the same on every machine."""
  return hashlib.blake2b(
    name.encode(errors="surrogatepass"), digest_size=16
  ).digest()


def check_choice(what: str, given: str, names: Iterable[str]) -> None:
  """Raises a UserError that says which of `names` was meant by `given`."""
  names = list(names)
  if given in names:
    return
  close = difflib.get_close_matches(str(given), names, n=1, cutoff=0.5)
  meant = f"did you mean {close[0]!r}? " if close else ""
  raise UserError(f"unknown {what} {given!r}: {meant}have {', '.join(names)}")
