"""Frozen encoders: a trained one, its random twin, log-mel and MFCC frames."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ssl_jax import num_frames
from ssl_jax.budget.flops import forward_flops
from ssl_jax.errors import UserError
from ssl_jax.models.backbone import Backbone
from ssl_jax.objectives import mfcc as mfcc_lib
from ssl_jax.pretrained import load as trained
from ssl_jax.signal import fbank

_MEL_BINS = 80


class FrozenEncoder(NamedTuple):
  """All that a probe knows of an encoder: one function, and what it costs.

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


class Candidate(NamedTuple):
  """An encoder that is probed, or its pretraining seeds, under one name."""

  name: str
  seeds: list[FrozenEncoder]


def open_candidates(
  names: Sequence[str], checkpoints: Sequence[str], seed: int
) -> tuple[list[Candidate], Path]:
  """Opens encoders, and finds the workdir that their scores belong to.

  Args:
    names: of `model`, `random`, `logmel`, `mfcc`, workdirs and `hf:DIR`.
    checkpoints: of the first two: workdirs, updates in them, or hf:DIR; several
      are pretraining seeds of one recipe.
    seed: of `random`.

  Raises:
    UserError: checkpoints are not of one architecture.
  """
  loaded = [trained.load_encoder(checkpoint) for checkpoint in checkpoints]
  for checkpoint, one in zip(checkpoints, loaded):
    if _recipe(one) != _recipe(loaded[0]):
      raise UserError(
        f"--checkpoint={checkpoint} has not the frontend, the encoder and the "
        f"objective of {checkpoints[0]}: several are seeds of one recipe"
      )
  if len({one.origin["params"] for one in loaded}) < len(loaded):
    raise UserError(
      "--checkpoint: one encoder is given twice; several are seeds"
    )
  beside = loaded[0].workdir if loaded else Path("runs")
  opened = []
  for name in names:
    if name == "model":
      seeds = [of_checkpoint(one) for one in loaded]
    elif name == "random":
      seeds = [random_twin(one, seed + i) for i, one in enumerate(loaded)]
    elif name in _SIGNALS:
      seeds = [_SIGNALS[name]()]
    else:
      other = trained.load_encoder(name)
      kind = "hf:" if name.startswith("hf:") else ""
      label = f"{kind}{other.workdir.name}"
      seeds = [of_checkpoint(other, label)]
    opened.append(Candidate(seeds[0].name, seeds))
  called = [candidate.name for candidate in opened]
  for place, name in enumerate(names):
    if called.count(called[place]) > 1:  # Each goes by all of its name.
      opened[place] = opened[place]._replace(name=name)
  return opened, beside


def _recipe(loaded: trained.Encoder) -> tuple:
  """Returns what pretraining seeds have in common."""
  config = loaded.config
  return (
    config.frontend.to_json(),
    config.encoder.to_json(),
    config.objective.name,
  )


def of_checkpoint(
  loaded: trained.Encoder, name: str = "model"
) -> FrozenEncoder:
  """Returns a trained encoder with all its hidden states."""
  config = loaded.config
  shape = config.frontend.to_json(), config.encoder.to_json()
  return FrozenEncoder(
    name,
    loaded.all_states(),
    (config.encoder.num_layers + 1, config.encoder.hidden_size),
    f"{loaded.origin['params']} {loaded.origin['compute_dtype']} {shape}",
    loaded.origin,
    lambda num_samples: forward_flops(config, num_samples, 0).total,
  )


def random_twin(loaded: trained.Encoder, seed: int) -> FrozenEncoder:
  """Returns the same architecture, untrained."""
  backbone = Backbone(loaded.config, jnp.float32)
  params = backbone.init(
    jax.random.key(seed), jnp.zeros((1, 3200)), jnp.full(1, 3200)
  )["params"]
  origin = loaded.origin | {"params": f"random {seed}"}
  twin = dataclasses.replace(loaded, params=params, origin=origin)
  return of_checkpoint(twin, "random")


def log_mel() -> FrozenEncoder:
  """Returns Kaldi's log filterbanks, pairs of 10 ms frames. [1, B, T, 160]."""

  def states(waveform: jax.Array, length: jax.Array) -> jax.Array:
    mels = fbank.log_mel(waveform, _MEL_BINS)
    count = fbank.num_fbank_frames(length)
    frames = num_frames(waveform.shape[1])
    return fbank.stack_pairs(mels, count, frames)[None]

  return FrozenEncoder(
    "logmel",
    states,
    (1, 2 * _MEL_BINS),
    f"log-mel {_MEL_BINS}",
    {},
    lambda num_samples: float(fbank.spectrum_flops(num_samples, _MEL_BINS)),
  )


def mfcc() -> FrozenEncoder:
  """Returns MFCC with deltas, each clip's standardised. [1, B, T, 39]."""

  def states(waveform: jax.Array, length: jax.Array) -> jax.Array:
    return mfcc_lib.at_frames("mfcc_clip", waveform, length)[None]

  return FrozenEncoder(
    "mfcc",
    states,
    (1, 39),
    "MFCC 39, of each clip",
    {},
    lambda num_samples: float(fbank.mfcc_flops(num_samples)),
  )


# Frames that need no encoder, by name.
_SIGNALS = {"logmel": log_mel, "mfcc": mfcc}
