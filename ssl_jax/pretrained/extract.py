"""Hidden states of audio files, written to files of their own."""

import collections
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from tqdm import tqdm

from ssl_jax import FRAME_WINDOW, SAMPLE_RATE, num_frames
from ssl_jax import config as config_lib
from ssl_jax.data.batch_plan import Rows
from ssl_jax.data.pieces import Pieces
from ssl_jax.data.sources import folder, manifest
from ssl_jax.data.sources import skipped as skipped_lib
from ssl_jax.data.sources.source import AudioFiles
from ssl_jax.devices import sharding
from ssl_jax.errors import UserError
from ssl_jax.files import claim, read_object
from ssl_jax.pretrained.corpus_pass import each_batch
from ssl_jax.pretrained.feature_files import Index, audio_facts, writer
from ssl_jax.pretrained.load import PADDED, Encoder


def open_inputs(inputs: Sequence[str]) -> AudioFiles:
  """The clips of files, folders and manifests.

  Raises:
    UserError: an input does not exist or has no audio; two clips have one name.
  """
  clips = []
  for name in inputs:
    path = Path(name).expanduser()
    if os.path.isfile(path) and path.suffix not in manifest.MANIFESTS:
      clips.append(manifest.Clip(path.name, str(path), {}))
    else:
      clips += manifest.find_clips(path, name)
  taken: dict[str, manifest.Clip] = {}
  for clip in clips:
    other = taken.setdefault(clip.id, clip)
    if (other.path, other.span) != (clip.path, clip.span):
      raise UserError(
        f"{other.path} and {clip.path} are both {clip.id}: give each an --out "
        "of its own, or their folder as an input"
      )
  _places([*taken])
  source = manifest.open_clips([*taken.values()])
  long = np.flatnonzero(source.num_samples >= FRAME_WINDOW)
  skipped = source.skipped + [
    (source.ids[i], f"shorter than a frame of {FRAME_WINDOW} samples")
    for i in np.flatnonzero(source.num_samples < FRAME_WINDOW)
  ]
  name = " ".join(inputs)
  if not len(long):
    raise UserError(f"{name}: no usable audio ({': '.join(skipped[0])})")
  skipped_lib.report(name, len(long), skipped)
  source = source.select(long)
  source.skipped[:] = skipped
  return source


def _places(clips: Sequence[str]) -> list[Path]:
  """The paths of clips' features, without the format's ending.

  An ending of audio is left out, unless clips differ in nothing else. Names
  that begin at the root, as a manifest's may, begin at the folder.

  Raises:
    UserError: outside of the folder.
  """
  paths = [PurePosixPath(clip.lstrip("/")) for clip in clips]
  for path in paths:
    if ".." in path.parts or not path.name:
      raise UserError(f"clip {str(path)!r}: its features would leave --out")
  stems = [
    path.with_suffix("") if path.suffix.lower() in folder.EXTENSIONS else path
    for path in paths
  ]
  taken = collections.Counter(stems) + collections.Counter(set(paths))
  places = [
    Path(stem if stem == path or taken[stem] == 1 else path)
    for path, stem in zip(paths, stems)
  ]
  twice = collections.Counter(places).most_common(1)
  if twice and twice[0][1] > 1:
    raise UserError(
      f"{twice[0][1]} clips would become {twice[0][0]}: give each an --out of "
      "its own"
    )
  return places


def states_of(
  encoder: Encoder, layer: str, probe: Path | None
) -> tuple[Callable[[jax.Array, jax.Array], jax.Array], dict[str, Any]]:
  """Returns the features of a batch [B, T, ...], and their identity as JSON.

  Args:
    encoder: whose states they are.
    layer: a number; all, [B, T, L + 1, D]; or weighted, the sum that a probe's
      head learned.
    probe: of `weighted`, a result of `ssl_jax.probe`; None: the only one in the
      encoder's workdir.

  Raises:
    UserError: there is no such layer, or no such probe of this encoder.
  """
  identity = {"layer": layer, "params": encoder.origin["params"]}
  if layer.isdecimal():
    return encoder.states(int(layer[:9])), identity
  all_states = encoder.all_states()
  if layer == "all":
    return lambda *clip: all_states(*clip).transpose(1, 2, 0, 3), identity
  if layer != "weighted":
    raise UserError(f"--layer={layer}: expected all, weighted or a number")
  weights, normalized = _layer_weights(encoder, probe)

  def weighted(waveform: jax.Array, length: jax.Array) -> jax.Array:
    states = all_states(waveform, length).astype(jnp.float32)
    if normalized:  # As the probe had them.
      states -= states.mean(axis=-1, keepdims=True)
      states *= jax.lax.rsqrt(states.var(axis=-1, keepdims=True) + 1e-5)
    return jnp.tensordot(jnp.array(weights), states, 1)

  return weighted, identity | {"weights": weights, "normalized": normalized}


def _layer_weights(
  encoder: Encoder, probe: Path | None
) -> tuple[list[float], bool]:
  if probe is None:
    # Results of measures have no weights of layers.
    found = [
      path
      for path in sorted((encoder.workdir / "probes").glob("*.json"))
      if "layer_weights" in path.read_text("utf-8")
    ]
    if len(found) != 1:
      some = ", ".join(map(str, found)) or f"none in {encoder.workdir}/probes"
      raise UserError(
        f"--layer=weighted: give --probe=FILE, a result of ssl_jax.probe on "
        f"this encoder ({some})"
      )
    probe = found[0]
  try:
    result = read_object(probe)
    weights = [float(w) for w in result["layer_weights"]]
    theirs, normalized = result["origin"]["params"], bool(result["normalized"])
    if not all(abs(weight) < 1e30 for weight in weights):
      raise ValueError("weights that are not finite")
  except (OSError, ValueError, OverflowError, KeyError, TypeError) as error:
    raise UserError(
      f"--probe={probe} is no probe's result ({error})"
    ) from error
  if theirs != encoder.origin["params"]:
    raise UserError(
      f"--probe={probe} is of another encoder, or another update: probe "
      f"{encoder.origin['path']} again"
    )
  if len(weights) != encoder.config.encoder.num_layers + 1:
    raise UserError(
      f"--probe={probe} has weights of {len(weights)} layers, not "
      f"{encoder.config.encoder.num_layers + 1}"
    )
  return weights, normalized


