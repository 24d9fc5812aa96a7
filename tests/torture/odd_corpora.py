"""Corpora that are opened and read as by training."""

from ssl_jax import config as config_lib
from ssl_jax.data.sources import open_source
from ssl_jax.data.sources.audio import DamagedAudio


def settings(path, source="manifest", **changes):
  config = config_lib.base().data
  config.source, config.dir = source, str(path)
  config.update(min_seconds=0.1, **changes)
  return config


def opened(config):
  """Both splits, and every clip of them."""
  for split in ("train", "valid"):
    source = open_source(config, split)
    assert len({*source.ids}) == len(source.ids) == len(source.num_samples) > 0
    for i in range(min(5, len(source.ids))):
      source.ids[i].encode()
      try:
        source.read(i, 0, 16_000)
      except DamagedAudio:
        pass
    source.select(range(len(source.ids)))
