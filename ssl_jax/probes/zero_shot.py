"""Measures of frozen frames, layer by layer, without a head as SUPERB has it.

Every layer is scored; the layer is chosen on half of the speakers and scored
on the other half (`tally`).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Sharding
from ml_collections import ConfigDict
from tqdm import tqdm

from ssl_jax import tally
from ssl_jax.data.sources.source import Source
from ssl_jax.errors import UserError
from ssl_jax.probes.encoders import FrozenEncoder
from ssl_jax.probes.features import extract


class Frames(NamedTuple):
  """The frames of a split's clips in one layer.

  Attributes:
    values: float32 [M, D].
    offsets: int64 [N + 1]: rows offsets[i] to offsets[i + 1] are clip i's.
  """

  values: np.ndarray
  offsets: np.ndarray


class Measure(NamedTuple):
  """A measure on the clips at hand.

  Attributes:
    metric: its name; `tally` has more beside it.
    higher_is_better: of the metric.
    sources: the clips whose frames it needs, by split.
    tally: {split: frames in a layer} -> what that layer is worth.
    facts: what was measured, for people: `speakers`, `clips` ...
    guess: the metric of who does not listen; None: unknown.
    draws: how many draws of the speakers its spread is taken from.
    compared: encoders are compared by it; an alarm is no reason to.
  """

  metric: str
  higher_is_better: bool
  sources: Mapping[str, Source]
  tally: Callable[[dict[str, Frames]], tally.Tally]
  facts: dict[str, Any]
  guess: float | None = None
  draws: int = tally.DRAWS
  compared: bool = True


@dataclasses.dataclass(frozen=True)
class MeasureKind:
  """An entry of the table of tasks (`TASKS`) that is a measure.

  Attributes:
    make: (config, {split: clips}) -> the measure; a UserError says what the
      corpus lacks.
    meaning: for people: what is measured.
    smoke: {config key: value} that the smoke profile sets.
    packaged: the packaged clips are enough for it: it is part of task=all.
  """

  make: Callable[[ConfigDict, dict[str, Source]], Measure]
  meaning: str
  smoke: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  packaged: bool = False


def score(
  config: ConfigDict,
  measure: Measure,
  seeds: Sequence[FrozenEncoder],
  cache: Path,
  by_row: Sharding,
) -> dict[str, Any]:
  """Scores all layers of an encoder, or of each of its pretraining seeds.

  Returns:
    test, dev: the score of the halves that did not, and did, choose the
    layer, over both halves and all seeds. tests: of each seed. std: the
    standard error over the drawn units, and over seeds where there are several.
    interval: 90 %. layers: {metric: [L + 1]}, the mean over seeds.
    chosen: the halves of each seed. draws: [seeds, R]. more: {metric: value}.
  """
  found = [
    _of_layers(config, measure, encoder, cache, by_row) for encoder in seeds
  ]
  draws = [chosen.draws[measure.metric] for chosen in found]
  tests = [chosen.scores[measure.metric] for chosen in found]
  dev = [half["dev"] for chosen in found for half in chosen.halves]
  spread, mean = tally.spread(tests, draws), float(np.mean(tests))
  edge = tally.half_interval(spread)
  if not np.isfinite(mean):
    raise UserError(
      f"task {config.task}: half of the speakers have nothing to be scored: "
      "give more clips of each"
    )
  return {
    "dev": float(np.mean(dev)),
    "test": mean,
    "std": spread.error,
    "interval": [mean - edge, mean + edge],
    "tests": tests,
    "seeds": len(seeds),
    "layers": {
      metric: np.mean([x.layers[metric] for x in found], axis=0).tolist()
      for metric in found[0].layers
    },
    "chosen": [chosen.halves for chosen in found],
    "more": {
      metric: float(np.mean([chosen.scores[metric] for chosen in found]))
      for metric in found[0].scores
      if metric != measure.metric
    },
    "flops": {
      "features": float(
        sum(
          seeds[0].flops(int(n))
          for source in measure.sources.values()
          for n in source.num_samples
        )
      ),
    },
    "draws": [[round(float(x), 6) for x in one] for one in draws],
  }


def _of_layers(
  config: ConfigDict,
  measure: Measure,
  encoder: FrozenEncoder,
  cache: Path,
  by_row: Sharding,
) -> tally.Chosen:
  features = {
    split: extract(encoder, source, config, False, cache, by_row)
    for split, source in measure.sources.items()
  }
  tallies = []
  for layer in tqdm(
    range(encoder.shape[0]),
    desc=f"{config.task}, {encoder.name}",
    unit="layer",
    delay=1,
    disable=None,
  ):
    frames = {
      split: Frames(x.values[:, layer].astype(np.float32), x.offsets)
      for split, x in features.items()
    }
    tallies.append(measure.tally(frames))
  try:
    return tally.choose(tallies, measure.higher_is_better, measure.draws)
  except ValueError as error:
    raise UserError(f"task {config.task}: {error}") from error
