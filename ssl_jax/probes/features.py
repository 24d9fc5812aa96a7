"""Frozen features of a corpus, computed once and kept on disk.

Heads train for many epochs on features that are computed once. A cache is a
folder: features.npy, float16 [frames or clips, L + 1, D]; progress.json, how
many batches are written: killed, it goes on; lock, held while it is made. Any
may be deleted at any time, to make room.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from ml_collections import ConfigDict
from tqdm import tqdm

from ssl_jax import SAMPLE_RATE, num_frames
from ssl_jax.data.sources.audio import DamagedAudio
from ssl_jax.data.sources.source import Source
from ssl_jax.devices import sharding
from ssl_jax.errors import UserError
from ssl_jax.files import named, read_object, write_atomically
from ssl_jax.pretrained import corpus_pass
from ssl_jax.probes.encoders import FrozenEncoder

_SYNC_BATCHES = 20  # Batches that a kill may undo.
_KEY_DIGITS = 24  # Length of a cache's name.
_HASHED_CLIPS = 64  # Whose audio tells corpora of the same names apart.


class Features(NamedTuple):
  """Features of N clips.

  Attributes:
    values: float16 [M, L + 1, D], on disk; of one row a clip if pooled.
    offsets: int64 [N + 1]: rows offsets[i] to offsets[i + 1] are clip i's.
  """

  values: np.ndarray
  offsets: np.ndarray

  def clip(self, index: int) -> np.ndarray:
    """Returns float16 [T, L + 1, D]."""
    return self.values[self.offsets[index] : self.offsets[index + 1]]


def extract(
  encoder: FrozenEncoder,
  source: Source,
  config: ConfigDict,
  pooled: bool,
  folder: Path,
  by_row: Sharding,
) -> Features:
  """Returns the features of all clips, from the cache if they are there.

  Args:
    encoder: whose states they are.
    source: of the clips; each is encoded whole.
    config: of the probe; `features`, `data`, `eval` and `loader` are read.
    pooled: keep the mean over a clip's frames alone.
    folder: of all caches.
    by_row: how a batch is placed on the devices.

  Raises:
    UserError: there is no room for them; a clip cannot be read, or its features
      are not finite.
  """
  count = (
    np.ones(len(source.ids), np.int64)
    if pooled
    else num_frames(source.num_samples)
  )
  offsets = np.concatenate([[0], np.cumsum(count)])
  shape = (int(offsets[-1]), *encoder.shape)
  cache = folder / _key(encoder, source, config, pooled)
  path, progress = cache / "features.npy", cache / "progress.json"
  settings = _whole_clips(config, source)
  pieces = corpus_pass.make_pieces(settings, source)
  # Progress counts batches, so it is valid only for the same batching.
  plan = [config.encode.batch_seconds, *settings.data.bucket_seconds]
  with _alone(folder, cache):
    start = _batches_done(cache, shape, plan)
    if start is None:
      values = _begin(folder, cache, shape)
      write_atomically(progress, json.dumps({"batches": 0, "plan": plan}))
      start = 0
    else:
      values = np.lib.format.open_memmap(path, "r+")
    with tqdm(
      total=len(pieces),
      initial=start,
      desc=f"features of {encoder.name}",
      unit="batch",
      delay=1,
      disable=None,
    ) as bar:
      frames_of = _frames_of(encoder, config.features.normalize, pooled)
      batches = corpus_pass.each_batch(
        settings,
        source,
        pieces,
        sharding.suited(by_row, frames_of),
        by_row,
        start,
      )
      for index, (clips, _, frames, real) in enumerate(batches, start + 1):
        for clip, row, n in zip(clips.tolist(), frames, real.tolist()):
          if clip >= 0:
            if not np.isfinite(row[:n]).all():
              raise UserError(
                f"{encoder.name}: features of {source.ids[clip]!r} are not "
                "finite; have its parameters diverged?"
              )
            values[offsets[clip] : offsets[clip] + n] = row[:n]
        bar.update()
        if index % _SYNC_BATCHES == 0 or index == len(pieces):
          _check_read(source)
          values.flush()
          done = {"batches": index, "plan": plan}
          write_atomically(progress, json.dumps(done))
  return Features(values, offsets)


@contextlib.contextmanager
def _alone(folder: Path, cache: Path) -> Iterator[None]:
  """Waits for other processes that make the same cache, and keeps them out."""
  try:
    cache.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(cache / "lock")
    try:
      lock.acquire()
    except OSError as error:
      if error.errno not in (errno.ENOTSUP, errno.ENOLCK):
        raise
      logging.getLogger("ssl_jax").warning(
        "--cache=%s: this file system has no locks: start no second command "
        "with it",
        folder,
      )
  except OSError as error:
    raise UserError(f"--cache={folder} cannot be used ({error})") from error
  try:
    yield
  finally:
    lock.release()


def _begin(folder: Path, cache: Path, shape: tuple[int, ...]) -> np.ndarray:
  """Makes an empty file of features in place of another, if there is one.

  Processes that read the other keep it: it is removed, not written over.

  Raises:
    UserError: there is no room.
  """
  # First of all: with it, the empty file would pass for a whole one.
  (cache / "progress.json").unlink(missing_ok=True)
  path = cache / "features.npy"
  path.unlink(missing_ok=True)
  size, free = 2 * int(np.prod(shape)), shutil.disk_usage(folder).free
  if size > free:
    raise UserError(
      f"the features take {size / 1e9:.3g} GB, and {folder} has "
      f"{free / 1e9:.3g} GB free: delete folders in it, give another --cache, "
      "or probe less audio"
    )
  values = np.lib.format.open_memmap(path, "w+", np.float16, shape)
  _reserve(path)
  return values


def _check_read(source: Source) -> None:
  """Refuses features of damaged clips, which are zeros."""
  if source.damaged:
    clip, reason = next(iter(source.damaged.items()))
    raise UserError(
      f"{len(source.damaged)} clips cannot be read, the first being {clip!r} "
      f"({reason}): leave them out"
    )


def _reserve(path: Path) -> None:
  """Reserves the room of a file: on a full disk, writing its map crashes."""
  if hasattr(os, "posix_fallocate"):  # macOS lacks it.
    with named(path), path.open("r+b") as file:
      os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _batches_done(
  cache: Path, shape: tuple[int, ...], plan: list[float]
) -> int | None:
  """Returns how many batches a cache has; None: it is to be begun."""
  try:
    done = read_object(cache / "progress.json")
    values = np.load(cache / "features.npy", mmap_mode="r", allow_pickle=False)
    size = (cache / "features.npy").stat().st_size
  except Exception:  # Damage raises many kinds; all can be computed again.
    return None
  batches = done.get("batches")
  whole = (
    isinstance(values, np.memmap)
    and (values.shape, values.dtype) == (shape, np.float16)
    and size == values.offset + values.nbytes
    and done.get("plan") == plan
    and type(batches) is int
    and batches >= 0
  )
  return batches if whole else None


def _frames_of(encoder: FrozenEncoder, normalize: bool, pooled: bool) -> Any:
  def frames_of(
    waveform: jax.Array, length: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    states = encoder.states(waveform, length).astype(jnp.float32)
    if normalize:  # As s3prl's LayerNorm without parameters.
      states -= states.mean(axis=-1, keepdims=True)
      states *= jax.lax.rsqrt(states.var(axis=-1, keepdims=True) + 1e-5)
    states = states.transpose(1, 2, 0, 3)  # [B, T, L + 1, D]
    real = num_frames(length)
    if pooled:
      inside = jnp.arange(states.shape[1]) < real[:, None]
      total = jnp.where(inside[..., None, None], states, 0).sum(axis=1)
      states = (total / jnp.maximum(1, real)[:, None, None])[:, None]
      real = jnp.minimum(1, real)
    limit = float(jnp.finfo(jnp.float16).max)
    return jnp.clip(states, -limit, limit).astype(jnp.float16), real

  return frames_of


def _whole_clips(config: ConfigDict, source: Source) -> ConfigDict:
  """Returns the config with buckets that hold the longest clip."""
  settings = config.copy_and_resolve_references()
  longest = source.num_samples.max() / SAMPLE_RATE
  buckets = [s for s in settings.data.bucket_seconds if s < longest]
  settings.data.bucket_seconds = (*buckets, float(np.ceil(longest * 10) / 10))
  return settings


def _key(
  encoder: FrozenEncoder, source: Source, config: ConfigDict, pooled: bool
) -> str:
  digest = hashlib.sha256()
  facts = encoder.identity, encoder.shape, config.features.normalize, pooled
  digest.update(repr(facts).encode())
  digest.update("\0".join(source.ids).encode())
  digest.update(np.ascontiguousarray(source.num_samples))
  count = len(source.ids)
  for clip in np.linspace(0, count - 1, min(count, _HASHED_CLIPS)).astype(int):
    try:
      digest.update(source.read(int(clip), 0, int(source.num_samples[clip])))
    except DamagedAudio:
      pass  # It is reported when it is encoded.
  return digest.hexdigest()[:_KEY_DIGITS]
