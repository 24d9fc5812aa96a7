"""Several corpora as one, each as often as asked."""

import collections

import numpy as np
import pytest
import soundfile

from ssl_jax import config as config_lib
from ssl_jax.data import batch_plan, prepare, sources
from ssl_jax.data.sources import folder as folder_source
from ssl_jax.data.sources import open_source
from ssl_jax.data.sources.manifest import find_clips, open_clips
from ssl_jax.data.sources.source import SourceKind
from ssl_jax.errors import UserError

SIZES = {"a": 30, "b": 7}  # Clips of 1 s and of 3 s.


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
  root = tmp_path_factory.mktemp("corpora")
  rng = np.random.default_rng(0)
  for (name, count), seconds in zip(SIZES.items(), (1, 3)):
    (root / name).mkdir()
    for i in range(count):
      noise = rng.integers(-99, 99, 16_000 * seconds).astype(np.int16)
      soundfile.write(root / name / f"{i}.wav", noise, 16_000)
  options = {"min_seconds": 0.1, "max_seconds": 60.0, "pack_seconds": 0.0}
  prepare.prepare(
    open_clips(find_clips(root / "b")),
    root / "b_records",
    num_workers=1,
    **options,
  )
  return root


def settings(corpora, **changes):
  config = config_lib.base().data
  config.source, config.min_seconds = "mixture", 0.1
  config.dir = f"folder:{corpora}/a,records:{corpora}/b_records,embedded"
  config.valid_fraction = 0.1
  config.bucket_seconds = (2.0, 4.0)
  config.update(changes)
  return config


def test_a_mixture_is_its_corpora(corpora):
  source = open_source(settings(corpora), "train")
  where = collections.Counter(clip.split("/")[0] for clip in source.ids)
  assert where == {"a": 27, "b_records": 6, "embedded": 1295}
  assert len({*source.ids}) == len(source.ids) == len(source.metadata)
  valid = open_source(settings(corpora), "valid")
  assert len(valid.ids) == 3 + 1 + 84 and not {*valid.ids} & {*source.ids}
  part = config_lib.base().data
  part.source, part.dir, part.min_seconds = "folder", f"{corpora}/a", 0.1
  part.valid_fraction = 0.1
  alone = open_source(part, "train")
  for i, clip in enumerate(alone.ids):
    place = source.ids.index(f"a/{clip}")
    assert source.num_samples[place] == alone.num_samples[i]
    np.testing.assert_array_equal(
      source.read(place, 5, 100), alone.read(i, 5, 100)
    )


def test_weights_are_shares_of_the_audio_drawn(corpora):
  config = settings(corpora, weights=(1.0, 2.0, 1.0))
  source = open_source(config, "train")
  planned = batch_plan.BatchPlan(
    source.num_samples, [32_000, 64_000], 12.0, 0, source.rates
  )
  seconds = collections.Counter()
  for update in range(800):
    for clip in planned.batch(update).clips:
      length = min(source.num_samples[clip], 64_000)
      seconds[source.ids[clip].split("/")[0]] += length / 16_000
  total = sum(seconds.values())
  shares = [seconds[name] / total for name in ("a", "b_records", "embedded")]
  assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.02)
  assert total / 800 == pytest.approx(planned.seconds_per_update, rel=0.02)


def test_hours_are_taken_before_weights(corpora):
  config = settings(corpora, weights=(1.0, 1.0, 2.0), hours=0.02)
  source = open_source(config, "train")
  assert source.num_samples.sum() / 16_000 / 3600 < 0.0212
  seconds = np.minimum(source.num_samples, 64_000) * source.rates
  names = np.array([clip.split("/")[0] for clip in source.ids])
  shares = [
    seconds[names == name].sum() / seconds.sum()
    for name in ("a", "b_records", "embedded")
  ]
  assert shares == pytest.approx([0.25, 0.25, 0.5])


def test_corpora_of_one_name_stay_apart(corpora):
  twice = f"folder:{corpora}/a,folder:{corpora}/a"
  source = open_source(settings(corpora, dir=twice), "train")
  assert len({*source.ids}) == len(source.ids) == 54
  (corpora / "a.1").symlink_to(corpora / "a")
  thrice = ",".join(f"folder:{corpora}/{name}" for name in ("a", "a.1", "a"))
  source = open_source(settings(corpora, dir=thrice), "train")
  assert len({*source.ids}) == len(source.ids) == 81


def test_validation_may_be_other_corpora(corpora):
  config = settings(corpora, valid_dir=f"folder:{corpora}/b", dir="embedded")
  valid = open_source(config, "valid")
  assert len(valid.ids) == SIZES["b"] and valid.rates is None
  config = settings(
    corpora, valid_dir=f"folder:{corpora}/b", dir=f"folder:{corpora}/a"
  )
  assert len(open_source(config, "train").ids) == SIZES["a"]


def test_a_source_from_outside_is_a_part(corpora, monkeypatch):
  """By `name`, so that mixtures ask the source where its corpora are."""

  def open_split(config, split):
    assert config.dir == ""
    config.dir = config.name
    return folder_source.open_split(config, split)

  mine = SourceKind(open_split, "folders by name", where="name")
  monkeypatch.setitem(sources.SOURCES, "mine", mine)
  config = settings(corpora, dir=f"mine:{corpora}/a,folder:{corpora}/b")
  source = open_source(config, "train")
  where = collections.Counter(clip.split("/")[0] for clip in source.ids)
  assert where == {"a": 27, "b": 6}
  with pytest.raises(UserError, match=r"with one of .*, mine, as in"):
    open_source(settings(corpora, dir="mine"), "train")


@pytest.mark.parametrize(
  "changes, said",
  [
    (dict(dir=""), "0 corpora"),
    (dict(dir="foldr:a"), "'foldr:a' is no SOURCE:WHERE"),
    (dict(dir="/data/ls960"), "as in records:ls960,tfds:librispeech"),
    (dict(dir="embedded:x"), "is no SOURCE:WHERE"),
    (dict(dir="mixture:embedded"), "is no SOURCE:WHERE"),
    (dict(dir="folder:nowhere"), "'nowhere' does not exist"),
    (dict(dir="embedded", weights=(1.0, 2.0)), "1 corpora, and 2 weights"),
    (dict(dir="embedded", weights=(0.0,)), "must be above 0"),
  ],
)
def test_bad_mixtures_are_refused(corpora, changes, said):
  with pytest.raises(UserError) as error:
    open_source(settings(corpora, **changes), "train")
  assert said in str(error.value) and "\n" not in str(error.value)
