"""Probes: metrics and losses against others', heads that find what is there."""

import concurrent.futures
import errno
import fcntl
import functools
import json
import shutil
import time
import unicodedata
from pathlib import Path

import filelock
import hf
import jax
import jax.numpy as jnp
import jiwer
import numpy as np
import pytest
import sklearn.dummy
import soundfile
import torch
import transformers
from doors import door

from ssl_jax import config as config_lib
from ssl_jax import num_frames
from ssl_jax.data.sources.audio import DamagedAudio
from ssl_jax.devices import sharding
from ssl_jax.errors import UserError
from ssl_jax.probes import (
  TASKS,
  classify,
  ctc,
  encoders,
  features,
  fit,
  heads,
  metrics,
  run,
  tasks,
  verify,
  zero_shot,
)
from ssl_jax.probes import config as probe_config

ROOT = Path(__file__).parents[1]
BY_ROW = sharding.by_row(sharding.make_mesh())


def settings(task="ks", **changes):
  config = config_lib.load(f"{ROOT}/configs/probe.py:task={task}")
  config.update_from_flattened_dict(changes)
  return config


def splits(config):
  return {split: run._open(config, split) for split in run.SPLITS}


def test_a_task_brings_its_recipe_and_profiles():
  """SUPERB's, and what the smoke profile needs of the packaged clips."""
  for name, kind in TASKS.items():
    if isinstance(kind, zero_shot.MeasureKind):
      continue  # It has no head to train.
    full = settings(f"{name},profile=full")
    given = full.head.projector, full.fit.updates, full.fit.batch_size
    assert (*given, full.fit.eval_every, full.fit.clip_norm) == kind.recipe
    smoke = settings(name)
    assert smoke.where == kind.smoke.get("where", ("",))
    assert smoke.fit.updates <= 500
  with pytest.raises(UserError, match="unknown task 'ks2'; did you mean 'ks'"):
    settings("ks2")
  with pytest.raises(TypeError):  # No other task's recipe takes its place.
    tasks.Recipe(256, 100)


def test_a_task_from_outside_is_probed(tmp_path, monkeypatch):
  """A file of a user's own: which language a clip is in."""
  language = tasks.TaskKind(
    functools.partial(classify.make, keys=("language",)),
    "languages",
    tasks.Recipe(64, 1_000, 8, 100, 1.0),
    smoke={"fit.updates": 30, "fit.eval_every": 30, "fit.num_seeds": 1},
    packaged=True,
  )
  monkeypatch.setitem(TASKS, "language", language)
  assert settings("language,profile=full").fit.batch_size == 8
  config = settings("language")
  config.where = ("label_type=digit",)
  assert config.fit.updates == 30 and config.head.projector == 128
  assert "`language`: languages" in probe_config.sections()[""]["task"].meaning
  result = run.probe(
    config,
    [encoders.Candidate("logmel", [encoders.log_mel()])],
    tmp_path / "cache",
    tmp_path,
    BY_ROW,
  )
  assert result["task"] == "language" and result["corpus"] == "embedded"
  assert (tmp_path / "language-smoke-logmel.json").exists()


@pytest.mark.parametrize(
  "key, value, said",
  [
    ("fit.num_seeds", 0, "config.fit.num_seeds=0 is outside [1, 10000]"),
    ("fit.learning_rates", (0.1, -1.0), "is outside"),
    ("fit.learning_rates", (), "expected some rates"),
    ("head.dropout", 1.0, "config.head.dropout=1.0 is outside"),
    ("profile", "ful", "did you mean 'full'?"),
    ("data.source", "embeded", "did you mean 'embedded'?"),
    ("data.min_seconds", 0.001, "config.data.min_seconds=0.001 is outside"),
    ("loader.num_threads", 0, "config.loader.num_threads=0 is outside"),
  ],
)
def test_a_knob_out_of_range_is_an_error_that_names_it(key, value, said):
  config = settings()
  probe_config.validate(config)
  config.update_from_flattened_dict({key: value})
  with pytest.raises(UserError) as error:
    probe_config.validate(config)
  assert said in str(error.value) and "\n" not in str(error.value)


