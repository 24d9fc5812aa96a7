"""Datasets of TFDS, written by it and read without TensorFlow."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soxr
import tensorflow_datasets as tfds
from doors import door
from tensorflow_datasets.core.proto import feature_pb2

from ssl_jax import config as config_lib
from ssl_jax.data.sources import (
  audio,
  open_source,
  records,
  shards,
  tfds_examples,
)
from ssl_jax.devices import sharding
from ssl_jax.errors import UserError
from ssl_jax.probes import encoders, run

ROOT = Path(__file__).parents[1]
CORPUS = ROOT / "ssl_jax" / "data" / "corpus"
LINES = [json.loads(line) for line in (CORPUS / "metadata.jsonl").open("rb")]
PARTS = {
  "train_clean100": LINES[:900:100],
  "train_other500": LINES[1:600:100],
  "dev_clean": LINES[2:400:100],
}

SPLITS = {"train": "train", "valid": "validation", "test": "test"}


class _Audio(tfds.features.Tensor):
  """As TFDS' own stores and describes itself; that one needs TensorFlow."""

  def __init__(self, rate, lazy, shape=(None,)):
    super().__init__(
      shape=() if lazy else shape, dtype=np.str_ if lazy else np.int16
    )
    self._facts = feature_pb2.AudioFeature(
      shape={"dimensions": [-1 if d is None else d for d in shape]},
      dtype="int16",
      file_format="flac",
      sample_rate=rate,
      encoding="NONE",
      lazy_decode=lazy,
    )

  def to_json_content(self):
    return self._facts


def write(folder, name, features, parts, config="default"):
  """A dataset of the examples of {split: {id: example}}."""

  def generate(self, some):
    yield from some.items()

  builder = type(
    name,
    (tfds.core.GeneratorBasedBuilder,),
    {
      "__module__": __name__,
      "name": name.lower(),
      "VERSION": tfds.core.Version("2.1.1"),
      "BUILDER_CONFIGS": [tfds.core.BuilderConfig(name=config)],
      "_info": lambda self: tfds.core.DatasetInfo(
        builder=self, features=tfds.features.FeaturesDict(features)
      ),
      "_split_generators": lambda self, _: {
        key: self._generate_examples(value) for key, value in parts.items()
      },
      "_generate_examples": generate,
      # Else the names would be taken, for all tests to come.
      "__init_subclass__": classmethod(lambda cls, **_: None),
    },
    skip_registration=True,
  )(data_dir=folder, file_format="array_record")
  builder.download_and_prepare()


def example(line, lazy=False):
  path = CORPUS / line["file"]
  samples = audio.read(str(path), 0, 1 << 40)
  return {
    "speech": path.read_bytes() if lazy else samples,
    "text": line["text"] or "",
    "speaker_id": int(line["speaker"].encode().hex()[:8], 16),
    "chapter_id": 1,
    "id": line["file"],
  }


def librispeech(folder, lazy):
  """The features, splits and names of TFDS' librispeech."""
  write(
    folder,
    "Librispeech",
    {
      "speech": _Audio(16_000, lazy),
      "text": tfds.features.Text(),
      "speaker_id": np.int64,
      "chapter_id": np.int64,
      "id": np.str_,
    },
    {
      split: {line["file"]: example(line, lazy) for line in lines}
      for split, lines in PARTS.items()
    },
    "lazy_decode" if lazy else "default",
  )


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    folder = tmp_path_factory.mktemp("cache")
    patch.setenv("XDG_CACHE_HOME", str(folder))
    yield folder


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tfds")
  librispeech(folder, lazy=False)
  librispeech(folder, lazy=True)
  return folder


def settings(root, name="librispeech", **changes):
  config = config_lib.base().data
  config.source, config.name, config.dir = "tfds", name, str(root)
  config.min_seconds = 0.1
  config.update(changes)
  return config


@pytest.mark.parametrize("name", ["librispeech", "librispeech/lazy_decode"])
def test_every_clip_comes_back_sample_for_sample(root, name):
  for split, parts in (
    ("train", ("train_clean100", "train_other500")),
    ("valid", ("dev_clean",)),
  ):
    source = open_source(settings(root, name), split)
    lines = {line["file"]: line for part in parts for line in PARTS[part]}
    assert sorted(source.ids) == sorted(lines)
    for i, clip in enumerate(source.ids):
      expected = audio.read(str(CORPUS / clip), 0, 1 << 40)
      assert source.num_samples[i] == len(expected)
      np.testing.assert_array_equal(source.read(i, 0, 1 << 40), expected)
      np.testing.assert_array_equal(source.read(i, 99, 50), expected[99:149])
      assert source.metadata[i]["text"] == (lines[clip]["text"] or "")
      assert source.metadata[i]["speaker"] == example(lines[clip])["speaker_id"]


