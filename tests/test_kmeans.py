"""k-means against NumPy in float64, scikit-learn, and known clusters."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import MiniBatchKMeans

from ssl_jax import config as config_lib
from ssl_jax.data.sources import open_source
from ssl_jax.labelling import codebook
from ssl_jax.signal import fbank, kmeans

ROOT = Path(__file__).parents[1]
SMALL = {
  "num_inits": 2,
  "num_restarts": 2,
  "batch_frames": 1000,
  "max_iterations": 5,
}


def distances(frames, centroids):
  """Squared, in float64. [M, C], [K, C] -> [M, K]."""
  origin = centroids.mean(axis=0, dtype=np.float64)
  x, y = frames - origin, centroids - origin
  squares = np.square(x).sum(axis=1)[:, None] + np.square(y).sum(axis=1)
  return np.maximum(squares - 2 * x @ y.T, 0)


def mean_distance(frames, centroids):
  return distances(frames, centroids).min(axis=1).mean()


def check(fit, frames):
  """That a fit tells the truth about itself."""
  assert fit.centroids.dtype == np.float32
  assert np.isfinite(fit.centroids).all()
  assert fit.usage.dtype == np.int64
  assert fit.usage.sum() == len(frames)
  nearest = np.asarray(kmeans.nearest(frames, fit.centroids))
  usage = np.bincount(nearest, minlength=len(fit.centroids))
  np.testing.assert_array_equal(fit.usage, usage)
  exact = distances(frames, fit.centroids)
  chosen = np.take_along_axis(exact, nearest[:, None], axis=1)[:, 0]
  np.testing.assert_allclose(chosen, exact.min(axis=1), rtol=1e-4, atol=1e-3)
  assert fit.inertia == pytest.approx(
    exact.min(axis=1).mean(), rel=1e-5, abs=1e-3
  )


@pytest.fixture(scope="module")
def mfcc():
  """A twelfth of the embedded train split: [M, 39], of real frames."""
  config = config_lib.base()
  config.data.source = "embedded"
  config.data.min_seconds = 0.3
  source = open_source(config.data, "train")
  short = np.flatnonzero(source.num_samples < 80_000)
  source = source.select(short[::8])
  compute = jax.jit(lambda x, n: fbank.add_deltas(fbank.mfcc(x), n))
  frames = []
  for index, length in enumerate(source.num_samples):
    waveform = np.zeros((1, source.num_samples.max()), np.float32)
    waveform[0, :length] = source.read(index, 0, int(length)) / 32768
    count = fbank.num_fbank_frames(int(length))
    frames.append(np.asarray(compute(waveform, np.array([count])))[0, :count])
  return np.concatenate(frames)


@pytest.fixture(scope="module")
def fitted(mfcc):
  calls = []
  fit = kmeans.fit(
    mfcc,
    100,
    seed=0,
    num_inits=1,
    num_restarts=2,
    batch_frames=10_000,
    max_iterations=100,
    on_restart=calls.append,
  )
  assert len(calls) == 2
  return fit


def blobs():
  """In turn, of 33 to 1500 frames: (frames [M, 8], their means, sizes)."""
  rng = np.random.default_rng(1)
  centres = 20 * rng.standard_normal((12, 8))
  sizes = np.geomspace(33, 1500, 12).astype(int)
  frames = np.repeat(centres, sizes, axis=0)
  frames += 0.1 * rng.standard_normal(frames.shape)
  parts = np.split(frames, np.cumsum(sizes)[:-1])
  means = np.array([x.mean(axis=0) for x in parts])
  return frames.astype(np.float32), means.astype(np.float32), sizes


@pytest.mark.parametrize("offset", [0, 1000])
def test_nearest_is_the_nearest_and_the_first_of_equals(offset):
  rng = np.random.default_rng(0)
  frames = rng.standard_normal((4, 500, 13)).astype(np.float32) + offset
  centroids = rng.standard_normal((40, 13)).astype(np.float32) + offset
  centroids[25] = centroids[7]
  out = jax.jit(kmeans.nearest)(frames, centroids)
  assert out.dtype == jnp.int32
  exact = np.square(
    frames[:, :, None].astype(np.float64) - centroids.astype(np.float64)
  ).sum(axis=-1)
  np.testing.assert_array_equal(out, exact.argmin(axis=-1))
  assert (out == 7).any() and not (out == 25).any()


def test_nearest_multiplies_in_float32_and_holds_no_differences():
  frames = jax.ShapeDtypeStruct((4, 500, 64), jnp.bfloat16)
  centroids = jax.ShapeDtypeStruct((100, 64), jnp.float32)
  lowered = jax.jit(kmeans.nearest).lower(frames, centroids)
  (product,) = [x for x in lowered.as_text().split("\n") if "dot_general" in x]
  assert "HIGHEST" in product and "bf16" not in product
  memory = lowered.compile().memory_analysis().temp_size_in_bytes
  assert memory < 4 * 4 * 500 * (100 + 2 * 64)


def test_as_good_as_scikit_learn_on_speech(mfcc, fitted):
  theirs = MiniBatchKMeans(
    n_clusters=100,
    init="k-means++",
    batch_size=10_000,
    max_iter=100,
    n_init=5,
    max_no_improvement=100,
    random_state=0,
  ).fit(mfcc)
  ratio = mean_distance(mfcc, fitted.centroids) / mean_distance(
    mfcc, theirs.cluster_centers_
  )
  assert ratio < 1.0  # 0.984 when written.
  check(fitted, mfcc)


def test_ends_where_another_pass_gains_nothing(mfcc, fitted):
  nearest = distances(mfcc, fitted.centroids).argmin(axis=1)
  means = [mfcc[nearest == k].mean(axis=0) for k in range(100)]
  after = mean_distance(mfcc, np.array(means))
  assert 1 - after / fitted.inertia < 1e-3


def test_frames_in_several_chunks(mfcc, monkeypatch):
  frames = mfcc[:9003]  # Traced in no other test: `_CHUNK` counts then.
  monkeypatch.setattr(kmeans, "_CHUNK", 1 << 16)
  fit = kmeans.fit(frames, 50, 0, **SMALL)
  check(fit, frames)
  monkeypatch.undo()
  whole = kmeans.fit(mfcc[:9001], 50, 0, **SMALL)
  assert fit.inertia == pytest.approx(whole.inertia, rel=0.02)


def test_separate_blobs_are_found():
  frames, means, sizes = blobs()
  fit = kmeans.fit(frames, 12, 0, **SMALL)
  check(fit, frames)
  cluster = np.asarray(kmeans.nearest(means, fit.centroids))
  assert sorted(cluster) == [*range(12)]
  np.testing.assert_allclose(fit.centroids[cluster], means, atol=1e-4)
  np.testing.assert_array_equal(fit.usage[cluster], sizes)


def test_every_blob_has_a_start():
  frames, means, _ = blobs()
  for seed in range(10):
    start = np.asarray(kmeans._start(frames, 12, jax.random.key(seed))[0])
    assert (start[:, None] == frames).all(axis=-1).any(axis=1).all()
    assert sorted(kmeans.nearest(start, means)) == [*range(12)]


def test_a_search_begins_at_the_best_of_its_starts(mfcc, monkeypatch):
  frames, begun = mfcc[:3000], []  # The sample that starts are drawn on.
  start = kmeans._start
  made = []
  monkeypatch.setattr(
    kmeans, "_start", lambda *args: made.append(start(*args)) or made[-1]
  )
  monkeypatch.setattr(
    kmeans, "_search", lambda _, begins, *rest: begun.append(begins) or begins
  )
  kmeans.fit(frames, 50, 0, **SMALL | {"num_inits": 4, "num_restarts": 2})
  assert len(made) == 8 and len(begun) == 2
  for starts, chosen in zip((made[:4], made[4:]), begun):
    inertias = [mean_distance(frames, np.asarray(x)) for x, _ in starts]
    told = [float(inertia) for _, inertia in starts]
    assert told == pytest.approx(inertias, rel=1e-4)
    best = starts[int(np.argmin(inertias))][0]
    np.testing.assert_array_equal(chosen, best)


def test_search_mends_a_bad_start(mfcc, fitted):
  key = jax.random.key(0)
  start = np.array(kmeans._start(mfcc, 100, key)[0])
  start[50:] = start[0]
  found = np.asarray(kmeans._search(mfcc, start, key, 5000, 400))
  # 1.04 when written; of the 50 alone, 1.20.
  assert mean_distance(mfcc, found) < 1.08 * fitted.inertia


def test_search_averages_over_batches():
  frames = np.random.default_rng(0).standard_normal((5000, 8), np.float32)
  found = kmeans._search(frames, frames[:1], jax.random.key(0), 10, 1000)
  # Of one batch alone, the mean has a standard deviation of 0.3.
  np.testing.assert_allclose(found[0], frames.mean(axis=0), atol=0.12)


def test_the_best_search_is_kept(monkeypatch):
  frames, means, _ = blobs()
  found = iter([frames[:12], means, frames[-12:]])
  monkeypatch.setattr(kmeans, "_search", lambda *_: next(found))
  monkeypatch.setattr(kmeans, "_LLOYD_PASSES", 0)
  fit = kmeans.fit(frames, 12, 0, **{**SMALL, "num_restarts": 3})
  np.testing.assert_array_equal(fit.centroids, means)


@pytest.mark.parametrize("parts", [1, 8])
def test_a_pass_takes_means_and_the_farthest_frames(mfcc, monkeypatch, parts):
  monkeypatch.setattr(kmeans, "_CHUNK", 1 << 14)
  centroids = mfcc[:4008:200].copy()
  centroids[[3, 8, 9]] = 500  # Nearest to none.
  # Of frames between two centroids, rounding says which is nearest.
  first, second, *_ = np.sort(distances(mfcc, centroids), axis=1).T
  clear = second - first > 1e-3 * second
  frames = mfcc[clear][:4008]  # 10 chunks, the last of them shorter.
  inertia, usage, better = kmeans._improve(frames, centroids, parts)
  exact = distances(frames, centroids)
  nearest, closest = exact.argmin(axis=1), exact.min(axis=1)
  assert inertia == pytest.approx(closest.mean(), rel=1e-5)
  np.testing.assert_array_equal(usage, np.bincount(nearest, minlength=21))
  means = [
    frames[nearest == k].mean(axis=0) if (nearest == k).any() else None
    for k in range(21)
  ]
  for k, index in zip([3, 8, 9], closest.argsort()[::-1]):
    assert means[k] is None
    means[k] = frames[index]
  np.testing.assert_allclose(better, np.array(means), rtol=1e-4, atol=1e-3)


def test_a_common_offset_changes_nothing(mfcc):
  near = mfcc[:9001]
  far = near + np.float32(1000)
  fits = [kmeans.fit(x, 50, 0, **SMALL) for x in (near, far)]
  exact = [mean_distance(x, fit.centroids) for x, fit in zip((near, far), fits)]
  assert [fit.inertia for fit in fits] == pytest.approx(exact, rel=1e-5)
  assert exact[1] == pytest.approx(exact[0], rel=0.02)


def degenerate():
  """[5000, 8] each, and the sizes of their clusters."""
  rng = np.random.default_rng(0)
  points = 5 * rng.standard_normal((7, 8))
  amid_silence = np.zeros((5000, 8))
  amid_silence[500:4500:600] = points
  few = np.arange(5000) * 7 // 5000
  return {
    "silence": (np.full((5000, 8), -15.9424), [5000]),
    "few distinct": (points[rng.permutation(few)], np.bincount(few)),
    "rare amid silence": (amid_silence, [1] * 7 + [4993]),
    "rare far amid silence": (1e5 * amid_silence, [1] * 7 + [4993]),
  }


@pytest.mark.parametrize("name", degenerate())
def test_more_clusters_than_distinct_frames(name):
  frames, sizes = degenerate()[name]
  frames = frames.astype(np.float32)
  fit = kmeans.fit(frames, 10, 0, **SMALL)
  check(fit, frames)
  assert fit.inertia <= 1e-9 * np.square(frames).mean()
  assert sorted(fit.usage[fit.usage > 0]) == sorted(sizes)


def test_as_many_clusters_as_frames():
  frames = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
  fit = kmeans.fit(frames, 50, 0, **SMALL)
  check(fit, frames)
  assert (fit.usage == 1).all()


def test_the_seed_decides(mfcc):
  mfcc = mfcc[:9001]
  fits = [kmeans.fit(x, 50, 3, **SMALL) for x in (mfcc, jnp.asarray(mfcc))]
  assert fits[0].inertia == fits[1].inertia
  np.testing.assert_array_equal(fits[0].centroids, fits[1].centroids)
  other = kmeans.fit(mfcc, 50, 4, **SMALL)
  assert np.abs(other.centroids - fits[0].centroids).max() > 1


ON_EIGHT = """
import re, sys
import jax, numpy as np
from ssl_jax.signal import kmeans
from ssl_jax.devices import sharding

