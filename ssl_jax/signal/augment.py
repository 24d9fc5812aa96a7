"""Alterations of the waveform, each drawn from a clip's key.

Chen et al. 2022 (WavLM, section III-B): another clip, or noise, is mixed into a
part of a clip. Noise is Gaussian, coloured at random; rooms are exponentially
decaying noise (Polack's model), convolved by FFT. Kharitonov et al. 2021
(WavAugment): a span falls silent, a band is filtered out.
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ssl_jax import SAMPLE_RATE
from ssl_jax.errors import UserError
from ssl_jax.knobs import Knob

_PURPOSES = ("mix", "noise", "reverb", "gain", "drop", "band")

KNOBS = {
  "mix_prob": Knob(
    0.0, "Share of clips mixed with a part of another clip.", high=1.0
  ),
  "mix_snr_db": Knob(
    (-5.0, 5.0),
    "Least and most decibels of the clip over the one mixed in.",
    low=-1_000.0,
    high=1_000.0,
  ),
  "noise_prob": Knob(
    0.0, "Share of clips with noise added to a part.", high=1.0
  ),
  "noise_snr_db": Knob(
    (-5.0, 20.0),
    "Least and most decibels of the clip over the noise.",
    low=-1_000.0,
    high=1_000.0,
  ),
  "reverb_prob": Knob(
    0.0, "Share of clips played in a synthetic room.", high=1.0
  ),
  "reverb_seconds": Knob(
    (0.2, 0.8), "Least and most reverberation time (T60) of a room, seconds."
  ),
  "gain_db": Knob(
    0.0, "Decibels a clip is made louder or softer by, at most.", high=100.0
  ),
  "drop_prob": Knob(
    0.0, "Share of clips with a part replaced by silence.", high=1.0
  ),
  "drop_seconds": Knob(
    0.5, "Longest silence put in a clip, seconds.", high=3_600.0
  ),
  "band_prob": Knob(
    0.0, "Share of clips with a band of frequencies removed.", high=1.0
  ),
  "band_hz": Knob(1000.0, "Widest band removed from a clip, Hz.", high=8_000.0),
  "speed_prob": Knob(
    0.0,
    "Share of clips played at another speed, pitch and all. Their targets are "
    "made of the clip at that speed.",
    high=1.0,
  ),
  "speeds": Knob((0.9, 1.1), "Speeds to draw from.", low=0.5, high=2.0),
}


def check(config: ConfigDict) -> None:
  """Checks the knobs of `config.augment` against each other.

  Raises:
    UserError: a pair is not a least and a most.
  """
  for key in ("mix_snr_db", "noise_snr_db", "reverb_seconds"):
    value = config.augment[key]
    if len(value) != 2 or value[0] > value[1]:
      raise UserError(
        f"config.augment.{key}={value!r}: expected a least and a most"
      )
  least, most = config.augment.reverb_seconds
  if least <= 0 or most > 60:
    raise UserError(
      f"config.augment.reverb_seconds={config.augment.reverb_seconds!r}: "
      "expected times above 0, up to 60"
    )


def augment(
  config: ConfigDict, waveform: jax.Array, length: jax.Array, keys: jax.Array
) -> jax.Array:
  """Alters clips as `config` says; padding stays 0. [B, S] -> [B, S].

  Args:
    config: `config.augment`.
    waveform: float [B, S].
    length: [B] samples.
    keys: [B].
  """
  real = jnp.arange(waveform.shape[1]) < length[:, None]
  keys = {
    name: jax.vmap(jax.random.fold_in, (0, None))(keys, i)
    for i, name in enumerate(_PURPOSES)
  }
  if config.mix_prob:
    others = _others(waveform, length, keys["mix"])
    snr = config.mix_snr_db
    waveform = _add(waveform, others, length, keys["mix"], config.mix_prob, snr)
  if config.reverb_prob:
    reverberate = jax.vmap(_reverberate, (0, 0, None))
    altered = reverberate(waveform, keys["reverb"], config.reverb_seconds)
    where = _chosen(keys["reverb"], config.reverb_prob)
    waveform = jnp.where(where[:, None], altered, waveform)
  if config.noise_prob:
    noise = jax.vmap(_noise, (0, None))(keys["noise"], waveform.shape[1])
    snr = config.noise_snr_db
    waveform = _add(
      waveform, noise, length, keys["noise"], config.noise_prob, snr
    )
  if config.band_prob:
    without = jax.vmap(_without_band, (0, 0, None))
    altered = without(waveform, keys["band"], config.band_hz)
    where = _chosen(keys["band"], config.band_prob)
    waveform = jnp.where(where[:, None], altered, waveform)
  if config.drop_prob:
    span = jax.vmap(_span, (None, 0, 0, None))
    most = config.drop_seconds * SAMPLE_RATE
    silent = span(waveform.shape[1], length, keys["drop"], most)
    where = _chosen(keys["drop"], config.drop_prob)
    waveform = jnp.where(silent & where[:, None], 0, waveform)
  if config.gain_db:
    draw = jax.vmap(lambda k: jax.random.uniform(k, (), minval=-1.0))
    gain = 10 ** (config.gain_db / 20 * draw(keys["gain"]))
    waveform = gain[:, None] * waveform
  return jnp.where(real, waveform, 0)


def mix_at(
  waveform: jax.Array, other: jax.Array, where: jax.Array, snr_db: jax.Array
) -> jax.Array:
  """Adds `other` at some samples, so much below the clip's power there.

  Args:
    waveform: float [S].
    other: float [S], of any level.
    where: bool [S].
    snr_db: power of the clip over that of what is added, in dB.
  """

  def power(x: jax.Array) -> jax.Array:
    total = jnp.where(where, jnp.square(x), 0).sum()
    return total / jnp.maximum(1, where.sum())

  ratio = power(waveform) / jnp.maximum(power(other), 1e-12)
  scale = jnp.sqrt(ratio * 10 ** (-snr_db / 10))
  return waveform + jnp.where(where, scale * other, 0)


def _add(
  waveform: jax.Array,
  other: jax.Array,
  length: jax.Array,
  keys: jax.Array,
  prob: float,
  snr_db: tuple[float, float],
) -> jax.Array:
  """Mixes into a part, at most half, of the clips that are chosen."""

  def one(
    row: jax.Array, other: jax.Array, length: jax.Array, key: jax.Array
  ) -> jax.Array:
    where = _span(row.size, length, key, length / 2)
    low, high = snr_db
    level = jax.random.uniform(jax.random.fold_in(key, 7))
    return mix_at(row, other, where, low + (high - low) * level)

  mixed = jax.vmap(one)(waveform, other, length, keys)
  return jnp.where(_chosen(keys, prob)[:, None], mixed, waveform)


def _span(
  size: int, length: jax.Array, key: jax.Array, most: jax.Array | float
) -> jax.Array:
  """Returns a random part of a clip, of up to `most` samples. Bool [size]."""
  share, place = jax.random.uniform(jax.random.fold_in(key, 1), (2,))
  count = jnp.minimum(jnp.ceil(share * most), length)
  start = jnp.floor(place * (length - count))
  time = jnp.arange(size)
  return (time >= start) & (time < start + count)


def _chosen(keys: jax.Array, prob: float) -> jax.Array:
  draw = jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(k, 0)))
  return draw(keys) < prob


def _others(
  waveform: jax.Array, length: jax.Array, keys: jax.Array
) -> jax.Array:
  """Another clip of the batch for each, repeated to fill the row. [B, S]."""
  # Empty rows are never picked: these fill up the devices, or are damaged.
  real = length > 0
  order, rank = jnp.argsort(~real, stable=True), jnp.cumsum(real) - 1
  count = jnp.maximum(1, real.sum())
  draw = jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(k, 2)))
  step = 1 + jnp.floor(draw(keys) * (count - 1)).astype(jnp.int32)
  other = order[(rank + step) % count]
  time = jnp.arange(waveform.shape[1]) % jnp.maximum(1, length[other])[:, None]
  others = jnp.take_along_axis(waveform[other], time, axis=1)
  alone = other == jnp.arange(len(other))
  return jnp.where(alone[:, None], 0, others)


def _noise(key: jax.Array, num_samples: int) -> jax.Array:
  """Gaussian, its power falling by 0 to 6 dB an octave. [S]."""
  white = jax.random.normal(jax.random.fold_in(key, 3), (num_samples,))
  slope = jax.random.uniform(jax.random.fold_in(key, 4))
  spectrum = jnp.fft.rfft(white)
  frequency = jnp.maximum(1, jnp.arange(spectrum.size))
  return jnp.fft.irfft(spectrum * frequency**-slope, n=num_samples)


def _reverberate(
  waveform: jax.Array, key: jax.Array, seconds: tuple[float, float]
) -> jax.Array:
  """Convolves [S] with a room of a random reverberation time (T60)."""
  low, high = seconds
  draws = jax.random.uniform(jax.random.fold_in(key, 5), (2,))
  t60 = low + (high - low) * draws[0]
  taps = round(high * SAMPLE_RATE)
  time = jnp.arange(taps) / SAMPLE_RATE
  # 60 dB are a factor of 1000 in amplitude.
  tail = jax.random.normal(jax.random.fold_in(key, 6), (taps,))
  tail *= jnp.exp(-jnp.log(1000.0) * time / t60)
  tail = tail.at[0].set(0.0)
  tail /= jnp.maximum(jnp.linalg.norm(tail), 1e-12)
  # The direct sound stays where it was; as loud as the room, up to 10 dB above.
  room = tail * 10 ** (-draws[1] / 2)
  room = room.at[0].set(1.0) / jnp.sqrt(1 + jnp.square(room).sum())
  return convolve(waveform, room)


def _without_band(
  waveform: jax.Array, key: jax.Array, most_hz: float
) -> jax.Array:
  """Leaves out a random band of [S], of up to `most_hz`."""
  share, place = jax.random.uniform(jax.random.fold_in(key, 8), (2,))
  width = share * most_hz
  low = place * (SAMPLE_RATE / 2 - width)
  spectrum = jnp.fft.rfft(waveform)
  frequency = jnp.arange(spectrum.size) * SAMPLE_RATE / waveform.size
  inside = (frequency >= low) & (frequency < low + width)
  return jnp.fft.irfft(jnp.where(inside, 0, spectrum), waveform.size)


def convolve(waveform: jax.Array, response: jax.Array) -> jax.Array:
  """Causal convolution, as long as the input. [S], [R] -> [S]."""
  size = waveform.size + response.size - 1
  size = 1 << (size - 1).bit_length()
  product = jnp.fft.rfft(waveform, size) * jnp.fft.rfft(response, size)
  return jnp.fft.irfft(product, size)[: waveform.size]
