"""Labels made of an encoder, how good they are, and HuBERT trained on them."""

import dataclasses
import functools
import json
import logging
import os
import shlex
import shutil
import sys
import types
from pathlib import Path

import doors
import jax
import numpy as np
import pytest
from sklearn import metrics

from ssl_jax import config as config_lib
from ssl_jax import label, num_frames, optimizers
from ssl_jax.checkpoints.manager import Checkpoints
from ssl_jax.data.label_writer import LabelWriter
from ssl_jax.data.labels import NO_LABEL, open_labels
from ssl_jax.data.sources import open_source
from ssl_jax.devices import sharding
from ssl_jax.errors import UserError
from ssl_jax.files import read_jsonl
from ssl_jax.labelling import corpus, quality
from ssl_jax.models import whole_clip
from ssl_jax.models.backbone import Backbone
from ssl_jax.objectives import make_objective, mfcc
from ssl_jax.pretrained import corpus_pass
from ssl_jax.pretrained.load import load_encoder
from ssl_jax.training import loop, step

ROOT = Path(__file__).parents[1]
CLUSTERS = 8
LAST_BUCKET = 25_600  # Samples; of labelling, so that some clips are longer.

# Orbax's, after an error: of what it then does not read.
pytestmark = pytest.mark.filterwarnings(
  "ignore::pytest.PytestUnraisableExceptionWarning"
)


def tiny(audio: Path, labels: str, clusters: tuple[int, ...]):
  config = config_lib.base()
  config.hubert.labels, config.hubert.clusters = labels, clusters
  config.kmeans.num_restarts = 1
  config.frontend.name = "logmel"
  config.encoder.num_layers = 2
  config.encoder.hidden_size = 32
  config.encoder.ffn_size = 64
  config.encoder.num_heads = 4
  config.encoder.position_kernel = 8
  for site in ("input_dropout", "dropout", "attention_dropout", "layerdrop"):
    config.encoder[site] = 0.0  # Compiles faster.
  config.masking.mask_length, config.masking.min_masks = 1, 1000  # All frames.
  config.data.dir = str(audio / "train")
  config.data.valid_dir = str(audio / "valid")
  config.data.min_seconds = 0.3
  config.data.bucket_seconds = (4.0,)  # No clip is longer: none is cropped.
  config.batch.seconds = config.eval.batch_seconds = 6.0
  config.encode.batch_seconds = 6.0
  config.budget.updates = 2
  config.optimizer.warmup_fraction = 0.0
  config.checkpoint.every = 1
  return config


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
  """A folder of some of the packaged clips: 974 frames to train on.

  An even number: of an odd one, two devices leave a frame out of k-means.
  """
  root = tmp_path_factory.mktemp("audio")
  settings = config_lib.base().data
  settings.source, settings.min_seconds = "embedded", 0.3
  for split, every in (("train", 77), ("valid", 15)):
    (root / split).mkdir()
    source = open_source(settings, split)
    clips = zip(source.paths[::every], source.num_samples[::every])
    for path, length in clips:
      if length <= 64_000:
        shutil.copy(path, root / split)
  return root


@pytest.fixture(scope="module")
def work(audio):
  """What `label_corpus` is given, but for the folder: labels of MFCC."""
  config = tiny(audio, "", (CLUSTERS,))
  config.data.bucket_seconds = (0.8, LAST_BUCKET / 16_000)
  config.encode.batch_seconds = 3.2
  splits = ("train", "valid")
  return {
    "config": config,
    "sources": {name: open_source(config.data, name) for name in splits},
    "states": functools.partial(mfcc.at_frames, "mfcc"),
    "clusters": CLUSTERS,
    "origin": {"layer": "mfcc", "checkpoint": None},
    "by_row": sharding.by_row(sharding.make_mesh()),
  }


@pytest.fixture(scope="module")
def mfcc_labelled(work, tmp_path_factory):
  folder = tmp_path_factory.mktemp("mfcc")
  return work, folder, corpus.label_corpus(**work, folder=folder)


@pytest.fixture(scope="module")
def two_sets(audio, mfcc_labelled):
  """The config of a run on those labels, and on some fitted at start."""
  return tiny(audio, f"mfcc, {mfcc_labelled[1]}", (20, CLUSTERS))


