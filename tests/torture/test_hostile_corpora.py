"""Archives, prepared corpora, TFDS and labels of any bytes."""

import concurrent.futures
import functools
import io
import json
import os
import shutil
import tarfile
import zipfile
import zlib

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from hostile import ODD, assault, changed, damaged, fuzzed, told
from hypothesis import given
from hypothesis import strategies as st
from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2
from test_hostile_data import opened, settings
from test_labels import CLUSTERS, CORPUS, write_set

from ssl_jax.data import examples, labels, manifest, prepare, records, workers
from ssl_jax.labelling import fairseq

# Archives.


def tar(members, mode="w"):
  """Of (name, content or TarInfo fields)."""
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode=mode) as made:
    for name, what in members:
      info = tarfile.TarInfo(name)
      content = b""
      if isinstance(what, bytes):
        info.size, content = len(what), what
      else:
        for key, value in what.items():
          setattr(info, key, value)
      made.addfile(info, io.BytesIO(content) if content else None)
  return file.getvalue()


def zipped(members, **options):
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w", **options) as made:
    for name, content in members:
      made.writestr(name, content)
  return file.getvalue()


def unpacked(root, name, content):
  """Unpacks; whatever comes of it, nothing is elsewhere or but a file."""
  archive, folder = root / name, root / "in" / "to"
  archive.write_bytes(content)
  shutil.rmtree(root / "in", ignore_errors=True)
  folder.mkdir(parents=True)
  said = told(manifest.unpack, archive, folder)
  assert {*root.iterdir()} - {archive} == {root / "in"}
  assert [*(root / "in").iterdir()] == [folder]
  for path in folder.rglob("*"):
    assert not path.is_symlink() and (path.is_dir() or path.is_file())
  if not said:
    told(manifest.root_of, folder)
  archive.unlink()
  return said


GOOD = [("a.wav", b"1234"), ("d/b.wav", b"56" * 999), ("m.tsv", b".\na.wav")]
OUTSIDE = ["../x", "/x", "a/../../x", "..", "a/..", "C:\\x", "..\\x", "//x"]
OUTSIDE += ["./../x", "\\x", "a/b/../../../../x", "/etc/passwd", "C:x"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_members_that_would_be_elsewhere(tmp_path, name):
  for kind in ("x.zip", "x.tar"):
    make = zipped if kind == "x.zip" else tar
    said = unpacked(tmp_path, kind, make([*GOOD, (name, b"evil")]))
    assert "outside" in said, (kind, said)


LINK, HARD = tarfile.SYMTYPE, tarfile.LNKTYPE
ODD_MEMBERS = {
  "a link out, and through it": [
    ("l", {"type": LINK, "linkname": "/tmp"}),
    ("l/x", b"evil"),
  ],
  "a link out": [("l", {"type": LINK, "linkname": "../../../secret"})],
  "a hard link out": [("l", {"type": HARD, "linkname": "/etc/passwd"})],
  "a circle": [
    ("l", {"type": LINK, "linkname": "m"}),
    ("m", {"type": LINK, "linkname": "l"}),
  ],
  "itself": [("l", {"type": HARD, "linkname": "l"})],
  "a fifo": [("l", {"type": tarfile.FIFOTYPE})],
  "a device": [("l", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 5})],
  "twice": [("a.wav", b"other")],
  "a file and a folder": [("a.wav/x", b"x")],
  "a folder and a file": [("d", b"x")],
  "a long name": [("n" * 300, b"x")],
  "a long path": [("n/" * 3_000 + "x", b"x")],
  "deep": [("n/" * 150 + "x", b"x")],
  "no name": [("", b"x")],
  "bytes": [(os.fsdecode(b"\xff\xfe"), b"x")],
  "a line": [("a\nb", b"x")],
}


@pytest.mark.parametrize("what", ODD_MEMBERS)
def test_odd_members(tmp_path, what):
  secret = tmp_path.parent / "secret"
  secret.write_bytes(b"secret")
  root = tmp_path / "r"
  root.mkdir()
  unpacked(root, "x.tar", tar([*GOOD, *ODD_MEMBERS[what]]))
  for path in (root / "in").rglob("*"):
    assert path.is_dir() or b"secret" not in path.read_bytes()
    assert path.is_dir() or b"root:" not in path.read_bytes()


def octal(content, at, size, field):
  """A tar whose header at `at` says so in `field`; its checksum is right."""
  content = bytearray(content)
  place = {"size": 124, "devminor": 337}[field]
  value = (1 << 95 | size if size >= 0 else (1 << 96) + size).to_bytes(12)
  content[at + place : at + place + 12] = value
  content[at + 148 : at + 156] = b" " * 8
  total = sum(content[at : at + 512])
  content[at + 148 : at + 156] = b"%06o\0 " % total
  return bytes(content)


