"""Labels in fairseq's form, read and written."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from doors import door
from tiny import tiny

import ssl_jax
from ssl_jax import num_frames
from ssl_jax.data.labels import open_labels
from ssl_jax.data.sources import open_source
from ssl_jax.errors import UserError
from ssl_jax.labelling import fairseq
from ssl_jax.training import loop

ROOT = Path(ssl_jax.__file__).parents[1]
CLUSTERS = 7


def read_fairseq(folder, split):
  """As fairseq's documentation has it: path -> (samples, labels)."""
  root, *lines = (folder / f"{split}.tsv").read_text().splitlines()
  labels = (folder / f"{split}.km").read_text().splitlines()
  assert len(lines) == len(labels)
  clips = {}
  for line, numbers in zip(lines, labels):
    path, samples = line.split("\t")
    assert Path(root, path).is_file()
    clips[path] = int(samples), [int(x) for x in numbers.split()]
  return clips


@pytest.fixture
def audio(tmp_path):
  """40 clips of a second or so, and a config that reads them."""
  rng = np.random.default_rng(0)
  for i in range(40):
    (tmp_path / "audio" / f"s{i % 2}").mkdir(parents=True, exist_ok=True)
    clip = 0.1 * rng.normal(size=16_000 + 331 * i)
    soundfile.write(tmp_path / "audio" / f"s{i % 2}" / f"{i}.wav", clip, 16_000)
  config = tiny(2)
  config.data.source, config.data.dir = "folder", str(tmp_path / "audio")
  config.data.valid_fraction = 0.1
  return config


def sources(config):
  return {
    split: open_source(config.data, split) for split in ("train", "valid")
  }


def write_km(folder, config, rate=50, change=0):
  """Labels of fairseq's; -> {id: ours}."""
  folder.mkdir()
  rng, expected = np.random.default_rng(1), {}
  for split, source in sources(config).items():
    tsv, km = [config.data.dir], []
    for clip, samples in zip(source.ids, source.num_samples):
      frames = num_frames(int(samples))
      labels = rng.integers(CLUSTERS, size=frames)
      expected[clip] = labels.copy()
      if rate == 100:
        labels = np.repeat(labels, 2)
      if change < 0:
        labels = labels[:change]
        expected[clip][change:] = labels[-1]
      labels = np.append(labels, np.full(max(0, change), 3))
      tsv.append(f"{clip}\t{samples}")
      km.append(" ".join(map(str, labels)))
    (folder / f"{split}.tsv").write_text("\n".join(tsv) + "\n")
    (folder / f"{split}.km").write_text("\n".join(km) + "\n")
  lines = "".join(f"{i} 1\n" for i in range(CLUSTERS))
  (folder / "dict.km.txt").write_text(lines)
  return expected


@pytest.mark.parametrize(
  ("rate", "change"), [(50, 0), (50, -2), (50, 2), (100, 0), (100, 1)]
)
def test_labels_are_taken_over(rate, change, audio, tmp_path):
  expected = write_km(tmp_path / "km", audio, rate, change)
  header = fairseq.import_labels(
    sources(audio), tmp_path / "km", tmp_path / "out"
  )
  assert header["clusters"] == CLUSTERS
  for split, source in sources(audio).items():
    stored = open_labels(tmp_path / "out", split, source, CLUSTERS)
    for i, clip in enumerate(source.ids):
      found = stored.read(i, 0, len(expected[clip]))
      np.testing.assert_array_equal(found, expected[clip])


def test_a_run_trains_on_them_and_they_come_back(audio, tmp_path):
  expected = write_km(tmp_path / "km", audio)
  both = sources(audio)
  fairseq.import_labels(both, tmp_path / "km", tmp_path / "out")
  # A second time, they are made again as they were.
  fairseq.import_labels(both, tmp_path / "km", tmp_path / "out")
  audio.hubert.labels, audio.hubert.clusters = str(tmp_path / "out"), (7,)
  assert loop.train(audio, tmp_path / "run")["updates"] == 2
  fairseq.export_labels(tmp_path / "out", both)
  found = {}
  for split in both:
    found |= read_fairseq(tmp_path / "out", split)
  assert found.keys() == expected.keys()
  for clip, (samples, labels) in found.items():
    assert num_frames(samples) == len(labels)
    np.testing.assert_array_equal(labels, expected[clip])
  counts = {}
  for line in (tmp_path / "out" / "dict.km.txt").read_text().splitlines():
    token, count = line.split()
    counts[int(token)] = int(count)
  used = np.bincount(np.concatenate([*expected.values()]), minlength=CLUSTERS)
  assert counts == dict(enumerate(used.tolist()))


