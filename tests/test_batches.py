"""The plan of batches, and their reading."""

import collections
import concurrent.futures
import functools
import logging
import math
import multiprocessing
import threading
import time

import numpy as np
import pytest
import soundfile
from ml_collections import ConfigDict

from ssl_jax.data import batch_plan, batches
from ssl_jax.data.sources import open_source
from ssl_jax.errors import UserError

BUCKETS = [16_000, 32_000, 64_000]


def lengths(count=97, seed=0):
  """0.2 to 6 s: some longer than the last bucket."""
  return np.random.default_rng(seed).integers(3_200, 96_000, count)


def bucket_sizes(num_samples):
  return [
    int(np.sum((num_samples > low) & (num_samples <= high)))
    for low, high in zip([0, *BUCKETS[:2]], [*BUCKETS[:2], 10**9], strict=True)
  ]


def updates_through(planned, sizes, epochs):
  return sum(
    math.ceil(epochs * size / rows)
    for size, (rows, _) in zip(sizes, planned.shapes, strict=True)
  )


def same(a, b):
  return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


# 8 s: many batches an epoch; 400 s: several epochs a batch.
@pytest.mark.parametrize("batch_seconds", [0.1, 8.0, 50.0, 400.0])
def test_every_clip_once_in_each_epoch_of_its_bucket(batch_seconds):
  num_samples = lengths()
  sizes = bucket_sizes(num_samples)
  planned = batch_plan.BatchPlan(num_samples, BUCKETS, batch_seconds, seed=3)
  epochs = 5
  seen = collections.Counter()
  for update in range(updates_through(planned, sizes, epochs)):
    batch = planned.batch(update)
    assert len(batch.clips) == planned.rows(batch.bucket_length)
    for clip, epoch in zip(batch.clips, batch.epochs, strict=True):
      seen[int(clip), int(epoch)] += 1
      fits = [b for b in BUCKETS if b >= min(num_samples[clip], BUCKETS[-1])]
      assert batch.bucket_length == fits[0]
  assert set(seen.values()) == {1}
  first = [clip for clip, epoch in seen if epoch < epochs]
  assert len(first) == epochs * len(num_samples)


def test_an_epoch_of_updates_ends_before_the_next_begins():
  num_samples = lengths()
  planned = batch_plan.BatchPlan(num_samples, BUCKETS, 8.0, seed=3)
  end = updates_through(planned, bucket_sizes(num_samples), 1)
  rows = [planned.batch(update) for update in range(end)]
  assert {int(c) for r in rows for c in r.clips} == set(range(97))
  assert min(planned.batch(end).epochs) >= 1
  drawn = [r.bucket_length for r in rows]
  assert drawn != sorted(drawn)  # Buckets are mixed, not one after the other.


@pytest.mark.parametrize("batch_seconds", [0.1, 8.0, 400.0])
def test_a_late_update_costs_no_more_than_an_early_one(
  monkeypatch, batch_seconds
):
  planned = batch_plan.BatchPlan(lengths(), BUCKETS, batch_seconds, seed=0)
  count = collections.Counter()
  original = batch_plan._Bucket.batches_before

  def counted(bucket, epoch):
    count["steps"] += 1
    return original(bucket, epoch)

  monkeypatch.setattr(batch_plan._Bucket, "batches_before", counted)
  for update in (10, 10**7, 10**12):
    batch_plan._permutation.cache_clear()
    count.clear()
    batch = planned.batch(update)
    epochs = len(np.unique(batch.epochs))
    assert batch_plan._permutation.cache_info().misses == 1 + epochs
    assert count["steps"] < 60


def test_an_epoch_sorts_each_bucket_once():
  planned = batch_plan.BatchPlan(lengths(), BUCKETS, 8.0, seed=0)
  batch_plan._permutation.cache_clear()
  for update in range(round(planned.updates_per_epoch)):
    planned.batch(update)
  # Two blocks may be touched, and two epochs of each of three buckets.
  assert batch_plan._permutation.cache_info().misses <= 2 + 2 * 3