SIZES = [2**33, 2**60, 2**63, 2**80, -1, -512, -1024, -1536, -(2**60)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("at", [0, 1024])
def test_tars_of_absurd_sizes(tmp_path, size, at):
  said = unpacked(tmp_path, "x.tar", octal(tar(GOOD), at, size, "size"))
  assert said


@pytest.mark.parametrize("size", ["9" * 30, "-1024", "1e9", "x", "9" * 5_000])
@pytest.mark.parametrize("key", ["size", "GNU.sparse.realsize"])
def test_headers_of_absurd_sizes(tmp_path, size, key):
  info = tarfile.TarInfo("s.wav")
  info.pax_headers = {key: size, "GNU.sparse.major": "1"}
  info.pax_headers |= {"GNU.sparse.minor": "0", "GNU.sparse.name": "s.wav"}
  info.size = 1024
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as made:
    made.addfile(info, io.BytesIO(b"1\n0\n1\n".ljust(1024, b"\0")))
  unpacked(tmp_path, "x.tar", file.getvalue())


def test_copies_do_not_fill_the_disk(tmp_path):
  copies = [(f"l{i}", {"type": HARD, "linkname": "big"}) for i in range(9)]
  for members in (
    [("big", bytes(1 << 20))] * 9,
    [("big", bytes(1 << 20)), *copies],
  ):
    with pytest.MonkeyPatch.context() as patch:
      usage = shutil.disk_usage(tmp_path)._replace(free=5 << 20)
      patch.setattr(shutil, "disk_usage", {tmp_path / "in" / "to": usage}.get)
      for kind, mode in (("x.tar", "w"), ("x.tar.gz", "w:gz")):
        said = unpacked(tmp_path, kind, tar(members, mode))
        assert "GB free" in said and "\n" not in said
        written = sum(p.stat().st_size for p in (tmp_path / "in").rglob("*"))
        assert written < 8 << 20


def test_a_declared_bomb_writes_nothing(tmp_path):
  """Each of 100 files is said to be of 4 GB."""
  files = [(f"a{i}", b"0") for i in range(100)]
  content = bytearray(zipped(files))
  at = 0
  while (at := content.find(b"PK\1\2", at + 1)) > 0:
    content[at + 24 : at + 28] = (2**32 - 2).to_bytes(4, "little")
  said = unpacked(tmp_path, "x.zip", bytes(content))
  assert "429 GB" in said and "free" in said
  assert not any((tmp_path / "in" / "to").iterdir())


@fuzzed
@given(st.data())
def test_archives_of_any_bytes(tmp_path_factory, data):
  root = tmp_path_factory.getbasetemp() / "archives"
  root.mkdir(exist_ok=True)
  modes = {"x.tar": "w", "x.tar.gz": "w:gz", "x.tar.xz": "w:xz"}
  kind = data.draw(st.sampled_from(["x.zip", *modes, "x.tar.bz2"]))
  modes["x.tar.bz2"] = "w:bz2"
  content = zipped(GOOD) if kind == "x.zip" else tar(GOOD, modes[kind])
  unpacked(root, kind, data.draw(damaged(content)))


# Prepared corpora.

ABOUT = [{"id": "a", "speaker": "x", "text": "t"}, {"id": "b"}, {"id": "c"}]
HEADER = {"format": 1, "shards": 1, "clips": 3, "hours": 1.5, "speakers": 1}
HEADER |= {"skipped": 0}


def write_corpus(folder, lines=None):
  if not (folder / "shards" / "00000.records").exists():
    clips = ((about, np.arange(4_000, dtype=np.int16)) for about in ABOUT)
    records.write_shard(folder, 0, clips)
  path = folder / "shards" / "00000.jsonl"
  if lines is not None:
    path.write_bytes(lines)
  header = HEADER | {"crc32": [zlib.crc32(path.read_bytes())]}
  (folder / "dataset.json").write_text(json.dumps(header))
  return header


def used(folder):
  opened(settings(folder, "records"))
  prepare.verify(folder)


FILES = ["dataset.json", "shards/00000.jsonl", "shards/00000.records"]


@pytest.mark.parametrize("name", FILES)
def test_no_corpus_is_in_a_corpus_place(tmp_path, name):
  write_corpus(tmp_path)
  call = functools.partial(used, tmp_path)
  assert told(call) == ""
  assert assault(tmp_path / name, call) >= (30 if "records" not in name else 0)


@fuzzed
@given(st.data())
def test_corpora_of_any_json_or_records(tmp_path_factory, data):
  folder = tmp_path_factory.getbasetemp() / "corpus"
  header = write_corpus(folder)
  kept = {name: (folder / name).read_bytes() for name in FILES}
  name = data.draw(st.sampled_from(FILES))
  if name == "dataset.json":
    (folder / name).write_bytes(data.draw(changed(header)))
  elif name.endswith("jsonl"):  # With checksums to match.
    lines = [json.loads(line) for line in kept[name].splitlines()]
    write_corpus(folder, b"\n".join(data.draw(changed(x)) for x in lines))
  else:
    (folder / name).write_bytes(data.draw(damaged(kept[name])))
  try:
    told(used, folder)
    told(opened, settings(folder, "records", split_key="speaker"))
  finally:
    for name, content in kept.items():
      (folder / name).write_bytes(content)


def test_a_trillion_shards(tmp_path):
  header = write_corpus(tmp_path)
  for changes in ({"shards": 10**12}, {"shards": 10**12, "crc32": 10**12}):
    (tmp_path / "dataset.json").write_text(json.dumps(header | changes))
    assert "dataset.json" in told(used, tmp_path)


def test_what_is_left_of_a_prepare_is_damaged(tmp_path):
  write_corpus(tmp_path)
  (tmp_path / "shards" / "00000.skipped").write_text(
    '{"id": "x", "reason": ""}'
  )
  for name in ("shards/00000.jsonl", "shards/00000.skipped"):
    call = functools.partial(prepare._finish, tmp_path, 1, [])
    assert told(call) == ""
    assert assault(tmp_path / name, call) > 20


# Datasets of TFDS.


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
  examples._facts(examples._parse(content), what)


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
    what = examples.Feature(
      "speech", 8_000, 1 + lazy, lazy, {"label": ["a"]}, ""
    )
    for content in (record, made.SerializeToString()):
      for call in (examples.read, known):
        try:
          told(call, content, what, 0, 100)
        except examples.DamagedAudio:
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


# Labels, and labels as fairseq has them.


def labelled(folder):
  for split in ("train", "valid"):
    opened_ = labels.open_labels(folder, split, CORPUS, CLUSTERS)
    opened_.read(0, 0, 10)


LABEL_FILES = ["header.json", "codebook.npy", "train.jsonl", "train.labels"]


@pytest.fixture
def label_set(tmp_path):
  write_set(tmp_path, {"train": CORPUS, "valid": CORPUS})
  return tmp_path


@pytest.mark.parametrize("name", LABEL_FILES)
def test_no_labels_are_in_a_labels_place(label_set, name):
  call = functools.partial(labelled, label_set)
  assert told(call) == ""
  assert assault(label_set / name, call) > 25


@fuzzed
@given(st.data())
def test_labels_of_any_header(tmp_path_factory, data):
  folder = tmp_path_factory.getbasetemp() / "labels"
  if not folder.exists():
    write_set(folder, {"train": CORPUS, "valid": CORPUS})
  kept = (folder / "header.json").read_bytes()
  (folder / "header.json").write_bytes(data.draw(changed(json.loads(kept))))
  try:
    told(labelled, folder)
  finally:
    (folder / "header.json").write_bytes(kept)


@pytest.mark.parametrize("rows", [10**12, 2**63, -1])
@pytest.mark.parametrize("dtype", ["'<f4'", "'|O'", "[('a', '<f4')]"])
def test_a_codebook_of_a_trillion_rows(label_set, rows, dtype):
  said = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': ({rows}, 5)}}\n"
  content = b"\x93NUMPY\1\0" + len(said).to_bytes(2, "little") + said.encode()
  (label_set / "codebook.npy").write_bytes(content + b"\0" * 400)
  assert "codebook" in told(labelled, label_set)


@pytest.mark.parametrize("count", [10**15, 2**63, -(10**15), 10**40])
@pytest.mark.parametrize("key", ["clusters", "frames"])
def test_labels_of_quadrillions(label_set, key, count):
  header = json.loads((label_set / "header.json").read_text())
  (header if key == "clusters" else header["splits"]["train"])[key] = count
  (label_set / "header.json").write_text(json.dumps(header))
  assert told(labelled, label_set)


FAIRSEQ = {"train.tsv": ".\na.wav\t4800\nb.wav\t4800\n"}
FAIRSEQ |= {"train.km": "0 1 2\n2 1 0\n", "dict.km.txt": "0 1\n1 1\n2 1\n"}


def read_km(folder):
  clusters = fairseq._read_dictionary(folder / "dict.km.txt")
  fairseq._read_pair(folder / "train.tsv", folder / "train.km", clusters, {}, 0)


@pytest.mark.parametrize("name", FAIRSEQ)
def test_no_labels_of_fairseq(tmp_path, name):
  for file, text in FAIRSEQ.items():
    (tmp_path / file).write_text(text)
  call = functools.partial(read_km, tmp_path)
  assert told(call) == ""
  assert assault(tmp_path / name, call) > 15


@fuzzed
@given(st.data())
def test_labels_of_fairseq_of_any_bytes(tmp_path_factory, data):
  folder = tmp_path_factory.getbasetemp() / "km"
  folder.mkdir(exist_ok=True)
  odd = data.draw(st.sampled_from([*FAIRSEQ]))
  for file, text in FAIRSEQ.items():
    content = text.encode()
    if file == odd:
      content = data.draw(damaged(content))
      if data.draw(st.booleans()):
        word = str(data.draw(st.sampled_from(ODD[:25]))).encode(
          "utf-8", "ignore"
        )
        content = content.replace(b"1", word, 1)
    (folder / file).write_bytes(content)
  told(read_km, folder)