def test_clips_are_found_by_their_files_as_well(audio, tmp_path):
  expected = write_km(tmp_path / "km", audio)
  both = sources(audio)
  for split, source in both.items():
    lines = [
      json.dumps({"id": f"{split}-{i}", "file": path, "split": split})
      for i, path in enumerate(source.paths)
    ]
    with (tmp_path / "named.jsonl").open("a") as file:
      file.write("\n".join(lines) + "\n")
  audio.data.source, audio.data.dir = "manifest", str(tmp_path / "named.jsonl")
  audio.data.split_key = "split"
  header = fairseq.import_labels(
    sources(audio), tmp_path / "km", tmp_path / "out"
  )
  total = sum(about["frames"] for about in header["splits"].values())
  assert total == sum(map(len, expected.values()))


def edit(name, change):
  def damage(folder):
    path = folder / name
    path.write_text(change(path.read_text()))

  return damage


@pytest.mark.parametrize(
  ("damage", "said"),
  [
    (edit("train.km", lambda x: "x" + x), r"train\.km, line 1: not all num"),
    (
      edit("train.km", lambda x: "7 " + x),
      r"line 1: has a label that is not 0",
    ),
    (edit("train.km", lambda x: "-1 " + x), r"line 1: has a label that is no"),
    (edit("train.km", lambda x: "9" * 30 + " " + x), "line 1: not all numbers"),
    (edit("valid.km", lambda x: "\n" + x), r"has \d lines, and .*names \d cl"),
    (
      edit("train.km", lambda x: "\n" + x.partition("\n")[2]),
      "line 1: is empty",
    ),
    (
      edit("train.km", lambda x: "1 1 1\n" + x.partition("\n")[2]),
      "has 3 labels, and .* frames",
    ),
    (
      edit("train.tsv", lambda x: x.replace("s0/", "t0/")),
      "has no labels of 's0/",
    ),
    (edit("dict.km.txt", lambda x: x[:-4]), "not 0 to 5"),
    (edit("dict.km.txt", lambda x: x + "9 1\n"), "not numbered from 0"),
    (edit("dict.km.txt", lambda x: "a 1\n" + x), r"line 1: 'a 1' is no clus"),
    (lambda folder: (folder / "dict.km.txt").unlink(), "cannot be read"),
    (lambda folder: (folder / "train.km").unlink(), "cannot be read"),
    (lambda folder: (folder / "train.km").write_bytes(b"\xff"), "cannot be re"),
  ],
)
def test_what_does_not_fit_is_named(damage, said, audio, tmp_path):
  write_km(tmp_path / "km", audio)
  damage(tmp_path / "km")
  with pytest.raises(UserError, match=said) as error:
    fairseq.import_labels(sources(audio), tmp_path / "km", tmp_path / "out")
  assert "\n" not in str(error.value)
  assert not (tmp_path / "out" / "header.json").exists()


def test_the_door_writes_and_reads_them(tmp_path):
  config = "--config=configs/smoke.py", "--config.data.hours=0.06"
  label = functools.partial(door, "label", *config)

  made = label(
    "--layer=mfcc",
    "--clusters=7",
    "--config.kmeans.num_restarts=1",
    "--km",
    f"--out={tmp_path}/a",
  )
  assert made.returncode == 0, made.stderr
  assert len(read_fairseq(tmp_path / "a", "train")) > 100
  taken = label(f"--from_km={tmp_path}/a", f"--out={tmp_path}/b")
  assert taken.returncode == 0, taken.stderr
  first, second = json.loads(made.stdout), json.loads(taken.stdout)
  assert first["splits"].keys() == second["splits"].keys()
  for split in first["splits"]:
    a, b = (tmp_path / x / f"{split}.labels" for x in "ab")
    assert a.read_bytes() == b.read_bytes()
  failed = label(f"--from_km={tmp_path}")
  assert failed.returncode == 1 and len(failed.stderr.splitlines()) == 1
