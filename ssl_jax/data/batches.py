"""Planned rows to arrays: reading, sharing among processes, reading ahead.

Threads, workers, processes and devices change when a clip is read and by whom,
never what an update sees.
"""

import contextlib
import functools
import logging
import math
import signal
import sys
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from ssl_jax import FRAME_HOP, FRAME_WINDOW, num_frames
from ssl_jax.data import workers
from ssl_jax.data.batch_plan import BatchPlan, Rows
from ssl_jax.data.labels import NO_LABEL, LabelSet
from ssl_jax.data.sources.audio import (
  ODD,
  DamagedAudio,
  change_speed,
  oddness,
)
from ssl_jax.data.sources.source import Source
from ssl_jax.errors import UserError

_Notes = list[tuple[str, str]]
_odd: dict[str, set[str]] = {}  # Clips by kind, which this process told of.

_STUCK = (
  "no audio comes; is the disk of config.data still there, or one of "
  "config.loader.num_workers stopped?"
)


def load_batch(
  source: Source,
  rows: Rows,
  row_multiple: int = 1,
  num_shards: int = 1,
  shards: Sequence[int] = (0,),
  labels: Sequence[LabelSet] = (),
) -> dict[str, np.ndarray]:
  """Reads one process's share of a global batch of B rows.

  B is first rounded up with empty rows to a multiple of `row_multiple` (say
  devices x microbatches), so that the clips do not depend on it; of
  `num_shards` equal runs of rows, those of `shards` are read, b rows in all. A
  clip that cannot be read is an empty row, named once in a warning and kept in
  `source.damaged`.

  Returns:
    waveform: int16 [b, S], zeros after the clip's end.
    length: int32 [b] real samples of each row.
    record: int64 [b] index in the source; -1 where length is 0.
    rows: int32 [b] place in the global batch.
    labels: uint16 [b, T, L] of the L sets of the source's labels, NO_LABEL
      where there is no frame; left out where L is 0.

  Raises:
    ValueError: the rows cannot be shared equally.
    UserError: several clips of the batch, and none of them readable.
  """
  part = row_multiple, num_shards, shards
  with workers.waiting(_STUCK):
    return _report(source, False, _load(source, rows, *part, labels))


def make_iterator(
  source: Source,
  plan: BatchPlan,
  start_update: int,
  num_updates: int,
  *,
  row_multiple: int = 1,
  num_shards: int = 1,
  shards: Sequence[int] = (0,),
  labels: Sequence[LabelSet] = (),
  num_threads: int,
  num_workers: int,
  prefetch: int,
) -> "Batches":
  """Reads the batches of `num_updates` updates ahead, in order.

  Args:
    source: of the clips.
    plan: of the batches.
    start_update: first update, from 0.
    num_updates: after which the iterator ends.
    row_multiple: as of `load_batch`, like the next three.
    num_shards: of a batch.
    shards: that this process reads.
    labels: of the source.
    num_threads: batches read at once (in each worker).
    num_workers: processes beside this one; 0: threads only. Batches come
      through shared memory (/dev/shm).
    prefetch: batches held ready (in each worker).

  Returns:
    An iterator of what `load_batch` returns, with `get_state`, `set_state`
    (counted from `start_update`) and `close`, which ends threads and workers.
  """

  def load(update: int) -> tuple[dict[str, np.ndarray], list[tuple[str, str]]]:
    rows = plan.batch(int(update))
    part = row_multiple, num_shards, shards
    return _load(source, rows, *part, labels)

  updates = grain.MapDataset.range(start_update, start_update + num_updates)
  options = grain.ReadOptions(min(num_threads, prefetch), prefetch)
  batches = updates.map(load).to_iter_dataset(options)
  if num_workers:
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()  # grain reads its own flags.
    # Who clears up after killed workers would say so below the error.
    quiet = "ignore:resource_tracker:UserWarning"
    sys.warnoptions += [quiet] * (quiet not in sys.warnoptions)
    batches = batches.mp_prefetch(
      grain.MultiprocessingOptions(num_workers), _start_worker
    )
  # Damage is reported here, not in the workers: once.
  report = functools.partial(_report, source, bool(num_workers))
  return Batches(iter(batches.map(report)))


