"""TFDS datasets of any bytes: refused in a line, or read."""

import concurrent.futures
import functools
import json
import shutil

import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from hostile import assault, changed, damaged, fuzzed, told
from hypothesis import given
from hypothesis import strategies as st
from odd_corpora import opened, settings
from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

from ssl_jax.data import workers
from ssl_jax.data.sources import tfds_examples


def feature(kind, *values):
  return tf_feature_pb2.Feature(**{f"{kind}_list": {"value": values}})


def example(i):
  feature_ = {
    "speech": feature("int64", *range(3_000)),
    "id": feature("bytes", b"%d" % i),
    "text": feature("bytes", b"one"),
    "speaker_id": feature("int64", i),
    "label": feature("int64", i),
  }
  return tf_example_pb2.Example(
    features={"feature": feature_}
  ).SerializeToString()


INFO = {
  "name": "mine",
  "version": "1.0.0",
  "fileFormat": "array_record",
  "moduleName": "x.mine",
  "splits": [
    {
      "name": "train",
      "numBytes": "9",
      "shardLengths": ["3"],
      "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    }
  ],
}
PYTHON = "tensorflow_datasets.core.features."
FEATURES = {
  "pythonClassName": PYTHON + "features_dict.FeaturesDict",
  "featuresDict": {
    "features": {
      "speech": {
        "pythonClassName": PYTHON + "audio_feature.Audio",
        "audio": {
          "shape": {"dimensions": ["-1"]},
          "dtype": "int64",
          "sampleRate": "16000",
          "encoding": "none",
        },
      },
      "label": {"classLabel": {"numClasses": "3"}},
    }
  },
}


@pytest.fixture
def here(monkeypatch, tmp_path_factory):
  """Files are indexed in this process, and nowhere before."""
  base = tmp_path_factory.getbasetemp() / "xdg"
  monkeypatch.setenv("XDG_CACHE_HOME", str(base))
  pool = concurrent.futures.ThreadPoolExecutor
  monkeypatch.setattr(workers, "pool", pool)
  return base


def write_dataset(folder):
  folder.mkdir(exist_ok=True)
  writer = ArrayRecordWriter(
    str(folder / "mine-train.array_record-00000-of-00001"), "group_size:1"
  )
  for i in range(3):
    writer.write(example(i))
  writer.close()
  (folder / "dataset_info.json").write_text(json.dumps(INFO))
  (folder / "features.json").write_text(json.dumps(FEATURES))
  (folder / "label.labels.txt").write_text("x\ny\nz\n")


def tfds_opened(folder, **changes):
  opened(settings("", "tfds", name=str(folder), **changes))


TFDS_FILES = ["dataset_info.json", "features.json", "label.labels.txt"]
TFDS_FILES += ["mine-train.array_record-00000-of-00001"]


@pytest.mark.parametrize("name", TFDS_FILES)
def test_no_dataset_is_in_a_datasets_place(tmp_path, here, name):
  write_dataset(tmp_path)
  call = functools.partial(tfds_opened, tmp_path)
  assert told(call) == ""
  refused = assault(tmp_path / name, call)
  assert refused > 20 or not name.endswith(".json")


@fuzzed
@given(st.data())
def test_datasets_of_any_json_or_records(tmp_path_factory, here, data):
  folder = tmp_path_factory.getbasetemp() / "tfds"
  if not folder.exists():
    write_dataset(folder)
  kept = {name: (folder / name).read_bytes() for name in TFDS_FILES}
  shutil.rmtree(here, ignore_errors=True)
  name = data.draw(st.sampled_from(TFDS_FILES))
  if name.endswith("json"):
    (folder / name).write_bytes(data.draw(changed(json.loads(kept[name]))))
  else:
    (folder / name).write_bytes(data.draw(damaged(kept[name])))
  try:
    told(tfds_opened, folder)
  finally:
    (folder / name).write_bytes(kept[name])


@pytest.mark.parametrize(
  "facts",
  [{"sampleRate": x} for x in ("-1", "1", "9" * 18, "0")]
  + [{"shape": {"dimensions": ["-1", x]}} for x in ("0", "-1", "9" * 18, "7")]
  + [{"lazyDecode": True}, {"shape": {}}, {"dtype": "\0"}],
)
def test_audio_of_absurd_features(tmp_path, here, facts):
  write_dataset(tmp_path)
  made = json.loads(json.dumps(FEATURES))
  made["featuresDict"]["features"]["speech"]["audio"] |= facts
  (tmp_path / "features.json").write_text(json.dumps(made))
  told(tfds_opened, tmp_path)


@pytest.mark.parametrize("rate", [10**18, 2**31, -5, 1, 100])
def test_absurd_rates_of_the_config(tmp_path, here, rate):
  write_dataset(tmp_path)
  made = json.loads(json.dumps(FEATURES))
  del made["featuresDict"]["features"]["speech"]["audio"]["sampleRate"]
  (tmp_path / "features.json").write_text(json.dumps(made))
  assert told(tfds_opened, tmp_path)
  told(functools.partial(tfds_opened, tmp_path, sample_rate=rate))


def known(content, what, *_):
  tfds_examples._facts(tfds_examples._parse(content), what)


@fuzzed
@given(st.data())
def test_examples_of_any_bytes(data):
  lists = st.dictionaries(
    st.sampled_from(["speech", "id", "text", "label", "speaker_id", "locale"]),
    st.one_of(
      st.lists(st.integers(-(2**63), 2**63 - 1), max_size=9).map(
        lambda x: feature("int64", *x)
      ),
      st.lists(st.binary(max_size=40), max_size=2).map(
        lambda x: feature("bytes", *x)
      ),
      st.lists(st.floats(width=32), max_size=4).map(
        lambda x: feature("float", *x)
      ),
    ),
  )
  made = tf_example_pb2.Example(features={"feature": data.draw(lists)})
  record = data.draw(damaged(made.SerializeToString()))
  for lazy in (False, True):
    what = tfds_examples.Feature(
      "speech", 8_000, 1 + lazy, lazy, {"label": ["a"]}, ""
    )
    for content in (record, made.SerializeToString()):
      for call in (tfds_examples.read, known):
        try:
          told(call, content, what, 0, 100)
        except tfds_examples.DamagedAudio:
          pass


@pytest.mark.parametrize("spec", ["train[", "x", "train[:1e9%]", "train[9:1]"])
def test_splits_of_any_words(tmp_path, here, spec):
  write_dataset(tmp_path)
  for words in (
    spec,
    spec + "+train" * 9_999,
    "\0",
    "train[:\ud800]",
    "+",
    "(",
  ):
    told(functools.partial(tfds_opened, tmp_path, train_split=words))
