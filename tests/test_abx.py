"""Phone ABX against a double loop in float64, and against fastabx."""

import itertools
import json
import math
import os
import subprocess
from collections import defaultdict
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from spoken import features, settings, span, speech

from ssl_jax.errors import UserError
from ssl_jax.probes import abx, triples

ROOT = Path(__file__).parents[1]
# An interpreter that has fastabx, which needs Python 3.12 and its own torch.
FASTABX = os.environ.get("FASTABX_PYTHON", "")
MODES = list(triples.MODES)
EYE = np.eye(6, dtype=np.float32)


def direction(name, speaker):
  """Frames of a phone all lie in its own direction."""
  return EYE["ABCDEF".index(name)]


def segments(splits, frames, libri_light=False):
  """(phone, neighbours, speaker, frames [T, D] in float64) of all phones."""
  rows = []
  for split in ("valid", "test"):
    values, offsets = frames[split]
    for first, end, metadata in zip(
      offsets, offsets[1:], splits[split].metadata
    ):
      names = ["#", *(name for name, *_ in metadata["phones"]), "#"]
      for i, (name, start, stop) in enumerate(metadata["phones"]):
        a, b = span(start, stop, end - first, libri_light)
        if a < b:
          own = values[first + a : first + b].astype(np.float64)
          beside = names[i], names[i + 2]
          rows.append((name, beside, metadata["speaker"], own))
  return rows


def angle(x, y):
  cosine = x @ y / math.sqrt((x @ x) * (y @ y))
  return math.acos(min(1, max(-1, round(cosine, 12)))) / math.pi


def warp(x, y):
  """Returns the mean along the best path, by the recursion over prefixes."""
  table = {}
  for i, j in itertools.product(range(len(x)), range(len(y))):
    before = [
      table[at]
      for at in ((i - 1, j - 1), (i, j - 1), (i - 1, j))
      if at in table
    ]
    cost, steps = min(before, key=lambda b: b[0]) if before else (0, 0)
    table[i, j] = cost + angle(x[i], y[j]), steps + 1
  cost, steps = table[len(x) - 1, len(y) - 1]
  return cost / steps


def brute_force(rows, distance):
  """Returns {mode: error} over all triples, by loops."""
  if distance == "pooled":
    vectors = [own.mean(axis=0) for *_, own in rows]
    between = [[angle(x, y) for y in vectors] for x in vectors]
  else:
    known = {}
    for i, j in itertools.combinations(range(len(rows)), 2):
      known[i, j] = known[j, i] = warp(rows[i][-1], rows[j][-1])
    ids = range(len(rows))
    between = [[known.get((i, j), 0) for j in ids] for i in ids]
  scores = {}
  for mode, (across, triphone) in triples.MODES.items():
    cells = defaultdict(list)
    for a, b, x in itertools.product(range(len(rows)), repeat=3):
      (pa, ca, sa, _), (pb, cb, sb, _), (px, cx, sx, _) = (
        rows[a], rows[b], rows[x]
      )  # fmt: skip
      if pa != px or pa == pb or sa != sb or a == x:
        continue
      if (sa != sx) != across or (triphone and not ca == cb == cx):
        continue
      to_a, to_b = between[x][a], between[x][b]
      error = 0.5 if abs(to_a - to_b) < 1e-9 else float(to_a > to_b)
      cells[pa, pb, sa, ca if triphone else 0, sx].append(error)
    places, pairs = defaultdict(list), defaultdict(list)
    for (pa, pb, sa, *_), errors in cells.items():
      places[pa, pb, sa].append(np.mean(errors))
    for (pa, pb, _), errors in places.items():
      pairs[pa, pb].append(np.mean(errors))
    if pairs:
      scores[mode] = np.mean([np.mean(errors) for errors in pairs.values()])
  return scores


def measured(splits, frames, monkeypatch=None, **changes):
  """Returns {mode: error}; with a monkeypatch, no segment is left out."""
  if monkeypatch:
    plan = abx.plan
    monkeypatch.setattr(
      abx, "plan", lambda *args: plan(*args, most_items=64, most_speakers=64)
    )
  measure = abx.make(settings(**changes), splits)
  if monkeypatch:
    monkeypatch.undo()
  tally = measure.tally(frames)
  everyone = np.ones((1, len(tally.units)))
  return {mode: score(everyone)[0] for mode, score in tally.scores.items()}


