"""Hours of a corpus: nested, balanced, the same everywhere."""

import numpy as np
import pytest

from ssl_jax import config as config_lib
from ssl_jax.data.sources import open_source
from ssl_jax.data.sources.source import AudioFiles
from ssl_jax.data.sources.subset import take_hours
from ssl_jax.errors import UserError

RNG = np.random.default_rng(0)
SPEAKERS = [f"s{i}" for i in RNG.integers(0, 10, 3_000)]  # A tenth each.
SECONDS = RNG.uniform(2, 16, 3_000)


def corpus(speakers=SPEAKERS, named=True, order=range(3_000)):
  whole = AudioFiles(
    ids=[f"{s}/{i}.flac" for i, s in enumerate(speakers)],
    paths=[""] * len(speakers),
    num_samples=(SECONDS * 16_000).astype(np.int64),
    metadata=[{"speaker": s} if named else {} for s in speakers],
    skipped=[],
  )
  return whole.select(order)


def hours(source):
  return source.num_samples.sum() / 16_000 / 3600


def test_a_subset_lasts_as_asked_and_keeps_the_order():
  for asked in (0.01, 0.1, 1.0, 5.0):
    taken = take_hours(corpus(), asked)
    assert asked <= hours(taken) < asked + 16 / 3600
    places = [int(clip.split("/")[1].split(".")[0]) for clip in taken.ids]
    assert places == sorted(places)


def test_the_small_are_in_the_large():
  sets = [set(take_hours(corpus(), asked).ids) for asked in (0.1, 1.0, 5.0)]
  assert sets[0] < sets[1] < sets[2]


def test_the_order_of_the_source_does_not_matter():
  shuffled = corpus(order=np.random.default_rng(1).permutation(3_000))
  taken = take_hours(shuffled, 1.0)
  assert set(taken.ids) == set(take_hours(corpus(), 1.0).ids)


@pytest.mark.parametrize("named", [True, False])
def test_speakers_give_alike(named):
  # One speaker has half of all clips.
  speakers = ["s0" if i % 2 else s for i, s in enumerate(SPEAKERS)]
  taken = take_hours(corpus(speakers, named), 2.0)
  given = {}
  for clip, samples in zip(taken.ids, taken.num_samples):
    speaker = clip.split("/")[0]
    given[speaker] = given.get(speaker, 0) + samples / 16_000
  assert len(given) == 10
  assert max(given.values()) - min(given.values()) <= 16


def test_more_than_there_is_is_refused():
  with pytest.raises(
    UserError, match=r"data.hours=99: there are only 7\.\d+ h"
  ):
    take_hours(corpus(), 99)


def test_only_training_is_cut():
  config = config_lib.base().data
  config.source, config.min_seconds, config.hours = "embedded", 0.3, 0.02
  assert 0.02 <= hours(open_source(config, "train")) < 0.022
  cut = open_source(config, "valid")
  config.hours = 0.0
  assert cut.ids == open_source(config, "valid").ids
  assert hours(open_source(config, "train")) > 0.06
