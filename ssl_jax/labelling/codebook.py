"""Codebooks: k-means on frames sampled from a source."""

import contextlib
import functools
import hashlib
import io
import json
import logging
import zipfile
import zlib
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Sharding
from ml_collections import ConfigDict
from tqdm import tqdm

from ssl_jax.data.labels import corpus_hash, read_codebook, write_codebook
from ssl_jax.data.sources.audio import DamagedAudio
from ssl_jax.data.sources.source import Source
from ssl_jax.errors import UserError
from ssl_jax.files import cache_folder, write_atomically
from ssl_jax.objectives import make_objective, mfcc
from ssl_jax.pretrained import corpus_pass as frames_lib
from ssl_jax.signal import fbank, kmeans

_log = logging.getLogger("ssl_jax")
_UNREADABLE = (OSError, ValueError, LookupError, EOFError, zlib.error)
_UNREADABLE += (zipfile.BadZipFile,)
_HEARD = 16  # Clips whose samples tell a corpus from another of equal names.
_HEARD_SAMPLES = 16_000


def mfcc_codebooks(
  config: ConfigDict, workdir: Path, source: Source
) -> tuple[np.ndarray, ...]:
  """Returns the codebooks that the run's objective asks for, [K, 39] each.

  Fitted on a sample of the training audio and saved in the workdir, or reused
  from there, or from the trunk run, whose head was trained on those clusters,
  or from an earlier run's fit to the same audio. One device does it, so that
  the labels do not depend on their number.

  Raises:
    UserError: too few frames, or a damaged file.
  """
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  codebooks: list[np.ndarray] = []
  frames: dict[str, np.ndarray] = {}
  for name, clusters in make_objective(config).fitted_codebooks():
    folder = workdir / f"{name}-{clusters}"
    theirs = Path(config.budget.trunk or workdir) / folder.name
    if (folder / "codebook.npy").exists():
      codebooks.append(read_codebook(folder))
      continue
    if (theirs / "codebook.npy").exists():
      codebooks.append(read_codebook(theirs))
      write_codebook(folder, codebooks[-1])
      continue
    shared = _shared_folder(config, source, name, clusters)
    with contextlib.suppress(UserError):  # It is missing, or damaged.
      codebooks.append(read_codebook(shared))
      write_codebook(folder, codebooks[-1])
      _log.info("%14s  of %s", "codebook", shared)
      continue
    if name not in frames:
      frames_of = functools.partial(_mfcc, name)
      frames[name] = frames_lib.sample(
        config, source, frames_of, fbank.HOP, device
      )
    fitted = fit(config, frames[name], clusters, device, folder)
    write_codebook(folder, fitted.centroids)
    with contextlib.suppress(OSError, UserError):  # No cache can be written.
      write_codebook(shared, fitted.centroids)
    codebooks.append(fitted.centroids)
  return tuple(codebooks)


def _shared_folder(
  config: ConfigDict, source: Source, name: str, clusters: int
) -> Path:
  """Returns where runs on the same audio share a codebook.

  The audio is told by all names and lengths, and by the samples of some clips.
  """
  digest = hashlib.sha256(
    json.dumps(
      [
        name,
        clusters,
        config.seed,
        config.kmeans.to_dict(),
        list(config.data.bucket_seconds),
        corpus_hash(source),
      ]
    ).encode()
  )
  for module in fbank, mfcc, kmeans:  # A change of these makes others.
    digest.update(Path(str(module.__file__)).read_bytes())
  for clip in np.linspace(0, len(source.ids) - 1, _HEARD).astype(int):
    with contextlib.suppress(DamagedAudio):
      digest.update(source.read(clip, 0, _HEARD_SAMPLES).tobytes())
  return cache_folder("codebooks") / digest.hexdigest()[:16]


def _mfcc(
  name: str, waveform: jax.Array, length: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns a label set's MFCC, and how many frames of 10 ms are real."""
  frames = mfcc.FRAMES[name](waveform, length)
  return frames, fbank.num_fbank_frames(length)


def fit(
  config: ConfigDict,
  frames: np.ndarray,
  clusters: int,
  by_row: Sharding,
  folder: Path,
) -> kmeans.Fit:
  """k-means on frames [M, C], shared out over the devices.

  Searches that are done are kept in `folder` until all are.

  Raises:
    UserError: fewer frames than clusters, or not finite ones.
  """
  usable = len(frames) - len(frames) % len(by_row.device_set)
  restarts = config.kmeans.num_restarts
  _log.info(
    "%14s  k-means: %d clusters of %s frames of %d dimensions (%.2g GB)",
    "codebook",
    clusters,
    f"{usable:,}",
    frames.shape[1],
    frames.nbytes / 1e9,
  )
  kept = folder / "searches.npz"
  identity = zlib.crc32(np.ascontiguousarray(frames[:usable]))
  identity = f"{identity} {clusters} {config.seed} {config.kmeans.to_json()}"
  done = _read_searches(kept, identity)
  with tqdm(
    total=restarts,
    initial=done.restarts if done else 0,
    desc="k-means",
    unit="restart",
    delay=1,
    disable=None,
  ) as bar:

    def keep(searched: kmeans.Searched) -> None:
      nonlocal done
      done = searched
      data = io.BytesIO()
      np.savez(data, identity=identity, **searched._asdict())
      folder.mkdir(parents=True, exist_ok=True)
      write_atomically(kept, data.getvalue())
      bar.update()

    try:
      fitted = kmeans.fit(
        jax.device_put(frames[:usable], by_row),
        clusters,
        config.seed,
        num_inits=config.kmeans.num_inits,
        num_restarts=restarts,
        batch_frames=config.kmeans.batch_frames,
        max_iterations=config.kmeans.max_iterations,
        begun=done,
        on_restart=keep,
      )
    except ValueError as error:
      raise UserError(
        f"{clusters} clusters cannot be fitted ({error}): give more audio, or "
        "ask for fewer"
      ) from error
    except KeyboardInterrupt:
      raise KeyboardInterrupt(
        f"interrupted in k-means, after {done.restarts if done else 0} of "
        f"{restarts} searches; the same command goes on from there"
      ) from None
  kept.unlink(missing_ok=True)
  return fitted


def _read_searches(path: Path, identity: str) -> kmeans.Searched | None:
  """Reads what `fit` kept of the same frames and settings, if it is whole."""
  try:
    with np.load(path, allow_pickle=False) as kept:
      if str(kept["identity"]) == identity:
        return kmeans.Searched(
          int(kept["restarts"]), float(kept["score"]), kept["centroids"]
        )
  except _UNREADABLE:
    pass  # None was kept, or it is damaged.
  return None
