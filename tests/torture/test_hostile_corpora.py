"""Prepared corpora and labels of any bytes: refused in a line, or read."""

import functools
import json
import zlib

import numpy as np
import pytest
from hostile import ODD, assault, changed, damaged, fuzzed, told
from hypothesis import given
from hypothesis import strategies as st
from label_sets import CLUSTERS, CORPUS, write_set
from odd_corpora import opened, settings

from ssl_jax.data import labels, prepare
from ssl_jax.data.sources import records
from ssl_jax.labelling import fairseq

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
  assert assault(tmp_path / name, call) >= (25 if "records" not in name else 0)


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


def test_two_clips_of_one_id(tmp_path):
  write_corpus(tmp_path)
  lines = (tmp_path / "shards" / "00000.jsonl").read_bytes()
  write_corpus(tmp_path, lines.replace(b'"b"', b'"a"'))
  assert "one id" in told(used, tmp_path)


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
