"""Frozen encoders: a trained one, its random twin, log-mel frames."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ssl_jax import num_frames
from ssl_jax.budget.flops import forward_flops
from ssl_jax.models.backbone import Backbone
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


def open_encoders(
  names: Sequence[str], checkpoint: str | None, seed: int
) -> tuple[list[FrozenEncoder], Path]:
  """Opens encoders, and finds the workdir that their scores belong to.

  Args:
    names: of `model`, `random`, `logmel` and `hf:DIR`.
    checkpoint: of the first two: a workdir, an update in it, or hf:DIR.
    seed: of `random`.
  """
  opened, beside = [], Path("runs")
  if checkpoint:
    loaded = trained.load_encoder(checkpoint)
    beside = loaded.workdir
  folders = [Path(name).name for name in names]
  for name in names:
    if name == "model":
      opened.append(of_checkpoint(loaded))
    elif name == "random":
      opened.append(random_twin(loaded, seed))
    elif name == "logmel":
      opened.append(log_mel())
    else:
      other = trained.load_encoder(name)
      alone = folders.count(Path(name).name) == 1
      label = f"hf:{other.workdir.name}" if alone else name
      opened.append(of_checkpoint(other, label))
  return opened, beside


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
