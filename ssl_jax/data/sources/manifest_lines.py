"""Lines of manifests: which file, which part of it, and what is known of it."""

import csv
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from ssl_jax.data.sources.source import LISTS
from ssl_jax.errors import UserError, one_line

# Keys of a clip's file, of its name, and of what is known of it: ours, then
# those of Hugging Face, NeMo, SpeechBrain and Common Voice.
FILE = ("file", "path", "audio_filepath", "audio", "file_name", "wav")
_ID = ("id", "ID", "utt_id")
_KNOWN = {
  "speaker": ("speaker", "speaker_id", "spk_id", "client_id"),
  "text": ("text", "sentence", "transcription", "transcript", "wrd"),
  "language": ("language", "locale", "lang"),
}
# Keys of the part of a file that a line is about, in seconds.
_BEGIN = ("offset", "start")
_SECONDS = ("duration",)
_END = ("end",)
_CHANNEL = ("channel", "channel_selector")
# With SpeechBrain's `stop`, it and `start` are samples at the file's rate.
_STOP = "stop"
# Keys that would change what a line means, and that nothing here heeds.
_UNHEEDED = ("segments", "supervisions", "speed", "tempo", "gain", "volume")
# Facts of a file, or of a prepared corpus, which are read from itself.
_NOT_KEPT = {
  *(None, *FILE, *_ID, *_BEGIN, *_END, _STOP),
  *("num_samples", "crc32", "duration_s", "packed"),
}


class Span(NamedTuple):
  """The part of a file that is a clip.

  begin, end: seconds, or samples at the file's own rate (`in_samples`); None:
    the file's. channel: counted from 0; None: their mean.
  """

  begin: float | None = None
  end: float | None = None
  in_samples: bool = False
  channel: int | None = None


class Clip(NamedTuple):
  """A clip to be read: its name, file and metadata, and what of the file."""

  id: str
  path: str
  metadata: dict[str, Any]
  span: Span = Span()


def read(name: str, path: Path) -> Iterator[Clip]:
  """Yields the clips of a manifest.

  Args:
    name: of it, as the user gave it.
    path: of it, with an ending of `MANIFESTS`.

  Raises:
    UserError: it cannot be read, or a line cannot be understood.
  """
  try:
    with path.open(encoding="utf-8-sig", newline="") as file:
      for number, root, line in _READERS[path.suffix](file):
        try:
          yield _clip(path.parent / root, line)
        except ValueError as error:
          raise UserError(f"{name}, line {number}: {error}") from error
  except (OSError, ValueError, csv.Error) as error:
    raise UserError(f"{name} cannot be read ({one_line(error)})") from error


def _clip(folder: Path, line: dict[str, Any]) -> Clip:
  """Reads a line of a manifest.

  Raises:
    ValueError: it cannot be understood; why.
  """
  file = _first(line, FILE)
  if not isinstance(file, str):
    raise ValueError(f"names no file (one of {', '.join(FILE)})")
  if unheeded := [key for key in _UNHEEDED if line.get(key)]:
    raise ValueError(f"{unheeded[0]!r} is not heeded here: leave it out")
  span = _span(line)
  metadata = {
    key: value
    for key, value in line.items()
    if key not in _NOT_KEPT
    and (isinstance(value, str | int | float) or key in LISTS)
    and value != ""
  }
  for name, keys in _KNOWN.items():
    if isinstance(value := _first(line, keys), str | int | float):
      metadata[name] = value
  path = folder / file
  if "client_id" in line and not path.exists():
    path = folder / "clips" / file  # Common Voice has them there.
  name = _first(line, _ID)
  # JSON may hold what no name does.
  name = str(file + _suffix(span) if name is None else name)
  name = name.encode("utf-8", "backslashreplace").decode()
  return Clip(name, str(path), metadata, span)


def _first(line: dict[str, Any], keys: Iterable[str]) -> Any:
  return next((line[k] for k in keys if line.get(k) not in (None, "")), None)


def _span(line: dict[str, Any]) -> Span:
  def number(keys: Sequence[str]) -> float | None:
    key = next((k for k in keys if line.get(k) not in (None, "")), None)
    if key is None:
      return None
    try:
      found = float(line[key])
    except (TypeError, ValueError):
      found = -1.0
    if not 0 <= found < math.inf:
      raise ValueError(f"{key}={line[key]!r} is not a time in seconds")
    return found

  begin, stop = number(_BEGIN), number((_STOP,))
  end, seconds = number(_END), number(_SECONDS)
  channel = _first(line, _CHANNEL)
  if not str(channel).isdecimal():  # As "A", or a programme's name.
    channel = None
  if stop is not None:
    if begin is None:
      raise ValueError("has a stop, and no start")
    end = stop
  elif end is not None:
    begin = begin or 0.0
  elif seconds:  # 0: it is not known.
    end = (begin or 0.0) + seconds
  return Span(
    begin,
    end,
    stop is not None,
    None if channel is None else int(channel),
  )


def _suffix(span: Span) -> str:
  """Returns an ending of names that tells the parts of a file apart."""
  part = f"@{span.begin:.12g}" if span.begin else ""
  if span.end is not None and span.begin:
    part += f"-{span.end:.12g}"
  return part + (f"#{span.channel}" if span.channel is not None else "")


def _read_jsonl(file: IO[str]) -> Iterator[tuple[int, str, dict[str, Any]]]:
  for number, line in enumerate(file, 1):
    if not line.strip():
      continue
    clip = json.loads(line)
    if not isinstance(clip, dict):
      raise UserError(f"{file.name}: {line.strip()[:80]!r} is no JSON object")
    yield number, "", clip


def _read_csv(file: IO[str]) -> Iterator[tuple[int, str, dict[str, Any]]]:
  yield from _rows(csv.reader(file, strict=True))


def _rows(reader: Any) -> Iterator[tuple[int, str, dict[str, Any]]]:
  """Reads lines below a header.

  Raises:
    ValueError: a line has more or fewer columns than the header.
  """
  names: list[str] | None = None
  first = 1  # Line that a row begins on: a quoted text may have several.
  for row in reader:
    if row and names is None:
      names = [name.strip() for name in row]
      if twice := [n for n in names if names.count(n) > 1]:
        raise ValueError(f"line {first}: two columns are named {twice[0]!r}")
    elif row and len(row) != len(names):
      raise ValueError(
        f"line {first} has {len(row)} columns, not {len(names)} as the header"
      )
    elif row:
      yield first, "", dict(zip(names, row))
    first = reader.line_num + 1


def _read_tsv(file: IO[str]) -> Iterator[tuple[int, str, dict[str, Any]]]:
  header = next(file, "").strip()
  if "\t" in header and {*header.split("\t")} & {*FILE}:
    file.seek(0)
    # Common Voice's texts have quotation marks, which mean nothing.
    yield from _rows(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return
  for number, line in enumerate(file, 2):  # fairseq's: a root, then files.
    if line.strip():
      yield number, header, {"file": line.split("\t")[0].strip()}


_READERS = {".jsonl": _read_jsonl, ".csv": _read_csv, ".tsv": _read_tsv}

MANIFESTS = tuple(_READERS)


def names_files(path: Path) -> bool:
  """Tells whether a manifest's first line has a key of a clip's file."""
  try:
    with path.open(encoding="utf-8-sig", newline="") as file:
      _, _, line = next(_READERS[path.suffix](file))
  except (OSError, ValueError, csv.Error, UserError, StopIteration):
    return False
  return not {*FILE}.isdisjoint(line)
