"""Stored labels: written, killed, checked with the audio, read in batches."""

import dataclasses
import hashlib
import json
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import zlib

import numpy as np
import pytest
import soundfile
from label_sets import (
  CLUSTERS,
  CORPUS,
  IDENTITY,
  IDS,
  Corpus,
  truth,
  write_set,
  write_split,
)
from ml_collections import ConfigDict

from ssl_jax import num_frames
from ssl_jax.data import batch_plan, batches, label_writer, labels
from ssl_jax.data.label_writer import LabelWriter
from ssl_jax.data.labels import NO_LABEL, open_labels
from ssl_jax.data.sources import open_source
from ssl_jax.errors import UserError

BUCKETS = [16_000, 32_000]


@pytest.fixture
def folder(tmp_path):
  corpora = {"train": CORPUS, "valid": CORPUS.select([2, 0])}
  return write_set(tmp_path / "set", corpora)


def change_header(folder, **changes):
  header = json.loads((folder / "header.json").read_text())
  (folder / "header.json").write_text(json.dumps(header | changes))


def change_split(folder, **changes):
  splits = json.loads((folder / "header.json").read_text())["splits"]
  splits["train"] |= changes
  change_header(folder, splits=splits)


def change_byte(path, place, value=None):
  content = bytearray(path.read_bytes())
  content[place] = content[place] ^ 1 if value is None else value
  path.write_bytes(content)


def refused(folder, corpus=CORPUS, split="train", clusters=CLUSTERS):
  with pytest.raises(UserError) as error:
    open_labels(folder, split, corpus, clusters)
  message = str(error.value)
  assert len(message.splitlines()) == 1 and repr(str(folder)) in message
  assert "; " in message  # The remedy.
  return message


