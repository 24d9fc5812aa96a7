"""Sets of stored labels, of a corpus that is a list of names and lengths."""

import dataclasses
import zlib

import numpy as np

from ssl_jax import num_frames
from ssl_jax.data import labels
from ssl_jax.data.label_writer import LabelWriter

CLUSTERS = 7
IDENTITY = {"clusters": CLUSTERS, "codebook": "c0de", "batching": (1, 2.5)}


@dataclasses.dataclass
class Corpus:
  """All of a source that labels depend on."""

  ids: list[str]
  num_samples: np.ndarray

  def select(self, order):
    return Corpus([self.ids[i] for i in order], self.num_samples[order])


# Names that end lines, for some readers of lines; clips of 1 and 2 frames.
IDS = ["a/b.wav", "caf\xe9", "x\u2028y", 'q"\\', "a b", "z", "y\x85", "c", "d"]
CORPUS = Corpus(
  IDS, np.array([16_000, 400, 720, 9_999, 719, 50_000, 8_000, 640, 7_777])
)


def truth(corpus, record, shift=0):
  """Uint16 [T] labels of a record: those of its name, wherever it stands."""
  frames = num_frames(int(corpus.num_samples[record]))
  seed = zlib.crc32(corpus.ids[record].encode()) + shift
  rng = np.random.default_rng(seed)
  return rng.integers(0, CLUSTERS, frames).astype(np.uint16)


def write_split(directory, split, corpus, shift=0, identity=IDENTITY):
  """A unit of work is a record, in two pieces; from where it stood."""
  writer = LabelWriter(directory, split, corpus, identity)
  for record in range(writer.done, len(corpus.ids)):
    expected = truth(corpus, record, shift)
    middle = len(expected) // 2
    writer.write(record, middle, expected[middle:])
    writer.write(record, 0, expected[:middle])
    writer.checkpoint(record + 1)
  return writer.finish()


def write_set(directory, corpora, shift=0):
  """A set of the given splits, with a codebook [K, 5]."""
  splits = {
    split: write_split(directory, split, corpus, shift)
    for split, corpus in corpora.items()
  }
  centroids = np.arange(CLUSTERS * 5, dtype=np.float32).reshape(CLUSTERS, 5)
  header = {
    "clusters": CLUSTERS,
    "layer": 6,
    "checkpoint": {"workdir": "runs/a", "update": 3},
    "codebook": labels.write_codebook(directory, centroids),
    "splits": splits,
  }
  labels.write_header(directory, header | {"inertia": 1.5})
  return directory
