"""What is probed: a trained encoder, its random twin, log-mel frames."""

import dataclasses

import jax
import jax.numpy as jnp

from ssl_jax import num_frames
from ssl_jax.budget.flops import forward_flops
from ssl_jax.models.backbone import Backbone
from ssl_jax.pretrained import load as trained
from ssl_jax.probes.features import Encoder
from ssl_jax.signal import fbank

_MEL_BINS = 80


def of_checkpoint(loaded: trained.Encoder, name: str = "model") -> Encoder:
  """All hidden states of a trained encoder."""
  config = loaded.config
  shape = config.frontend.to_json(), config.encoder.to_json()
  return Encoder(
    name,
    loaded.all_states(),
    (config.encoder.num_layers + 1, config.encoder.hidden_size),
    f"{loaded.origin['params']} {loaded.origin['compute_dtype']} {shape}",
    loaded.origin,
    lambda num_samples: forward_flops(config, num_samples, 0).total,
  )


def random_twin(loaded: trained.Encoder, seed: int) -> Encoder:
  """The same architecture, untrained."""
  backbone = Backbone(loaded.config, jnp.float32)
  params = backbone.init(
    jax.random.key(seed), jnp.zeros((1, 3200)), jnp.full(1, 3200)
  )["params"]
  origin = loaded.origin | {"params": f"random {seed}"}
  twin = dataclasses.replace(loaded, params=params, origin=origin)
  return of_checkpoint(twin, "random")


def log_mel() -> Encoder:
  """Kaldi's log filterbanks, of two frames of 10 ms each. [1, B, T, 160]."""

  def states(waveform: jax.Array, length: jax.Array) -> jax.Array:
    mels = fbank.log_mel(waveform, _MEL_BINS)
    count = fbank.num_fbank_frames(length)
    frames = num_frames(waveform.shape[1])
    return fbank.stack_pairs(mels, count, frames)[None]

  return Encoder(
    "logmel",
    states,
    (1, 2 * _MEL_BINS),
    f"log-mel {_MEL_BINS}",
    {},
    lambda num_samples: float(fbank.spectrum_flops(num_samples, _MEL_BINS)),
  )
