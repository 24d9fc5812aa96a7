"""Phones and words of clips, with their times: alignments.

Times are in seconds. Frame t of an encoder stands for the middle of its window,
12.5 ms + 20 ms t.
"""

import functools
import json
import logging
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ssl_jax import FRAME_HOP, FRAME_WINDOW, SAMPLE_RATE, num_frames
from ssl_jax.data.sources.source import Source
from ssl_jax.errors import UserError

EDGE = "#"  # The neighbour of a phone beside silence.
_SILENCES = {"", "SIL", "SP", "SPN", "NSN", "NOISE", "<EPS>", EDGE}
_NO_WORDS = {"", "<EPS>", "<SIL>", "<UNK>", "SIL"}
_PAST_END = 0.1  # Seconds that a segment may end after its clip.
# Stress of ARPAbet's vowels, AH0 or AH1.
_STRESSED = re.compile(
  "(AA|AE|AH|AO|AW|AX|AXR|AY|EH|ER|EY|IH|IX|IY|OW|OY|UH|UW|UX)[012]"
)


class Segment(NamedTuple):
  """A phone or a word: seconds, name, and the phones beside a phone."""

  start: float
  end: float
  name: str
  before: str = EDGE
  after: str = EDGE


class Alignment(NamedTuple):
  """The phones and words of a clip in their order, without silences."""

  phones: tuple[Segment, ...] = ()
  words: tuple[Segment, ...] = ()


def attach(
  source: Source, path: Path | None, name: str
) -> tuple[Source, list[Alignment]]:
  """Returns the clips of a source that have an alignment, and each's.

  Args:
    source: of the clips.
    path: of the alignments (see `read`); None: the metadata of clips have them
      as `phones`, lists of (phone, start, end).
    name: of the file, as the user gave it.

  Raises:
    UserError: no clip has one, or a segment lies outside its clip.
  """
  if path is None:
    known = {
      clip: Alignment(_chain([(s, e, p) for p, s, e in metadata["phones"]]))
      for clip, metadata in zip(source.ids, source.metadata)
      if isinstance(metadata.get("phones"), list)
    }
  else:
    known = _read_once(path, name, path.stat().st_mtime_ns)
  matched = _matched(source.ids, known)
  rows, found, late = [], [], []
  for row, clip in enumerate(source.ids):
    own = known.get(matched.get(clip, ""))
    if own is None:
      continue
    seconds = source.num_samples[row] / SAMPLE_RATE
    ends = [segment.end for kind in own for segment in kind]
    if max(ends, default=0) > seconds + _PAST_END:
      late.append((clip, max(ends), seconds))
    rows.append(row)
    found.append(own)
  if not rows:
    raise UserError(
      f"{name}: no clip of this corpus has phones there: give the alignments "
      "of these clips, as --config.alignments=FILE"
    )
  if late:
    clip, end, seconds = late[0]
    raise UserError(
      f"{name}: segments of {len(late)} clips end after their clip, the first "
      f"being {clip!r} (at {end:.2f} s of {seconds:.2f}): is it of this audio?"
    )
  missing = len(source.ids) - len(rows)
  if missing:
    logging.getLogger("ssl_jax").info(
      "%14s  %d of %d clips have phones",
      "alignments",
      len(rows),
      len(rows) + missing,
    )
  return source.select(rows), found


def _matched(
  clips: Sequence[str], known: Mapping[str, Alignment]
) -> dict[str, str]:
  """Returns which alignment is each clip's, by the end of its path.

  A file may name clips without the first of their folders, or their ending; not
  so that two clips could be meant.
  """
  bare = {_bare(name): name for name in known}
  matched = {}
  for clip in clips:
    parts = _bare(clip).split("/")
    tails = ("/".join(parts[i:]) for i in range(len(parts)))
    tail = next((tail for tail in tails if tail in bare), None)
    if tail is not None:
      matched[clip] = bare[tail]
  times = Counter(matched.values())
  return {c: name for c, name in matched.items() if times[name] == 1}


def frame_names(segments: Iterable[Segment], num_samples: int) -> list[str]:
  """Returns the name at each frame of a clip, "" where there is none. [T]."""
  names = [""] * int(num_frames(num_samples))
  for segment in segments:
    first, end = frame_range(segment.start, segment.end, len(names))
    names[first:end] = [segment.name] * (end - first)
  return names


def frame_range(start: float, end: float, frames: int) -> tuple[int, int]:
  """Returns the first frame whose middle is in [start, end), and the end."""
  middle, hop = FRAME_WINDOW / 2 / SAMPLE_RATE, FRAME_HOP / SAMPLE_RATE
  first, last = (math.ceil((x - middle) / hop - 1e-9) for x in (start, end))
  return min(max(0, first), frames), min(max(0, last), frames)