@pytest.mark.parametrize("libri_light", [False, True])
@pytest.mark.parametrize("distance", ["pooled", "dtw"])
def test_errors_are_those_of_a_double_loop(distance, libri_light, monkeypatch):
  splits = speech(speakers=3, clips=1, length=12)
  frames = features(splits)
  changes = {"distance": distance, "libri_light": libri_light}
  got = measured(splits, frames, monkeypatch, **changes)
  rows = segments(splits, frames, libri_light)
  want = brute_force(rows, distance)
  assert list(got) == MODES
  for mode in MODES:
    assert got[mode] == pytest.approx(want[mode], abs=1e-6)
  assert len({round(x, 6) for x in got.values()}) == 4


@pytest.mark.parametrize("distance", ["pooled", "dtw"])
def test_a_tie_is_half_an_error(distance, monkeypatch):
  splits = speech(speakers=3, clips=1, length=10)
  # Few directions, so that many distances are equal, exactly so in float32.
  generator = np.random.default_rng(0)
  frames = features(splits, of=lambda *_: EYE[generator.integers(2)])
  got = measured(splits, frames, monkeypatch, distance=distance)
  want = brute_force(segments(splits, frames), distance)
  for mode in want:
    assert got[mode] == pytest.approx(want[mode], abs=1e-6)
  same = features(splits, of=lambda *_: EYE[0])
  got = measured(splits, same, monkeypatch, distance=distance)
  assert all(score == 0.5 for score in got.values())


def test_the_frames_of_a_segment():
  assert abx.frame_range(0.03, 0.05, 100) == (1, 3)
  assert abx.frame_range(0.03, 0.05, 100, True) == (1, 2)
  assert abx.frame_range(0.0, 0.02, 100) == (0, 1)
  assert abx.frame_range(0.011, 0.029, 100) == (1, 1)  # None of its own.
  assert abx.frame_range(1.9, 2.5, 100) == (95, 100)  # Past the end.
  for hundredths in range(300):
    start, end = hundredths / 100, (hundredths + 7) / 100
    assert abx.frame_range(start, end, 1000) == span(start, end, 1000)


@pytest.mark.parametrize("distance", ["pooled", "dtw"])
def test_random_features_are_at_chance_and_perfect_ones_never_err(distance):
  splits = speech(speakers=4, clips=4, length=20, phones=4)
  got = measured(splits, features(splits), distance=distance)
  for mode in ("abx_across", "abx_within"):
    assert got[mode] == pytest.approx(0.5, abs=0.03)
  # A frame is of one phone alone if none begins in the middle of it.
  for split in ("valid", "test"):
    for metadata in splits[split].metadata:
      for row in metadata["phones"]:
        row[1:] = [math.floor(round(x * 50, 6)) / 50 for x in row[1:]]
  got = measured(splits, features(splits, of=direction), distance=distance)
  assert [*got.values()] == [0.0] * 4


def test_shifted_intervals_cost():
  splits = speech(speakers=4, clips=4, length=20, phones=4)
  frames = features(splits, of=direction)
  right = measured(splits, frames)
  shifted = measured(speech(0, 4, 4, 4, 20, shift=0.02), frames)
  assert shifted["abx_across"] > right["abx_across"] + 0.03