class Batches:
  """Iterator of batches: grain's, with bounded patience."""

  def __init__(self, iterator: grain.DatasetIterator):
    self._iterator = iterator
    # One for all batches: starting a thread takes a while on a busy machine.
    self._watched = contextlib.ExitStack()
    self._waits = self._watched.enter_context(workers.waiting(_STUCK))
    self._waits(math.inf)
    self.get_state = iterator.get_state
    self.set_state = iterator.set_state

  def __iter__(self) -> "Batches":
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    """Returns the next batch; an endless wait for it ends the process.

    Raises:
      UserError: a worker was lost, or memory is short.
    """
    self._waits()
    try:
      return next(self._iterator)
    except MemoryError as error:
      raise workers.Lost(
        f"no memory is left to read audio ({error}); "
        f"{workers.patience().remedy}, and needs less with a lower "
        "config.loader.prefetch"
      ) from error
    except RuntimeError as error:
      if "Worker process was terminated" in str(error):  # grain's words.
        what = "a process of config.loader.num_workers"
        raise workers.lost(what) from error
      raise
    finally:
      self._waits(math.inf)

  def close(self) -> None:
    """Ends threads and workers."""
    with self._watched:
      self._waits()
      self._iterator.close()


def _start_worker(*_: Any) -> None:
  workers.end_with_parent()
  # Sent to all processes, as SLURM does it, it is left to the parent as well,
  # which needs batches until it has saved. grain has other means to end this.
  signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _load(
  source: Source,
  rows: Rows,
  row_multiple: int,
  num_shards: int,
  shards: Sequence[int],
  labels: Sequence[LabelSet],
) -> tuple[dict[str, np.ndarray], _Notes, _Notes]:
  """Returns the batch; (id, reason) of unread clips, (id, kind) of odd ones."""
  total = math.ceil(len(rows.clips) / row_multiple) * row_multiple
  size, rest = divmod(total, num_shards)
  if rest:
    raise ValueError(f"{total} rows in {num_shards} shards")
  mine = np.concatenate([np.arange(i * size, (i + 1) * size) for i in shards])
  batch = {
    "waveform": np.zeros((len(mine), rows.bucket_length), np.int16),
    "length": np.zeros(len(mine), np.int32),
    "record": np.full(len(mine), -1, np.int64),
    "draw_id": mine.astype(np.int32),
  }
  if labels:
    shape = len(mine), num_frames(rows.bucket_length), len(labels)
    batch["labels"] = np.full(shape, NO_LABEL, np.uint16)
  damaged, odd = [], []
  for row, place in enumerate(mine.tolist()):
    if place >= len(rows.clips) or (clip := int(rows.clips[place])) < 0:
      continue
    start, speed = int(rows.starts[place]), float(rows.speeds[place])
    try:
      audio = source.read(clip, start, math.ceil(rows.bucket_length * speed))
    except DamagedAudio as damage:
      damaged.append((source.ids[clip], str(damage)))
      continue
    if kind := oddness(audio):
      odd.append((source.ids[clip], kind))
    first, available = start // FRAME_HOP, num_frames(len(audio))
    if speed != 1:
      audio = change_speed(audio, speed)[: rows.bucket_length]
    batch["waveform"][row, : len(audio)] = audio
    batch["length"][row] = len(audio)
    batch["record"][row] = clip
    # Crops start on frames, so theirs are the clip's; at another speed, those
    # nearest to where their centres were.
    count = num_frames(len(audio))
    middle = FRAME_WINDOW / 2  # In samples of the frame.
    centres = np.arange(count) * FRAME_HOP + middle
    frames = np.rint((centres * speed - middle) / FRAME_HOP).astype(np.int64)
    frames = np.clip(frames, 0, available - 1)
    for i, label_set in enumerate(labels):
      stored = label_set.read(clip, first, available)
      batch["labels"][row, :count, i] = stored[frames]
  return batch, damaged, odd


def _report(
  source: Source,
  shared: bool,
  loaded: tuple[dict[str, np.ndarray], _Notes, _Notes],
) -> dict[str, np.ndarray]:
  """Returns the batch alone; notes its damaged clips in `source.damaged`.

  Clips that sound odd are told of when they are 1, 10, 100 ... of a kind.

  Args:
    source: of the clips.
    shared: the arrays lie in a worker's memory, which goes when they do.
    loaded: as `_load` returns it.
  """
  batch, damaged, odd = loaded
  for clip, kind in odd:
    known = _odd.setdefault(kind, set())
    if clip not in known:
      known.add(clip)
      if math.log10(len(known)).is_integer():
        logging.getLogger("ssl_jax").warning(
          "clip %r is %s in a crop (the %d. such clip; it is kept): %s",
          *(clip, kind, len(known), ODD[kind]),
        )
  for clip, reason in damaged:
    if clip not in source.damaged:
      source.damaged[clip] = reason
      logging.getLogger("ssl_jax").warning(
        "clip %r cannot be read and is left out: %s", clip, reason
      )
  if len(damaged) > 3 and not batch["length"].any():
    clip, reason = damaged[0]
    raise UserError(
      f"none of the {len(damaged)} clips of a batch can be read, the first "
      f"being {clip!r} ({reason}); are the files still there?"
    )
  if shared:
    batch = {key: np.array(value) for key, value in batch.items()}
  return batch