def test_tensorflow_is_not_needed(root):
  code = (
    "import sys; from ssl_jax import config; c = config.base().data; "
    "from ssl_jax.data.sources import open_source; "
    f"c.source, c.name, c.dir = 'tfds', 'librispeech', {str(root)!r}; "
    "c.min_seconds = .1; s = open_source(c, 'train'); s.read(0, 0, 9); "
    "print(len(s.ids), 'tensorflow' in sys.modules)"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert done.stdout.split() == ["15", "False"]


def test_splits_are_as_tfds_writes_them(root):
  part = settings(root, train_split="train_clean100[:3]+dev_clean[50%:]")
  assert len(open_source(part, "train").ids) == 3 + 2
  part = settings(root, valid_split="train_other500")
  assert len(open_source(part, "valid").ids) == 6
  folder = root / "librispeech" / "default" / "2.1.1"
  assert len(open_source(settings("", str(folder)), "train").ids) == 15
  part = settings(root, "librispeech:2.1.1", hours=0.001)
  assert 0 < len(open_source(part, "train").ids) < 15


def test_files_are_indexed_once(root, cache, monkeypatch):
  open_source(settings(root), "train")
  before = {p: p.stat().st_mtime_ns for p in cache.rglob("*.jsonl")}
  monkeypatch.setattr(tfds_examples, "_index", None)
  open_source(settings(root), "train")
  assert {p: p.stat().st_mtime_ns for p in cache.rglob("*.jsonl")} == before


def test_a_fault_of_the_disk_is_not_kept_as_damage(root, tmp_path, monkeypatch):
  file = str(sorted(root.rglob("*.array_record*"))[0])
  feature = tfds_examples.Feature("speech", 16_000, 1, False, {}, "")
  kept = tmp_path / "kept.jsonl"

  def fails(said):
    def read(self, places):
      raise RuntimeError(said)

    return read

  for said in ("Reading failed: Input/output error; " * 9, "hash mismatch"):
    with monkeypatch.context() as patch:
      patch.setattr(shards.ArrayRecordReader, "read", fails(said))
      if "error" in said:
        with pytest.raises(UserError, match=r"cannot be read now .*goes on"):
          tfds_examples._index(file, feature, kept)
        assert not kept.exists()
      else:
        tfds_examples._index(file, feature, kept)
        assert "hash mismatch" in kept.read_text()


def test_other_rates_channels_labels_and_no_ids(tmp_path):
  """As speech_commands and ljspeech are."""
  rng = np.random.default_rng(0)
  stereo = rng.integers(-9_000, 9_000, (24_000, 2)).astype(np.int16)
  write(
    tmp_path,
    "Commands",
    {
      "audio": _Audio(24_000, False, (None, 2)),
      "label": tfds.features.ClassLabel(names=["down", "go"]),
    },
    {
      "train": {
        i: {"audio": stereo[: 24_000 - 1_000 * i], "label": i % 2}
        for i in range(4)
      }
    },
  )
  config = settings(tmp_path, "commands", valid_fraction=0.25)
  source = open_source(config, "train")
  assert len(source.ids) == 3
  assert len(open_source(config, "valid").ids) == 1
  for i, clip in enumerate(source.ids):
    assert clip.startswith("train-00000-of-00001/")
    assert source.metadata[i]["label"] in ("down", "go")
    assert "speaker" not in source.metadata[i]
    audio = source.read(i, 0, 1 << 40)
    assert len(audio) == source.num_samples[i]
    frames = round(len(audio) * 1.5)
    mono = stereo[:frames].mean(axis=1) / 32768
    expected = soxr.resample(mono, 24_000, 16_000, "HQ") * 32768
    np.testing.assert_allclose(audio, expected, atol=0.51)


def test_a_plain_list_of_samples_needs_its_rate(tmp_path):
  samples = np.arange(24_000, dtype=np.int16)
  write(
    tmp_path,
    "Plain",
    {"x": tfds.features.Tensor(shape=(None,), dtype=np.int16), "id": np.str_},
    {s: {s: {"x": samples, "id": s}} for s in ("train", "dev")},
  )
  with pytest.raises(UserError, match="does not say its sample rate"):
    open_source(settings(tmp_path, "plain"), "train")
  config = settings(tmp_path, "plain", sample_rate=16_000)
  source = open_source(config, "train")
  np.testing.assert_array_equal(source.read(0, 0, 1 << 40), samples)


def test_damaged_examples_are_skipped_and_named(tmp_path, caplog):
  good = {"speech": np.ones(9_000, np.int16), "id": "good"}
  empty = {"speech": np.ones(0, np.int16), "id": "empty"}
  short = {"speech": np.ones(80, np.int16), "id": "short"}
  write(
    tmp_path,
    "Odd",
    {"speech": _Audio(16_000, False), "id": np.str_},
    {
      "train": {x["id"]: x for x in (good, empty, short)},
      "dev": {"other": good | {"id": "other"}},
    },
  )
  source = open_source(settings(tmp_path, "odd"), "train")
  assert source.ids == ["good"] and len(source.skipped) == 2
  assert "0 samples" in caplog.text
  assert "1 shorter than data.min_seconds=0.1 ('short')" in caplog.text


@pytest.mark.parametrize(
  "name, changes, said",
  [
    ("", {}, "give a dataset of TFDS"),
    ("librispeach", {}, "did you mean 'librispeech'?"),
    ("/nowhere/at/all", {}, "there is no such folder"),
    ("librispeech", {"train_split": "train"}, "have train_clean100, train"),
    ("librispeech", {"train_split": "dev_clean["}, "bad split 'dev_clean['"),
    ("librispeech", {"min_seconds": 60.0}, "all 15 clips were skipped"),
    ("libritts", {}, "78.4 GiB of downloads"),
    ("librispeech/other", {}, "(but librispeech/default, librispeech/lazy_"),
  ],
)
def test_what_cannot_be_opened_is_one_line_with_the_remedy(
  root, name, changes, said
):
  with pytest.raises(UserError) as error:
    open_source(settings(root, name, **changes), "train")
  assert said in str(error.value) and "\n" not in str(error.value)


def test_the_command_that_prepares_is_one_that_python_takes(tmp_path):
  with pytest.raises(UserError) as error:
    open_source(settings(tmp_path, "librispeech/lazy_decode"), "train")
  said = str(error.value)
  assert "57.1 GiB" in said and "pip install '.[tfds]'" in said
  codes = [part.split('"')[0] for part in said.split('python -c "')[1:]]
  assert len(codes) == 2 and "manual_dir='DIR'" in codes[1]
  for code in codes:
    compile(code, "", "exec")
    assert "tfds.builder('librispeech/lazy_decode'" in code
    assert f"data_dir={str(tmp_path)!r}" in code


def test_other_formats_are_refused_with_the_command_that_converts(
  root, tmp_path
):
  folder = root / "librispeech" / "default" / "2.1.1"
  other = tmp_path / "librispeech" / "default" / "2.1.1"
  other.mkdir(parents=True)
  for file in folder.iterdir():
    os.link(file, other / file.name.replace("array_record", "tfrecord"))
  with pytest.raises(UserError, match="convert it: pip install") as error:
    open_source(settings(tmp_path), "train")
  code = str(error.value).split('python -c "')[1].split('"')[0]
  compile(code, "", "exec")
  assert str(other) in code


def test_what_is_torn_is_one_line(root, tmp_path):
  whole = root / "librispeech" / "default" / "2.1.1"
  for torn in ("features.json", "dataset_info.json", "dev_clean"):
    folder = tmp_path / torn / "2.1.1"
    folder.mkdir(parents=True)
    for file in whole.iterdir():
      content = file.read_bytes()
      cut = len(content) // 3 if torn in file.name else len(content)
      (folder / file.name).write_bytes(content[:cut])
    with pytest.raises(UserError, match=r"TFDS prepared|prepare it") as error:
      open_source(settings("", str(folder)), "valid")
    assert "\n" not in str(error.value)
  (folder / "features.json").unlink()
  with pytest.raises(UserError, match="TFDS prepared"):
    open_source(settings("", str(folder)), "valid")


def test_a_dataset_becomes_records_once_and_for_all(root, tmp_path):
  folder = root / "librispeech" / "default" / "2.1.1"
  done = door(
    *("prepare", f"--input=tfds:{folder}"),
    *("--split=dev_clean+train_other500", f"--out={tmp_path / 'out'}"),
  )
  assert done.returncode == 0, done.stderr
  assert json.loads(done.stdout.splitlines()[-1])["clips"] == 10
  assert "10 clips" in done.stderr and "clips/s" in done.stderr
  found = records.open_records("out", tmp_path / "out")
  lines = PARTS["dev_clean"] + PARTS["train_other500"]
  assert sorted(found.ids) == sorted(line["file"] for line in lines)
  for i, clip in enumerate(found.ids):
    expected = audio.read(str(CORPUS / clip), 0, 1 << 40)
    np.testing.assert_array_equal(found.read(i, 0, 1 << 40), expected)
    assert {"speaker", "text"} <= {*found.metadata[i]}


def test_ids_that_are_numbers_or_shared_and_unknown_labels(
  tmp_path, monkeypatch
):
  samples = np.ones(9_000, np.int16)
  features = {
    "audio": _Audio(16_000, False),
    "id": np.int32,
    "label": tfds.features.ClassLabel(names=["down", "go"]),
  }
  clips = {
    i: {"audio": samples, "id": i // 2, "label": -1 if i else 1}
    for i in range(4)
  }
  write(tmp_path, "Fleurs", features, {"train": clips})
  config = settings(tmp_path, "fleurs", valid_fraction=0.25)
  ids = [
    *open_source(config, "train").ids,
    *open_source(config, "valid").ids,
  ]
  assert len({*ids}) == 4 and all(isinstance(clip, str) for clip in ids)
  labels = [
    clip.get("label")
    for split in ("train", "valid")
    for clip in open_source(config, split).metadata
  ]
  assert sorted(labels, key=str) == [None, None, None, "go"]
  write(tmp_path, "Lone", features, {"other": clips})
  with pytest.raises(UserError, match="no split named train"):
    open_source(settings(tmp_path, "lone"), "train")
  (tmp_path / "file").touch()
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
  with pytest.raises(UserError, match="XDG_CACHE_HOME"):
    open_source(settings(tmp_path, "fleurs"), "train")


@pytest.mark.parametrize(
  "task", ["ks", "sid", pytest.param("pr", marks=pytest.mark.slow)]
)
def test_tasks_are_probed_on_datasets(tmp_path, task):
  """Of speech_commands' features, voxceleb's, librispeech's."""
  digits = [line for line in LINES if line["label_type"] == "digit"]
  if task == "pr":
    digits = [line for line in digits if line["language"].startswith("en")]
  words = sorted({line["label"] for line in digits})
  speakers = sorted({line["speaker"] for line in digits})
  names = {"ks": words, "sid": speakers}.get(task, ())
  features = {
    "ks": {
      "audio": _Audio(16_000, False),
      "label": tfds.features.ClassLabel(names=words),
    },
    "sid": {
      "audio": _Audio(16_000, False),
      "label": tfds.features.ClassLabel(names=speakers),
      "youtube_id": tfds.features.Text(),
    },
    "pr": {
      "speech": _Audio(16_000, False),
      "text": tfds.features.Text(),
      "speaker_id": np.int64,
      "chapter_id": np.int64,
      "id": np.str_,
    },
  }[task]

  def one(line):
    known = example(line)
    label = line["label" if task == "ks" else "speaker"]
    known |= {"audio": known["speech"], "label": label, "youtube_id": "x"}
    return {key: known[key] for key in features}

  name = {"ks": "Speech_Commands", "sid": "Voxceleb"}.get(task, "Librispeech")
  parts = {"train": digits[::2], "validation": digits[::2], "test": digits[::4]}
  write(
    tmp_path,
    name,
    features,
    {
      split: {line["file"]: one(line) for line in lines}
      for split, lines in parts.items()
    },
  )
  config = config_lib.load(f"{ROOT}/configs/probe.py:task={task}")
  config.update_from_flattened_dict(
    {
      "where": ("",),
      "data.source": "tfds",
      "data.name": name.lower(),
      "data.dir": str(tmp_path),
      "fit.updates": 100,
      "fit.eval_every": 50,
      "fit.num_seeds": 1,
    }
  )
  result = run.probe(
    config,
    [encoders.Candidate("logmel", [encoders.log_mel()])],
    tmp_path / "cache",
    tmp_path / "out",
    sharding.by_row(sharding.make_mesh()),
  )
  assert result["clips"] == {s: len(parts[t]) for s, t in SPLITS.items()}
  # What was learned is asked again.
  chance = 1 if task == "pr" else 1 / len({*names})
  assert result["test"] < 0.9 if task == "pr" else result["test"] > 2 * chance