def test_ctc_is_torchs():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(6, 30, 9)).astype(np.float32) * 3
  length = np.array([30, 25, 12, 7, 30, 5])
  count = np.array([8, 12, 1, 4, 10, 5])  # The last two: repeats, too short.
  tokens = rng.integers(1, 9, (6, 12))
  tokens[4, :10] = 3
  tokens[5, :5] = 2
  ours = ctc.ctc_loss(logits, length, tokens, count)
  theirs = torch.nn.functional.ctc_loss(
    torch.tensor(logits).log_softmax(-1).transpose(0, 1),
    torch.tensor(tokens),
    torch.tensor(length),
    torch.tensor(count),
    reduction="none",
    zero_infinity=True,
  )
  theirs = theirs.numpy() / count
  np.testing.assert_allclose(ours, theirs, atol=1e-4)
  assert theirs[5] == 0 and (theirs[:5] > 0).all()


def test_error_rates_are_jiwers():
  rng = np.random.default_rng(1)
  words = "a quick brown fox it's over the".split()
  said, heard = [], []
  for _ in range(40):
    said.append(list(rng.choice(words, rng.integers(1, 12))))
    heard.append(list(rng.choice(words, rng.integers(0, 12))))
  joined = [" ".join(x) for x in said], [" ".join(x) for x in heard]
  assert metrics.error_rate(said, heard) == pytest.approx(jiwer.wer(*joined))
  assert metrics.error_rate(*joined) == pytest.approx(jiwer.cer(*joined))
  with pytest.raises(ValueError, match="no reference"):
    metrics.error_rate([[]], [["a"]])


@pytest.mark.parametrize("seed", range(4))
def test_equal_error_rate_is_that_of_a_sweep(seed):
  rng = np.random.default_rng(seed)
  same = rng.random(400) < 0.3
  scores = rng.normal(size=400) + 1.5 * same
  if seed == 3:
    scores = np.round(scores, 1)  # Ties.
  fine = np.unique(scores)
  accepted = np.array([(scores[~same] >= t).mean() for t in fine])
  rejected = np.array([(scores[same] < t).mean() for t in fine])
  at = np.argmin(np.abs(accepted - rejected))
  swept = (accepted[at] + rejected[at]) / 2
  found = metrics.equal_error_rate(scores, same)
  assert found == pytest.approx(swept, abs=0.01)


def test_equal_error_rate_at_the_ends():
  same = np.array([True, True, False, False])
  assert metrics.equal_error_rate(np.array([4, 3, 2, 1]), same) == 0
  assert metrics.equal_error_rate(np.array([1, 2, 3, 4]), same) == 1
  assert metrics.equal_error_rate(np.ones(4), same) == 0.5
  with pytest.raises(ValueError, match="one kind"):
    metrics.equal_error_rate(np.ones(2), np.ones(2, bool))


def test_am_softmax_is_its_formula():
  rng = np.random.default_rng(2)
  x, w = rng.normal(size=(5, 7)), rng.normal(size=(7, 3))
  who = np.array([0, 2, 1, 1, 0])
  expected = []
  for row, mine in zip(x, who):
    cosine = [
      row @ w[:, j] / np.linalg.norm(row) / np.linalg.norm(w[:, j])
      for j in range(3)
    ]
    top = np.exp(30 * (cosine[mine] - 0.4))
    rest = sum(np.exp(30 * cosine[j]) for j in range(3) if j != mine)
    expected.append(-np.log(top / (top + rest)))
  ours = verify.am_softmax(jnp.asarray(x), jnp.asarray(w), jnp.asarray(who))
  np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


def test_every_pair_of_a_group_is_a_trial():
  found = verify.pairs("aabba", [1, 1, 1, None, None])
  trials = [*zip(found["one"], found["other"], found["same"])]
  assert trials == [(0, 1, 1), (0, 2, 0), (1, 2, 0), (3, 4, 0)]
  many = verify.pairs(np.arange(9_000) % 3, [0] * 9_000)
  assert len(many["one"]) == pytest.approx(1e6, rel=1e-3)
  assert many["same"].mean() == pytest.approx(1 / 3, abs=0.01)
  assert ((many["one"] % 3 == many["other"] % 3) == many["same"]).all()


