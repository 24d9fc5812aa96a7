"""A trained encoder, read back from a workdir or from another library."""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ssl_jax import FRAME_WINDOW, SAMPLE_RATE, num_frames
from ssl_jax import config as config_lib
from ssl_jax.checkpoints.manager import restore_params
from ssl_jax.config import validate
from ssl_jax.errors import UserError, check_choice, one_line
from ssl_jax.files import read_object
from ssl_jax.models import encoders
from ssl_jax.models.backbone import Backbone, compute_dtype
from ssl_jax.models.encoders import ENCODERS
from ssl_jax.models.frontends import FRONTENDS
from ssl_jax.objectives import OBJECTIVES
from ssl_jax.pretrained import hf_read

_HF = "hf:"
_ATTEMPTS = 5  # To read a checkpoint while a run replaces it.

# Lengths that clips are padded to, in samples: each is compiled once.
PADDED = tuple(
  SAMPLE_RATE * n for n in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 45, 60)
)


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder:
  """A backbone and its parameters.

  Attributes:
    config: of the run that trained it.
    params: of the backbone.
    origin: {path, update (None: not known), params: their hash,
      compute_dtype}.
    workdir: of that run.
    spent: the counters of its checkpoint; None: not known.
  """

  config: ConfigDict
  params: Any
  origin: dict[str, Any]
  workdir: Path
  spent: dict[str, Any] | None = None

  def __call__(
    self,
    waveform: np.ndarray | Sequence[np.ndarray],
    layer: int | str | None = None,
  ) -> np.ndarray | list[np.ndarray]:
    """Encodes a clip, or each of a list of clips.

    Args:
      waveform: [S] of 16 kHz mono, floats in [-1, 1] or int16; or a list of
        such.
      layer: whose output it is, 0 being the input of the first; None: the last;
        "all": every one.

    Returns:
      float32 [T, D], a frame every 20 ms; of "all" [L + 1, T, D]; a list of
      these for a list.

    Raises:
      UserError: a clip is shorter than a frame, or no such array; there is no
        such layer.
    """
    if not isinstance(waveform, list | tuple):
      return self([waveform], layer)[0]
    compute, found = self._compiled(layer), []
    for clip in map(_as_float, waveform):
      padded = next((n for n in PADDED if n >= len(clip)), 0)
      padded = padded or -(-len(clip) // PADDED[-1]) * PADDED[-1]
      rows = np.pad(clip, (0, padded - len(clip)))[None]
      states = compute(rows, np.full(1, len(clip), np.int32))
      frames = np.asarray(states, np.float32)[
        ..., 0, : num_frames(len(clip)), :
      ]
      found.append(frames)
    return found

  @functools.cached_property
  def _known(self) -> dict[Any, Callable]:
    return {}

  def _compiled(self, layer: int | str | None) -> Callable:
    last = self.config.encoder.num_layers
    layer = last if layer is None else layer
    if layer not in self._known:
      states = self.all_states() if layer == "all" else self.states(layer)
      self._known[layer] = jax.jit(states)
    return self._known[layer]

  def all_states(self) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Returns `states(waveform [B, S] float, length [B]) -> [L + 1, B, T, D]`.

    Each layer's input, then the last state.
    """
    return _states(self.config, self.params)

  def states(self, layer: int) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Returns `states(waveform [B, S] float, length [B]) -> [B, T, D]`.

    Args:
      layer: whose output it is; 0 is the input of the first. Later layers are
        not computed.

    Raises:
      UserError: there is no such layer.
    """
    config = self.config.copy_and_resolve_references()
    if not 0 <= layer <= config.encoder.num_layers:
      raise UserError(
        f"layer {layer}: {self.origin['path']} has layers 0 to "
        f"{config.encoder.num_layers}"
      )
    # A pre-norm encoder applies its final norm after the last layer only: one
    # layer more is kept, and its input returned.
    pre_norm = encoders.make_block(config.encoder).norm_first
    kept = layer + 1 if pre_norm else max(1, layer)
    config.encoder.num_layers = kept = min(kept, config.encoder.num_layers)
    params = self.params | {"encoder": dict(self.params["encoder"])}
    params["encoder"]["layers"] = jax.tree.map(
      lambda x: x[:kept], params["encoder"]["layers"]
    )
    states = _states(config, params)
    return lambda waveform, length: states(waveform, length)[layer]


def _states(
  config: ConfigDict, params: Any
) -> Callable[[jax.Array, jax.Array], jax.Array]:
  backbone = Backbone(config, compute_dtype(config))

  def states(waveform: jax.Array, length: jax.Array) -> jax.Array:
    encoded = backbone.apply(
      {"params": params}, waveform, length, all_states=True
    )
    return encoded.hidden

  return states


def _as_float(waveform: np.ndarray) -> np.ndarray:
  clip = np.asarray(waveform)
  if clip.dtype == np.int16:
    clip = clip.astype(np.float32) / 2**15
  if clip.ndim != 1 or not np.issubdtype(clip.dtype, np.floating):
    raise UserError(
      f"a clip is {clip.dtype} of shape {clip.shape}: expected mono samples "
      "[S] at 16 kHz, floats or int16"
    )
  if len(clip) < FRAME_WINDOW:
    raise UserError(
      f"a clip of {len(clip)} samples is shorter than a frame ({FRAME_WINDOW})"
    )
  return clip.astype(np.float32)


def load_encoder(path: Path | str) -> Encoder:
  """Reads the encoder of a workdir's newest checkpoint, or of a given one.

  Args:
    path: a workdir, or WORKDIR/checkpoints/UPDATE; or hf:DIR, a HuBERT or
      wav2vec 2.0 that transformers saved.

  Raises:
    UserError: it holds no checkpoint, or one of another architecture.
  """
  if str(path).startswith(_HF):
    folder = Path(str(path).removeprefix(_HF)).expanduser()
    config, params = hf_read.read(folder)
    origin = _origin(f"{_HF}{folder}", None, config, params)
    return Encoder(config, params, origin, Path("runs") / folder.name)
  path = Path(path)
  for _ in range(_ATTEMPTS):
    folder, saved = _locate(path)
    try:
      return _read(path, folder, saved)
    except UserError:
      if _locate(path)[0] == folder:
        raise  # Otherwise a run saves there, and removed this one.
  raise UserError(
    f"{path}: a run saves there faster than this can read: wait for it, or "
    "give one of its checkpoints/UPDATE"
  )


def _read(path: Path, folder: Path, saved: dict[str, Any]) -> Encoder:
  config = config_lib.base()
  try:
    name = saved["objective"]["name"]
    own = ("objective", name) if name in OBJECTIVES else ()
    block = {"name": config.encoder.name} | saved["encoder"]
    check_choice("config.frontend.name", saved["frontend"]["name"], FRONTENDS)
    check_choice("config.encoder.name", block["name"], ENCODERS)
    for section in (*own, "frontend", "encoder", "masking"):
      config[section].update(saved[section])
    config.compute_dtype = saved["compute_dtype"]
    validate(config)
  except Exception as error:  # The file may hold anything.
    raise UserError(
      f"{path}: config.json is not of this version ({one_line(error)})"
    ) from error
  shapes = jax.eval_shape(
    Backbone(config, jnp.float32).init,
    jax.random.key(0),
    jnp.zeros((1, 3200)),
    jnp.full(1, 3200),
  )["params"]
  params, spent = restore_params(folder, {"backbone": shapes})
  params = params["backbone"]
  origin = _origin(path, int(folder.name), config, params)
  return Encoder(config, params, origin, folder.parents[1], spent)


def _origin(
  path: Path | str, update: int | None, config: ConfigDict, params: Any
) -> dict[str, Any]:
  digest = hashlib.sha256()
  for leaf in jax.tree.leaves(params):
    digest.update(np.ascontiguousarray(leaf))
  return {
    "path": str(path),
    "update": update,
    "params": digest.hexdigest()[:16],
    "compute_dtype": jnp.dtype(compute_dtype(config)).name,
  }


def _locate(path: Path) -> tuple[Path, dict[str, Any]]:
  """The folder of a checkpoint, and the config it was trained with."""
  folder = path
  if not (path.name.isdecimal() and path.parent.name == "checkpoints"):
    saved = path / "checkpoints"
    updates = (
      [int(p.name) for p in saved.iterdir() if p.name.isdecimal()]
      if os.path.isdir(saved)
      else []
    )
    if not updates:
      meant = f", or {_HF}{path} for a directory of transformers"
      raise UserError(
        f"{path} holds no checkpoint: give the --workdir of a training run, or "
        f"one of its checkpoints/UPDATE{meant if os.path.isdir(path) else ''}"
      )
    folder = saved / str(max(updates))
  try:
    config = read_object(folder.parents[1] / "config.json")
  except (OSError, ValueError) as error:  # Missing, or no JSON.
    raise UserError(f"{path}: no readable config.json ({error})") from error
  return folder, config