class _Plan:
  """Batches of whole clips; then, one after another, clips cut into pieces."""

  def __init__(
    self, num_samples: np.ndarray, clips: np.ndarray, batch_seconds: float
  ):
    short = clips[num_samples[clips] <= PADDED[-1]]
    order = short[np.argsort(num_samples[short], kind="stable")]
    parts = [Pieces(num_samples, order, PADDED, batch_seconds)]
    parts += [
      Pieces(num_samples, np.array([clip]), PADDED[-1:], batch_seconds)
      for clip in clips[num_samples[clips] > PADDED[-1]]
    ]
    self._batches = [(part, i) for part in parts for i in range(len(part))]

  def __len__(self) -> int:
    return len(self._batches)

  def batch(self, index: int) -> Rows:
    """Batch number `index`."""
    part, place = self._batches[index]
    return part.batch(place)


def files_of(source: AudioFiles, kind: str) -> list[Path]:
  """Returns the path of each clip's features, within --out."""
  return [
    place.with_name(f"{place.name}.{kind}") for place in _places(source.ids)
  ]


def extract(
  source: AudioFiles,
  states: Callable[[jax.Array, jax.Array], jax.Array],
  identity: dict[str, Any],
  kind: str,
  out: Path,
  by_row: Sharding,
) -> dict[str, Any]:
  """Writes a file a clip, and `index.jsonl` of all in `out`.

  Finished ones are kept, but for those of files that have changed since.

  Clips longer than `PADDED`'s last are encoded in pieces of that length.

  Args:
    source: of the clips.
    states: of a batch, as `states_of` gives it.
    identity: of the states.
    kind: npz, npy or parquet.
    out: the folder.
    by_row: how a batch is placed on the devices.

  Returns:
    files, skipped, audio_seconds, bytes.

  Raises:
    UserError: `out` holds other features, or those of other audio by one of
      the names, or cannot be written to.
  """
  write = writer(kind)
  text = json.dumps(identity | {"format": kind}, indent=2, sort_keys=True)
  held = "features of another encoder, layer or format"
  claim(out, "features.json", text, "--out", held)
  names = [file.as_posix() for file in files_of(source, kind)]
  index = Index(out)
  audio = [audio_facts(file) for file in source.paths]
  if source.parts:
    audio = [
      facts | ({"part": [*part]} if part else {})
      for facts, part in zip(audio, source.parts)
    ]
  pairs = enumerate(zip(names, audio))
  todo = [i for i, (name, facts) in pairs if not index.has(name, facts)]
  seconds = source.num_samples / SAMPLE_RATE
  bar = tqdm(
    total=float(seconds.sum()),
    initial=float(seconds.sum() - seconds[todo].sum()),
    desc="extracting",
    unit="s",
    unit_scale=True,
    delay=1,
    disable=None,
  )
  with bar, index:
    for clip, frames in _each_clip(
      source, states, np.array(todo, np.int64), by_row
    ):
      (out / names[clip]).parent.mkdir(parents=True, exist_ok=True)
      write(out / names[clip], frames)
      line = {
        "id": source.ids[clip],
        "file": names[clip],
        "frames": len(frames),
        "seconds": float(seconds[clip]),
      }
      index.add(line | audio[clip])
      bar.update(float(seconds[clip]))
  kept = [i for i in range(len(names)) if index.has(names[i], audio[i])]
  return {
    "files": len(kept),
    "skipped": len(source.skipped) + len(source.damaged),
    "audio_seconds": float(seconds[kept].sum()),
    "bytes": sum((out / names[i]).stat().st_size for i in kept),
  }


def _each_clip(
  source: AudioFiles,
  states: Callable[[jax.Array, jax.Array], jax.Array],
  clips: np.ndarray,
  by_row: Sharding,
) -> Iterator[tuple[int, np.ndarray]]:
  """Yields (clip, float32 frames [T, ...]) of each clip that can be read."""
  if not len(clips):
    return

  def frames_of(
    waveform: jax.Array, length: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    return states(waveform, length).astype(jnp.float32), num_frames(length)

  config = config_lib.base()
  plan = _Plan(source.num_samples, clips, config.encode.batch_seconds)
  frames = num_frames(source.num_samples)
  num_parts = np.maximum(1, -(-frames // num_frames(PADDED[-1])))
  parts: list[np.ndarray] = []  # So far, of the clip that comes in pieces.
  previous = -1
  for found, _, rows, real in each_batch(
    config, source, plan, sharding.suited(by_row, frames_of), by_row
  ):
    for clip, row, n in zip(found.tolist(), rows, real.tolist()):
      if clip < 0:
        continue
      parts = [*parts, row[:n]] if clip == previous else [row[:n]]
      previous = clip
      # Frames do not tell: compressed audio may end a little early.
      if len(parts) == num_parts[clip]:
        yield clip, np.concatenate(parts)
  if source.damaged:
    logging.getLogger("ssl_jax").warning(
      "%d clips could not be read; they have no features", len(source.damaged)
    )