def test_a_batch_depends_on_the_update_alone():
  planned = batch_plan.BatchPlan(lengths(), BUCKETS, 20.0, seed=1)
  updates = list(range(60))
  forward = [planned.batch(update) for update in updates]
  batch_plan._permutation.cache_clear()
  for update in reversed(updates):
    assert same(planned.batch(update), forward[update])
  batch_plan._permutation.cache_clear()
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    for update, batch in zip(updates, pool.map(planned.batch, updates)):
      assert same(batch, forward[update])


def test_epochs_and_seeds_differ_in_order_and_crops():
  num_samples = np.full(40, 960_000)
  rows = {}
  for seed in (0, 1):
    planned = batch_plan.BatchPlan(num_samples, BUCKETS, 160.0, seed)
    assert planned.shapes == [(40, 64_000)]  # One batch an epoch.
    rows |= {(seed, epoch): planned.batch(epoch) for epoch in range(3)}
  for batch in rows.values():
    assert sorted(batch.clips) == list(range(40))
    assert len(set(batch.starts.tolist())) > 35
  for a, b in [((0, 0), (0, 1)), ((0, 1), (0, 2)), ((0, 0), (1, 0))]:
    assert not np.array_equal(rows[a].clips, rows[b].clips)
    crops = [dict(zip(rows[k].clips, rows[k].starts)) for k in (a, b)]
    assert sum(crops[0][clip] != crops[1][clip] for clip in range(40)) > 35


def test_crops_start_on_frames_of_the_clip_and_cover_it():
  num_samples = lengths()
  planned = batch_plan.BatchPlan(num_samples, BUCKETS, 20.0, seed=0)
  shares = []
  for update in range(300):
    batch = planned.batch(update)
    room = num_samples[batch.clips] - batch.bucket_length
    assert (batch.starts >= 0).all()
    assert (batch.starts <= np.maximum(room, 0)).all()
    assert (batch.starts % 320 == 0).all()
    last = room // 320 * 320
    shares += (batch.starts[last > 0] / last[last > 0]).tolist()
  assert min(shares) == 0 and max(shares) == 1
  assert abs(np.mean(shares) - 0.5) < 0.03


# A sample short of room for another start, and with just room for it.
@pytest.mark.parametrize("room, starts", [(1_279, 4), (1_280, 5)])
def test_crops_start_on_any_frame_alike(room, starts):
  num_samples = np.full(200, BUCKETS[-1] + room)
  planned = batch_plan.BatchPlan(num_samples, BUCKETS, 80.0, seed=0)
  drawn = [planned.batch(update).starts for update in range(100)]
  frames, counts = np.unique(drawn, return_counts=True)
  np.testing.assert_array_equal(frames, 320 * np.arange(starts))
  assert counts.sum() == 2_000
  np.testing.assert_allclose(counts, 2_000 / starts, rtol=0.15)