folder = sys.argv[1]
kmeans._CHUNK = 1 << 17
by_row = sharding.by_row(sharding.make_mesh())
frames = jax.device_put(np.load(folder + "/frames.npy"), by_row)
assert len(frames.addressable_shards) == 8
parts, improve = [], kmeans._improve
kmeans._improve = lambda *args: (parts.append(args[2]), improve(*args))[1]
fit = kmeans.fit(
  frames, 32, 0, num_inits=2, num_restarts=2,
  batch_frames=1000, max_iterations=5,
)
assert parts[-1] == 8
kmeans._improve = improve
np.savez(folder + "/fit.npz", **fit._asdict())
key = jax.random.key(0)
for lowered in (
  kmeans._search.lower(frames, fit.centroids, key, 1000, 100),
  kmeans._improve.lower(frames, fit.centroids, 8),
):
  text = lowered.compile().as_text()
  assert "all-reduce" in text
  # Distances in a chunk at most, never frames.
  gathered = re.findall(r"= f32\\[(\\S+)\\]\\S* all-gather\\(", text)
  assert all(int(size) * 32 <= 1 << 17 for size in gathered), gathered
"""


def test_one_device_and_eight_agree(mfcc, tmp_path):
  frames = mfcc[: len(mfcc) // 8 * 8]
  np.save(tmp_path / "frames.npy", frames)
  subprocess.run(
    [sys.executable, "-c", ON_EIGHT, str(tmp_path)],
    env=os.environ | {"JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": str(ROOT)},
    check=True,
  )
  eight = kmeans.Fit(**np.load(tmp_path / "fit.npz"))
  check(eight, frames)
  one = kmeans.fit(frames, 32, 0, **SMALL)
  assert eight.inertia == pytest.approx(one.inertia, rel=1e-3)
  np.testing.assert_allclose(eight.centroids, one.centroids, atol=0.1)


def test_searches_that_are_done_are_not_done_again(mfcc, tmp_path, monkeypatch):
  frames = mfcc[:9001]
  config = config_lib.base()
  config.kmeans.update(num_restarts=3, batch_frames=1_000, max_iterations=5)
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  whole = codebook.fit(config, frames, 20, device, tmp_path / "whole")
  search, done = kmeans._search, []

  def stops(*args):
    if len(done) == 2:
      raise KeyboardInterrupt
    done.append(search(*args))
    return done[-1]

  monkeypatch.setattr(kmeans, "_search", stops)
  with pytest.raises(KeyboardInterrupt, match="after 2 of 3 searches"):
    codebook.fit(config, frames, 20, device, tmp_path / "mine")
  done.clear()
  again = codebook.fit(config, frames, 20, device, tmp_path / "mine")
  assert len(done) == 1
  np.testing.assert_array_equal(again.centroids, whole.centroids)
  # Of other frames nothing is taken, and nothing is left behind.
  assert not [*tmp_path.glob("*/*")]


def test_what_cannot_be_clustered():
  frames = np.ones((9, 2), np.float32)
  with pytest.raises(ValueError, match="9 frames are too few"):
    kmeans.fit(frames, 10, 0, **SMALL)
  for bad in (np.nan, np.inf, -np.inf, 1e30):
    frames[5, 1] = bad
    with pytest.raises(ValueError, match="NaN"):
      kmeans.fit(frames, 3, 0, **SMALL)
