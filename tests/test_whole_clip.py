"""Frames of pieces are normed as those of the whole clip are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny

from ssl_jax import num_frames
from ssl_jax.data.pieces import Pieces
from ssl_jax.data.sources.audio import DamagedAudio
from ssl_jax.devices import sharding
from ssl_jax.models import whole_clip
from ssl_jax.models.backbone import Backbone
from ssl_jax.pretrained import corpus_pass


class Source:
  """Three clips: one that fits, one of 2.7 pieces, one just above one."""

  def __init__(self):
    rng = np.random.default_rng(0)
    self.clips = []
    for size in (20_000, 68_800, 25_700):
      # Its level, its offset and its spectrum change on the way.
      level = np.linspace(100, 4_000, size)
      noise = rng.normal(size=size)
      noise[size // 2 :] = np.cumsum(noise[size // 2 :]) * 0.05
      clip = level * noise + np.linspace(0, 3_000, size)
      self.clips.append(np.clip(clip, -32_768, 32_767).astype(np.int16))
    self.ids = ["a", "b", "c"]
    self.num_samples = np.array([len(clip) for clip in self.clips])
    self.metadata, self.damaged, self.skipped = [{}] * 3, {}, []
    self.rates = None

  def read(self, index, start, num_samples):
    found = self.clips[index][start : start + num_samples]
    if not len(found):
      raise DamagedAudio("nothing there")
    return found


SETTINGS = {
  "logmel-clip": {"name": "logmel", "mel_norm": "clip"},
  "logmel-fixed": {"name": "logmel", "mel_norm": "fixed"},
  "group": {"name": "waveform"},
  "group-normalized": {"name": "waveform", "normalize_waveform": True},
  "layer-normalized": {
    "name": "waveform",
    "norm": "layer",
    "normalize_waveform": True,
  },
}


def frontend(setting):
  """-> (waveform, length) -> features [B, T, C], before the encoder."""
  config = tiny(2)
  config.frontend.update(SETTINGS[setting])
  backbone = Backbone(config)
  shapes = jnp.zeros((1, 3_200)), jnp.full(1, 3_200)
  params = jax.jit(backbone.init)(jax.random.key(0), *shapes)
  # A norm that does something.
  rng = np.random.default_rng(1)
  params = jax.tree.map(
    lambda x: x + 0.05 * rng.normal(size=x.shape).astype(np.float32), params
  )
  return config, lambda *clip: backbone.apply(params, *clip).features


@pytest.mark.parametrize(
  "setting",
  [
    x
    if x in ("logmel-clip", "group-normalized")
    else pytest.param(x, marks=pytest.mark.slow)
    for x in SETTINGS
  ],
)
def test_frames_of_pieces_are_those_of_the_whole(setting, monkeypatch):
  monkeypatch.setattr(whole_clip, "_PARTS", (24_000,))  # Three parts.
  config, frames_of = frontend(setting)
  config.loader.update(num_threads=1, num_workers=0)
  source = Source()
  pieces = Pieces(source.num_samples, np.arange(3), (12_800, 25_600), 3.2)
  found = {0: [], 1: [], 2: []}
  for clips, starts, frames, real in corpus_pass.each_batch(
    config,
    source,
    pieces,
    lambda waveform, length: (frames_of(waveform, length), num_frames(length)),
    sharding.by_row(sharding.make_mesh()),
  ):
    for clip, start, row, n in zip(clips, starts, frames, real):
      if clip >= 0:
        found[clip].append((start, row[:n]))
  alone = jax.jit(frames_of)
  for clip, parts in found.items():
    samples = source.clips[clip].astype(np.float32)[None] / 2**15
    expected = np.asarray(alone(samples, np.array([samples.shape[1]])))[0]
    joined = np.concatenate(
      [row for _, row in sorted(parts, key=lambda x: x[0])]
    )
    assert len(joined) == num_frames(samples.shape[1])
    scale = expected.std()
    np.testing.assert_allclose(
      joined, expected[: len(joined)], atol=2e-4 * scale, rtol=0
    )
  # Without it they are others: the test would see it.
  if setting != "logmel-fixed":
    samples = source.clips[1][:25_600].astype(np.float32)[None] / 2**15
    piece = np.asarray(alone(samples, np.array([25_600])))[0]
    whole = np.concatenate(
      [row for _, row in sorted(found[1], key=lambda x: x[0])]
    )
    assert abs(piece - whole[: len(piece)]).max() > 0.1 * whole.std()


@pytest.mark.parametrize("setting, stages", [("logmel-fixed", 0), ("group", 2)])
def test_only_moments_that_are_used_are_taken(setting, stages):
  _, frames_of = frontend(setting)
  assert len(whole_clip.Gatherer(frames_of).shapes) == stages


def test_moments_of_parts_are_those_of_all():
  rng = np.random.default_rng(0)
  x = rng.normal(3, 2, (90_000, 10)) * np.linspace(1, 9, 90_000)[:, None]
  parts = []
  for part in np.split(x, [10_000, 25_000]):
    covariance = np.cov(part.T, bias=True)[None]
    mean = part.mean(axis=0)[None]
    parts.append(([len(part)], whole_clip.Moments(mean, covariance)))
  joined = whole_clip._joined(parts)
  np.testing.assert_allclose(joined.mean[0], x.mean(axis=0), rtol=1e-6)
  expected = np.cov(x.T, bias=True)
  np.testing.assert_allclose(joined.second[0], expected, rtol=1e-5, atol=1e-4)


def test_moments_on_several_devices_are_those_of_one():
  _, frames_of = frontend("group-normalized")
  clip = Source().clips[1]
  one = whole_clip.Gatherer(frames_of)(clip)
  rows = []

  def counting(waveform, length):
    rows.append(len(length))
    return frames_of(waveform, length)

  two = whole_clip.Gatherer(counting, 2)(clip)
  assert {*rows} == {2}
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
    one,
    two,
  )
