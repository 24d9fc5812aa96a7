"""All that a run needs before its first update, opened and checked."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from ssl_jax import SAMPLE_RATE, optimizers
from ssl_jax.budget import updates as updates_lib
from ssl_jax.config import validate
from ssl_jax.data.batch_plan import BatchPlan, valid_batches
from ssl_jax.data.labels import (
  LabelSet,
  codebook_id,
  corpus_hash,
  open_labels,
)
from ssl_jax.data.sources import open_source
from ssl_jax.data.sources.source import Source
from ssl_jax.errors import UserError
from ssl_jax.objectives import make_objective
from ssl_jax.objectives.inputs import abstract_params, num_params
from ssl_jax.training import header as header_lib
from ssl_jax.training import init_from, trunk


class Setup(NamedTuple):
  """A run that could start.

  Attributes:
    config: with `budget.updates`, whichever way its budget was stated.
    train_source: of clips.
    valid_source: of clips.
    train_labels: stored label sets of the clips, if any.
    valid_labels: the same.
    plan: of the training batches.
    valid_plan: rows of each validation batch.
    padded_update_flops: training FLOPs of an update, its padding and optimizer
      too, by bucket length in samples.
    header: the run's facts, as numbers.
  """

  config: ConfigDict
  train_source: Source
  valid_source: Source
  train_labels: list[LabelSet]
  valid_labels: list[LabelSet]
  plan: BatchPlan
  valid_plan: Any
  padded_update_flops: dict[int, int]
  header: dict[str, Any]

  @property
  def num_samples(self) -> int:
    """The samples of all clips."""
    return _num_samples(self.train_source, self.valid_source)

  def with_labels(self, made: dict[tuple[str, int], Path]) -> "Setup":
    """Returns the setup with labels that its first stage made.

    Args:
      made: the folder of each.
    """
    opened = [
      _open_labels(self.config, split, source, made)
      for split, source in (
        ("train", self.train_source),
        ("valid", self.valid_source),
      )
    ]
    return self._replace(train_labels=opened[0], valid_labels=opened[1])

  def identity(self, codebooks: Sequence[np.ndarray]) -> dict[str, Any]:
    """Returns all that tells clips and labels from others, as JSON.

    Args:
      codebooks: of the labels that the run makes itself.
    """
    sources = {"train": self.train_source, "valid": self.valid_source}
    clips = {
      split: {"clips": len(source.ids), "corpus": corpus_hash(source)}
      for split, source in sources.items()
    }
    made = [{"codebook": codebook_id(codebook)} for codebook in codebooks]
    headers = [labels.header for labels in self.train_labels]
    stored = [
      {"codebook": header["codebook"]}
      | {split: header["splits"][split]["crc32"] for split in sources}
      for header in headers
    ]
    return clips | {"labels": made + stored}


def set_up(config: ConfigDict) -> Setup:
  """Opens the data, plans the batches and settles the budget.

  Raises:
    UserError: for a bad config, unusable data or labels.
  """
  validate(config)
  config = init_from.adopt(config)
  validate(config)  # Its architecture may be another now.
  config = updates_lib.match(config)
  train_source = open_source(config.data, "train")
  valid_source = open_source(config.data, "valid")
  train_labels = _open_labels(config, "train", train_source)
  valid_labels = _open_labels(config, "valid", valid_source)
  buckets = [round(s * SAMPLE_RATE) for s in config.data.bucket_seconds]
  plan = BatchPlan(
    train_source.num_samples,
    buckets,
    config.batch.seconds,
    config.seed,
    train_source.rates,
    config.augment.speed_prob,
    config.augment.speeds,
  )
  valid_plan = valid_batches(
    valid_source.num_samples, buckets, config.eval.batch_seconds
  )
  # FLOPs are counted in integers: sums of floats would be rounded.
  optimizer_flops = round(optimizers.flops(config, abstract_params))
  padded_update_flops = {
    length: rows * updates_lib.clip_flops(config, length).training
    + optimizer_flops
    for rows, length in plan.shapes
  }
  # Each bucket's share of the updates is its share of an epoch's batches.
  mean_update_flops = sum(
    share * padded_update_flops[length]
    for (_, length), share in zip(plan.shapes, plan.shares)
  )
  samples = _num_samples(train_source, valid_source)
  config = updates_lib.resolve(config, mean_update_flops, samples)
  updates_lib.check_first_stage(config, mean_update_flops)
  if config.budget.trunk:
    trunk.check(config)
  before = updates_lib.before_flops(config, samples)
  header = header_lib.facts(
    config, plan, num_params(config), mean_update_flops, before
  )
  return Setup(
    config,
    train_source,
    valid_source,
    train_labels,
    valid_labels,
    plan,
    valid_plan,
    padded_update_flops,
    header,
  )


def _num_samples(*sources: Source) -> int:
  return int(sum(np.sum(source.num_samples) for source in sources))


def _open_labels(
  config: ConfigDict,
  split: str,
  source: Source,
  made: dict[tuple[str, int], Path] | None = None,
) -> list[LabelSet]:
  """Opens the stored label sets of a source, checked against it.

  Args:
    config: of the run.
    split: "train" or "valid".
    source: of its clips.
    made: folders of the labels that a first stage makes; None: they may not be
      there yet, and are left out.
  """
  objective = make_objective(config)
  stored = objective.stored_labels()
  if stage := objective.first_stage():
    own = dict.fromkeys(stage.makes) if made is None else made
    stored = [(own.get(one, one[0]), one[1]) for one in stored]
    stored = [one for one in stored if one[0] is not None]
  if "" in dict(stored):
    raise UserError(
      f"config.{config.objective.name}.labels is empty: give the folder of "
      "labels that `python -m ssl_jax.label` made, or train iteration 1 "
      "(labels=mfcc) first"
    )
  knob = f"{config.objective.name}.clusters"
  return [
    open_labels(Path(folder), split, source, clusters, knob)
    for folder, clusters in stored
  ]
