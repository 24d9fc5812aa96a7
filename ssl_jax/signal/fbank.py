"""Log-mel filterbanks and MFCC as Kaldi computes them, in float32.

Axes: B batch, S samples at 16 kHz, F frames of 10 ms, T frames of 20 ms,
C channels. Waveforms are in [-1, 1]. Formulas are those of Kaldi's
feat/feature-{window,fbank,mfcc}.cc and feat/mel-computations.cc, with its
default options and no dither.

No frame sees samples outside its window, and `add_deltas` and `stack_pairs`
hold each row's last real frame, so padding never reaches a real frame.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

_SAMPLE_RATE = 16_000  # Hz
HOP = 160  # Samples: 10 ms.
_WINDOW = 400  # Samples: 25 ms.
_CHUNK = 80  # Samples: the largest length that divides both.
_FFT = 512  # Samples: the window, padded to a power of two.
# Frequencies kept, of FFT / 2 + 1: the last one, 8000 Hz, has no mel weight.
_BINS = _FFT // 2
_LOW, _HIGH = 20.0, _SAMPLE_RATE / 2  # Hz
_PREEMPHASIS = 0.97
_LIFTER = 22.0


def num_fbank_frames(num_samples: jax.Array | int) -> jax.Array | int:
  """Whole 25 ms windows, one every 10 ms. Any shape -> the same shape."""
  frames = 1 + (num_samples - _WINDOW) // HOP
  return frames * (frames > 0)


def log_mel(waveform: jax.Array, num_mel_bins: int = 80) -> jax.Array:
  """Natural log of the mel energies. [B, S] -> [B, F, num_mel_bins]."""
  batch, num_samples = waveform.shape
  count = num_fbank_frames(num_samples)
  # A window is five chunks and a hop two: slices, where a gather would be slow.
  num_chunks = 2 * count + 3
  chunks = waveform[:, : num_chunks * _CHUNK].reshape(batch, num_chunks, _CHUNK)
  frames = jnp.concatenate(
    [chunks[:, i : i + 2 * count : 2] for i in range(_WINDOW // _CHUNK)],
    axis=-1,
  )  # [B, F, 400]
  # The mean and the low frequencies go first: what is left loses fewer digits.
  frames -= frames.mean(axis=-1, keepdims=True)
  # The first sample precedes itself.
  before = jnp.concatenate([frames[..., :1], frames[..., :-1]], axis=-1)
  frames = (frames - _PREEMPHASIS * before) * _povey()
  # Products with the DFT, not an FFT: XLA partitions products over devices, but
  # runs an FFT whole on each. The DFT of a real frame is the cosine transform
  # of its even part and the sine transform of its odd part: half the products
  # of the whole, and less rounding.
  frames = jnp.pad(frames, ((0, 0), (0, 0), (0, _FFT - _WINDOW)))
  mirrored = jnp.roll(frames[..., ::-1], 1, axis=-1)
  frames, mirrored = frames[..., : _BINS + 1], mirrored[..., : _BINS + 1]
  cosines, sines = _dft()
  real = product(frames + mirrored, cosines)
  imaginary = product(frames - mirrored, sines)
  power = jnp.square(real) + jnp.square(imaginary)  # [B, F, 256]
  energies = product(power, _mel_matrix(num_mel_bins))
  return jnp.log(jnp.maximum(energies, np.finfo(np.float32).eps))


def mfcc(
  waveform: jax.Array, num_ceps: int = 13, num_mel_bins: int = 23
) -> jax.Array:
  """Liftered cepstra, the first from the mels too. [B, S] -> [B, F, num_ceps].

  Kaldi's with `use_energy=false`.
  """
  mels = log_mel(waveform, num_mel_bins)
  return product(mels, _cepstrum_matrix(num_ceps, num_mel_bins))


def spectrum_flops(num_samples: int, num_mel_bins: int) -> int:
  """FLOPs of one clip's `log_mel`: its three matrix products."""
  per_frame = 2 * _BINS * (2 * (_BINS + 1) + num_mel_bins)
  return num_fbank_frames(num_samples) * per_frame


def mfcc_flops(
  num_samples: int, num_ceps: int = 13, num_mel_bins: int = 23
) -> int:
  """FLOPs of one clip's `mfcc`."""
  cepstra = 2 * num_fbank_frames(num_samples) * num_mel_bins * num_ceps
  return spectrum_flops(num_samples, num_mel_bins) + cepstra


