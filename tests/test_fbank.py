"""Filterbanks, MFCC and deltas against Kaldi's code and direct formulas."""

import pathlib

import jax
import jax.numpy as jnp
import kaldi_native_fbank as knf
import numpy as np
import pytest
import soundfile as sf

import ssl_jax
from ssl_jax.signal import fbank

CORPUS = pathlib.Path(ssl_jax.__file__).parent / "data" / "corpus" / "clips"
LENGTH = 40_000  # Samples: one shape, so one compilation, for all clips.


def read_clips(*voices):
  """Three clips of each of some voices: float32 [samples] each."""
  clips = []
  for voice in voices:
    paths = sorted(CORPUS.glob(f"*/{voice}/*.opus"))
    clips += paths[:: len(paths) // 3][:3]
  assert len(clips) == 3 * len(voices)
  return [sf.read(path, dtype="float32")[0][:LENGTH] for path in clips]


def compute(features, clips):
  """[samples] each -> [F, C] each, through one zero-padded batch."""
  padded = np.stack([np.pad(x, (0, LENGTH - len(x))) for x in clips])
  out = np.asarray(jax.jit(features)(padded))
  assert out.dtype == np.float32
  return [row[: fbank.num_fbank_frames(len(x))] for x, row in zip(clips, out)]


def kaldi(waveform, options, extractor):
  options.frame_opts.dither = 0
  options.frame_opts.snip_edges = True
  computer = extractor(options)
  computer.accept_waveform(16_000, waveform.tolist())
  computer.input_finished()
  frames = range(computer.num_frames_ready)
  return np.array([computer.get_frame(i) for i in frames])


def kaldi_fbank(waveform, num_mel_bins=80):
  options = knf.FbankOptions()
  options.mel_opts.num_bins = num_mel_bins
  return kaldi(waveform, options, knf.OnlineFbank)


def kaldi_mfcc(waveform):
  options = knf.MfccOptions()
  options.num_ceps, options.mel_opts.num_bins = 13, 23
  options.use_energy = False
  return kaldi(waveform, options, knf.OnlineMfcc)


def exact_fbank(waveform, num_mel_bins=80):
  """The definition, step by step in float64."""
  windows = np.lib.stride_tricks.sliding_window_view(waveform, 400)[::160]
  x = windows.astype(np.float64)
  x = x - x.mean(axis=1, keepdims=True)
  x = x - 0.97 * np.concatenate([x[:, :1], x[:, :-1]], axis=1)
  spectrum = np.fft.rfft(x * np.hanning(400) ** 0.85, 512)
  hertz = np.arange(257) * 16_000 / 512
  mel, low, high = (1127 * np.log(1 + f / 700) for f in (hertz, 20, 8000))
  step = (high - low) / (num_mel_bins + 1)
  centres = low + step * np.arange(1, num_mel_bins + 1)
  weights = np.maximum(0, 1 - np.abs(mel[:, None] - centres) / step)
  return np.log(np.maximum(np.abs(spectrum) ** 2 @ weights, 2.0**-23))


def exact_mfcc(waveform):
  n, k = np.arange(23)[:, None], np.arange(13)
  dct = np.cos(np.pi / 23 * (n + 0.5) * k)
  dct /= np.linalg.norm(dct, axis=0)
  return exact_fbank(waveform, 23) @ dct * (1 + 11 * np.sin(np.pi * k / 22))


def direct_delta(x):
  """[F, C] -> [F, C], frame by frame."""
  out = np.zeros_like(x)
  for f in range(len(x)):
    for n in (1, 2):
      ahead, behind = min(f + n, len(x) - 1), max(f - n, 0)
      out[f] += n * (x[ahead] - x[behind]) / 10
  return out


@jax.jit
def targets(waveform, length):
  """TERA's: [B, S], [B] -> [B, T, 78]."""
  count = fbank.num_fbank_frames(length)
  frames = fbank.add_deltas(fbank.mfcc(waveform), count)
  return fbank.stack_pairs(frames, count, (waveform.shape[1] - 400) // 320 + 1)


@pytest.mark.parametrize(
  ("ours", "reference"),
  [(fbank.log_mel, kaldi_fbank), (fbank.mfcc, kaldi_mfcc)],
)
def test_features_equal_kaldis(ours, reference):
  clips = read_clips("ast-carlo", "ast-june", "ps-cards", "ps-librivox")
  clips.append(0.05 * clips[0] + 0.05)  # Quiet, on a large offset.
  for x, features in zip(clips, compute(ours, clips)):
    np.testing.assert_allclose(features, reference(x), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
  ("ours", "reference", "exact"),
  [
    (fbank.log_mel, kaldi_fbank, exact_fbank),
    (fbank.mfcc, kaldi_mfcc, exact_mfcc),
  ],
)
def test_rounding_is_no_worse_than_kaldis(ours, reference, exact):
  # These recordings have nearly empty bands, 90 dB below their speech, where
  # float32 leaves Kaldi itself as much as 0.007 from the exact value.
  clips = read_clips("ast-menardi", "ast-armelle")
  errors, kaldis = [], []
  for x, features in zip(clips, compute(ours, clips)):
    truth = exact(x)
    errors.append(np.abs(features - truth).ravel())
    kaldis.append(np.abs(reference(x) - truth).ravel())
  errors, kaldis = np.concatenate(errors), np.concatenate(kaldis)
  assert kaldis.max() < 0.01
  assert errors.max() < 2 * kaldis.max()
  assert errors.mean() < 1.5 * kaldis.mean()


def test_silence_and_one_window_equal_kaldis():
  waveform = np.stack([np.zeros(400), np.full(400, 0.3), np.eye(400)[7]])
  features = fbank.log_mel(jnp.asarray(waveform, jnp.float32))
  expected = np.stack([kaldi_fbank(x) for x in waveform])
  np.testing.assert_allclose(features, expected, rtol=0, atol=1e-3)


def test_products_ask_for_float32_on_every_device():
  # On CPU the default is float32 already; on TPU it is bfloat16.
  jaxpr = str(jax.make_jaxpr(fbank.mfcc)(jnp.zeros((1, 1600))))
  highest = jaxpr.count("precision=(Precision.HIGHEST, Precision.HIGHEST)")
  assert highest == jaxpr.count("dot_general[") > 0


@pytest.mark.parametrize("samples", [0, 399, 400, 559, 560, 719, 720, 250_000])
def test_frame_counts_equal_kaldis(samples):
  count = len(kaldi_fbank(np.zeros(samples)))
  assert fbank.num_fbank_frames(samples) == count
  assert fbank.num_fbank_frames(np.array([samples])).tolist() == [count]
  traced = jax.jit(fbank.num_fbank_frames)(jnp.array([samples]))
  assert traced.tolist() == [count]


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_deltas_equal_the_direct_formula(count):
  x = np.random.default_rng(0).normal(size=(1, 9, 3)).astype(np.float32)
  ours = fbank.add_deltas(jnp.asarray(x), jnp.array([count]))[0, :count]
  x = x[0, :count]
  delta = direct_delta(x)
  expected = np.concatenate([x, delta, direct_delta(delta)], axis=1)
  np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)


def test_pairs_hold_the_last_real_frame():
  features = jnp.arange(7.0)[None, :, None].repeat(3, axis=0)  # [3, 7, 1]
  ours = fbank.stack_pairs(features, jnp.array([7, 4, 1]), 4)
  assert ours.tolist() == [
    [[0, 1], [2, 3], [4, 5], [6, 6]],
    [[0, 1], [2, 3], [3, 3], [3, 3]],
    [[0, 0], [0, 0], [0, 0], [0, 0]],
  ]


@pytest.mark.parametrize("samples", [8_000, 8_079, 8_080, 8_239, 16_000])
def test_padding_is_invisible(samples):
  # The lengths end the clip on, between and halfway through encoder frames.
  rng = np.random.default_rng(0)
  clip, other, garbage = 0.1 * rng.normal(size=(3, 20_000)).astype(np.float32)
  clip = clip[:samples]
  length = jnp.array([samples, 20_000])
  zeros = np.stack([np.pad(clip, (0, 20_000 - samples)), other])
  noise = np.stack([np.append(clip, garbage[samples:]), other])
  alone = np.asarray(targets(clip[None], length[:1]))[0]
  padded = np.asarray(targets(zeros, length))
  np.testing.assert_array_equal(
    padded[0, : len(alone)],
    np.asarray(targets(noise, length))[0, : len(alone)],
  )
  # At another shape a product may be summed in another order: on cepstra of
  # up to 60, some units in the last place.
  np.testing.assert_allclose(padded[0, : len(alone)], alone, rtol=0, atol=1e-4)


def test_empty_rows_stay_finite():
  assert np.isfinite(targets(jnp.zeros((2, 2000)), jnp.array([0, 399]))).all()