def test_what_was_written_is_read(folder):
  opened = open_labels(folder, "train", CORPUS, CLUSTERS)
  for record in range(len(IDS)):
    expected = truth(CORPUS, record)
    count = len(expected)
    whole = opened.read(record, 0, count)
    assert whole.dtype == np.uint16
    np.testing.assert_array_equal(whole, expected)
    whole[:] = 0  # A copy: the file is not written.
    for start in (0, count // 2, count - 1, count, count + 9):
      part = opened.read(record, start, 40)
      rest = expected[start : start + 40]
      np.testing.assert_array_equal(part[: len(rest)], rest)
      assert part.shape == (40,) and (part[len(rest) :] == NO_LABEL).all()


def test_the_folder_is_as_described(folder):
  flat = np.concatenate([truth(CORPUS, record) for record in range(len(IDS))])
  content = (folder / "train.labels").read_bytes()
  assert content == flat.astype("<u2").tobytes()
  lines = (folder / "train.jsonl").read_bytes().decode("ascii").splitlines()
  assert [json.loads(line) for line in lines] == [
    {"id": clip, "frames": num_frames(int(length))}
    for clip, length in zip(IDS, CORPUS.num_samples)
  ]
  codebook = np.load(folder / "codebook.npy", allow_pickle=False)
  assert codebook.shape == (CLUSTERS, 5) and codebook.dtype == np.float32
  np.testing.assert_array_equal(labels.read_codebook(folder), codebook)
  header = json.loads((folder / "header.json").read_text())
  assert header == labels.read_header(folder)
  assert header == open_labels(folder, "valid", CORPUS.select([0]), 7).header
  assert [*header["splits"]] == ["train", "valid"]
  train = header.pop("splits")["train"]
  assert header == {
    "format": 1,
    "clusters": 7,
    "layer": 6,
    "checkpoint": {"workdir": "runs/a", "update": 3},
    "codebook": hashlib.sha256(codebook.tobytes()).hexdigest()[:16],
    "frame_hop": 320,
    "frame_rate": 50,
    "inertia": 1.5,
  }
  assert train == {
    "corpus": labels.corpus_hash(CORPUS),
    "records": len(IDS),
    "frames": len(flat),
    "damaged": 0,
    "usage": [int((flat == cluster).sum()) for cluster in range(7)],
    "crc32": zlib.crc32(content),
    "records_crc32": zlib.crc32((folder / "train.jsonl").read_bytes()),
  }
  assert not [*folder.glob("*.part"), *folder.glob("*tmp")]


@pytest.mark.parametrize("block", [1, 3, 1 << 20])
def test_records_without_labels_are_counted(tmp_path, monkeypatch, block):
  for module in (labels, label_writer):
    monkeypatch.setattr(module, "BLOCK", block)
  writer = LabelWriter(tmp_path, "train", CORPUS, IDENTITY)
  flat = []
  for record in range(len(IDS)):
    expected = truth(CORPUS, record)
    if record == 0:
      expected[[0, 1, 20]] = NO_LABEL
    elif record in (5, 8):
      expected[:] = NO_LABEL  # As it is, if nothing is written.
      flat.append(expected)
      continue
    elif record == 6:
      expected[-1] = NO_LABEL
    writer.write(record, 0, expected)
    flat.append(expected)
  flat = np.concatenate(flat)
  assert not writer.done
  about = writer.finish()
  assert about["damaged"] == 4
  assert about["usage"] == [(flat == cluster).sum() for cluster in range(7)]
  assert about["crc32"] == zlib.crc32(flat.tobytes())
  assert (tmp_path / "train.labels").read_bytes() == flat.tobytes()


@pytest.mark.parametrize(
  "record, start, given",
  [
    (1, 0, np.zeros(2, np.uint16)),
    (0, 49, np.zeros(1, np.uint16)),
    (0, -1, np.zeros(1, np.uint16)),
    (0, 0, np.zeros(1, np.int32)),
    (0, 0, np.array([CLUSTERS], np.uint16)),
    (0, 0, np.array([NO_LABEL - 1], np.uint16)),
  ],
)
def test_what_cannot_be_a_label_is_not_written(tmp_path, record, start, given):
  writer = LabelWriter(tmp_path, "train", CORPUS, IDENTITY)
  with pytest.raises(ValueError):
    writer.write(record, start, given)
  assert writer.finish()["usage"] == [0] * CLUSTERS


def test_some_of_the_corpus_in_another_order(folder):
  for order in ([5], [8, 0, 3], [*range(9)][::-1]):
    part = CORPUS.select(order)
    opened = open_labels(folder, "train", part, CLUSTERS)
    for record in range(len(order)):
      np.testing.assert_array_equal(
        opened.read(record, 0, 200)[: len(truth(part, record))],
        truth(part, record),
      )


def test_a_pickled_set_does_not_carry_the_labels(tmp_path):
  corpus = Corpus(["a", "b"], np.array([32_000_000, 16_000]))
  opened = open_labels(
    write_set(tmp_path, {"train": corpus}), "train", corpus, CLUSTERS
  )
  pickled = pickle.dumps(opened)
  assert len(pickled) < 5_000 < num_frames(32_000_000)
  again = pickle.loads(pickled)
  assert again.header == opened.header
  np.testing.assert_array_equal(again.read(1, 0, 49), truth(corpus, 1))


def test_the_corpus_hash_is_of_ids_and_lengths_in_order():
  def of(ids, lengths):
    return labels.corpus_hash(Corpus(ids, np.array(lengths)))

  hashes = [
    of(["a", "b"], [1_000, 2_000]),
    of(["b", "a"], [2_000, 1_000]),
    of(["a", "b"], [1_000, 2_001]),
    of(["a", "c"], [1_000, 2_000]),
    of(["a"], [1_000]),
    of(["a", "b", "c"], [1_000, 2_000, 1]),
  ]
  assert len(set(hashes)) == len(hashes)
  assert all(len(h) == 16 and int(h, 16) >= 0 for h in hashes)
  # The same for ever, on every machine: labels name it.
  assert hashes[0] == of(["a", "b"], np.array([1_000, 2_000], np.int32))
  assert hashes[0] == hashlib.sha256(b'["a", 1000]["b", 2000]').hexdigest()[:16]


LABEL_AGAIN = "python -m ssl_jax.label"


def test_unfinished_labels_say_how_to_go_on(folder):
  (folder / "header.json").unlink()
  message = refused(folder)
  assert "did not finish" in message
  assert f"run the same `{LABEL_AGAIN}` command again" in message
  message = refused(folder / "nowhere")
  assert "no such folder" in message and LABEL_AGAIN in message


@pytest.mark.parametrize(
  "changes, said",
  [
    ({"format": 2}, "is of format 2, not 1"),
    ({"frame_hop": 160}, "frame_hop 160 samples, not 320"),
    ({"clusters": 8}, "has 8 clusters, but config.hubert.clusters=7"),
    ({"codebook": "0" * 16}, "codebook.npy is not the codebook"),
    ({"splits": {}}, "no split 'train'"),
    ({"format": "1"}, "header.json is damaged"),
    ({"format": None}, "header.json is damaged"),
    ({"clusters": 7.0}, "header.json is damaged"),
    ({"clusters": "7"}, "header.json is damaged"),
    ({"clusters": True}, "header.json is damaged"),
    ({"frame_hop": "320"}, "header.json is damaged"),
    ({"splits": ["train"]}, "header.json is damaged"),
    ({"splits": {"train": None}}, "header.json is damaged"),
    ({"splits": {"train": {}}}, "header.json is damaged"),
    ({"codebook": None}, "codebook.npy is not the codebook"),
  ],
)
def test_a_header_of_other_labels_is_refused(folder, changes, said):
  change_header(folder, **changes)
  assert said in refused(folder)


def test_a_header_of_other_clusters_names_the_key(folder):
  message = refused(folder, clusters=500)
  assert "config.hubert.clusters=500" in message
  assert "set config.hubert.clusters=7" in message


@pytest.mark.parametrize(
  "content",
  [
    b"",
    b"{}",
    b"[]",
    b"null",
    b"1",
    b'"format"',
    b"{",
    b"\xff\xfe",
    b"\x80",
    b"[" * 100_000,
    b'{"format": ' + b"9" * 5_000 + b"}",
    b'{"format": ' + b"[" * 500 + b"]" * 500 + b"}",
    b'{"format": NaN}',
  ],
)
@pytest.mark.parametrize("name", ["header.json", "train.jsonl"])
def test_json_that_says_nothing_is_damage(folder, name, content):
  (folder / name).write_bytes(content)
  if name == "train.jsonl":  # Even where it is what the header tells.
    change_split(folder, records_crc32=zlib.crc32(content))
  assert f"{name} is damaged" in refused(folder)


def test_another_or_no_codebook_is_refused(folder, tmp_path):
  path = folder / "codebook.npy"
  good = np.load(path)
  for other in (good[:, :4], good[:6], good + 1):
    np.save(path, other)
    assert "codebook.npy is not the codebook" in refused(folder)
  for other in (
    good.astype(np.float64),
    good.astype(">f4"),
    good.ravel(),
    np.float32(1),
  ):
    np.save(path, other)
    assert "codebook.npy is damaged" in refused(folder)
  np.save(path, np.array([{}, open], object), allow_pickle=True)
  assert "codebook.npy is damaged" in refused(folder)
  np.savez(tmp_path / "a.npz", good)
  (tmp_path / "a.npz").replace(path)
  assert "codebook.npy is damaged" in refused(folder)
  path.unlink()
  assert "codebook.npy is missing" in refused(folder)
  path.mkdir()
  assert "codebook.npy is missing" in refused(folder)
  path.rmdir()
  np.save(path, np.asfortranarray(good))
  open_labels(folder, "train", CORPUS, CLUSTERS)
  # The same values, of which the header says there are fewer.
  change_header(folder, clusters=6)
  assert "codebook.npy is not the codebook" in refused(folder, clusters=6)


def test_a_codebook_of_code_is_never_run(folder, tmp_path):
  class Bomb:
    def __reduce__(self):
      return pathlib.Path.touch, (tmp_path / "ran",)

  (folder / "codebook.npy").write_bytes(pickle.dumps(Bomb()))
  assert "codebook.npy is damaged" in refused(folder)
  assert not (tmp_path / "ran").exists()


def test_an_absent_split_is_named(folder):
  message = refused(folder, split="test")
  assert "no split 'test' (have: 'train', 'valid')" in message


def test_damaged_labels_are_refused(folder):
  path = folder / "train.labels"
  good = path.read_bytes()
  for content in (good[:-2], good[:-1], good + b"\0\0", b""):
    path.write_bytes(content)
    message = refused(folder)
    assert f"{len(content)} bytes, not {len(good)}" in message
  for place in (0, len(good) // 2, len(good) - 1):
    path.write_bytes(good)
    change_byte(path, place)
    assert "train.labels is damaged" in refused(folder)
  path.unlink()
  assert f"train.labels has 0 bytes, not {len(good)}" in refused(folder)


@pytest.mark.parametrize("label", [CLUSTERS, 500, NO_LABEL - 1, NO_LABEL])
def test_labels_beyond_the_clusters_are_refused(folder, label):
  path = folder / "train.labels"
  content = np.fromfile(path, "<u2")
  content[-1] = label
  content.tofile(path)
  change_split(folder, crc32=zlib.crc32(content))
  if label == NO_LABEL:
    opened = open_labels(folder, "train", CORPUS, CLUSTERS)
    assert opened.read(8, 22, 2).tolist() == [truth(CORPUS, 8)[22], NO_LABEL]
  else:
    assert "labels that are not below 7" in refused(folder)


def test_records_that_were_not_labelled_are_counted_and_named(folder):
  ids = ["new 1", *IDS, "new\n2", "new 3", "new 4"]
  corpus = Corpus(ids, np.full(len(ids), 16_000))
  message = refused(folder, corpus)
  assert "lacks 4 of the source's 13 records: " in message
  assert "'new 1', 'new\\n2', 'new 3', ...;" in message
  assert LABEL_AGAIN in message
  message = refused(folder, Corpus(["new"], np.array([400])))
  assert "lacks 1 of the source's 1 records: 'new';" in message


def test_a_record_of_another_length_is_named(folder):
  changed = CORPUS.num_samples.copy()
  changed[3] -= 319  # Still as many frames.
  same = Corpus(IDS, changed)
  open_labels(folder, "train", same, CLUSTERS)
  for order in ([3], [0, 3, 1], [*range(9)]):
    changed[3] = 10_000
    message = refused(folder, Corpus(IDS, changed).select(order))
    assert "'q\"\\\\' has 30 frames there and 31 in the source" in message
    assert "another corpus" in message and LABEL_AGAIN in message


def mutations(content, count, seed=0):
  """Copies of some bytes with something changed, cut, doubled or put in."""
  rng = np.random.default_rng(seed)
  for _ in range(count):
    copy = bytearray(content)
    for _ in range(rng.integers(1, 4)):
      place, size = rng.integers(len(copy)), int(rng.integers(1, 6))
      junk = rng.choice([rng.bytes(size), b"9" * size, b'"', b"}", b"null"])
      kind = rng.integers(4)
      if kind == 0:
        copy[place] = rng.integers(256)
      elif kind == 1:
        del copy[place : place + size]
      elif kind == 2:
        copy[place:place] = junk
      else:
        copy[place : place + size] = junk
    if copy != content and copy:
      yield bytes(copy)


@pytest.mark.parametrize(
  "name", ["header.json", "train.jsonl", "train.labels", "codebook.npy"]
)
def test_whatever_the_bytes_there_is_no_traceback(folder, name):
  good = (folder / name).read_bytes()
  expected = open_labels(folder, "train", CORPUS, CLUSTERS)
  outcomes = {"refused": 0, "opened": 0}
  for content in mutations(good, 600):
    (folder / name).write_bytes(content)
    try:
      opened = open_labels(folder, "train", CORPUS, CLUSTERS)
    except UserError as error:
      assert len(str(error).splitlines()) == 1
      outcomes["refused"] += 1
      continue
    outcomes["opened"] += 1
    for record in range(len(IDS)):
      np.testing.assert_array_equal(
        opened.read(record, 0, 200), expected.read(record, 0, 200)
      )
  assert outcomes["refused"] > 200
  # The rest changed what only informs: `layer` ..., the padding of an npy.
  if name in ("train.jsonl", "train.labels"):
    assert not outcomes["opened"]


def test_a_wrong_index_of_the_right_checksum_is_no_traceback(folder):
  good = (folder / "train.jsonl").read_bytes()
  refusals = 0
  for content in mutations(good, 400, seed=1):
    (folder / "train.jsonl").write_bytes(content)
    change_split(folder, records_crc32=zlib.crc32(content))
    try:
      open_labels(folder, "train", CORPUS, CLUSTERS)
    except UserError as error:
      assert len(str(error).splitlines()) == 1
      refusals += 1
  assert refusals > 300


def contents(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


class Kill(BaseException):
  pass


def test_a_kill_anywhere_leaves_what_can_be_continued(tmp_path, monkeypatch):
  corpora = {"train": CORPUS.select([0, 1, 8]), "valid": CORPUS.select([2])}
  expected = contents(write_set(tmp_path / "whole", corpora))
  left = [None]  # Calls until the kill.

  def killed(function, after):
    def call(*args, **kwargs):
      left[0] -= 1
      if left[0] < 0 and not after:
        raise Kill
      result = function(*args, **kwargs)
      if left[0] < 0:
        raise Kill
      return result

    return call

  kills = 0
  for after in (False, True):
    for steps in range(1_000):
      folder = tmp_path / f"{after} {steps}"
      with monkeypatch.context() as patch:
        for place, name in (
          (pathlib.Path, "replace"),
          (pathlib.Path, "unlink"),
          (pathlib.Path, "open"),
          (os, "fsync"),
          (np, "full"),
          (np.memmap, "flush"),
          (LabelWriter, "write"),
        ):
          patch.setattr(place, name, killed(getattr(place, name), after))
        left[0] = steps
        try:
          write_set(folder, corpora)
          break
        except Kill:
          kills += 1
      if not (folder / "header.json").exists():
        for split in corpora:
          with pytest.raises(UserError, match=r"did not finish|no such folder"):
            open_labels(folder, split, corpora[split], CLUSTERS)
      else:  # Only the very last step was missed.
        open_labels(folder, "valid", corpora["valid"], CLUSTERS)
        assert contents(folder).items() >= expected.items()
      write_set(folder, corpora)
      assert contents(folder) == expected
  assert kills > 50


_KILLED = """
import os, pathlib, signal, sys
sys.path.insert(0, {tests!r})
import label_sets as t
from ssl_jax.data.label_writer import LabelWriter
writer = LabelWriter(pathlib.Path({folder!r}), "train", t.CORPUS, t.IDENTITY)
for record in range(5):
  writer.write(record, 0, t.truth(t.CORPUS, record))
  if record == 2:
    writer.checkpoint(3)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_is_continued_from_its_last_checkpoint(tmp_path):
  whole = write_set(tmp_path / "whole", {"train": CORPUS})
  folder = tmp_path / "set"
  tests = str(pathlib.Path(__file__).parent)
  script = _KILLED.format(tests=tests, folder=str(folder))
  process = subprocess.run([sys.executable, "-c", script], timeout=60)
  assert process.returncode == -signal.SIGKILL
  assert "did not finish" in refused(folder)
  writer = LabelWriter(folder, "train", CORPUS, IDENTITY)
  assert writer.done == 3
  for record in range(3, len(IDS)):
    writer.write(record, 0, truth(CORPUS, record))
  writer.finish()
  for name in ("train.labels", "train.jsonl"):
    assert (folder / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize(
  "corpus, identity",
  [
    (CORPUS, IDENTITY | {"clusters": 6}),
    (CORPUS, IDENTITY | {"codebook": "c1de"}),
    (CORPUS, IDENTITY | {"batching": (1, 2.6)}),
    (CORPUS, IDENTITY | {"more": 1}),
    (CORPUS.select([1, 0, *range(2, 9)]), IDENTITY),
    (CORPUS.select([*range(8)]), IDENTITY),
    (Corpus(IDS, CORPUS.num_samples + (np.arange(9) == 0)), IDENTITY),
  ],
)
@pytest.mark.parametrize("finished", [False, True])
def test_work_of_another_identity_is_started_over(
  tmp_path, corpus, identity, finished
):
  writer = LabelWriter(tmp_path, "train", CORPUS, IDENTITY)
  for record in range(9):
    writer.write(record, 0, truth(CORPUS, record))
  writer.checkpoint(9)
  if finished:
    writer.finish()
  assert LabelWriter(tmp_path, "train", CORPUS, IDENTITY).done == 9
  writer = LabelWriter(tmp_path, "train", corpus, identity)
  assert writer.done == 0
  about = writer.finish()
  assert about["usage"] == [0] * identity["clusters"]
  assert about["damaged"] == len(corpus.ids)
  assert LabelWriter(tmp_path, "train", CORPUS, IDENTITY).done == 0


def test_progress_without_its_file_is_none(tmp_path):
  def begun():
    writer = LabelWriter(tmp_path, "train", CORPUS, IDENTITY)
    writer.write(0, 0, truth(CORPUS, 0))
    writer.checkpoint(1)

  begun()
  assert LabelWriter(tmp_path, "train", CORPUS, IDENTITY).done == 1
  part = tmp_path / "train.labels.part"
  for damage in (part.unlink, lambda: os.truncate(part, 10)):
    damage()
    assert LabelWriter(tmp_path, "train", CORPUS, IDENTITY).done == 0
    begun()
  progress = tmp_path / "train.progress.json"
  for content in (b"", b"[]", b"{}", b"\xff", b'{"identity": 1}'):
    progress.write_bytes(content)
    writer = LabelWriter(tmp_path, "train", CORPUS, IDENTITY)
    assert writer.done == 0 and writer.finish()["damaged"] == 9
    begun()


def test_labels_of_before_are_not_taken_for_lost_ones(tmp_path):
  write_split(tmp_path, "train", CORPUS)
  other = IDENTITY | {"codebook": "c1de"}
  writer = LabelWriter(tmp_path, "train", CORPUS, other)
  writer.checkpoint(1)
  (tmp_path / "train.labels.part").unlink()
  writer = LabelWriter(tmp_path, "train", CORPUS, other)
  assert writer.done == 0 and writer.finish()["damaged"] == len(IDS)


def test_progress_is_told_after_the_labels_are_on_disk(tmp_path, monkeypatch):
  writer = LabelWriter(tmp_path, "train", CORPUS, IDENTITY)
  calls = []
  flush, write = np.memmap.flush, label_writer.write_atomically
  monkeypatch.setattr(
    np.memmap, "flush", lambda *a: (calls.append("labels"), flush(*a))
  )
  monkeypatch.setattr(
    label_writer,
    "write_atomically",
    lambda *a: (calls.append(a[0].name), write(*a)),
  )
  writer.checkpoint(1)
  writer.finish()
  told = ["labels", "train.progress.json", "labels", "train.jsonl"]
  assert calls == told and writer.done == 1


def test_labelling_anew_takes_the_header_back(folder):
  open_labels(folder, "valid", CORPUS.select([0]), CLUSTERS)
  LabelWriter(folder, "train", CORPUS, IDENTITY)
  assert "did not finish" in refused(folder, CORPUS.select([0]), "valid")
  write_set(folder, {"train": CORPUS}, shift=1)  # All was done: left as it is.
  opened = open_labels(folder, "train", CORPUS, CLUSTERS)
  np.testing.assert_array_equal(opened.read(0, 0, 49), truth(CORPUS, 0))


def test_sources_that_cannot_be_stored_are_refused(tmp_path):
  twice = Corpus(["a", "a"], np.array([400, 400]))
  with pytest.raises(ValueError, match="same id"):
    LabelWriter(tmp_path, "train", twice, IDENTITY)
  for clusters in (0, NO_LABEL + 1):
    with pytest.raises(ValueError, match="clusters"):
      LabelWriter(tmp_path, "train", CORPUS, {"clusters": clusters})
  LabelWriter(tmp_path, "train", CORPUS, {"clusters": NO_LABEL})


# Audio whose samples say where they are: sample s of a clip is s // 320, the
# number of the frame that begins with it.
LENGTHS = [
  *(8_000, 15_999, 16_000, 16_001, 20_000, 31_999, 32_000),
  *(32_319, 32_320, 40_000, 100_000, 100_001, 200_000, 9_000),
]


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
  """A source of such clips, and two sets of labels of it."""
  root = tmp_path_factory.mktemp("spoken")
  (root / "audio").mkdir()
  for i, length in enumerate(LENGTHS):
    frames = (np.arange(length) // 320).astype(np.int16)
    soundfile.write(root / "audio" / f"{i:02}.wav", frames, 16_000)
  settings = ConfigDict(
    dict(
      source="folder",
      dir=str(root / "audio"),
      valid_dir=str(root / "audio"),
      hours=0.0,
      min_seconds=0.5,
    )
  )
  source = open_source(settings, "train")
  assert source.num_samples.tolist() == LENGTHS
  other = source.select([*range(len(LENGTHS))][::-1])
  sets = []
  for shift, labelled in ((0, source), (99, other)):
    folder = write_set(root / f"set {shift}", {"train": labelled}, shift)
    sets.append(open_labels(folder, "train", source, CLUSTERS))
  return source, sets


def assert_labels_are_of_the_audio(batch, source):
  shape = len(batch["length"]), num_frames(batch["waveform"].shape[1]), 2
  assert batch["labels"].shape == shape
  assert batch["labels"].dtype == np.uint16
  for row, clip in enumerate(batch["record"].tolist()):
    count = num_frames(int(batch["length"][row]))
    assert (batch["labels"][row, count:] == NO_LABEL).all()
    if clip >= 0:
      spoken = batch["waveform"][row, : 320 * count : 320]
      for i, shift in enumerate((0, 99)):
        expected = truth(source, clip, shift)[spoken]
        np.testing.assert_array_equal(batch["labels"][row, :count, i], expected)


def test_labels_in_a_batch_are_those_of_its_audio(spoken):
  source, sets = spoken
  planned = batch_plan.BatchPlan(source.num_samples, BUCKETS, 10.0, seed=0)
  cropped = 0
  for update in range(20):
    rows = planned.batch(update)
    batch = batches.load_batch(source, rows, 8, labels=sets)
    assert_labels_are_of_the_audio(batch, source)
    cropped += (rows.starts > 0).sum()
    one = batches.load_batch(source, rows, 8, labels=sets[1:])
    np.testing.assert_array_equal(one["labels"], batch["labels"][..., 1:])
    bare = batches.load_batch(source, rows, 8)
    assert bare.keys() == {"waveform", "length", "record", "draw_id"}
  assert cropped > 20
  empty = 0
  for rows in batch_plan.valid_batches(source.num_samples, BUCKETS, 10.0):
    batch = batches.load_batch(source, rows, labels=sets)
    assert_labels_are_of_the_audio(batch, source)
    empty += (batch["record"] < 0).sum()
  assert empty


def test_audio_that_ends_early_has_no_labels_beyond(spoken):
  source, sets = spoken

  class Short:
    """Read a little shorter than its header says, as some MP3 are."""

    ids, num_samples, damaged = source.ids, source.num_samples, {}

    def read(self, index, start, num_samples):
      audio = source.read(index, start, num_samples)
      return audio[:-700] if len(audio) < num_samples else audio

  lost = 0
  for rows in batch_plan.valid_batches(source.num_samples, BUCKETS, 10.0):
    batch = batches.load_batch(Short(), rows, labels=sets)
    assert_labels_are_of_the_audio(batch, source)
    whole = batches.load_batch(source, rows, labels=sets)["labels"]
    lost += ((whole != NO_LABEL) & (batch["labels"] == NO_LABEL)).sum()
  assert lost


def iterate(source, sets, threads=2, workers=0, **share):
  planned = batch_plan.BatchPlan(source.num_samples, BUCKETS, 10.0, seed=0)
  iterator = batches.make_iterator(
    source,
    planned,
    3,
    8,
    row_multiple=8,
    labels=sets,
    num_threads=threads,
    num_workers=workers,
    prefetch=3,
    **share,
  )
  read = list(iterator)
  iterator.close()
  return read


def assert_same(ours, theirs):
  for a, b in zip(ours, theirs, strict=True):
    keys = {"waveform", "length", "record", "draw_id", "labels"}
    assert a.keys() == b.keys() == keys
    for key in a:
      assert a[key].dtype == b[key].dtype
      np.testing.assert_array_equal(a[key], b[key])


@pytest.mark.parametrize("threads, workers", [(1, 0), (4, 0), (2, 2)])
def test_threads_and_workers_read_the_same_labels(spoken, threads, workers):
  source, sets = spoken
  planned = batch_plan.BatchPlan(source.num_samples, BUCKETS, 10.0, seed=0)
  plain = [
    batches.load_batch(source, planned.batch(update), 8, labels=sets)
    for update in range(3, 11)
  ]
  assert_same(iterate(source, sets, threads, workers), plain)


def test_eight_processes_together_read_the_labels_of_one(spoken):
  source, sets = spoken
  parts = [iterate(source, sets, shards=(p,), num_shards=8) for p in range(8)]
  joined = [
    {key: np.concatenate([part[key] for part in update]) for key in update[0]}
    for update in zip(*parts, strict=True)
  ]
  assert_same(joined, iterate(source, sets))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_clip_that_cannot_be_read_has_no_labels(spoken, tmp_path, workers):
  source, sets = spoken
  paths = [*source.paths]
  paths[10] = str(tmp_path / "gone.wav")
  source = dataclasses.replace(source, paths=paths, damaged={})
  read = iterate(source, sets, workers=workers)
  planned = batch_plan.BatchPlan(source.num_samples, BUCKETS, 10.0, seed=0)
  met = 0
  for update, batch in enumerate(read, 3):
    clips = planned.batch(update).clips
    here = np.flatnonzero(clips == 10)
    assert (batch["labels"][here] == NO_LABEL).all()
    assert (batch["record"][here] == -1).all()
    assert_labels_are_of_the_audio(batch, source)
    met += len(here)
  assert met and [*source.damaged] == ["10.wav"]
