"""From clips of any kind to prepared records, on all cores, resumable."""

import collections
import concurrent.futures
import contextlib
import hashlib
import json
import logging
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from ssl_jax import SAMPLE_RATE, files
from ssl_jax.data import workers
from ssl_jax.data.sources import audio, records
from ssl_jax.data.sources.source import Source, heard
from ssl_jax.errors import UserError
from ssl_jax.files import claim, write_atomically

_SHARD_SECONDS = 1800.0  # 58 MB; what a kill may undo, on each core.
_MAKES = ("dataset.json", "shards", "skipped.jsonl")
UNPACKED = ".unpacked-by-ssl_jax-"  # Prefix of archives' folders.


class Item(NamedTuple):
  """A record to be made: parts of clips, one after the other."""

  about: dict[str, Any]
  parts: list[tuple[int, int, int]]  # (clip, first sample, samples)


def prepare(
  source: Source,
  folder: Path,
  min_seconds: float,
  max_seconds: float,
  pack_seconds: float,
  num_workers: int,
) -> dict[str, Any]:
  """Writes a prepared corpus, from where an earlier call left it.

  Args:
    source: of the clips.
    folder: of the corpus, held with `alone`.
    min_seconds: shorter ones are skipped.
    max_seconds: longer ones become records of at most so much; 0: none does.
    pack_seconds: short clips of one speaker become records of up to so much,
      one after the other; 0: each is a record.
    num_workers: processes.

  Returns:
    What dataset.json holds.

  Raises:
    UserError: the folder holds another corpus, or nothing could be used.
  """
  items, skipped = _plan(source, min_seconds, max_seconds, pack_seconds)
  if not items:
    raise UserError(
      f"all {len(skipped)} clips were skipped, the first being "
      f"{skipped[0]['id']!r} ({skipped[0]['reason']})"
    )
  shards = _share_out(items)
  held = "another corpus, or this one prepared otherwise"
  identity = _identity(items, source)
  claim(folder, "prepare.json", identity, "--out", held, _MAKES)
  if (folder / "dataset.json").exists():
    return records.read_header(f"--out={folder}", folder)
  todo = [
    i
    for i in range(len(shards))
    if not (records.is_written(folder, i) and _skipped(folder, i).exists())
  ]
  with (
    workers.pool(num_workers) as pool,
    tqdm(
      total=len(items),
      initial=len(items) - sum(len(shards[i]) for i in todo),
      unit="clip",
      desc="preparing",
      disable=None,
    ) as bar,
  ):
    waiting = {
      pool.submit(_write, folder, shard, *_part(source, shards[shard])): shard
      for shard in todo
    }
    with workers.waiting("no audio comes; is its disk there?") as moved:
      for done in concurrent.futures.as_completed(waiting):
        done.result()
        moved()
        bar.update(len(shards[waiting[done]]))
  return _finish(folder, len(shards), skipped)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
  """Keeps others from writing to a corpus; removes what a kill left half.

  Raises:
    UserError: another writes there, or nobody can.
  """
  with files.alone(folder, f"--out={folder}"):
    for part in (folder / "shards").glob("*.part"):
      part.unlink(missing_ok=True)
    for left in folder.glob(f"{UNPACKED}*"):
      shutil.rmtree(left, ignore_errors=True)
    try:
      yield
    except BaseException:
      if [*folder.iterdir()] == [folder / "lock"]:  # Nothing came of it.
        (folder / "lock").unlink()
        folder.rmdir()
      raise


def verify(folder: Path) -> dict[str, str]:
  """Reads everything again; returns {id: problem}."""
  name = f"--out={folder}"
  opened = records.open_records(name, folder)
  header = records.read_header(name, folder)
  problems = {}
  if len(opened.ids) != header["clips"]:
    problems[""] = f"{len(opened.ids)} clips, not {header['clips']}"
  for i in tqdm(
    range(len(opened.ids)), desc="verifying", unit="clip", disable=None
  ):
    try:
      opened.verify(i)
    except audio.DamagedAudio as damage:
      problems[opened.ids[i]] = str(damage)
  return problems