def test_listed_trials_are_found_among_the_clips(tmp_path):
  trials = tmp_path / "veri_test.txt"
  trials.write_text(
    "1 id1/x/00001.wav id1/y/00002.wav\n0 id1/x/00001.wav id2/x/00001.wav\n"
  )
  ids = [
    *("wav/id2/x/00001", "wav/id1/z/00001", "wav/id1/y/00002"),
    "wav/id1/x/00001",
  ]
  found, used = verify._listed(trials, ids)
  assert used.tolist() == [0, 2, 3]
  assert found["one"].tolist() == [2, 2] and found["other"].tolist() == [1, 0]
  assert found["same"].tolist() == [True, False]
  with pytest.raises(UserError, match="no clip of test is 'id1/x/00001'"):
    verify._listed(trials, ids[:2])
  trials.write_text("1 a b\n2 a b\n")
  with pytest.raises(UserError, match="line 2 is not"):
    verify._listed(trials, ids)
  with pytest.raises(UserError, match="cannot be read"):
    verify._listed(tmp_path / "none", ids)


def test_trials_of_a_list_are_scored(tmp_path):
  config = settings("asv")
  opened = splits(config)
  who = [known["speaker"] for known in opened["test"].metadata]
  other = next(i for i, name in enumerate(who) if name != who[0])
  alike = next(i for i in range(1, len(who)) if who[i] == who[0])
  ids = opened["test"].ids
  config.trials = str(tmp_path / "list")
  (tmp_path / "list").write_text(
    f"1 {ids[0]} {ids[alike]}\n0 {ids[0]} {ids[other]}\n"
  )
  task, labelled = TASKS["asv"].make(config, opened)
  source, targets = labelled["test"]
  assert {*source.ids} == {ids[0], ids[alike], ids[other]}
  names = [*source.ids]
  said = [np.array([1.0, 0])] * 3
  said[names.index(ids[other])] = np.array([0.0, 1])
  assert task.score(said, targets) == 0


def test_flops_of_loops_are_counted_as_often_as_they_run():
  batch, frames, width, size = 3, 17, 8, 6
  made = heads.Frames(width, 5, 1, size, 0.0)
  x, length = jnp.zeros((batch, frames, 2, 4)), jnp.full(batch, frames)
  params = made.init(jax.random.key(0), x, length, None)
  program = jax.make_jaxpr(lambda p: made.apply(p, x, length, None))(params)
  each = 2 * 4 * width  # The projection; two directions of four gates.
  each += 2 * 2 * 4 * size * (width + size) + 2 * 2 * size * 5
  found = fit.product_flops(program.jaxpr)
  layers_sum = 2 * batch * frames * 2 * 4
  assert found == pytest.approx(batch * frames * each, abs=layers_sum)


def test_collapsing_drops_repeats_not_tokens():
  said = np.array([0, 3, 3, 0, 3, 4, 4, 4, 0])
  assert [t for t in ctc.collapse(said) if t] == [3, 3, 4]


@pytest.mark.parametrize("head", ["frames", "lstm", "xvector"])
def test_padding_changes_nothing(head):
  made = {
    "frames": heads.Frames(8, 5, 0, 0, 0.0),
    "lstm": heads.Frames(8, 5, 2, 6, 0.2),
    "xvector": heads.XVector(8),
  }[head]
  x = jax.random.normal(jax.random.key(0), (2, 9, 3, 4))
  length = jnp.array([9, 6])
  params = made.init(jax.random.key(1), x, length, None)
  padded = jnp.concatenate([x, 7 * jnp.ones((2, 5, 3, 4))], axis=1)
  padded = padded.at[1, 6:].set(5.0)
  short = made.apply(params, x, length, None)
  long = made.apply(params, padded, length, None)
  for row, n in enumerate((9, 6)):
    part = (row,) if head == "xvector" else (row, slice(n))
    np.testing.assert_allclose(long[part], short[part], atol=1e-5)


def test_spec_augment_masks_frames_and_channels_of_all_layers():
  x = jnp.ones((4, 100, 3, 96))
  length = jnp.array([100, 60, 100, 30])
  found = np.asarray(heads.spec_augment(x, length, jax.random.key(0)))
  assert (found == found[:, :, :1]).all()
  for row, n in zip(found[:, :, 0], length):
    frames, channels = ~row.any(axis=1), ~row.any(axis=0)
    assert not frames[n:].any() and frames.sum() <= 80
    assert channels.sum() <= 4 * 96 * 50 / 768
    assert ((row == 0) == (frames[:, None] | channels)).all()
  assert 0.02 < (found == 0).mean() < 0.98