def read(path: Path, name: str) -> dict[str, Alignment]:
  """Reads the alignments of many clips: {clip, as the file has it: its own}.

  Args:
    path: a .jsonl file (`file`, and `phones` and `words` as lists of [start,
      end, name]), a NIST .ctm of phones (clip, channel, start, duration, name),
      a .item of Libri-light's ABX (clip, start, end, phone, the phones beside
      it, speaker), or a folder of .TextGrid files, as the Montreal Forced
      Aligner writes them.
    name: of the file, as the user gave it.

  Raises:
    UserError: it cannot be read; names the line that is no alignment.
  """
  if path.is_dir():
    found = _text_grids(path, name)
  elif path.suffix not in _READERS:
    kinds = ", ".join([*_READERS, "a folder of .TextGrid"])
    raise UserError(
      f"{name}: expected a file with the phones of clips: {kinds}"
    )
  else:
    try:
      lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
      raise UserError(f"{name} cannot be read ({error})") from error
    found = _READERS[path.suffix](lines, name)
  if not found:
    raise UserError(f"{name}: no phones in it")
  return found


@functools.lru_cache(maxsize=2)
def _read_once(path: Path, name: str, _: int) -> dict[str, Alignment]:
  """Reads alignments once for all splits of a corpus."""
  return read(path, name)


def _json_lines(lines: Sequence[str], name: str) -> dict[str, Alignment]:
  found = {}
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      fields = json.loads(line)
      found[fields["file"]] = Alignment(
        _chain(fields.get("phones") or ()), _words(fields.get("words") or ())
      )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
      raise _bad(name, number, error) from error
  return found


def _ctm(lines: Sequence[str], name: str) -> dict[str, Alignment]:
  rows = defaultdict(list)
  for number, line in enumerate(lines, 1):
    if not line.strip() or line.startswith(";;"):
      continue
    try:
      clip, _, start, duration, phone, *_ = line.split()
      rows[clip].append((float(start), float(start) + float(duration), phone))
    except ValueError as error:
      raise _bad(name, number, error) from error
  return {clip: Alignment(_chain(sorted(own))) for clip, own in rows.items()}


def _items(lines: Sequence[str], name: str) -> dict[str, Alignment]:
  rows = defaultdict(list)
  for number, line in enumerate(lines[1:], 2):
    if not line.strip():
      continue
    try:
      clip, start, end, phone, before, after, _ = line.split()
      rows[clip].append(
        Segment(
          *_span(start, end), _phone(phone), _phone(before), _phone(after)
        )
      )
    except ValueError as error:
      raise _bad(name, number, error) from error
  return {
    clip: Alignment(tuple(x for x in sorted(own) if x.name != EDGE))
    for clip, own in rows.items()
  }


def _text_grids(folder: Path, name: str) -> dict[str, Alignment]:
  try:
    from praatio import textgrid
  except ImportError as error:
    raise UserError(
      f"{name}: reading TextGrids needs praatio: pip install '.[textgrid]'"
    ) from error
  found = {}
  for path in sorted(folder.rglob("*.TextGrid")):
    try:
      grid = textgrid.openTextgrid(str(path), includeEmptyIntervals=False)
      tiers = {
        kind: chain(grid.getTier(kind).entries)
        for kind, chain in (("phones", _chain), ("words", _words))
        if kind in grid.tierNames
      }
    except Exception as error:  # praatio's own kinds, and those of bad text.
      raise UserError(
        f"{name}: {path.name} cannot be read ({error})"
      ) from error
    clip = path.relative_to(folder).with_suffix("").as_posix()
    found[clip] = Alignment(**tiers)
  return found


_READERS: dict[str, Callable[[Sequence[str], str], dict[str, Alignment]]] = {
  ".jsonl": _json_lines,
  ".ctm": _ctm,
  ".item": _items,
}


def _chain(rows: Iterable[Sequence]) -> tuple[Segment, ...]:
  """Returns segments with their neighbours; silences are left out."""
  spans = [_span(start, end) for start, end, _ in rows]
  names = [EDGE, *(_phone(str(phone)) for *_, phone in rows), EDGE]
  return tuple(
    Segment(*span, name, before, after)
    for span, before, name, after in zip(spans, names, names[1:], names[2:])
    if name != EDGE
  )


def _words(rows: Iterable[Sequence]) -> tuple[Segment, ...]:
  """Returns words; those that stand for silence are left out."""
  return tuple(
    Segment(*_span(start, end), str(word))
    for start, end, word in rows
    if str(word).upper() not in _NO_WORDS
  )


def _phone(name: str) -> str:
  if name.upper() in _SILENCES:
    return EDGE
  vowel = _STRESSED.fullmatch(name)
  return vowel[1] if vowel else name


def _span(start: float | str, end: float | str) -> tuple[float, float]:
  start, end = float(start), float(end)
  if not 0 <= start <= end < math.inf:
    raise ValueError(f"from {start} to {end} s")
  return start, end


def _bad(name: str, number: int, error: Exception) -> UserError:
  return UserError(f"{name}: line {number} is no alignment ({error})")


def _bare(clip: str) -> str:
  """Returns a clip's path without the ending of its file."""
  file = PurePosixPath(clip)
  ending = re.fullmatch(r"\.[a-zA-Z]\w{1,4}", file.suffix)
  return str(file.with_suffix("") if ending else file)