def test_the_order_of_a_seed_is_the_same_for_ever():
  planned = batch_plan.BatchPlan(np.arange(1, 13) * 8_000, BUCKETS, 8.0, seed=7)
  drawn = [planned.batch(update) for update in (0, 2, 5, 1_000)]
  assert [
    (d.bucket_length, d.clips.tolist(), d.starts.tolist()) for d in drawn
  ] == [
    (
      16000,
      [1, 0, 0, 1, 0, 1, 1, 0, 1, 0, 1],
      [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ),
    (64000, [11, 7], [14720, 0]),
    (64000, [8, 4], [4160, 0]),
    (64000, [6, 7], [0, 0]),
  ]


def test_accounting():
  rng = np.random.default_rng(0)
  seconds = np.clip(np.abs(rng.normal(13.0, 3.5, 3_000)), 1.5, 30)
  num_samples = (seconds * 16_000).astype(int)
  lengths = [int(16_000 * s) for s in (5, 9, 12.5, 14, 15.625)]
  planned = batch_plan.BatchPlan(num_samples, lengths, 156.0, seed=0)
  assert abs(planned.seconds_per_update / 156 - 1) < 0.03
  assert planned.hours == pytest.approx(num_samples.sum() / 16_000 / 3_600)
  drawn = [planned.batch(u) for u in range(round(planned.updates_per_epoch))]
  real = [
    np.minimum(num_samples[d.clips], d.bucket_length).sum() for d in drawn
  ]
  padded = [d.bucket_length * len(d.clips) for d in drawn]
  assert np.mean(real) / 16_000 == pytest.approx(
    planned.seconds_per_update, rel=0.01
  )
  assert sum(real) / sum(padded) == pytest.approx(planned.fill, rel=0.01)
  assert 0.85 < planned.fill < 1
  clips = np.concatenate([d.clips for d in drawn])
  assert len(clips) == pytest.approx(3_000, rel=0.01)
  assert planned.shapes == [
    (planned.rows(length), length) for length in lengths
  ]


def test_a_plan_of_nothing_is_refused():
  for num_samples in ([], [16_000, 0]):
    with pytest.raises(ValueError, match="no clips"):
      batch_plan.BatchPlan(np.array(num_samples), BUCKETS, 8.0, 0)


def test_validation_reads_every_clip_once():
  num_samples = lengths()
  rows = batch_plan.valid_batches(num_samples, BUCKETS, 20.0)
  clips = np.concatenate([r.clips for r in rows])
  assert sorted(clips[clips >= 0]) == list(range(97))
  assert (clips < 0).sum() > 0
  shapes = {(r.bucket_length, len(r.clips)) for r in rows}
  assert len(shapes) == 3
  again = batch_plan.valid_batches(num_samples, BUCKETS, 20.0)
  assert all(same(a, b) for a, b in zip(rows, again, strict=True))
  for r in rows:
    room = num_samples[r.clips] - r.bucket_length
    assert (r.starts[r.clips >= 0] <= np.maximum(room, 0)[r.clips >= 0]).all()
    assert (r.starts % 320 == 0).all()
  # Batches of another size show the same crops.
  crops = {}
  for r in rows + batch_plan.valid_batches(num_samples, BUCKETS, 3.0):
    for clip, start in zip(r.clips.tolist(), r.starts.tolist()):
      assert crops.setdefault(clip, start) == start
  assert len({start for start in crops.values()}) > 10


@pytest.fixture(scope="module")
def source():
  settings = ConfigDict(dict(source="embedded", hours=0.0, min_seconds=0.2))
  return open_source(settings, "train")


@pytest.fixture(scope="module")
def planned(source):
  return batch_plan.BatchPlan(source.num_samples, BUCKETS, 12.0, seed=0)


def iterate(source, planned, start=0, number=6, threads=2, workers=0, **rest):
  iterator = batches.make_iterator(
    source,
    planned,
    start,
    number,
    num_threads=threads,
    num_workers=workers,
    prefetch=3,
    **rest,
  )
  read = list(iterator)
  iterator.close()
  return read


def assert_same_batches(ours, theirs):
  for a, b in zip(ours, theirs, strict=True):
    assert a.keys() == b.keys() == {"waveform", "length", "record", "draw_id"}
    for key in a:
      assert a[key].dtype == b[key].dtype
      np.testing.assert_array_equal(a[key], b[key])


def test_a_batch_holds_the_planned_audio(source, planned):
  for update in range(8):
    rows = planned.batch(update)
    batch = batches.load_batch(source, rows)
    assert batch["waveform"].shape == (len(rows.clips), rows.bucket_length)
    assert [batch[k].dtype for k in ("waveform", "length", "record")] == [
      np.int16,
      np.int32,
      np.int64,
    ]
    np.testing.assert_array_equal(batch["record"], rows.clips)
    for row, (clip, start) in enumerate(zip(rows.clips, rows.starts)):
      expected = source.read(clip, start, rows.bucket_length)
      assert batch["length"][row] == len(expected)
      got = batch["waveform"][row]
      np.testing.assert_array_equal(got[: len(expected)], expected)
      assert not got[len(expected) :].any()


def test_processes_together_read_the_batch_of_one(source, planned):
  whole = iterate(source, planned, row_multiple=8)
  for count in (2, 4):
    parts = [
      iterate(source, planned, row_multiple=8, shards=(p,), num_shards=count)
      for p in range(count)
    ]
    joined = [
      {key: np.concatenate([part[key] for part in update]) for key in update[0]}
      for update in zip(*parts, strict=True)
    ]
    assert_same_batches(joined, whole)


def test_row_multiple_only_adds_empty_rows(source, planned):
  padded = iterate(source, planned, row_multiple=8)
  for batch, bare in zip(padded, iterate(source, planned), strict=True):
    rows = len(bare["length"])
    assert len(batch["length"]) == math.ceil(rows / 8) * 8
    assert_same_batches([{k: v[:rows] for k, v in batch.items()}], [bare])
    assert not batch["waveform"][rows:].any()
    assert not batch["length"][rows:].any()
    assert (batch["record"][rows:] == -1).all()


def test_rows_that_cannot_be_shared_are_refused(source, planned):
  with pytest.raises(ValueError, match="in 7 shards"):
    batches.load_batch(source, planned.batch(0), 8, 7)


def test_starting_late_is_skipping(source, planned):
  whole = iterate(source, planned, number=9)
  assert_same_batches(iterate(source, planned, 4, 5), whole[4:])
  iterator = batches.make_iterator(
    source, planned, 0, 9, num_threads=2, num_workers=0, prefetch=3
  )
  first = [next(iterator) for _ in range(3)]
  state = iterator.get_state()
  rest = list(iterator)
  assert_same_batches(first + rest, whole)
  iterator.set_state(state)
  assert_same_batches(list(iterator), whole[3:])
  iterator.close()


@pytest.mark.parametrize("threads, workers", [(1, 0), (4, 0), (2, 2)])
def test_threads_and_workers_change_nothing(source, planned, threads, workers):
  plain = [batches.load_batch(source, planned.batch(u)) for u in range(2, 8)]
  read = iterate(source, planned, 2, 6, threads, workers)
  assert all(type(v) is np.ndarray for batch in read for v in batch.values())
  assert_same_batches(read, plain)


@pytest.mark.parametrize("workers", [0, 1])
def test_close_leaves_no_threads_or_processes(source, planned, workers):
  iterator = batches.make_iterator(
    source, planned, 0, 10**9, num_threads=2, num_workers=workers, prefetch=3
  )
  next(iterator)
  if workers:
    assert multiprocessing.active_children()
  else:
    assert any("grain" in t.name for t in threading.enumerate())
  iterator.close()
  deadline = time.time() + 5
  while any("grain-prefetch" in t.name for t in threading.enumerate()):
    assert time.time() < deadline
    time.sleep(0.01)
  assert not multiprocessing.active_children()


@pytest.fixture
def folder(tmp_path):
  noise = np.random.default_rng(0).normal(size=16_000) * 0.1
  for i in range(6):
    soundfile.write(tmp_path / f"{i}.flac", noise, 16_000)
  settings = ConfigDict(
    dict(
      source="folder",
      dir=str(tmp_path),
      valid_dir=str(tmp_path),
      valid_fraction=0.0,
      hours=0.0,
      min_seconds=0.5,
    )
  )
  return tmp_path, open_source(settings, "train")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_clip_damaged_later_is_an_empty_row_named_once(
  folder, caplog, workers
):
  root, source = folder
  cut = (root / "4.flac").read_bytes()[:1_000]
  (root / "4.flac").write_bytes(cut)
  planned = batch_plan.BatchPlan(source.num_samples, BUCKETS, 6.0, 0)
  with caplog.at_level(logging.WARNING, "ssl_jax"):
    read = iterate(source, planned, number=3, workers=workers)
  for update, batch in enumerate(read):
    here = planned.batch(update).clips == 4
    assert here.sum() == 1
    assert not batch["waveform"][here].any()
    assert (batch["length"] == np.where(here, 0, 16_000)).all()
    assert batch["record"][here] == -1
  (record,) = [r for r in caplog.records if r.name == "ssl_jax"]
  assert "'4.flac' cannot be read" in record.getMessage()
  assert [*source.damaged] == ["4.flac"] and source.damaged["4.flac"]


def test_a_disk_that_went_away_stops_the_run(folder):
  root, source = folder
  for path in root.iterdir():
    path.unlink()
  planned = batch_plan.BatchPlan(source.num_samples, BUCKETS, 6.0, 0)
  with pytest.raises(UserError, match="none of the 6 clips"):
    iterate(source, planned)
  assert len(source.damaged) == 6


def drawn(source, planned, updates, count, multiple):
  """(record, start's audio) that `count` processes read, in order."""
  seen = []
  for update in updates:
    rows = planned.batch(update)
    for p in range(count):
      batch = batches.load_batch(source, rows, multiple, count, (p,))
      seen += batch["record"][batch["length"] > 0].tolist()
  return seen


@pytest.mark.parametrize("seed", range(12))
def test_nothing_is_lost_or_twice_however_processes_change(source, seed):
  """Random clips, buckets, batches, processes; stopped and gone on with."""
  rng = np.random.default_rng(seed)
  kept = np.sort(rng.permutation(len(source.ids))[: rng.integers(1, 150)])
  some = source.select(kept)
  buckets = np.sort(rng.choice(np.arange(4_000, 60_000, 320), 3)).tolist()
  planned = batch_plan.BatchPlan(
    some.num_samples, buckets, rng.uniform(0.1, 60), int(rng.integers(99))
  )
  epochs = 2
  fits = np.searchsorted(buckets, np.minimum(some.num_samples, buckets[-1]))
  updates = updates_through(
    planned, [s for s in np.bincount(fits, minlength=3) if s], epochs
  )
  seen, update = [], 0
  while update < updates:
    count = int(rng.integers(1, 5))
    end = update + int(rng.integers(1, 1 + updates))
    end = min(end, updates)
    multiple = count * int(rng.integers(1, 4))
    seen += drawn(some, planned, range(update, end), count, multiple)
    update = end
  # All of the first epochs, and of the next only what fills the last batches.
  often = np.bincount(seen, minlength=len(some.ids))
  assert often.min() >= epochs
  spare = sum(rows - 1 for rows, _ in planned.shapes)
  assert often.sum() - epochs * len(some.ids) <= spare


@pytest.mark.parametrize(
  "workers", [0, pytest.param(2, marks=pytest.mark.slow)]
)
def test_what_is_left_after_a_random_step_is_the_same(source, workers):
  rng = np.random.default_rng(workers)
  rates = rng.choice([0.3, 1.0, 2.5], len(source.ids))
  planned = batch_plan.BatchPlan(
    source.num_samples, BUCKETS, 12.0, 5, rates, 0.5, (0.9, 1.1)
  )
  whole = iterate(source, planned, number=8, workers=workers)
  for start in rng.integers(1, 8, 1 if workers else 3).tolist():
    count = int(rng.integers(1, 3 if workers else 5))
    parts = [
      iterate(
        source,
        planned,
        start,
        8 - start,
        workers=workers,
        row_multiple=count,
        shards=(p,),
        num_shards=count,
      )
      for p in range(count)
    ]
    for update, batch in enumerate(whole[start:]):
      joined = np.concatenate([part[update]["waveform"] for part in parts])
      rows = len(batch["waveform"])
      np.testing.assert_array_equal(joined[:rows], batch["waveform"])


@pytest.mark.parametrize("batch_seconds", [0.1, 8.0, 400.0])
def test_clips_come_as_often_as_their_rates(batch_seconds):
  num_samples = lengths()
  rates = np.random.default_rng(1).choice([0.25, 1.0, 2.6], len(num_samples))
  planned = batch_plan.BatchPlan(num_samples, BUCKETS, batch_seconds, 3, rates)
  assert sum(planned.shares) == pytest.approx(1)
  cropped = np.minimum(num_samples, BUCKETS[-1])
  assert planned.seconds_per_update * planned.updates_per_epoch == (
    pytest.approx((cropped * rates).sum() / 16_000)
  )
  epochs = 40
  often, seen = np.zeros(len(num_samples)), set()
  for update in range(round(epochs * planned.updates_per_epoch)):
    batch = planned.batch(update)
    np.add.at(often, batch.clips, 1)
    for draw in zip(batch.clips.tolist(), batch.epochs.tolist()):
      assert draw not in seen
      seen.add(draw)
  rows = max(rows for rows, _ in planned.shapes)
  slack = 2 + rows / 10
  assert np.abs(often - epochs * rates).max() <= slack
  # Never again before all others of its rate in the bucket.
  fits = np.searchsorted(BUCKETS, cropped)
  for rate in np.unique(rates):
    for bucket in range(3):
      group = often[(rates == rate) & (fits == bucket)]
      assert np.ptp(group) <= math.ceil(rate)


def test_speeds_are_drawn_for_clips_and_leave_the_rest_alone():
  num_samples = lengths(400)
  plain = batch_plan.BatchPlan(num_samples, BUCKETS, 50.0, 3)
  fast = batch_plan.BatchPlan(
    num_samples, BUCKETS, 50.0, 3, None, 0.4, (0.9, 1.1)
  )
  speeds = []
  for update in range(200):
    a, b = plain.batch(update), fast.batch(update)
    assert same(a[1:3], b[1:3]) and (a.speeds == 1).all()
    normal = b.speeds == 1
    np.testing.assert_array_equal(a.starts[normal], b.starts[normal])
    # What is read lies in the clip, where the clip is long enough.
    read = np.ceil(b.bucket_length * b.speeds)
    room = np.maximum(num_samples[b.clips] - read, 0)
    assert (b.starts <= room).all()
    speeds += b.speeds.tolist()
  counts = collections.Counter(speeds)
  assert {*counts} == {0.9, 1.0, 1.1}
  assert counts[1.0] / len(speeds) == pytest.approx(0.6, abs=0.02)
  assert counts[0.9] / len(speeds) == pytest.approx(0.2, abs=0.02)


class Sweep:
  """A clip whose pitch says where it is: 200 Hz, and 100 more a second."""

  ids, num_samples = ["sweep"], np.array([96_000])
  metadata, skipped, damaged, rates = [{}], [], {}, None

  def read(self, index, start, num_samples):
    time = np.arange(96_000) / 16_000
    audio = np.sin(2 * np.pi * (200 * time + 50 * time**2))
    return np.rint(9_000 * audio).astype(np.int16)[start:][:num_samples]


class Frames:
  """Labels that are the frames of the clip."""

  def read(self, clip, first, count):
    return np.arange(first, first + count, dtype=np.uint16)


@pytest.mark.parametrize("speed", [0.9, 1.0, 1.1])
def test_at_another_speed_audio_and_labels_are_of_the_same_time(speed):
  planned = batch_plan.BatchPlan(
    [96_000], [32_000], 2.0, 0, None, 1.0, (speed,)
  )
  rows = planned.batch(3)
  batch = batches.load_batch(Sweep(), rows, labels=[Frames()])
  assert batch["length"].tolist() == [32_000]
  labels = batch["labels"][0, :, 0].astype(int)
  assert labels[0] == rows.starts[0] // 320
  # The pitch of each frame, by its zero crossings, over speed: where it is.
  waveform = batch["waveform"][0].astype(float)
  for frame in (5, 50, 90):
    around = waveform[frame * 320 - 1_400 : frame * 320 + 1_800]
    pitch = (np.diff(np.sign(around)) != 0).sum() / 2 / (3_200 / 16_000)
    seconds = (pitch / speed - 200) / 100
    assert (labels[frame] * 320 + 200) / 16_000 == pytest.approx(
      seconds, abs=0.06
    )


def test_only_arrays_of_workers_are_copied():
  loaded = {"length": np.ones(2, np.int32)}
  report = functools.partial(batches._report, None)
  assert report(False, (loaded, [], []))["length"] is loaded["length"]
  copied = report(True, (loaded, [], []))["length"]
  assert not np.shares_memory(copied, loaded["length"])
  np.testing.assert_array_equal(copied, loaded["length"])


def test_odd_clips_are_told_of_by_the_count(caplog, monkeypatch):
  monkeypatch.setattr(batches, "_odd", {})
  batch = {"length": np.ones(1, np.int32)}
  for clip in [*range(12), *range(12)]:
    note = [(f"clip{clip}", "digital silence")]
    batches._report(None, False, (batch, [], note))
  said = [record.getMessage() for record in caplog.records]
  assert len(said) == 2 and "'clip0' is digital silence" in said[0]
  assert "the 10. such clip" in said[1] and "channel" in said[1]