def test_features_are_the_states_of_each_clip(tmp_path):
  config = settings("sid", **{"features.normalize": False, "where": ("text",)})
  source = run._open(config, "test")
  encoder = encoders.log_mel()
  whole = features.extract(encoder, source, config, False, tmp_path, BY_ROW)
  pooled = features.extract(encoder, source, config, True, tmp_path, BY_ROW)
  for i in (0, 3, len(source.ids) - 1):
    audio = source.read(i, 0, 1 << 40).astype(np.float32)[None] / 2**15
    expected = encoder.states(jnp.asarray(audio), jnp.array([audio.size]))[0, 0]
    got = whole.clip(i)
    assert got.shape == (num_frames(audio.size), 1, 160)
    np.testing.assert_allclose(got[:, 0], expected, atol=0.02)
    np.testing.assert_allclose(
      pooled.clip(i)[0, 0], expected.mean(axis=0), atol=0.02
    )


def test_features_are_computed_once_and_gone_on_with(tmp_path, monkeypatch):
  config = settings(**{"encode.batch_seconds": 2.0})
  source, calls = run._open(config, "valid"), []
  encoder = encoders.log_mel()

  def states(waveform, length):
    jax.debug.callback(lambda: calls.append(1))
    return encoder.states(waveform, length)

  counted = encoder._replace(states=states)
  arguments = counted, source, config, False, tmp_path, BY_ROW
  monkeypatch.setattr(features, "_SYNC_BATCHES", 1)
  first = np.array(features.extract(*arguments).values)
  made = len(calls)
  assert made > 2
  np.testing.assert_array_equal(features.extract(*arguments).values, first)
  assert len(calls) == made
  # As a kill after the second batch leaves it.
  (cache,) = tmp_path.iterdir()
  progress = json.loads((cache / "progress.json").read_text())
  (cache / "progress.json").write_text(json.dumps(progress | {"batches": 2}))
  again = features.extract(*arguments).values
  np.testing.assert_array_equal(again, first)
  assert len(calls) == made + made - 2
  # No room: nothing of others is removed for it.
  other = counted._replace(identity="another")
  full = shutil.disk_usage(tmp_path)._replace(free=first.nbytes - 1)
  with monkeypatch.context() as patch:
    patch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(UserError, match=r"the features take .* delete folders"):
      features.extract(other, source, config, False, tmp_path, BY_ROW)
  np.testing.assert_array_equal(features.extract(*arguments).values, first)
  assert len(calls) == made + made - 2


def test_a_cache_is_made_by_one_process_at_a_time(tmp_path):
  config = settings()
  source, encoder = run._open(config, "valid"), encoders.log_mel()
  arguments = encoder, source, config, False, tmp_path, BY_ROW
  (tmp_path / "x").mkdir()
  first = np.array(features.extract(*arguments).values)
  cache = next(path for path in tmp_path.iterdir() if path.name != "x")
  (cache / "progress.json").unlink()
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    with filelock.FileLock(cache / "lock"):
      waiting = pool.submit(lambda: features.extract(*arguments).values)
      time.sleep(0.5)
      assert not waiting.done() and not (cache / "progress.json").exists()
    np.testing.assert_array_equal(waiting.result(60), first)


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS])
def test_file_systems_without_locks_are_used(
  tmp_path, monkeypatch, caplog, number
):
  def flock(*_):
    raise OSError(number, "no locks here")

  config = settings()
  source, encoder = run._open(config, "valid"), encoders.log_mel()
  monkeypatch.setattr(fcntl, "flock", flock)
  for _ in range(2):
    features.extract(encoder, source, config, True, tmp_path, BY_ROW)
  # Without flock at all, filelock keeps others out by a file that exists.
  assert ("has no locks" in caplog.text) == (number != errno.ENOSYS)


def test_features_in_use_stay_as_they_are(tmp_path):
  config = settings()
  source, encoder = run._open(config, "valid"), encoders.log_mel()
  arguments = encoder, source, config, False, tmp_path, BY_ROW
  used = features.extract(*arguments).values
  first = np.array(used)
  (cache,) = tmp_path.iterdir()
  features._begin(tmp_path, cache, used.shape)
  np.testing.assert_array_equal(used, first)
  shutil.rmtree(cache)
  np.testing.assert_array_equal(used, first)
  np.testing.assert_array_equal(features.extract(*arguments).values, first)


