"""Measures of frozen frames: each against another's, or a count by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import sklearn.linear_model
import sklearn.metrics
import soundfile
from praatio import textgrid

from ssl_jax import config as config_lib
from ssl_jax import tally
from ssl_jax.data import alignments
from ssl_jax.data.alignments import Segment
from ssl_jax.devices import sharding
from ssl_jax.errors import UserError
from ssl_jax.probes import encoders, features, phone, rank, run, words

ROOT = Path(__file__).parents[1]
BY_ROW = sharding.by_row(sharding.make_mesh())
PHONES = ("AA", "IY", "S", "M")
WORDS = {"one": ("AA", "IY", "S"), "two": ("S", "M", "AA"), "six": PHONES}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  """Twelve speakers of three splits, phones that are tones, words of them."""
  folder = tmp_path_factory.mktemp("corpus")
  rng = np.random.default_rng(0)
  clips, aligned = [], []
  for who in range(12):
    split = ("train", "valid", "test")[who % 3]
    for take in range(4):
      at, spans, spoken, sound = 0.1, [], [], [np.zeros(1600)]
      for word in rng.permutation([*WORDS]):
        begin = at
        for name in WORDS[word]:
          seconds = rng.uniform(0.08, 0.14)
          time = np.arange(round(16000 * seconds)) / 16000
          pitch = 300 + 500 * PHONES.index(name) + 10 * who
          sound.append(0.3 * np.sin(2 * np.pi * pitch * time))
          spans.append([round(at, 4), round(at + seconds, 4), name])
          at += len(time) / 16000
        spoken.append([round(begin, 4), round(at, 4), str(word)])
      sound.append(np.zeros(1600))
      sound = np.concatenate(sound) + 0.003 * rng.normal(
        size=sum(map(len, sound))
      )
      file = f"s{who}/{take}.flac"
      (folder / f"s{who}").mkdir(exist_ok=True)
      soundfile.write(folder / file, sound, 16000)
      clips.append(
        {"file": file, "speaker": f"s{who}", "split": split, "language": "xx"}
      )
      spans = [[0.0, 0.1, "SIL"], *spans]
      aligned.append({"file": file, "phones": spans, "words": spoken})
  for name, lines in (("metadata", clips), ("phones", aligned)):
    text = "\n".join(map(json.dumps, lines))
    (folder / f"{name}.jsonl").write_text(text)
  return folder


def settings(task, folder, **changes):
  config = config_lib.load(f"{ROOT}/configs/probe.py:task={task},profile=study")
  config.data.dir = str(folder)
  config.update_from_flattened_dict(changes)
  return config


def probed(task, folder, tmp_path, names=("logmel", "mfcc"), **changes):
  candidates, _ = encoders.open_candidates(names, [], 0)
  return run.probe(
    settings(task, folder, **changes),
    candidates,
    tmp_path / "cache",
    tmp_path / "out",
    BY_ROW,
  )


def test_a_score_is_the_mean_over_groups_of_ratios():
  hits = np.array([[1.0, 3, 0], [2, 0, 0]])
  counts = np.array([[2.0, 4, 0], [2, 1, 0]])
  score = tally.mean_of_ratios(hits, counts)
  weights = np.array([[1.0, 1, 1], [2, 0, 0], [0, 0, 1]])
  expected = [(4 / 6 + 2 / 3) / 2, (1 / 2 + 1) / 2, np.nan]
  np.testing.assert_allclose(score(weights), expected)


def test_the_bootstrap_is_scipys():
  rng = np.random.default_rng(0)
  counts = rng.integers(20, 60, 40).astype(float)
  hits = rng.binomial(counts.astype(int), rng.uniform(0.2, 0.6, 40))
  units = [f"s{i}" for i in range(40)]
  score = tally.mean_of_ratios(hits[None], counts[None])
  weights = tally.draw_weights(units, 20_000)
  assert (weights.sum(axis=1) == 40).all()
  ours = score(weights)
  theirs = scipy.stats.bootstrap(
    (hits, counts),
    lambda h, c, axis: h.sum(axis) / c.sum(axis),
    paired=True,
    vectorized=True,
    n_resamples=20_000,
    method="percentile",
    confidence_level=0.9,
    rng=rng,
  )
  # Halves are drawn by themselves, which takes off what they differ by.
  assert abs(ours.std() / theirs.standard_error - 1) < 0.05
  edge = tally.half_interval(tally.spread([score(weights).mean()], [ours]))
  low, high = theirs.confidence_interval
  assert abs(2 * edge / (high - low) - 1) < 0.05
  np.testing.assert_array_equal(weights, tally.draw_weights(units, 20_000))


def test_words_are_units_that_each_count_as_often_as_drawn():
  """Where few speak: the standard error is that of a mean of words."""
  rng = np.random.default_rng(0)
  spoken = [
    words.Word("test", 2 * i, 2 * i + 2, f"w{i // 2}", f"s{i % 2}", "xx-YY")
    for i in range(120)
  ]
  retrieval = words.Retrieval(spoken)
  assert (retrieval.speakers, retrieval.kinds, retrieval.queries) == (
    2,
    60,
    120,
  )
  name = rng.normal(size=(60, 16)).repeat(2, axis=0)
  vectors = name + 1.5 * rng.normal(size=(120, 16))
  found = retrieval.tally(vectors).scores["map"]
  per_word = np.array([found(row[None])[0] for row in np.eye(60)])
  weights = tally.draw_weights(retrieval.units, 5_000)
  np.testing.assert_allclose(found(weights), weights @ per_word / 60)
  error = scipy.stats.sem(per_word)
  assert abs(found(weights).std() / error - 1) < 0.05
  again = [
    w._replace(language="xx") if i % 2 else w for i, w in enumerate(spoken)
  ]
  assert words.Retrieval(again).queries == 120  # xx-YY is xx.


def test_few_speakers_have_no_spread():
  few = tally.Tally(["a", "b", "c"], {"m": lambda w: w[:, 0]})
  with pytest.raises(ValueError, match="at least 4"):
    tally.choose([few], True)


def test_a_layer_is_chosen_on_the_other_half():
  units = [f"s{i}" for i in range(10)]
  first = tally.halves(units)
  assert first.sum() == 5
  one, other = np.where(first, 0.9, 0.1), np.where(first, 0.2, 0.6)
  tallies = [
    tally.Tally(
      units, {"accuracy": tally.mean_of_ratios(x[None], np.ones((1, 10)))}
    )
    for x in (one, other)
  ]
  chosen = tally.choose(tallies, True)
  assert [half["layer"] for half in chosen.halves] == [0, 1]
  np.testing.assert_allclose([h["dev"] for h in chosen.halves], [0.9, 0.6])
  np.testing.assert_allclose([h["test"] for h in chosen.halves], [0.1, 0.2])
  np.testing.assert_allclose(chosen.scores["accuracy"], 0.15)
  np.testing.assert_allclose(chosen.layers["accuracy"], [0.5, 0.4])
  lower = tally.choose(tallies, False)
  assert [half["layer"] for half in lower.halves] == [1, 0]


def test_pairs_are_told_apart_where_single_scores_are_not():
  """Speakers differ by far more than the two encoders."""
  rng = np.random.default_rng(0)
  units = [f"s{i}" for i in range(30)]
  ease, weights = rng.uniform(0.2, 0.8, 30), tally.draw_weights(units)

  def measured(*gains):
    found = [ease + gain + rng.normal(0, 0.01, 30) for gain in gains]
    scores = [tally.mean_of_ratios(x[None], np.ones((1, 30))) for x in found]
    return {
      "tests": [x.mean() for x in found],
      "draws": [score(weights) for score in scores],
    }

  good, one, other = measured(0.02), measured(0.0), measured(0.0)
  assert np.std(good["draws"]) > 0.02  # More than the gain.
  better = tally.compare(good, one)
  assert better["p"] < 0.01 and better["interval"][0] > 0
  np.testing.assert_allclose(better["difference"], 0.02, atol=0.01)
  assert tally.compare(one, other)["p"] > 0.05
  # Seeds that differ by more than the gain take the certainty away, whichever
  # stands beside which.
  for seeds in ((-0.01, 0.05), (0.05, -0.01)):
    uncertain = tally.compare(measured(*seeds), measured(0.03, -0.03))
    assert uncertain["p"] > 0.05 and uncertain["std"] > 0.03
  assert tally.compare(good, good)["p"] == 1


def test_a_mean_over_seeds_is_known_as_well_as_welchs():
  """With no spread over units, it is Welch's test of the seeds' scores."""
  one, other = [0.40, 0.43, 0.41], [0.35, 0.39, 0.36, 0.36]
  still = [{"tests": x, "draws": [[y] * 9 for y in x]} for x in (one, other)]
  found = tally.compare(*still)
  theirs = scipy.stats.ttest_ind(one, other, equal_var=False)
  low, high = theirs.confidence_interval(0.9)
  np.testing.assert_allclose(found["p"], theirs.pvalue)
  np.testing.assert_allclose(found["interval"], [low, high])


def test_linear_classification_is_sklearns():
  rng = np.random.default_rng(0)
  centres = rng.normal(size=(12, 20)) * 0.7
  label = rng.integers(0, 12, 6000)
  frames = centres[label] + rng.normal(size=(6000, 20))
  frames = (frames * rng.uniform(0.1, 30, 20) + 5).astype(np.float32)
  train, test = slice(0, 4000), slice(4000, None)
  fitted = phone.fit(frames[train], label[train], 12, 0)
  ours = (phone.predict(fitted, frames[test]) == label[test]).mean()
  scaled = (frames - frames[train].mean(0)) / frames[train].std(0)
  theirs = sklearn.linear_model.LogisticRegression(max_iter=1000)
  theirs = theirs.fit(scaled[train], label[train])
  assert abs(ours - theirs.score(scaled[test], label[test])) < 0.01
  assert 0.4 < ours < 0.9


def test_mean_precision_is_sklearns():
  rng = np.random.default_rng(0)
  for count in (2, 10, 100):
    scores, relevant = rng.normal(size=count), rng.random(count) < 0.3
    relevant[0] = True
    np.testing.assert_allclose(
      words.average_precision(scores, relevant),
      sklearn.metrics.average_precision_score(relevant, scores),
    )


def test_words_have_eight_parts_however_short():
  frames = np.arange(24, dtype=np.float32)[:, None]
  word = words.Word("test", 4, 20, "one", "s", "xx")
  np.testing.assert_allclose(
    words._vector(frames, word), np.arange(4.5, 20, 2), rtol=1e-6
  )
  short = words._vector(frames, word._replace(end=6))
  np.testing.assert_allclose(short, [4, 4, 4, 4, 5, 5, 5, 5], rtol=1e-6)


def test_effective_rank_is_of_the_singular_values():
  frames = np.random.default_rng(0).normal(size=(200, 8)) * [
    9,
    5,
    1,
    1,
    1,
    0,
    0,
    0,
  ]
  values = np.linalg.svd(frames, compute_uv=False)
  share = values / values.sum()
  share = share[share > 1e-9]
  expected = np.exp(-(share * np.log(share)).sum())
  np.testing.assert_allclose(
    rank.effective_rank(frames.T @ frames), expected, rtol=1e-3
  )


def test_frames_belong_to_the_phone_at_their_middle():
  """Middles are at 12.5, 32.5, 52.5 ms ..."""
  found = alignments.frame_names(
    [Segment(0.0125, 0.0525, "A"), Segment(0.0526, 9.0, "B")], 400 + 4 * 320
  )
  assert found == ["A", "A", "", "B", "B"]


def test_alignments_are_read_in_every_form(tmp_path):
  (tmp_path / "a.jsonl").write_text(
    '{"file": "x/one.wav", "phones": [[0, 0.1, "SIL"], [0.1, 0.2, "AH0"], '
    '[0.2, 0.35, "S"]], "words": [[0.1, 0.35, "us"]]}\n'
  )
  (tmp_path / "a.ctm").write_text(
    ";; a comment\none 1 0.00 0.10 SIL\none 1 0.10 0.10 AH\none 1 0.2 0.15 S\n"
  )
  (tmp_path / "a.item").write_text(
    "#file onset offset #phone prev-phone next-phone speaker\n"
    "one 0.1 0.2 AH SIL S 17\none 0.2 0.35 S AH SIL 17\n"
  )
  grid = textgrid.Textgrid()
  phones = [(0, 0.1, "sil"), (0.1, 0.2, "AH1"), (0.2, 0.35, "S")]
  for tier, entries in (("words", [(0.1, 0.35, "us")]), ("phones", phones)):
    grid.addTier(textgrid.IntervalTier(tier, entries, 0, 0.4))
  (tmp_path / "grids" / "x").mkdir(parents=True)
  grid.save(str(tmp_path / "grids/x/one.TextGrid"), "long_textgrid", True)
  expected = [(0.1, 0.2, "AH", "#", "S"), (0.2, 0.35, "S", "AH", "#")]
  for name in ("a.jsonl", "a.ctm", "a.item", "grids"):
    (found,) = alignments.read(tmp_path / name, name).values()
    for ours, theirs in zip(found.phones, expected, strict=True):
      np.testing.assert_allclose(ours[:2], theirs[:2])
      assert ours[2:] == theirs[2:]
  for name, clip in (("a.jsonl", "x/one.wav"), ("grids", "x/one")):
    known = alignments.read(tmp_path / name, "a")[clip]
    assert known.words[0][:3] == (0.1, 0.35, "us")


@pytest.mark.parametrize(
  "file, text, said",
  [
    ("a.jsonl", '{"file": "x"}\n{"file": "x", "phones": [[1, "A"]]}', "line 2"),
    ("a.jsonl", '{"file": "x", "phones": [[2, 1, "A"]]}', "line 1"),
    ("a.jsonl", "[]", "line 1 is no alignment"),
    ("a.ctm", "one 1 0.1 A", "line 1"),
    ("a.item", "#file\none 0.1 x A B C 1", "line 2"),
    ("a.item", "#file\n", "no phones in it"),
    ("a.txt", "", "expected a file with the phones"),
  ],
)
def test_a_line_that_is_no_alignment_is_named(tmp_path, file, text, said):
  (tmp_path / file).write_text(text)
  with pytest.raises(UserError) as error:
    alignments.read(tmp_path / file, f"--config.alignments={file}")
  assert said in str(error.value) and "\n" not in str(error.value)


def test_names_of_files_are_enough_only_where_they_are_clear(tmp_path):
  class Clips:
    def __init__(self, ids):
      self.ids, self.num_samples = ids, np.full(len(ids), 16000)
      self.metadata = [{}] * len(ids)

    def select(self, rows):
      return Clips([self.ids[i] for i in rows])

  line = '{"file": "%s", "phones": [[0, 0.5, "AA"]]}\n'
  file = tmp_path / "a.jsonl"
  file.write_text(line % "s1/0.flac" + line % "s2/0.flac")
  clips = Clips(["s0/0.flac", "s1/0.flac", "s2/0.flac"])
  assert alignments.attach(clips, file, "a")[0].ids == clips.ids[1:]
  absolute = Clips([f"/data/{clip}" for clip in clips.ids])
  assert alignments.attach(absolute, file, "a")[0].ids == absolute.ids[1:]
  file = tmp_path / "b.jsonl"
  file.write_text(line % "0")
  with pytest.raises(UserError, match="no clip of this corpus"):
    alignments.attach(clips, file, "b")
  clips = Clips(["s0/0.flac", "s1/1.flac"])
  assert alignments.attach(clips, file, "b")[0].ids == ["s0/0.flac"]


def test_words_are_not_phones(tmp_path):
  file = tmp_path / "a.jsonl"
  file.write_text(
    '{"file": "x", "phones": [[0, 1, "B1"], [1, 2, "AH0"]], '
    '"words": [[0, 1, "noise"], [1, 2, "B1"]]}'
  )
  (found,) = alignments.read(file, "a").values()
  assert [x.name for x in found.words] == ["noise", "B1"]
  assert [x.name for x in found.phones] == ["B1", "AH"]


def test_phones_are_classified_and_encoders_compared(corpus, tmp_path):
  result = probed("phone", corpus, tmp_path)
  assert result["test"] > 0.9 and result["measured"]["speakers"] == 8
  assert result["clips"] == {"train": 16, "valid": 16, "test": 16}
  assert result["guess"] < 0.4
  assert len(result["draws"][0]) == tally.DRAWS
  assert result["interval"][0] <= result["test"] <= result["interval"][1]
  ours, theirs = result["test"], result["baselines"]["mfcc"]["test"]
  compared = result["comparisons"]["mfcc"]
  np.testing.assert_allclose(compared["difference"], ours - theirs, atol=1e-5)
  assert json.loads((tmp_path / "out/phone-study-logmel.json").read_text())
  assert (tmp_path / "out/phone-study-logmel.png").exists()


def test_a_table_says_how_the_encoders_compare():
  compared = {
    "mfcc": {"difference": 0.12, "std": 0.02, "p": 0.001},
    "logmel": {"difference": -0.06, "std": 0.02, "p": 0.01},
    "random": {"difference": 0.01, "std": 0.02, "p": 0.6},
  }
  result = {"task": "abx", "metric": "abx_across", "encoder": "model"}
  result |= {"test": 0.2, "std": 0.01, "baselines": {}, "clips": {"test": 9}}
  result |= {"interval": [0.18, 0.22]}
  result |= {"comparisons": compared, "higher_is_better": False}
  assert run.table([result]).splitlines()[-1] == (
    "abx: model 18.0 to 22.0 %, worse than mfcc by 12.0 points (6.0 standard "
    "errors), better than logmel by 6.0 points (3.0 standard errors), not told "
    "apart from random (p = 0.6)"
  )


def test_shifted_phones_are_worse(corpus, tmp_path):
  lines = [json.loads(x) for x in (corpus / "phones.jsonl").open()]
  for line in lines:
    line["phones"] = [
      [start + 0.02, end + 0.02, name] for start, end, name in line["phones"]
    ]
  shifted = tmp_path / "shifted.jsonl"
  shifted.write_text("\n".join(map(json.dumps, lines)))
  right = probed("phone", corpus, tmp_path, ("logmel",))
  wrong = probed(
    "phone", corpus, tmp_path, ("logmel",), alignments=str(shifted)
  )
  assert wrong["test"] < right["test"] - 0.03


def test_a_phone_never_heard_in_training_is_missed(corpus, tmp_path, caplog):
  lines = [json.loads(x) for x in (corpus / "phones.jsonl").open()]
  for line in lines:
    if int(line["file"][1:].split("/")[0]) % 3 == 2:  # The speakers of test.
      line["phones"] = [
        [s, e, "ZZ" if name == "AA" else name] for s, e, name in line["phones"]
      ]
  changed = tmp_path / "changed.jsonl"
  changed.write_text("\n".join(map(json.dumps, lines)))
  right = probed("phone", corpus, tmp_path, ("logmel",))
  wrong = probed(
    "phone", corpus, tmp_path, ("logmel",), alignments=str(changed)
  )
  assert "'ZZ' of test is never heard in train" in caplog.text
  share = right["test"] - wrong["test"]
  assert 0.05 < share < 0.3  # AA is 3 of 10 phones, of half of the speakers.


def test_words_are_found_and_units_are_pure(corpus, tmp_path):
  found = probed("words", corpus, tmp_path)
  assert found["test"] > 0.8 > 2 * found["guess"]
  assert found["measured"]["queries"] == 8 * 4 * 3
  units = probed("units", corpus, tmp_path, clusters=8)
  assert units["test"] > 0.7 and units["more"]["purity"] > 0.7
  ranks = probed("rank", corpus, tmp_path)
  assert "comparisons" not in ranks
  candidate = encoders.log_mel()
  config = settings("rank", corpus)
  frames = [
    features.extract(
      candidate,
      run._open(config, split),
      config,
      False,
      tmp_path / "cache",
      BY_ROW,
    )
    .values[:, 0]
    .astype(np.float64)
    for split in ("valid", "test")
  ]
  values = np.linalg.svd(np.concatenate(frames), compute_uv=False)
  share = values / values.sum()
  whole = np.exp(-(share * np.log(share)).sum()) / 160
  np.testing.assert_allclose(ranks["layers"]["rank_share"], [whole], rtol=0.01)


def test_swapped_speakers_leave_nothing_to_find(corpus, tmp_path):
  """All of one speaker: no word is said by two."""
  lines = [json.loads(x) for x in (corpus / "metadata.jsonl").open()]
  for line in lines:
    line["speaker"] = "one"
    line["file"] = str(corpus / line["file"])
  alone = tmp_path / "alone.jsonl"
  alone.write_text("\n".join(map(json.dumps, lines)))
  aligned = str(corpus / "phones.jsonl")
  with pytest.raises(UserError, match="no word is said by two speakers"):
    probed("words", alone, tmp_path, alignments=aligned)


@pytest.mark.parametrize("task", ["phone", "units", "abx", "words"])
def test_phones_past_the_end_or_missing_are_one_line(corpus, tmp_path, task):
  lines = [json.loads(x) for x in (corpus / "phones.jsonl").open()]
  lines[0]["phones"].append([90.0, 91.0, "AA"])
  late = tmp_path / "late.jsonl"
  late.write_text("\n".join(map(json.dumps, lines)))
  file = tmp_path / "missing.jsonl"
  for path, said in ((late, "end after their clip"), (file, "does not exist")):
    if path == late and task in ("abx", "words"):
      continue  # They do not hear the clip, which is of train.
    with pytest.raises(UserError) as error:
      probed(task, corpus, tmp_path, alignments=str(path))
    assert said in str(error.value) and "\n" not in str(error.value)
  other = tmp_path / "other.jsonl"
  other.write_text('{"file": "elsewhere.wav", "phones": [[0, 1, "AA"]]}')
  with pytest.raises(UserError, match="no clip of this corpus has phones"):
    probed(task, corpus, tmp_path, alignments=str(other))


def test_seeds_of_pretraining_are_averaged(corpus, tmp_path):
  """The spread over seeds is part of the error."""
  one, other = encoders.log_mel(), encoders.mfcc()
  config = settings("phone", corpus)
  arguments = tmp_path / "cache", tmp_path / "out", BY_ROW
  single = [
    run.probe(config, [encoders.Candidate("model", [x])], *arguments)
    for x in (one, other)
  ]
  both = run.probe(
    config, [encoders.Candidate("model", [one, other])], *arguments
  )
  assert both["tests"] == [x["test"] for x in single] and both["seeds"] == 2
  np.testing.assert_allclose(both["test"], np.mean(both["tests"]))
  gap = abs(np.diff(both["tests"])[0])
  assert both["std"] >= gap / 2  # Of two seeds, the error of their mean.
  assert (tmp_path / "out/phone-study-2seeds.json").exists()