def add_deltas(features: jax.Array, num_valid: jax.Array) -> jax.Array:
  """Appends slopes, and slopes of slopes. [B, F, C], [B] -> [B, F, 3 C].

  The slope at a frame is the least-squares one over five frames,
  sum_n n (x[f + n] - x[f - n]) / 10 for n = 1, 2 (HTK Book, eq. 5.16), where a
  row's first and last real frames stand in for what lies beyond them.
  """
  deltas = _delta(features, num_valid)
  return jnp.concatenate([features, deltas, _delta(deltas, num_valid)], axis=-1)


def mfcc_with_deltas(waveform: jax.Array, length: jax.Array) -> jax.Array:
  """MFCC, slopes, slopes of slopes. [B, S], [B] -> [B, F, 39]."""
  return add_deltas(mfcc(waveform), num_fbank_frames(length))


def stack_pairs(
  features: jax.Array, num_valid: jax.Array, num_frames: int
) -> jax.Array:
  """10 ms frames 2t and 2t + 1 -> 20 ms frame t. [B, F, C] -> [B, T, 2 C].

  A row's last real frame stands in for those after it: the encoder's last
  frame can lack its second half.

  Args:
    features: [B, F, C].
    num_valid: [B], real 10 ms frames.
    num_frames: T.
  """
  batch, _, channels = features.shape
  frames = _hold_last(features, num_valid, 2 * num_frames)
  return frames.reshape(batch, num_frames, 2 * channels)


def _delta(x: jax.Array, num_valid: jax.Array) -> jax.Array:
  """The slope at each frame. [B, F, C] -> [B, F, C]."""
  count = x.shape[1]
  x = _hold_last(x, num_valid, count + 2)
  x = jnp.pad(x, ((0, 0), (2, 0), (0, 0)), mode="edge")
  before2, before, _, after, after2 = [x[:, i : i + count] for i in range(5)]
  return ((after - before) + 2 * (after2 - before2)) / 10


def _hold_last(x: jax.Array, num_valid: jax.Array, count: int) -> jax.Array:
  """`count` frames, with the last real one in place of all after it."""
  frame = jnp.minimum(jnp.arange(count), num_valid[:, None] - 1)
  frame = jnp.maximum(frame, 0)  # Rows of padding have no real frame.
  return jnp.take_along_axis(x, frame[..., None], axis=1)


def product(x: jax.Array, matrix: np.ndarray) -> jax.Array:
  """Multiplies [..., N] by [N, M] in whole float32."""
  # The default rounds to bfloat16 on TPU and to TF32 on GPU, and the logarithm
  # shows it.
  return jnp.matmul(x, matrix, precision=jax.lax.Precision.HIGHEST)


@functools.lru_cache
def _povey() -> np.ndarray:
  """Kaldi's default window. [400]."""
  hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_WINDOW) / (_WINDOW - 1))
  return (hann**0.85).astype(np.float32)


@functools.lru_cache
def _dft() -> tuple[np.ndarray, np.ndarray]:
  """Samples 0 to 256 of a frame's even part, of its odd -> two of [257, 256].

  The even part is x[n] + x[512 - n], the odd x[n] - x[512 - n].
  """
  angle = np.outer(np.arange(_BINS + 1), np.arange(_BINS)) * 2 * np.pi / _FFT
  cosines, sines = np.cos(angle), np.sin(angle)
  cosines[[0, -1]] /= 2  # Their own mirror images, counted twice.
  return cosines.astype(np.float32), sines.astype(np.float32)


@functools.lru_cache
def _mel_matrix(num_mel_bins: int) -> np.ndarray:
  """Triangles in mel, 1127 ln(1 + Hz / 700). [256, num_mel_bins]."""

  def mel(frequency: np.ndarray) -> np.ndarray:
    return 1127 * np.log1p(frequency / 700)

  edges = np.linspace(mel(_LOW), mel(_HIGH), num_mel_bins + 2)
  left, centre, right = edges[:-2], edges[1:-1], edges[2:]
  x = mel(np.arange(_BINS) * _SAMPLE_RATE / _FFT)[:, None]
  rise, fall = (x - left) / (centre - left), (right - x) / (right - centre)
  return np.maximum(0, np.minimum(rise, fall)).astype(np.float32)


@functools.lru_cache
def _cepstrum_matrix(num_ceps: int, num_mel_bins: int) -> np.ndarray:
  """The orthonormal DCT-II, then the lifter. [num_mel_bins, num_ceps]."""
  k = np.arange(num_ceps)
  n = np.arange(num_mel_bins)[:, None]
  dct = np.sqrt(2 / num_mel_bins) * np.cos(np.pi / num_mel_bins * (n + 0.5) * k)
  dct[:, 0] = np.sqrt(1 / num_mel_bins)
  lifter = 1 + 0.5 * _LIFTER * np.sin(np.pi * k / _LIFTER)
  return (dct * lifter).astype(np.float32)
