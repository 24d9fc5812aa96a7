"""Labels of a whole corpus: a codebook, then a cluster for every frame."""

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from ml_collections import ConfigDict
from tqdm import tqdm

from ssl_jax import FRAME_HOP, num_frames
from ssl_jax.data.label_writer import LabelWriter
from ssl_jax.data.labels import (
  codebook_id,
  corpus_hash,
  open_labels,
  read_codebook,
  read_header,
  write_codebook,
  write_header,
)
from ssl_jax.data.sources.source import Source
from ssl_jax.errors import UserError
from ssl_jax.files import claim, write_atomically
from ssl_jax.labelling import codebook as codebook_lib
from ssl_jax.labelling import picture, quality
from ssl_jax.pretrained import corpus_pass as frames_lib
from ssl_jax.signal import kmeans

_log = logging.getLogger("ssl_jax")
_SAVE_SECONDS = 30.0  # A kill undoes at most this much work.


def label_corpus(
  config: ConfigDict,
  sources: dict[str, Source],
  states: Callable[[jax.Array, jax.Array], jax.Array],
  clusters: int,
  origin: dict[str, Any],
  folder: Path,
  by_row: Sharding,
) -> dict[str, Any]:
  """Labels every frame of some splits with one codebook, fitted on "train".

  What an earlier call left in `folder` is gone on with; made anew if damaged.

  Args:
    config: of the run: kmeans, batches, reading.
    sources: {split: source}.
    states: waveform float [B, S], length [B] -> [B, T, D], what is clustered.
    clusters: K.
    origin: of the states, as JSON: `layer` and `checkpoint`.
    folder: of the labels (`ssl_jax.data.labels`).
    by_row: how a batch is placed on the devices.

  Returns:
    The header of the labels.

  Raises:
    UserError: `folder` holds other labels, or there are too few frames.
  """
  checkpoint = origin["checkpoint"] and dict(origin["checkpoint"], path="")
  identity = {
    "clusters": clusters,
    "origin": origin | {"checkpoint": checkpoint},  # Wherever it lies.
    "kmeans": config.kmeans.to_dict(),
    "seed": config.seed,
    "pieces": [*config.data.bucket_seconds, config.encode.batch_seconds],
    "corpus": {split: corpus_hash(source) for split, source in sources.items()},
  }
  claim(
    folder,
    "identity.json",
    json.dumps(identity, indent=2, sort_keys=True),
    "--out",
    "labels of another corpus, encoder, layer, number of clusters or config",
  )
  if (folder / "header.json").exists():
    try:
      for split, source in sources.items():
        open_labels(folder, split, source, clusters)
    except UserError as error:
      _log.warning("%s: making them anew", error)
      # The header last: killed before, the next call finds the damage again.
      progress = [f"{split}.progress.json" for split in sources]
      for name in (*progress, "codebook.npy", "header.json"):
        (folder / name).unlink(missing_ok=True)
    else:
      _log.info("these labels are complete: choose another --out for new ones")
      return read_header(folder)

  def frames_of(
    waveform: jax.Array, length: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    return states(waveform, length), num_frames(length)

  if not _has_codebook(folder):
    frames = frames_lib.sample(
      config, sources["train"], frames_of, FRAME_HOP, by_row
    )
    fitted = codebook_lib.fit(config, frames, clusters, by_row, folder)
    about = {
      "inertia": fitted.inertia,
      "fitted_frames": int(fitted.usage.sum()),
    }
    write_atomically(folder / "fit.json", json.dumps(about))
    write_codebook(folder, fitted.centroids)
  codebook = read_codebook(folder)
  about = json.loads((folder / "fit.json").read_text())
  identity["codebook"] = codebook_id(codebook)

  def labels_of(
    waveform: jax.Array, length: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    frames, real = frames_of(waveform, length)
    return kmeans.nearest(frames, codebook).astype(jnp.uint16), real

  splits = {
    split: _label_split(
      config, source, split, labels_of, identity, folder, by_row
    )
    for split, source in sources.items()
  }
  usage = np.sum([about["usage"] for about in splits.values()], axis=0)
  header = {
    "clusters": clusters,
    **origin,
    "codebook": identity["codebook"],
    **about,
    **quality.of_usage(usage),
    **quality.of_records(folder, sources, clusters),
    "splits": splits,
  }
  picture.draw(folder, usage, sources["train"])
  write_header(folder, header)
  return read_header(folder)


def _has_codebook(folder: Path) -> bool:
  try:
    read_codebook(folder)
    return bool(json.loads((folder / "fit.json").read_text()))
  except (UserError, OSError, ValueError):  # Missing or damaged.
    return False


def _label_split(
  config: ConfigDict,
  source: Source,
  split: str,
  labels_of: frames_lib.FramesOf,
  identity: dict[str, Any],
  folder: Path,
  by_row: Sharding,
) -> dict[str, Any]:
  writer = LabelWriter(folder, split, source, identity)
  pieces = frames_lib.make_pieces(config, source)
  with tqdm(
    total=len(pieces),
    initial=writer.done,
    desc=f"labelling {split}",
    unit="batch",
    disable=None,
  ) as bar:
    saved = time.monotonic()
    batches = frames_lib.each_batch(
      config, source, pieces, labels_of, by_row, writer.done
    )
    for done, batch in enumerate(batches, writer.done + 1):
      for clip, start, labels, real in zip(*batch):
        if clip >= 0:
          writer.write(int(clip), int(start) // FRAME_HOP, labels[:real])
      if time.monotonic() - saved > _SAVE_SECONDS:
        writer.checkpoint(done)
        saved = time.monotonic()
      bar.update()
  writer.checkpoint(len(pieces))
  return writer.finish()
