"""Planned rows to arrays: reading, sharing among processes, reading ahead.

Threads, workers, processes and devices change when a clip is read and by whom,
never what an update sees.
"""

import functools
import logging
import math
from collections.abc import Sequence

import grain
import numpy as np
from absl import flags

from ssl_jax import FRAME_HOP, FRAME_WINDOW, num_frames
from ssl_jax.data.audio import DamagedAudio, change_speed
from ssl_jax.data.labels import NO_LABEL, LabelSet
from ssl_jax.data.plan import BatchPlan, Rows
from ssl_jax.data.source import Source
from ssl_jax.errors import UserError


def load_batch(
  source: Source,
  rows: Rows,
  row_multiple: int = 1,
  process_index: int = 0,
  process_count: int = 1,
  labels: Sequence[LabelSet] = (),
) -> dict[str, np.ndarray]:
  """Reads one process's share of a global batch of B rows.

  B is first rounded up with empty rows to a multiple of `row_multiple` (say
  devices x microbatches), so that the clips do not depend on it; process p has
  the p-th of `process_count` equal runs of rows. A clip that cannot be read is
  an empty row, named once in a warning and kept in `source.damaged`.

  Returns:
    waveform: int16 [B / process_count, S], zeros after the clip's end.
    length: int32 [B / process_count] real samples of each row.
    record: int64 [B / process_count] index in the source; -1 where length is 0.
    labels: uint16 [B / process_count, T, L] of the L sets of the source's
      labels, NO_LABEL where there is no frame; left out where L is 0.

  Raises:
    ValueError: the rows cannot be shared equally.
    UserError: several clips of the batch, and none of them readable.
  """
  share = row_multiple, process_index, process_count
  return _report(source, _load(source, rows, *share, labels))


def make_iterator(
  source: Source,
  plan: BatchPlan,
  start_update: int,
  num_updates: int,
  *,
  row_multiple: int = 1,
  process_index: int = 0,
  process_count: int = 1,
  labels: Sequence[LabelSet] = (),
  num_threads: int,
  num_workers: int,
  prefetch: int,
) -> grain.DatasetIterator:
  """Reads the batches of `num_updates` updates ahead, in order.

  Args:
    source: of the clips.
    plan: of the batches.
    start_update: first update, from 0.
    num_updates: after which the iterator ends.
    row_multiple: as of `load_batch`, like the next three.
    process_index: of this process.
    process_count: of the run.
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
    share = row_multiple, process_index, process_count
    return _load(source, rows, *share, labels)

  updates = grain.MapDataset.range(start_update, start_update + num_updates)
  options = grain.ReadOptions(min(num_threads, prefetch), prefetch)
  batches = updates.map(load).to_iter_dataset(options)
  if num_workers:
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()  # grain reads its own flags.
    batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers))
  # Damage is reported here, not in the workers, to be told once.
  return iter(batches.map(functools.partial(_report, source)))


def _load(
  source: Source,
  rows: Rows,
  row_multiple: int,
  process_index: int,
  process_count: int,
  labels: Sequence[LabelSet],
) -> tuple[dict[str, np.ndarray], list[tuple[str, str]]]:
  """The batch, and (id, reason) of the clips that could not be read."""
  total = math.ceil(len(rows.clips) / row_multiple) * row_multiple
  share, rest = divmod(total, process_count)
  if rest:
    raise ValueError(f"{total} rows among {process_count} processes")
  batch = {
    "waveform": np.zeros((share, rows.bucket_length), np.int16),
    "length": np.zeros(share, np.int32),
    "record": np.full(share, -1, np.int64),
  }
  if labels:
    shape = share, num_frames(rows.bucket_length), len(labels)
    batch["labels"] = np.full(shape, NO_LABEL, np.uint16)
  mine = slice(process_index * share, (process_index + 1) * share)
  damaged = []
  for row, clip in enumerate(rows.clips[mine].tolist()):
    if clip < 0:
      continue
    start = int(rows.starts[mine][row])
    speed = float(rows.speeds[mine][row])
    try:
      audio = source.read(clip, start, math.ceil(rows.bucket_length * speed))
    except DamagedAudio as damage:
      damaged.append((source.ids[clip], str(damage)))
      continue
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
  return batch, damaged


def _report(
  source: Source,
  loaded: tuple[dict[str, np.ndarray], list[tuple[str, str]]],
) -> dict[str, np.ndarray]:
  """The batch alone; its damaged clips are noted in `source.damaged`."""
  batch, damaged = loaded
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
  # A worker's arrays lie in shared memory that goes when they do.
  return {key: np.array(value) for key, value in batch.items()}
