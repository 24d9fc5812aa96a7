"""Codebooks: k-means on frames sampled from a source."""

import io
import logging
import zipfile
import zlib
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Sharding
from ml_collections import ConfigDict
from tqdm import tqdm

from ssl_jax.data.labels import read_codebook, write_codebook
from ssl_jax.data.sources.source import Source
from ssl_jax.errors import UserError
from ssl_jax.files import write_atomically
from ssl_jax.objectives import make_objective
from ssl_jax.pretrained import corpus_pass as frames_lib
from ssl_jax.signal import fbank, kmeans

_log = logging.getLogger("ssl_jax")
_UNREADABLE = (OSError, ValueError, LookupError, EOFError, zlib.error)
_UNREADABLE += (zipfile.BadZipFile,)


def mfcc_codebooks(
  config: ConfigDict, workdir: Path, source: Source
) -> tuple[np.ndarray, ...]:
  """Returns the codebooks that the run's objective asks for, [K, 39] each.

  Fitted on a sample of the training audio and saved in the workdir, or reused
  from there, or from the trunk run, whose head was trained on those clusters.
  One device does it, so that the labels do not depend on their number.

  Raises:
    UserError: too few frames, or a damaged file.
  """
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  codebooks, frames = [], None
  for clusters in make_objective(config).fitted_codebooks():
    folder = workdir / f"mfcc-{clusters}"
    theirs = Path(config.budget.trunk or workdir) / folder.name
    if (folder / "codebook.npy").exists():
      codebooks.append(read_codebook(folder))
      continue
    if (theirs / "codebook.npy").exists():
      codebooks.append(read_codebook(theirs))
      write_codebook(folder, codebooks[-1])
      continue
    if frames is None:
      frames = frames_lib.sample(
        config, source, frames_lib.mfcc, fbank.HOP, device
      )
    fitted = fit(config, frames, clusters, device, folder)
    write_codebook(folder, fitted.centroids)
    codebooks.append(fitted.centroids)
  return tuple(codebooks)


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