@pytest.fixture(scope="module")
def run(two_sets, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("run")
  loop.train(two_sets, workdir)
  return workdir


@pytest.fixture(scope="module")
def labelled(work, run, tmp_path_factory):
  folder = tmp_path_factory.mktemp("labels")
  encoder = load_encoder(run)
  work = work | {
    "states": encoder.states(1),
    "origin": {"layer": "1", "checkpoint": encoder.origin},
  }
  return work, folder, corpus.label_corpus(**work, folder=folder)


def some_samples(waveform, length):
  """States that cost nothing: 32 samples of each frame."""
  del length
  count = num_frames(waveform.shape[1])
  return waveform[:, : 320 * count].reshape(-1, count, 320)[..., ::10]


@pytest.fixture(scope="module")
def quick(work):
  checkpoint = {"path": "here", "update": 2, "params": "c0ffee"}
  origin = {"layer": "1", "checkpoint": checkpoint}
  return work | {"states": some_samples, "origin": origin}


@pytest.fixture(scope="module")
def finished(quick, tmp_path_factory):
  folder = tmp_path_factory.mktemp("quick")
  return folder, corpus.label_corpus(**quick, folder=folder)


def content(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


def labels_of_clips(folder, split, source):
  labels = np.fromfile(folder / f"{split}.labels", "<u2")
  ends = np.cumsum(num_frames(source.num_samples))
  assert len(labels) == ends[-1]
  return np.split(labels, ends[:-1])


def states_alone(states, source, clip):
  """[T, D] of a clip with no other beside it, piece after piece."""
  parts = []
  size = int(source.num_samples[clip])
  moments = whole_clip.Gatherer(states)(source.read(clip, 0, size))
  known = np.array([size > LAST_BUCKET])
  piece = num_frames(LAST_BUCKET)
  for first in range(0, num_frames(int(source.num_samples[clip])), piece):
    samples = source.read(clip, 320 * first, LAST_BUCKET)
    waveform = np.zeros((1, LAST_BUCKET), np.float32)
    waveform[0, : len(samples)] = samples / np.float32(2**15)
    count = num_frames(len(samples))
    with whole_clip.use(moments, known):
      # Traced anew: what is known of the clip is no argument.
      found = jax.jit(lambda *piece: states(*piece))(
        waveform, np.array([len(samples)])
      )
    parts.append(np.asarray(found, np.float64)[0, :count])
  return np.concatenate(parts)


@pytest.mark.parametrize(
  "made", ["mfcc_labelled", pytest.param("labelled", marks=pytest.mark.slow)]
)
def test_a_frames_label_is_its_nearest_centroid(made, request):
  work, folder, header = request.getfixturevalue(made)
  states = work["states"]
  codebook = np.load(folder / "codebook.npy").astype(np.float64)
  assert len(codebook) == CLUSTERS
  for split, source in work["sources"].items():
    assert {*(source.num_samples > LAST_BUCKET)} == {False, True}
    closest, same = [], []
    for clip, labels in enumerate(labels_of_clips(folder, split, source)):
      alone = states_alone(states, source, clip)
      distance = np.square(alone[:, None] - codebook).sum(axis=-1)
      assert (labels < CLUSTERS).all()  # Of a long clip's every piece, too.
      chosen = distance[np.arange(len(labels)), labels]
      closest.append(distance.min(axis=1))
      assert (chosen <= (1 + 1e-4) * closest[-1]).all()
      same.append(labels == distance.argmin(axis=1))
    assert np.concatenate(same).mean() > 0.999
    if split == "train":
      inertia = np.concatenate(closest).mean()
      assert header["inertia"] == pytest.approx(inertia, rel=1e-4)


def test_stored_mfcc_labels_are_those_made_in_the_step(mfcc_labelled, audio):
  work, folder, _ = mfcc_labelled
  source = work["sources"]["valid"]
  clip = int(np.argmin(source.num_samples))
  samples = source.read(clip, 0, LAST_BUCKET)
  labels = labels_of_clips(folder, "valid", source)[clip]
  config = tiny(audio, "mfcc", (CLUSTERS,))
  codebook = np.load(folder / "codebook.npy")
  objective = make_objective(config, np.dtype("float32"), (codebook,))
  inputs = {
    "waveform": samples[None] / np.float32(2**15),
    "length": np.array([len(samples)]),
    "frame_mask": np.ones((1, len(labels)), bool),
  }
  made = jax.jit(objective.targets)(inputs, None)
  np.testing.assert_array_equal(made[0, :, 0], labels)


def test_the_header_says_what_the_labels_are(labelled):
  work, folder, header = labelled
  assert header == json.loads((folder / "header.json").read_text())
  usage = 0
  for split, source in work["sources"].items():
    about = header["splits"][split]
    labels = np.concatenate(labels_of_clips(folder, split, source))
    np.testing.assert_array_equal(
      about["usage"], np.bincount(labels, minlength=CLUSTERS)
    )
    assert about["frames"] == len(labels) == sum(about["usage"])
    assert about["records"] == len(source.ids) and about["damaged"] == 0
    open_labels(folder, split, source, CLUSTERS)
    usage += np.array(about["usage"])
  assert header["clusters"] == CLUSTERS and header["layer"] == "1"
  assert header["checkpoint"] == work["origin"]["checkpoint"]
  assert header["checkpoint"]["update"] == 2
  assert header["fitted_frames"] == header["splits"]["train"]["frames"]
  share = usage[usage > 0] / usage.sum()
  assert header["perplexity"] == pytest.approx(
    np.exp(-(share * np.log(share)).sum())
  )
  assert header["unused_clusters"] == (usage == 0).sum()
  assert "quality" not in header  # Nothing is known of the clips.
  assert (folder / "labels.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_known_of_the_clips_is_in_the_header(quick, tmp_path):
  sources = {
    split: dataclasses.replace(
      source,
      metadata=[{"label": "a"}, {"label": "b"}] + [{}] * (len(source.ids) - 2),
    )
    for split, source in quick["sources"].items()
  }
  header = corpus.label_corpus(**quick | {"sources": sources}, folder=tmp_path)
  joint = np.zeros((2, CLUSTERS), int)
  for split, source in sources.items():
    clips = labels_of_clips(tmp_path, split, source)
    for row in range(2):
      joint[row] += np.bincount(clips[row], minlength=CLUSTERS)
  assert header["quality"] == quality.of_joint(joint) | {
    "classes": "label",
    "num_classes": 2,
    "frames": joint.sum(),
  }


def test_a_clip_that_cannot_be_read_has_no_labels(quick, tmp_path):
  source = quick["sources"]["valid"]
  lost = int(np.argmax(source.num_samples))
  paths = [*source.paths]
  paths[lost] = str(tmp_path / "gone.flac")
  source = dataclasses.replace(source, paths=paths, damaged={})
  sources = quick["sources"] | {"valid": source}
  header = corpus.label_corpus(**quick | {"sources": sources}, folder=tmp_path)
  for clip, labels in enumerate(labels_of_clips(tmp_path, "valid", source)):
    assert {*(labels == NO_LABEL)} == {clip == lost}
  assert header["splits"]["valid"]["damaged"] == 1


class KilledOften(LabelWriter):
  """Killed within its second batch, when the first is on disk."""

  written = saved = 0

  def write(self, record, start_frame, labels):
    super().write(record, start_frame, labels)
    KilledOften.written += 1
    if self.saved:
      raise KeyboardInterrupt

  def checkpoint(self, done):
    super().checkpoint(done)
    self.saved = done


def test_killed_again_and_again_the_labels_are_the_same(
  quick, finished, tmp_path, monkeypatch
):
  calls = []

  def killed_at_first(module, name):
    real = getattr(module, name)

    def call(*args):
      calls.append(name)
      if calls.count(name) == 1:
        raise KeyboardInterrupt
      return real(*args)

    monkeypatch.setattr(module, name, call)

  killed_at_first(corpus.codebook_lib, "fit")
  killed_at_first(corpus.picture, "draw")
  monkeypatch.setattr(KilledOften, "written", 0)
  monkeypatch.setattr(corpus, "LabelWriter", KilledOften)
  monkeypatch.setattr(corpus, "_SAVE_SECONDS", -1.0)
  kills = 0
  while kills < 50:
    try:
      corpus.label_corpus(**quick, folder=tmp_path)
      break
    except KeyboardInterrupt:
      kills += 1
      assert not (tmp_path / "header.json").exists()
  assert content(tmp_path) == content(finished[0])
  # Each kill lost a row of the batch it came in, and no other work.
  assert calls == ["fit", "fit", "draw", "draw"]
  sources, piece = quick["sources"].values(), num_frames(LAST_BUCKET)
  batches = [len(corpus_pass.make_pieces(quick["config"], s)) for s in sources]
  assert kills == 2 + sum(batches) - 2 > 10
  pieces = sum((-(-num_frames(s.num_samples) // piece)).sum() for s in sources)
  assert KilledOften.written == pieces + sum(batches) - 2


def never(*args):
  raise AssertionError("computed")


def test_finished_labels_are_not_made_again(quick, finished):
  folder, header = finished
  before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
  checkpoint = quick["origin"]["checkpoint"] | {"path": "moved/elsewhere"}
  again = quick | {
    "states": never,
    "origin": quick["origin"] | {"checkpoint": checkpoint},
  }
  assert corpus.label_corpus(**again, folder=folder) == header
  after = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
  assert after == before


def flip(path):
  data = path.read_bytes()
  path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def halve(path):
  os.truncate(path, path.stat().st_size // 2)


def garble(path):
  path.write_bytes(b"\xff{")


DAMAGE = [
  (flip, "train.labels"),
  (halve, "valid.labels"),
  (Path.unlink, "valid.jsonl"),
  (flip, "codebook.npy"),
  (halve, "codebook.npy"),
  (garble, "header.json"),
]


@pytest.mark.parametrize("damage, name", DAMAGE)
def test_damaged_labels_are_made_anew(
  quick, finished, tmp_path, damage, name, monkeypatch
):
  folder = shutil.copytree(finished[0], tmp_path / "labels")
  damage(folder / name)
  unlink = Path.unlink

  def killed(path, **options):
    unlink(path, **options)
    raise KeyboardInterrupt

  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(Path, "unlink", killed)
    corpus.label_corpus(**quick, folder=folder)
  assert corpus.label_corpus(**quick, folder=folder) == finished[1]
  assert content(folder) == content(finished[0])


@pytest.mark.parametrize("name", ["codebook.npy", "fit.json"])
@pytest.mark.parametrize("damage", [halve, Path.unlink])
def test_a_damaged_codebook_of_unfinished_labels_is_made_anew(
  quick, finished, tmp_path, damage, name
):
  folder = shutil.copytree(finished[0], tmp_path / "labels")
  (folder / "header.json").unlink()
  damage(folder / name)
  corpus.label_corpus(**quick, folder=folder)
  assert content(folder) == content(finished[0])


@pytest.mark.parametrize("other", ["corpus", "clusters", "layer", "seed"])
@pytest.mark.parametrize("whole", [True, False])
def test_a_folder_of_other_labels_is_refused_and_left_alone(
  quick, finished, tmp_path, other, whole
):
  folder = shutil.copytree(finished[0], tmp_path / "labels")
  if not whole:
    (folder / "header.json").unlink()
  config = quick["config"].copy_and_resolve_references()
  config.seed = 1
  sources = dict(quick["sources"])
  sources["valid"] = sources["valid"].select([0, 1])
  changed = {
    "corpus": {"sources": sources},
    "clusters": {"clusters": CLUSTERS + 1},
    "layer": {"origin": quick["origin"] | {"layer": "2"}},
    "seed": {"config": config},
  }[other]
  before = content(folder)
  with pytest.raises(UserError, match=f"--out={folder} holds labels of"):
    corpus.label_corpus(**quick | {"states": never} | changed, folder=folder)
  assert content(folder) == before


def test_too_many_clusters_for_the_audio_are_refused(quick, tmp_path):
  with pytest.raises(UserError, match="5000 clusters cannot be fitted"):
    corpus.label_corpus(**quick | {"clusters": 5000}, folder=tmp_path)


def test_purity_and_information_are_scikit_learns():
  rng = np.random.default_rng(0)
  classes = rng.integers(0, 5, 400)
  clusters = (classes + rng.integers(0, 3, 400)) % 7  # One is never used.
  joint = np.zeros((5, 8), int)
  np.add.at(joint, (classes, clusters), 1)
  found = quality.of_joint(joint)
  assert found["normalised_mutual_information"] == pytest.approx(
    metrics.homogeneity_score(classes, clusters)
  )

  def purity(of, given):
    guessed = [np.bincount(of[given == value]).max() for value in {*given}]
    return pytest.approx(sum(guessed) / len(of))

  assert found["purity"] == purity(classes, clusters)
  assert found["cluster_purity"] == purity(clusters, classes)
  assert found["purity"] != purity(clusters, classes)


def test_labels_that_are_the_classes_tell_all_and_one_label_nothing():
  assert [*quality.of_joint(np.diag([5, 1, 3])).values()] == pytest.approx(
    [1, 1, 1]
  )
  one = quality.of_joint(np.array([[5, 0], [3, 0]]))
  assert [*one.values()] == pytest.approx([5 / 8, 1, 0])
  assert quality.of_joint(np.array([[4, 4]]))["purity"] == 1


def test_perplexity_of_equally_used_clusters_is_their_number():
  found = quality.of_usage(np.array([3, 0, 3, 3, 0]))
  assert found["perplexity"] == pytest.approx(3)
  assert found["unused_clusters"] == 2


def records(folder, clips):
  """Writes {split: [(metadata, labels)]}; returns {split: source}."""
  sources = {}
  for split, lines in clips.items():
    labels = np.concatenate([labels for _, labels in lines])
    labels.astype("<u2").tofile(folder / f"{split}.labels")
    sources[split] = types.SimpleNamespace(
      metadata=[metadata for metadata, _ in lines],
      num_samples=np.array([80 + 320 * len(labels) for _, labels in lines]),
    )
  return sources


def test_phones_are_counted_frame_by_frame(tmp_path):
  first = np.array([0, 1, 1, 2, 2, 2, 0, 3])
  phones = [["a", 0.02, 0.06], ["b", 0.06, 0.105], ["a", 0.14, 9.0]]
  clips = {
    "train": [({"phones": phones, "label": "word"}, first), ({}, first)],
    "valid": [({"phones": [["b", 0.0, 0.02]]}, np.array([1, NO_LABEL]))],
  }
  found = quality.of_records(tmp_path, records(tmp_path, clips), 4)
  # a: frames 1, 2 and 7; b: frames 3 and 4, and the first of the last clip.
  joint = np.array([[0, 2, 0, 1], [0, 1, 2, 0]])
  about = {"classes": "phones", "num_classes": 2, "frames": joint.sum()}
  assert found["quality"] == quality.of_joint(joint) | about


def test_the_word_of_a_clip_is_the_class_of_its_frames(tmp_path):
  clips = {
    "train": [
      ({"label": "yes"}, np.array([0, 0, NO_LABEL])),
      ({"label": None}, np.array([3, 3])),
      ({"label": "no"}, np.array([1])),
    ],
    "valid": [({"label": "yes"}, np.array([1, 2]))],
  }
  found = quality.of_records(tmp_path, records(tmp_path, clips), 4)
  joint = np.array([[2, 1, 1, 0], [0, 1, 0, 0]])
  about = {"classes": "label", "num_classes": 2, "frames": 5}
  assert found["quality"] == quality.of_joint(joint) | about


def test_runs_end_with_the_clip_and_are_of_labels(tmp_path):
  none = NO_LABEL
  clips = [[1, 1, 2, 2, 2, 1], [1, 3], [none] * 4, [none, 3, 3, none, 3]]
  clips = {"train": [({}, np.array(labels)) for labels in clips]}
  found = quality.of_records(tmp_path, records(tmp_path, clips), 4)
  assert found == {"run_frames": (6 + 2 + 3) / (3 + 2 + 2)}


def test_states_are_those_of_the_whole_backbone(two_sets, run):
  config = two_sets
  objective = make_objective(config, np.dtype("float32"))
  abstract = jax.eval_shape(
    lambda: step.init_state(
      objective, optimizers.make_optimizer(config), config
    )
  )
  trained, _ = Checkpoints(run, 2).restore(2, abstract)
  waveform = 0.1 * np.random.default_rng(0).normal(size=(3, 9_600))
  length = np.array([9_600, 6_000, 400])
  args = waveform.astype(np.float32), length
  backbone = Backbone(config, np.dtype("float32"))
  encoder = load_encoder(run)

  @jax.jit
  def states(*args):
    params = {"params": trained["params"]["backbone"]}
    whole = backbone.apply(params, *args, all_states=True)
    return whole.hidden, [encoder.states(layer)(*args) for layer in range(3)]

  expected, found = states(*args)
  assert len(expected) == 3
  for layer in range(3):
    np.testing.assert_allclose(found[layer], expected[layer], atol=1e-5)
    assert np.abs(found[layer] - expected[layer - 1]).max() > 0.01
  for layer in (-1, 3):
    with pytest.raises(UserError, match=f"{run} has layers 0 to 2"):
      encoder.states(layer)


def test_the_newest_checkpoint_or_the_one_that_is_named(run):
  newest, first = load_encoder(run), load_encoder(run / "checkpoints" / "1")
  assert newest.origin == load_encoder(run / "checkpoints/2").origin | {
    "path": str(run)
  }
  assert [newest.origin["update"], first.origin["update"]] == [2, 1]
  assert newest.origin["params"] != first.origin["params"]
  assert newest.workdir == first.workdir == run


def change(path, **changes):
  saved = json.loads(path.read_text())
  for section, values in changes.items():
    saved[section].update(values)
  path.write_text(json.dumps(saved))


def empty_arrays(state):
  for path in (state / "ocdbt.process_0" / "d").iterdir():
    path.write_bytes(b"")


def empty(folder):
  shutil.rmtree(folder)
  folder.mkdir()


BROKEN = {
  "nothing": (".", shutil.rmtree, "holds no checkpoint"),
  "an empty folder": (".", empty, "holds no checkpoint"),
  "no checkpoint": ("checkpoints", empty, "holds no checkpoint"),
  "no config": ("config.json", Path.unlink, "no readable config.json"),
  "half a config": ("config.json", halve, "no readable config.json"),
  "no text": ("config.json", garble, "no readable config.json"),
  "a list": (
    "config.json",
    lambda path: path.write_text("[]"),
    "config.json holds no JSON object",
  ),
  "another key": (
    "config.json",
    lambda path: change(path, encoder={"num_lairs": 2}),
    "config.json is not of this version",
  ),
  "a width that no head divides": (
    "config.json",
    lambda path: change(path, encoder={"hidden_size": 33}),
    "config.encoder.hidden_size=33 is not divisible",
  ),
  "another size": (
    "config.json",
    lambda path: change(path, encoder={"num_layers": 3}),
    "is it whole, and its config.json its own?",
  ),
  "an empty checkpoint": ("checkpoints/2", empty, "is it whole"),
  "an empty state": ("checkpoints/2/state", empty, "is it whole"),
  "empty arrays": ("checkpoints/2/state", empty_arrays, "is it whole"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_workdir_is_one_line_that_names_it(run, tmp_path, what):
  path, damage, said = BROKEN[what]
  workdir = shutil.copytree(run, tmp_path / "run")
  damage(workdir / path)
  with pytest.raises(UserError) as error:
    load_encoder(workdir)
  assert said in str(error.value) and str(workdir) in str(error.value)
  assert len(str(error.value).splitlines()) == 1


def test_a_missing_checkpoint_is_named(run):
  with pytest.raises(UserError, match="checkpoints/9 cannot be read"):
    load_encoder(run / "checkpoints" / "9")


def start_label(*args: str, **env: str) -> doors.Process:
  return doors.start_door("label", *args, env=env)


@pytest.mark.slow
def test_the_door_labels_on_two_devices_as_on_one(audio, run, labelled):
  process = start_label(
    "--config=configs/smoke.py",
    "--config.kmeans.num_restarts=1",
    "--config.data.source=folder",
    f"--config.data.dir={audio}/train",
    f"--config.data.valid_dir={audio}/valid",
    f"--config.data.bucket_seconds=(0.8,{LAST_BUCKET / 16_000})",
    "--config.encode.batch_seconds=3.2",
    f"--checkpoint={run}/checkpoints/2",
    "--layer=1",
    f"--clusters={CLUSTERS}",
    JAX_NUM_CPU_DEVICES="2",
  )
  out, err = process.communicate(timeout=120)
  assert process.returncode == 0, err
  result = json.loads(out.splitlines()[-1])
  folder = run / f"labels-1-{CLUSTERS}"  # Not in a checkpoint, that may go.
  assert result.pop("workdir") == str(folder)
  _, expected, header = labelled
  assert (folder / "labels.png").read_bytes().startswith(b"\x89PNG")
  saved = json.loads((folder / "header.json").read_text())
  assert saved["checkpoint"].pop("path") == f"{run}/checkpoints/2"
  assert saved["checkpoint"].items() < header["checkpoint"].items()
  for split in ("train", "valid"):
    theirs = np.fromfile(expected / f"{split}.labels", "<u2")
    ours = np.fromfile(folder / f"{split}.labels", "<u2")
    assert (ours == theirs).mean() > 0.999
    del saved["splits"][split]["usage"]
  assert result["splits"] == saved["splits"]
  assert result["inertia"] == pytest.approx(header["inertia"], rel=1e-4)


@pytest.mark.slow
def test_the_next_iteration_is_of_the_data_that_the_encoder_heard(
  run, tmp_path
):
  workdir = tmp_path / "run"
  # Other tests may have labelled there.
  shutil.copytree(run, workdir, ignore=shutil.ignore_patterns("labels-*"))
  saved = json.loads((workdir / "config.json").read_text())
  saved["hubert"] |= {"labels": "mfcc", "clusters": [CLUSTERS]}
  (workdir / "config.json").write_text(json.dumps(saved))
  process = start_label(
    "--config=configs/smoke.py:size=2x32x64x4",  # Of another corpus.
    "--config.kmeans.num_restarts=1",
    "--config.data.min_seconds=0.5",
    f"--checkpoint={workdir}",
    "--layer=1",
  )
  out, err = process.communicate(timeout=120)
  assert process.returncode == 0, err
  result = json.loads(out.splitlines()[-1])
  assert result["workdir"].endswith(f"labels-1-{CLUSTERS}")
  (line,) = [x for x in err.splitlines() if "to train on it" in x]
  words = shlex.split(line.partition("to train on it")[2])
  assert words[:3] == ["python", "-m", "ssl_jax.main"]
  assert "--config.data.min_seconds=0.5" in words
  done = doors.door("main", *words[3:], "--dry_run")
  assert done.returncode == 0, done.stderr
  # Given a corpus of its own, a command is of that.
  process = start_label(
    "--config=configs/smoke.py",
    "--config.data.source=embedded",
    f"--checkpoint={workdir}",
    f"--out={result['workdir']}",
    "--layer=1",
  )
  _, err = process.communicate(timeout=120)
  assert process.returncode == 1 and "labels of another corpus" in err


@pytest.mark.parametrize(
  ("trained", "file", "names", "expected"),
  [
    # Another file, of another corpus.
    ("--config=a.py --config.data.dir=mine", "b.py", "other", "other"),
    ("--config a.py", "b.py:size=30", "other", "other"),
    # The same file, changed since.
    ("--config=a.py", "a.py", "other", "other"),
    # The same file, whose corpus was not that of the run.
    ("--config=a.py:x=1 --config.data.dir=mine", "a.py", "other", "mine"),
    ("--config.data.dir mine --config a.py", "./a.py", "other", "mine"),
    # Files that name none, or the same one.
    ("--config=a.py --config.data.dir=mine", "b.py", "", "mine"),
    ("--config=a.py", "b.py", "mine", "mine"),
    # Nobody knows what the run's file was.
    ("", "b.py", "other", "mine"),
  ],
)
def test_a_config_file_of_another_corpus_is_asked_for_it(
  trained, file, names, expected, tmp_path, monkeypatch, caplog
):
  run = config_lib.base()
  run.data.dir, run.data.min_seconds = "mine", 0.7
  saved = json.loads(config_lib.to_json(run))
  saved[config_lib.MADE_BY] = {"command": f"main {trained} --workdir=w"}
  (tmp_path / "config.json").write_text(json.dumps(saved))
  flag = types.SimpleNamespace(config_filename=file, override_values={})
  monkeypatch.setattr(label.cli, "FLAGS", {"config": flag})
  caplog.set_level(logging.INFO)
  config = config_lib.base()
  config.data.dir = names
  changed, _ = label._as_trained(config, tmp_path / "config.json")
  assert config.data.dir == expected
  (message,) = caplog.messages
  if expected == "mine":
    assert config.data.min_seconds == changed["data.min_seconds"] == 0.7
    assert "as the encoder's" in message
  else:
    assert config.data.min_seconds != 0.7 and changed == {}
    assert f"of {file}, not the encoder's" in message


@pytest.mark.parametrize(
  "config", [["--config", "a b.py"], ["--config=a b.py"]]
)
def test_the_next_command_has_the_config_however_it_was_given(
  config, tmp_path, monkeypatch, caplog
):
  monkeypatch.setattr(sys, "argv", ["label", *config, "--layer", "1"])
  caplog.set_level(logging.INFO)
  label._say_next(config_lib.base(), tmp_path, 8, {"data.hours": 2.0})
  words = shlex.split(caplog.messages[-1].partition("to train on it")[2])
  assert words == [
    *("python", "-m", "ssl_jax.main", "--config=a b.py"),
    *("--config.data.hours=2.0", f"--config.hubert.labels={tmp_path}"),
    "--config.hubert.clusters=(8,)",
  ]


def test_wrong_usage_is_one_line_and_a_status(run, tmp_path):
  workdir = tmp_path / "labels"
  cases = [
    ([], 2, "--checkpoint is missing"),
    (["--layer=foo"], 1, "--layer=foo: expected a number"),
    ([f"--checkpoint={run}", "--layer=99"], 1, "has layers 0 to 2"),
    (["--clusters=1"], 2, "--clusters=1"),
    # Labels are 16 bits wide, and one is none.
    (["--clusters=65535"], 2, "--clusters=65535"),
  ]
  common = ["--config=configs/smoke.py", f"--out={workdir}"]
  started = [start_label(*common, *args) for args, _, _ in cases]
  for process, (_, status, said) in zip(started, cases):
    out, err = process.communicate(timeout=120)
    assert process.returncode == status, err
    assert said in err and len(err.splitlines()) == 1
    assert out == ""
  assert not workdir.exists()


def first_valid(workdir):
  line = read_jsonl(workdir / "metrics.jsonl")[0]
  assert line["split"] == "valid" and line["update"] == 0
  return line


def perplexity(usage):
  share = np.array(usage) / np.sum(usage)
  return np.exp(-(share * np.log(np.maximum(share, 1e-12))).sum())


def test_two_label_sets_are_learnt_at_once(run, mfcc_labelled):
  result = json.loads((run / "result.json").read_text())
  assert result["updates"] == 2 and np.isfinite(result["valid_loss"])
  _, _, header = mfcc_labelled
  line = first_valid(run)
  stored = perplexity(header["splits"]["valid"]["usage"])
  assert line["label_perplexity_1"] == pytest.approx(stored, rel=1e-4)
  assert CLUSTERS < line["label_perplexity_0"] <= 20
  chance = np.log(stored * line["label_perplexity_0"])
  assert line["chance"] == pytest.approx(chance, rel=1e-4)


def test_labels_of_an_encoder_are_learnt(audio, labelled, tmp_path):
  _, folder, header = labelled
  config = tiny(audio, str(folder), (CLUSTERS,))
  config.encoder.num_layers = 1
  result = loop.train(config, tmp_path)
  assert result["updates"] == 2 and np.isfinite(result["valid_loss"])
  assert result["valid_loss"] != result["first_valid_loss"]
  line = first_valid(tmp_path)
  expected = perplexity(header["splits"]["valid"]["usage"])
  assert line["label_perplexity"] == pytest.approx(expected, rel=1e-4)
  assert line["chance"] == pytest.approx(np.log(expected), rel=1e-4)
  (labels,) = json.loads((tmp_path / "data.json").read_text())["labels"]
  assert labels == {
    "codebook": header["codebook"],
    "train": header["splits"]["train"]["crc32"],
    "valid": header["splits"]["valid"]["crc32"],
  }


@pytest.mark.parametrize("part", ["codebook", "valid"])
def test_a_run_does_not_go_on_with_other_labels(two_sets, run, tmp_path, part):
  workdir = shutil.copytree(run, tmp_path / "run")
  (workdir / "result.json").unlink()
  data = json.loads((workdir / "data.json").read_text())
  assert len(data["labels"]) == 2
  data["labels"][1][part] = 0
  (workdir / "data.json").write_text(json.dumps(data))
  with pytest.raises(UserError, match=r"begun with other labels: bring those"):
    loop.train(two_sets, workdir)
  lines = (run / "metrics.jsonl").read_text()
  assert (workdir / "metrics.jsonl").read_text() == lines


@pytest.mark.parametrize(
  "change, said",
  [
    ({"hubert.labels": ""}, "config.hubert.labels is empty"),
    ({"hubert.labels": "nowhere"}, "no such folder"),
    ({"hubert.clusters": (7,)}, "config.hubert.clusters=7"),
    ({"data.dir": "valid"}, "lacks 6 of the source's 6 records"),
    ({"data.valid_dir": "train"}, "lacks 17 of the source's 17 records"),
  ],
)
def test_labels_that_do_not_fit_are_refused_at_once(
  audio, finished, tmp_path, change, said
):
  config = tiny(audio, str(finished[0]), (CLUSTERS,))
  for key, value in change.items():
    section, name = key.split(".")
    config[section][name] = str(audio / value) if section == "data" else value
  with pytest.raises(UserError, match=said):
    loop.train(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()
