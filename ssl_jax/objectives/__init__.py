"""One file an objective: its targets, head, loss terms and their weights.

Each file has a class `Objective(config, dtype)`, a Linen module with

  targets(inputs, keys [B]) -> any pytree of [B, T, ...]: computed once on the
    whole batch, without parameters or gradients; keys are for random targets;
  counts(inputs) -> {term: count};
  __call__(inputs, key, update) -> {term: total}, with the same keys: sums over
    clips (scalars or arrays), so that totals of parts of a batch add up, and
    one division by the counts of the whole batch makes the mean whatever the
    split; `key` None: no dropout or other noise;
  values(means) -> {name: scalar}: everything reported, from the means of a
    batch or of many; has `main` (how well it predicts, lower is better) and
    `chance` (the same for a guess that does not look at the clip);
  weights: {name: factor in the loss}, of names in `values`; the others are only
    reported;
  symptoms(values) -> {name: message}: what is wrong, and what to change;
  schedules(update) -> {name: value} to report;
  head_flops(num_samples), target_flops(num_samples), of one clip.

`inputs` holds waveform [B, S], length [B] samples, rows [B], mask and
frame_mask bool [B, T], stored labels [B, T, sets] where the config names some,
and, in counts and __call__, targets. `update` counts from 0.
"""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from ssl_jax.knobs import Knob
from ssl_jax.objectives import hubert, tera, terms, wav2vec2

OBJECTIVES = {
  "hubert": hubert.Objective,
  "tera": tera.Objective,
  "wav2vec2": wav2vec2.Objective,
}


def make_objective(
  config: ConfigDict, dtype: jnp.dtype, codebooks: tuple[np.ndarray, ...] = ()
) -> nn.Module:
  """The objective `config.objective.name`, with the backbone inside.

  Args:
    config: of the run.
    dtype: of the backbone's computation.
    codebooks: [K, 39] of each "mfcc" label set; () where only shapes matter.
  """
  make = OBJECTIVES[config.objective.name]
  return make(config, dtype, codebooks) if codebooks else make(config, dtype)


def sections() -> dict[str, dict[str, Knob]]:
  """Returns the knobs of `config.objective`, and a section an objective."""
  name = Knob("hubert", "The objective.", choices=lambda: OBJECTIVES)
  return {
    "objective": {"name": name, **terms.KNOBS},
    "hubert": hubert.KNOBS,
    "wav2vec2": wav2vec2.KNOBS,
    "tera": tera.KNOBS,
  }


def check(config: ConfigDict) -> None:
  """Checks the knobs of objectives against each other.

  Raises:
    UserError: naming the knobs that do not go together.
  """
  for objective in (hubert, tera, wav2vec2):
    objective.check(config)