def test_caches_are_of_their_audio_batches_and_size(tmp_path):
  config = settings(**{"encode.batch_seconds": 2.0})
  source = run._open(config, "valid")

  class Louder:
    def __getattr__(self, name):
      return getattr(source, name)

    def read(self, *where):
      return source.read(*where) * 2

  encoder = encoders.log_mel()

  def extract(source):
    found = features.extract(encoder, source, config, False, tmp_path, BY_ROW)
    return np.array(found.values)

  first = extract(source)
  (cache,) = tmp_path.iterdir()
  progress = json.loads((cache / "progress.json").read_text())
  (cache / "progress.json").write_text(json.dumps(progress | {"batches": 1}))
  np.lib.format.open_memmap(cache / "features.npy", "r+")[:] = 0
  config.encode.batch_seconds = 4.0  # Of which the batches done say nothing.
  np.testing.assert_array_equal(extract(source), first)
  with (cache / "features.npy").open("r+") as torn:
    torn.truncate(1000)
  np.testing.assert_array_equal(extract(source), first)
  config.features.normalize = False
  assert np.abs(extract(Louder()) - extract(source)).mean() > 0.1


class Unreadable:
  """A source one clip of which cannot be read."""

  def __init__(self, source, clip):
    self._source, self._clip = source, clip

  def __getattr__(self, name):
    return getattr(self._source, name)

  def read(self, clip, *where):
    if clip == self._clip:
      raise DamagedAudio("gone")
    return self._source.read(clip, *where)


@pytest.mark.parametrize("clip", [0, -1])
def test_features_of_what_was_not_read_are_never_taken(tmp_path, clip):
  config = settings(**{"encode.batch_seconds": 2.0})
  source, encoder = run._open(config, "valid"), encoders.log_mel()
  clip %= len(source.ids)

  def extract(source):
    found = features.extract(encoder, source, config, False, tmp_path, BY_ROW)
    return np.array(found.values)

  for _ in range(2):
    with pytest.raises(UserError, match=r"cannot be read.*gone.*leave"):
      extract(Unreadable(source, clip))
    source.damaged.clear()
  assert (np.abs(extract(source)).max(axis=(1, 2)) > 0).all()


def test_a_cache_begun_anew_is_not_taken_for_the_one_before(
  tmp_path, monkeypatch
):
  config = settings(**{"encode.batch_seconds": 2.0})
  source, encoder = run._open(config, "valid"), encoders.log_mel()

  def extract(batch_seconds):
    config.encode.batch_seconds = batch_seconds
    found = features.extract(encoder, source, config, False, tmp_path, BY_ROW)
    return np.array(found.values)

  def full(_):
    raise OSError(errno.ENOSPC, "No space left on device")

  first = extract(2.0)
  with monkeypatch.context() as patch:
    patch.setattr(features, "_reserve", full)
    with pytest.raises(OSError):
      extract(4.0)
  np.testing.assert_array_equal(extract(2.0), first)


def test_features_that_are_not_finite_are_refused(tmp_path):
  config = settings()
  source = run._open(config, "valid")
  broken = encoders.log_mel()._replace(
    states=lambda waveform, length: jnp.full(
      (1, len(length), num_frames(waveform.shape[1]), 160), jnp.nan
    )
  )
  with pytest.raises(UserError, match=r"logmel: features of .* not finite"):
    features.extract(broken, source, config, False, tmp_path, BY_ROW)


def test_texts_are_read_as_people_type_them():
  assert ctc._plain(" It\u2019s -- 'so', don't! ") == "It's 'so' don't"
  assert len({*map(len, (ctc.BLANK, ctc.EOS, ctc.UNKNOWN))}) == 1


@pytest.mark.parametrize(
  "text",
  ["हिन्दी भाषा", "ภาษาไทย ดี", "מִלָּה אַחַת", "cafe\u0301 nai\u0308ve", "தமிழ் மொழி"],
)
def test_words_are_those_that_jiwer_counts(text):
  said = ctc._plain(text).split()
  counted = jiwer.process_words(text, " ".join(said))
  assert len(counted.references[0]) == len(said) == 1 + text.count(" ")
  plain = unicodedata.normalize("NFC", text)
  assert jiwer.cer(plain, " ".join(said)) == 0


def test_words_have_no_joiners_and_one_spelling():
  assert ctc._plain(
    "\u0646\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"
  ) == ("\u0646\u0645\u06cc\u062e\u0648\u0627\u0647\u0645")
  assert ctc._plain("cafe\u0301") == ctc._plain("caf\u00e9")