def test_swapped_speakers_change_what_is_within():
  splits = speech(speakers=4, clips=4, length=20, phones=4)

  def spoken(name, speaker):
    # Phones are told apart within a speaker alone: each turns them its own way.
    return EYE[("ABCD".index(name) + int(speaker[1:])) % 4]

  frames = features(splits, of=spoken)
  right = measured(splits, frames)
  assert right["abx_within"] < 0.2 < 0.5 < right["abx_across"]
  for split in ("valid", "test"):
    for i, metadata in enumerate(splits[split].metadata):
      metadata["speaker"] = f"s{i % 4}"
  swapped = measured(splits, frames)
  assert swapped["abx_within"] > right["abx_within"] + 0.1
  assert swapped["abx_across"] < right["abx_across"] - 0.05


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (4, 4), (8, 16)])
def test_warping_is_the_recursion(shape):
  generator = np.random.default_rng(0)
  x = generator.normal(size=(20, shape[0], 3))
  y = generator.normal(size=(20, shape[1], 3))
  of_x, of_y = (generator.integers(1, n + 1, 20) for n in shape)
  distances = np.array(
    [[[angle(a, b) for b in v] for a in u] for u, v in zip(x, y)]
  )
  want = [warp(u[:n], v[:m]) for u, v, n, m in zip(x, y, of_x, of_y)]
  got = triples.warp(
    jnp.asarray(distances.transpose(1, 2, 0)),
    jnp.asarray(of_x),
    jnp.asarray(of_y),
  )
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_groups_and_speakers_are_bounded_and_drawn_by_the_seed():
  splits = speech(speakers=8, clips=10, length=20)
  found = abx.aligned(settings(), splits, ("valid", "test"))
  units = sorted({s for x in found.values() for s in x.speakers})
  items = abx.read_items(found, units, "ABC", False)
  one, again, other = (triples.plan(items, 3, 8, s, True) for s in (0, 0, 1))
  drawn = np.concatenate([jobs.x for jobs in one.jobs.values()])
  for key, jobs in one.jobs.items():
    for ours, theirs in zip(jobs, again.jobs[key]):
      np.testing.assert_array_equal(ours, theirs)
    assert jobs.x.shape[1] == jobs.a.shape[1] == 10
  # 8 speakers, 3 phones, 5 speakers of X; 10 segments each of A, B, B' and X.
  assert one.triples >= 8 * 3 * 5 * 10 * 20 * 10
  assert drawn.max() < len(items.phone)
  theirs = np.concatenate([jobs.x for jobs in other.jobs.values()])
  assert drawn.shape != theirs.shape or (drawn != theirs).any()
  # Each place's shares add up to one error a triple.
  total = np.zeros(one.counts.size)
  for jobs in one.jobs.values():
    same = (jobs.x[:, :, None] == jobs.a[:, None]) & (jobs.x >= 0)[:, :, None]
    real = (jobs.x >= 0).sum(1) * (jobs.a >= 0).sum(1) - same.sum((1, 2))
    np.add.at(total, jobs.place, jobs.share * real[:, None])
  np.testing.assert_allclose(total, one.counts.ravel(), atol=1e-9)


def test_speakers_weigh_as_they_are_drawn(monkeypatch):
  splits = speech(speakers=3, clips=1, length=12)
  frames = features(splits)
  measure = abx.make(settings(), splits)
  tally = measure.tally(frames)
  assert tally.units == ["s0", "s1", "s2"]
  assert next(iter(tally.scores)) == measure.metric == "abx_across"
  score = tally.scores["abx_across"]
  each = score(np.eye(3))
  mean = score(np.ones((1, 3)))[0]
  assert min(each) < mean < max(each)
  np.testing.assert_allclose(score(np.full((1, 3), 2.0))[0], mean)


def test_a_corpus_of_one_speaker_is_refused():
  splits = speech(speakers=1)
  with pytest.raises(UserError, match=r"abx .* 1 speakers"):
    abx.make(settings(), splits)


@pytest.mark.slow
@pytest.mark.skipif(not FASTABX, reason="FASTABX_PYTHON: no fastabx")
@pytest.mark.parametrize("libri_light", [False, True])
def test_fastabx_gives_the_same(tmp_path, libri_light, monkeypatch):
  splits = speech(speakers=5, clips=3, length=25, phones=5)
  frames = features(splits, width=16)
  lines = ["#file onset offset #phone prev-phone next-phone speaker"]
  for split in ("valid", "test"):
    values, offsets = frames[split]
    for clip, first, end, metadata in zip(
      splits[split].ids, offsets, offsets[1:], splits[split].metadata
    ):
      np.save(tmp_path / f"{clip}.npy", values[first:end])
      names = ["#", *(name for name, *_ in metadata["phones"]), "#"]
      for i, (name, start, stop) in enumerate(metadata["phones"]):
        # fastabx refuses a segment without a frame, where ours leaves it out.
        a, b = span(start, stop, end - first, libri_light)
        if a < b:
          lines.append(
            f"{clip} {start:.2f} {stop:.2f} {name} {names[i]} {names[i + 2]} "
            f"{metadata['speaker']}"
          )
  (tmp_path / "clips.item").write_text("\n".join(lines) + "\n")
  if libri_light:
    (tmp_path / "libri_light").touch()
  printed = subprocess.run(
    [FASTABX, ROOT / "tests" / "abx_reference.py", tmp_path],
    check=True,
    stdout=subprocess.PIPE,
    env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    | {"TQDM_DISABLE": "1"},
  ).stdout
  want = json.loads(printed.splitlines()[-1])
  changes = {"libri_light": libri_light}
  got = {
    distance: measured(
      splits, frames, monkeypatch, distance=distance, **changes
    )
    for distance in want
  }
  print(json.dumps({"fastabx": want, "here": got}))
  for distance, scores in want.items():
    for mode in MODES:
      assert got[distance][mode] == pytest.approx(scores[mode], abs=1e-5)