def _plan(
  source: Source, min_seconds: float, max_seconds: float, pack_seconds: float
) -> tuple[list[Item], list[dict[str, str]]]:
  """Returns the records to be made, and what is left out already."""
  items = []
  skipped = [{"id": clip, "reason": why} for clip, why in source.skipped]
  for i, (clip, length) in enumerate(zip(source.ids, source.num_samples)):
    if length < min_seconds * SAMPLE_RATE:
      reason = f"{length / SAMPLE_RATE:.3f} s < --min_seconds={min_seconds:g}"
      skipped.append({"id": clip, "reason": reason})
    else:
      about = {
        k: v for k, v in source.metadata[i].items() if k != "num_samples"
      }
      item = Item(about | {"id": clip}, [(i, 0, int(length))])
      items += _cut(item, round(max_seconds * SAMPLE_RATE))
  ids = collections.Counter(item.about["id"] for item in items)
  if ids and (most := ids.most_common(1)[0])[1] > 1:
    raise UserError(f"{most[1]} records would have the id {most[0]!r}")
  if pack_seconds:
    items = _pack(items, round(pack_seconds * SAMPLE_RATE))
  return items, skipped


def _cut(item: Item, longest: int) -> list[Item]:
  """Cuts a clip into windows of equal lengths, none longer than `longest`."""
  ((clip, _, length),) = item.parts
  count = -(-length // longest) if longest else 1
  if count == 1:
    return [item]
  edges = [length * i // count for i in range(count + 1)]
  # Times of words are unknown, so a text belongs to no window.
  known = {k: v for k, v in item.about.items() if k in ("speaker", "language")}
  return [
    Item(
      {"id": f"{item.about['id']}@{start / SAMPLE_RATE:.3f}"} | known,
      [(clip, start, end - start)],
    )
    for start, end in zip(edges, edges[1:])
  ]


def _pack(items: list[Item], longest: int) -> list[Item]:
  """Joins items of one speaker, in a row, while they are short enough."""
  packed: list[Item] = []
  lengths: list[int] = []
  places: dict[Any, int] = {}  # The record that a speaker's clips go to.
  for item in items:
    speaker = item.about.get("speaker")
    length = sum(part[2] for part in item.parts)
    at = places.get(speaker)
    if speaker is None or at is None or lengths[at] + length > longest:
      if speaker is not None:
        places[speaker] = len(packed)
      packed.append(item)
      lengths.append(length)
      continue
    packed[at] = _join(packed[at], item)
    lengths[at] += length
  return packed


def _join(one: Item, other: Item) -> Item:
  """Joins two items; their common metadata are kept, and both texts."""
  about = {
    key: value
    for key, value in one.about.items()
    if other.about.get(key) == value or key in ("id", "packed")
  }
  if "text" in one.about and "text" in other.about:
    about["text"] = f"{one.about['text']} {other.about['text']}"
  about["packed"] = [
    *one.about.get("packed", [one.about["id"]]),
    other.about["id"],
  ]
  return Item(about, [*one.parts, *other.parts])


def _share_out(items: list[Item]) -> list[list[Item]]:
  """Returns shards of about equal lengths, in the order of the items."""
  ends = np.cumsum([_seconds([item]) for item in items])
  count = max(1, round(ends[-1] / _SHARD_SECONDS))
  bounds = np.searchsorted(ends, np.linspace(0, ends[-1], count + 1)[1:-1])
  edges = [0, *bounds.tolist(), len(items)]
  return [items[a:b] for a, b in zip(edges, edges[1:]) if a < b]


def _seconds(items: list[Item]) -> float:
  return sum(part[2] for item in items for part in item.parts) / SAMPLE_RATE


def _identity(items: list[Item], source: Source) -> str:
  digest = hashlib.sha256()
  for item in items:
    digest.update(
      json.dumps([item.about, [p[1:] for p in item.parts]]).encode()
    )
  clips = [clip for item in items for clip, _, _ in item.parts]
  for part in heard(source, dict.fromkeys(clips)):
    digest.update(json.dumps(part).encode())
  return json.dumps({"items": digest.hexdigest()})


def _part(source: Source, items: list[Item]) -> tuple[Source, list[Item]]:
  """Selects the clips of a worker's items alone."""
  clips = sorted({clip for item in items for clip, _, _ in item.parts})
  places = {clip: i for i, clip in enumerate(clips)}
  items = [
    Item(item.about, [(places[clip], *span) for clip, *span in item.parts])
    for item in items
  ]
  return source.select(clips), items


def _write(folder: Path, shard: int, source: Source, items: list[Item]) -> None:
  """Writes a shard and, beside it, what could not be read or sounds odd."""
  noted: list[dict[str, str]] = []
  records.write_shard(folder, shard, _read_all(source, items, noted))
  lines = "".join(json.dumps(line) + "\n" for line in noted)
  write_atomically(_skipped(folder, shard), lines)


def _skipped(folder: Path, shard: int) -> Path:
  return folder / "shards" / f"{shard:05}.skipped"


def _read_all(
  source: Source, items: list[Item], noted: list[dict[str, str]]
) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
  for about, spans in items:
    ids, parts = about.get("packed", [about["id"]]), []
    for clip, part in zip(ids, spans):
      try:
        samples = source.read(*part)
        parts.append((clip, samples))
        if kind := audio.oddness(samples):
          noted.append({"id": clip, "odd": kind})
      except audio.DamagedAudio as damage:
        noted.append({"id": clip, "reason": str(damage)})
    if not parts:
      continue
    if len(parts) < len(spans):  # A pack without one: its texts are no longer.
      kept = [clip for clip, _ in parts]
      about = about | {"id": kept[0], "packed": kept}
      about.pop("text", None)
    yield about, np.concatenate([samples for _, samples in parts])


def _finish(
  folder: Path, num_shards: int, skipped: list[dict[str, str]]
) -> dict[str, Any]:
  """Gathers what the shards say, and declares the corpus whole."""
  facts: dict[str, Any] = collections.Counter()
  speakers, crc32, skipped, odd = set(), [], [*skipped], []
  try:
    for shard in range(num_shards):
      data = records.shard_lines(folder, shard)
      crc32.append(zlib.crc32(data))
      for clip in map(records.parse_line, data.splitlines()):
        facts["clips"] += 1
        facts["samples"] += clip["num_samples"]
        speakers.add(clip.get("speaker"))
      lines = _skipped(folder, shard).read_bytes()
      for line in map(json.loads, lines.splitlines()):
        note = "odd" if "odd" in line else "reason"
        kept = odd if note == "odd" else skipped
        kept.append({key: line[key] for key in ("id", note)})
  except (OSError, ValueError, LookupError, TypeError) as error:
    raise UserError(
      f"--out={folder}: shard {shard} is damaged ({error}): delete the folder "
      "and prepare again"
    ) from error
  if not facts["clips"]:
    raise UserError(
      f"none of the clips could be read, the first being {skipped[0]['id']!r} "
      f"({skipped[0]['reason']})"
    )
  lines = [json.dumps(line) + "\n" for line in skipped]
  write_atomically(folder / "skipped.jsonl", "".join(lines))
  if odd:
    lines = [json.dumps(line) + "\n" for line in odd]
    write_atomically(folder / "odd.jsonl", "".join(lines))
    for kind, count in collections.Counter(x["odd"] for x in odd).items():
      logging.getLogger("ssl_jax").warning(
        "%d clips are %s, and kept (odd.jsonl names them): %s",
        *(count, kind, audio.ODD[kind]),
      )
  header = {
    "format": records.FORMAT,
    "shards": num_shards,
    "clips": facts["clips"],
    "hours": facts["samples"] / SAMPLE_RATE / 3600,
    "speakers": len(speakers - {None}),
    "skipped": len(skipped),
    "crc32": crc32,
  }
  write_atomically(folder / "dataset.json", json.dumps(header, indent=2))
  return header
