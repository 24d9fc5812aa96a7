"""Frozen features of a corpus, computed once and kept on disk.

Heads train for many epochs on what an encoder says once. A cache is a folder:
features.npy, float16 [frames or clips, L + 1, D]; progress.json, how many
batches are written: killed, it goes on; lock, held while it is made or used.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

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

_SYNC_BATCHES = 20  # What a kill may undo.
_KEY_DIGITS = 24  # Of a cache's name.
_HASHED_CLIPS = 64  # Whose audio tells corpora of the same names apart.


class Encoder(NamedTuple):
  """All that a probe knows of a model.

  Attributes:
    name: for tables.
    states: (waveform [B, S] float, length [B]) -> [L + 1, B, T, D], of frames
      of 20 ms.
    shape: (L + 1, D).
    identity: of its parameters; the same for the same states.
    origin: where it is from, for the record.
    flops: forward, of a clip of so many samples.
  """

  name: str
  states: Callable[[jax.Array, jax.Array], jax.Array]
  shape: tuple[int, int]
  identity: str
  origin: dict[str, Any]
  flops: Callable[[int], float]


class Features(NamedTuple):
  """Of N clips.

  Attributes:
    values: float16 [M, L + 1, D], on disk; of one row a clip if pooled.
    offsets: int64 [N + 1]: rows offsets[i] to offsets[i + 1] are clip i's.
    lock: keeps others from removing them.
  """

  values: np.ndarray
  offsets: np.ndarray
  lock: IO | None = None

  def clip(self, index: int) -> np.ndarray:
    """Float16 [T, L + 1, D]."""
    return self.values[self.offsets[index] : self.offsets[index + 1]]


def extract(
  encoder: Encoder,
  source: Source,
  config: ConfigDict,
  pooled: bool,
  folder: Path,
  by_row: Sharding,
) -> Features:
  """The features of all clips, from the cache if they are there.

  Args:
    encoder: whose states they are.
    source: of the clips; each is encoded whole.
    config: of the probe; `features`, `data`, `eval` and `loader` are read.
    pooled: keep the mean over a clip's frames alone.
    folder: of all caches.
    by_row: how a batch is placed on the devices.

  Raises:
    UserError: there is no room for them; a clip cannot be read, or the encoder
      says of it what is not finite.
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
  # As batches are counted: a count of others says nothing.
  plan = [config.eval.batch_seconds, *settings.data.bucket_seconds]
  try:
    cache.mkdir(parents=True, exist_ok=True)
    lock = (cache / "lock").open("w")
  except OSError as error:
    raise UserError(f"--cache={folder} cannot be used ({error})") from error
  fcntl.flock(lock, fcntl.LOCK_SH)
  start = _batches_done(cache, shape, plan)
  if start != len(pieces):
    fcntl.flock(lock, fcntl.LOCK_EX)
    start = _batches_done(cache, shape, plan)
  if start is None:
    _make_room(folder, cache, 2 * int(np.prod(shape)), config.features.cache_gb)
    progress.unlink(missing_ok=True)  # Else the zeros might pass for states.
    values = np.lib.format.open_memmap(path, "w+", np.float16, shape)
    _reserve(path)
    write_atomically(progress, json.dumps({"batches": 0, "plan": plan}))
    start = 0
  else:
    values = np.lib.format.open_memmap(path, "r+")
  os.utime(cache)  # Of use: the longest unused makes room first.
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
    for index, (clips, _, found, real) in enumerate(batches, start + 1):
      for clip, row, n in zip(clips.tolist(), found, real.tolist()):
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
  fcntl.flock(lock, fcntl.LOCK_SH)
  return Features(values, offsets, lock)


def _check_read(source: Source) -> None:
  """Before what was read is called done: of damaged clips there are zeros."""
  if source.damaged:
    clip, reason = next(iter(source.damaged.items()))
    raise UserError(
      f"{len(source.damaged)} clips cannot be read, the first being {clip!r} "
      f"({reason}): leave them out"
    )


def _reserve(path: Path) -> None:
  """Takes the room of a file; on a disk that fills up its map would crash."""
  if hasattr(os, "posix_fallocate"):  # macOS lacks it.
    with named(path), path.open("r+b") as file:
      os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _batches_done(
  cache: Path, shape: tuple[int, ...], plan: list[float]
) -> int | None:
  """How many batches of a cache there are; None: it is to be begun."""
  try:
    done = read_object(cache / "progress.json")
    found = np.load(cache / "features.npy", mmap_mode="r", allow_pickle=False)
    size = (cache / "features.npy").stat().st_size
  except Exception:  # Of many kinds; and all can be computed again.
    return None
  batches = done.get("batches")
  whole = (
    isinstance(found, np.memmap)
    and (found.shape, found.dtype) == (shape, np.float16)
    and size == found.offset + found.nbytes
    and done.get("plan") == plan
    and type(batches) is int
    and batches >= 0
  )
  return batches if whole else None


def _frames_of(encoder: Encoder, normalize: bool, pooled: bool) -> Any:
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
  """The config with buckets that hold the longest clip."""
  settings = config.copy_and_resolve_references()
  longest = source.num_samples.max() / SAMPLE_RATE
  buckets = [s for s in settings.data.bucket_seconds if s < longest]
  settings.data.bucket_seconds = (*buckets, float(np.ceil(longest * 10) / 10))
  return settings


def _key(
  encoder: Encoder, source: Source, config: ConfigDict, pooled: bool
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
      pass  # Said when it is encoded.
  return digest.hexdigest()[:_KEY_DIGITS]


def _make_room(folder: Path, mine: Path, size: int, limit_gb: float) -> None:
  """Removes unused caches, until `size` more bytes fit the limit.

  Raises:
    UserError: they do not, for those in use or for the disk.
  """
  total, unused = size, []
  for cache in folder.iterdir():
    if not re.fullmatch(f"[0-9a-f]{{{_KEY_DIGITS}}}", cache.name):
      continue  # Not ours to remove.
    file = cache / "features.npy"
    try:
      lock = (cache / "lock").open("r+")
      total += file.stat().st_size if cache != mine else 0
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
      continue  # Gone meanwhile, or in use.
    unused.append((cache.stat().st_mtime, file.stat().st_size, cache, lock))
  for _, bytes_, cache, lock in sorted(unused, key=lambda x: x[0]):
    if total > limit_gb * 1e9:
      shutil.rmtree(cache, ignore_errors=True)
      total -= bytes_
    lock.close()
  if total > limit_gb * 1e9:
    raise UserError(
      f"the features take {size / 1e9:.3g} GB, with those in use "
      f"{total / 1e9:.3g} GB: raise --config.features.cache_gb={limit_gb:g}, "
      "or probe less audio"
    )
  if size > (free := shutil.disk_usage(folder).free):
    raise UserError(
      f"the features take {size / 1e9:.3g} GB, and {folder} has "
      f"{free / 1e9:.3g} GB free: give another --cache, or probe less audio"
    )