def test_clips_of_verification_are_cropped_anywhere():
  config = settings("asv")
  task, _ = TASKS["asv"].make(config, splits(config))
  assert task.crop == 399
  frames = np.arange(2 * 1000, dtype=np.float16)[:, None, None] % 1000
  found = features.Features(frames, np.array([0, 1000, 2000]))
  split = fit.Split(found, {"speaker": np.array([0, 1])})
  drawn = fit.Sampler(config, task, split).chunk(0)["features"][..., 0, 0]
  drawn = drawn.reshape(-1, drawn.shape[-1])[:, :399].astype(int)
  assert (np.diff(drawn) == 1).all() and len({*drawn[:, 0].tolist()}) > 20


def synthetic(clips, classes, informative, seed):
  """Pooled features of three layers, of which one says the class."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, classes, clips)
  x = rng.normal(size=(clips, 3, 16)).astype(np.float16)
  centres = np.random.default_rng(9).normal(size=(classes, 16))
  x[:, informative] = centres[labels] + 0.3 * x[:, informative]
  offsets = np.arange(clips + 1)
  return fit.Split(
    features.Features(x, offsets), {"slot0": labels.astype(np.int32)}
  )


@pytest.fixture
def task():
  made, _ = TASKS["ks"].make(settings(), splits(settings()))
  return made._replace(head=heads.Classifier(32, (5,)), balanced=False)


def test_heads_find_the_layer_and_the_rate(task):
  config = settings()
  config.fit.learning_rates = (1e-7, 1e-2)
  config.fit.updates, config.fit.eval_every = 200, 50
  train, dev = synthetic(300, 5, 1, 0), synthetic(100, 5, 1, 1)
  fitted = fit.fit(config, task, task.head, train, dev, "")
  assert fitted.dev.shape == (3, 2) and fitted.flops > 0
  assert fitted.dev[:, 1].min() > 0.95 and fitted.dev[:, 0].max() < 0.6
  logits = np.asarray(fitted.params["head"]["weighted"]["layers"])
  assert (logits[:, 1].argmax(axis=-1) == 1).all()
  # Seeds are different heads.
  kernels = np.asarray(fitted.params["head"]["slot0"]["kernel"][:, 1])
  assert np.abs(kernels[0] - kernels[1]).max() > 0.01


def test_a_grid_is_its_members(task):
  """Each rate as if it were alone, its best on dev kept."""
  train, dev = synthetic(200, 5, 1, 0), synthetic(60, 5, 1, 1)
  rates, alone = (3e-3, 1e-4), []
  config = settings()
  config.fit.updates, config.fit.eval_every = 60, 20
  config.fit.learning_rates = rates
  both = fit.fit(config, task, task.head, train, dev, "")
  for i, rate in enumerate(rates):
    config.fit.learning_rates = (rate,)
    alone = fit.fit(config, task, task.head, train, dev, "")
    np.testing.assert_allclose(both.dev[:, i], alone.dev[:, 0], atol=0.02)
    for a, b in zip(
      jax.tree.leaves(both.params), jax.tree.leaves(alone.params)
    ):
      np.testing.assert_allclose(a[:, i], b[:, 0], atol=1e-4)


def test_balanced_draws_have_every_class_alike(task):
  config = settings()
  config.fit.chunk_size = config.fit.eval_every = 100
  train = synthetic(300, 2, 1, 0)
  train.targets["slot0"][:] = np.arange(300) < 30
  drawn = fit.Sampler(config, task._replace(balanced=True), train).chunk(0)
  assert drawn["slot0"].mean() == pytest.approx(0.5, abs=0.03)
  drawn = fit.Sampler(config, task, train).chunk(0)
  assert drawn["slot0"].mean() == pytest.approx(0.1, abs=0.03)


def test_phones_are_the_lexicons():
  config = settings("pr")
  _, labelled = TASKS["pr"].make(config, splits(config))
  source, targets = labelled["train"]
  assert len(source.ids) == len(targets["count"]) > 90
  lexicon = ctc._lexicon()
  assert lexicon["seven"] == ["S", "EH1", "V", "AH0", "N"]
  texts = {x["text"]: n for x, n in zip(source.metadata, targets["count"])}
  assert texts["seven"] == 5 + 1  # SUPERB's end of sequence.
  assert all(x["language"].startswith("en") for x in source.metadata)


@pytest.mark.slow
def test_phones_and_characters_are_learned(monkeypatch):
  """From frames that say the token outright."""
  monkeypatch.setattr(heads, "spec_augment", lambda x, *_: x)
  config = settings("asr")
  config.fit.learning_rates, config.fit.num_seeds = (3e-2,), 1
  config.fit.updates, config.fit.eval_every = 150, 150
  for name in ("pr", "asr"):
    made, labelled = TASKS[name].make(settings(name), splits(settings(name)))
    _, targets = labelled["train"]
    names = int(targets["tokens"].max()) + 1
    rows, offsets = [], [0]
    for tokens, count in zip(targets["tokens"], targets["count"]):
      # A frame of silence, then two of the token.
      frames = np.stack([np.zeros(count), *[tokens[:count]] * 2], 1).reshape(-1)
      rows.append(np.eye(names, dtype=np.float16)[frames.astype(int)][:, None])
      offsets.append(offsets[-1] + len(frames))
    found = features.Features(np.concatenate(rows), np.array(offsets))
    split = fit.Split(found, targets)
    fitted = fit.fit(config, made, made.head, split, split, "")
    assert fitted.dev.max() < {"pr": 0.05, "asr": 0.5}[name]


@pytest.mark.parametrize(
  "task, changes, said",
  [
    ("er", {"label": "emotion"}, "needs 'emotion' of every clip"),
    ("ic", {}, "needs 'action' of every clip"),
    ("ks", {"where": ("label_type=none",)}, "no clip of train has"),
    (
      "ks",
      {"label": "licence", "where": ("speaker=ast-allison",)},
      "all train",
    ),
    ("asr", {"where": ("",), "data.min_seconds": 0.1}, "needs 'text'"),
    ("sid", {"data.split_key": "split", "data.source": "manifest"}, "speaker"),
    ("asv", {"where": ("speaker=ast-allison",)}, "one kind only"),
  ],
)
def test_what_a_corpus_lacks_is_one_line(task, changes, said):
  config = settings(task, **changes)
  config.data.dir = str(ROOT / "ssl_jax" / "data" / "corpus" / "metadata.jsonl")
  with pytest.raises(UserError) as error:
    TASKS[task].make(config, splits(config))
  assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
  "task, split, key, value, said",
  [
    ("asr", "train", "text", " ", "task asr needs 'text' of every clip"),
    ("asr", "test", "text", "", "and 'b' (test) has none"),
    ("sid", "test", "speaker", "Z", "'Z' of 'b' (test) is of no training clip"),
    (
      "er",
      "valid",
      "label",
      "sad",
      "'sad' of 'b' (valid) is of no training clip",
    ),
  ],
)
def test_a_label_that_will_not_do_is_one_line(
  tmp_path, task, split, key, value, said
):
  known = {"text": "go", "speaker": "A", "label": "glad"}
  other = {"text": "stop", "speaker": "B", "label": "angry"}
  lines = []
  for part in ("train", "valid", "test"):
    for name, about in (("a", known), ("b", other)):
      changed = {key: value} if (part, name) == (split, "b") else {}
      path = tmp_path / part / f"{name}.wav"
      path.parent.mkdir(exist_ok=True)
      soundfile.write(path, np.zeros(8_000), 16_000)
      clip = {"path": str(path), "id": name if changed else f"{part}/{name}"}
      lines.append(json.dumps(about | clip | {"split": part} | changed))
  manifest = tmp_path / "clips.jsonl"
  manifest.write_text("\n".join(lines))
  config = settings(
    task,
    **{
      "data.source": "manifest",
      "data.dir": str(manifest),
      "data.split_key": "split",
      "where": ("",),
    },
  )
  with pytest.raises(UserError) as error:
    TASKS[task].make(config, splits(config))
  assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
  "task", ["ks", "pr", pytest.param("asv", marks=pytest.mark.slow)]
)
def test_log_mel_is_probed_by_the_command(tmp_path, task):
  done = door(
    *("probe", "--encoder=logmel"),
    f"--config=configs/probe.py:task={task}",
    *("--config.fit.updates=4", "--config.fit.eval_every=2"),
    *(f"--out={tmp_path / 'out'}", f"--cache={tmp_path / 'cache'}"),
    "--config.where=('label_type=digit','text')",
  )
  assert done.returncode == 0, done.stderr
  said = json.loads(done.stdout.splitlines()[-1])
  assert said["task"] == task and said["encoder"] == "logmel"
  assert said["seeds"] == 3 and said["profile"] == "smoke"
  kept = json.loads(
    (tmp_path / "out" / f"{task}-smoke-logmel.json").read_text()
  )
  assert {*kept["grid"]} == {"0.1", "0.01", "0.001"}
  assert kept["flops"]["features"] > 0 and kept["flops"]["heads"] > 0
  assert (tmp_path / "out" / f"{task}-smoke-logmel.png").stat().st_size > 5_000


@pytest.mark.slow
def test_a_model_of_transformers_is_probed_beside_its_twin(tmp_path):
  torch.manual_seed(0)
  folder = tmp_path / "hubert"
  transformers.HubertModel(
    transformers.HubertConfig(**hf.TINY, num_hidden_layers=1)
  ).save_pretrained(folder)
  done = door(
    *("probe", f"--checkpoint=hf:{folder}"),
    f"--encoder=model,random,hf:{folder},logmel",
    f"--config={ROOT / 'configs/probe.py'}",
    *("--config.fit.updates=20", "--config.fit.eval_every=20"),
    *(f"--out={tmp_path / 'out'}", f"--cache={tmp_path / 'cache'}"),
    cwd=tmp_path,
  )
  assert done.returncode == 0, done.stderr
  said = json.loads(done.stdout.splitlines()[-1])
  assert said["encoder"] == "model"
  beside = said["baselines"]
  assert [*beside] == ["random", "hf:hubert", "logmel"]
  # One model by two names, of one cache; its twin is another.
  assert beside["hf:hubert"]["test"] == said["test"]
  assert len([*(tmp_path / "cache").iterdir()]) == 3 * 3


@pytest.mark.parametrize(
  "args, status, said",
  [
    ([], 2, "--checkpoint is missing"),
    (["--checkpoint=nowhere"], 1, "holds no checkpoint"),
    (["--checkpoint=hf:nowhere"], 1, "nowhere"),
    (["--encoder=logmel,logmel"], 2, "expected each once"),
    (["--encoder=logmel", "--config.profile=full"], 2, "after a colon"),
    (["--encoder=logmel", "--config.fit.updates=0"], 1, "is outside [1, "),
    (["--encoder=logmel", "--out=/dev/null/x"], 1, "cannot be used"),
    (["--encoder=logmel", "--cache=/dev/null/x"], 1, "cannot be used"),
    (["--encoder=logmel,none"], 2, "logmel, mfcc, a workdir or hf:DIR"),
    (["--encoder=logmel", "--config.task=xx"], 2, "after a colon"),
  ],
)
def test_wrong_usage_is_one_line_and_a_status(args, status, said):
  done = door("probe", "--config=configs/probe.py", *args)
  assert (done.returncode, done.stdout) == (status, "")
  assert said in done.stderr and len(done.stderr.splitlines()) == 1


def test_guessing_is_scikit_learns_dummy():
  rng = np.random.default_rng(0)
  label = {
    k: rng.choice(4, n, p=(0.5, 0.3, 0.1, 0.1))
    for k, n in (("train", 200), ("test", 50))
  }
  targets = {split: {"slot0": values} for split, values in label.items()}
  dummy = sklearn.dummy.DummyClassifier(strategy="most_frequent")
  dummy.fit(np.zeros((200, 1)), label["train"])
  expected = dummy.score(np.zeros((50, 1)), label["test"])
  assert classify._guess(targets) == pytest.approx(expected)


def test_a_table_says_what_its_clips_can_tell():
  result = {"task": "ks", "metric": "accuracy", "encoder": "model"}
  result |= {"test": 0.1, "std": None, "baselines": {}, "guess": 0.25}
  few = run.table([result | {"clips": {"test": 11}}]).splitlines()[-1]
  assert "ks: 11 test clips, of which guessing has 25.00 %" in few
  # Two scores of 11 clips right with probability 0.1, by drawing them.
  rng = np.random.default_rng(0)
  one, other = rng.binomial(11, 0.1, (2, 100_000)) / 11
  said = float(few.split("some ")[1].split()[0]) / 100
  assert (abs(one - other) < said).mean() == pytest.approx(0.95, abs=0.04)
