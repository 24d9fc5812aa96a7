"""The contract of objectives: the whole of a method in one class.

A loss is made of terms, sums over the clips of a batch and their counts: totals
of parts of a batch add up, and one division by the counts of the whole batch
makes the mean, however the batch is split.

`inputs` holds waveform [B, S], length [B] samples, draw_id [B], mask and
frame_mask bool [B, T], stored labels [B, T, sets] where there are some, extra
where the objective has extra state, and, but for `targets` itself, targets.
`update` counts from 0.
"""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from ssl_jax.knobs import Knob


class FirstStage(NamedTuple):
  """A run before the run, whose encoder makes labels.

  Attributes:
    config: of it; its budget is set from `share`.
    share: of the whole run's `budget.flops`.
    layer: whose states are clustered.
    makes: entries of `stored_labels` that its encoder labels for.
  """

  config: ConfigDict
  share: float
  layer: int
  makes: list[tuple[str, int]]


class Objective(nn.Module):
  """A method: targets, head, loss and extra state. An entry of `OBJECTIVES`.

  Attributes:
    config: of the run; an objective's own knobs are in `config.NAME`, with NAME
      its key in the table.
    dtype: of the backbone's computation.
    codebooks: [K, 39] of each codebook that `fitted_codebooks` asks for; ()
      where only shapes matter.
    title: what people call it; "": its key.
    main: the value that tells how well it predicts; lower is better.
    knobs: of this objective.
    continues_heads: training may go on from its head as well (`init_from`), and
      an export may contain it.
    hf_type: the model type in transformers that its encoder is exported as;
      "": there is none.
  """

  config: ConfigDict
  dtype: jnp.dtype = jnp.float32
  codebooks: tuple[np.ndarray, ...] = ()

  title: ClassVar[str] = ""
  main: ClassVar[str]
  knobs: ClassVar[dict[str, Knob]] = {}
  continues_heads: ClassVar[bool] = False
  hf_type: ClassVar[str] = "hubert"

  # Every objective has these.

  @property
  def weights(self) -> dict[str, float]:
    """{name: factor in the loss} of values; the others are only reported."""
    raise NotImplementedError

  def targets(self, inputs: dict, keys: jax.Array) -> Any:
    """Returns any pytree of [B, T, ...].

    Computed once on the whole batch, without gradients.

    Args:
      inputs: without targets.
      keys: [B], for targets that are drawn.
    """
    raise NotImplementedError

  def counts(self, inputs: dict) -> dict:
    """Returns {term: count}, as `__call__` has totals."""
    raise NotImplementedError

  def __call__(
    self, inputs: dict, key: jax.Array | None, update: jax.Array
  ) -> dict:
    """Returns {term: total over the clips}, scalars or arrays.

    Args:
      inputs: of some clips of a batch.
      key: of dropout and other noise; None turns them off.
      update: of the run, from 0.
    """
    raise NotImplementedError

  def head_flops(self, num_samples: int) -> int:
    """Counts the head's forward pass for a clip, a multiply-add as 2."""
    raise NotImplementedError

  # Most objectives leave these as they are.

  def values(self, means: dict) -> dict:
    """Returns {name: scalar}, all that is reported, of a batch's mean terms.

    Has `main`, and `chance`: the same for a guess that does not look at the
    clip.
    """
    return means

  def symptoms(self, values: dict) -> dict[str, str]:
    """Returns {name: what is wrong and what to change} of reported values."""
    del values
    return {}

  def schedules(self, update: int) -> dict[str, float]:
    """Returns {name: value} of what changes over updates, to be reported."""
    del update
    return {}

  def target_flops(self, num_samples: int) -> int:
    """Counts what targets cost for a clip: there is no backward pass."""
    del num_samples
    return 0

  def check(self) -> None:
    """Checks the knobs against each other.

    Raises:
      UserError: naming the knobs that do not go together.
    """

  def guess(self) -> float | None:
    """Returns the loss of guessing evenly, nats; None: no config tells it."""
    return None

  def setting(self) -> str:
    """Returns, as text, the knobs that losses must share to be comparable."""
    return ""

  def stored_labels(self) -> list[tuple[str, int]]:
    """Returns (folder, clusters) of label sets that come with the batches."""
    return []

  def fitted_codebooks(self) -> list[tuple[str, int]]:
    """Returns (key of `mfcc.FRAMES`, clusters) of codebooks fitted at start."""
    return []

  def first_stage(self) -> FirstStage | None:
    """Returns the run that trains the encoder labels are made with.

    It shares this run's budget and workdir. None: there is none.
    """
    return None

  def earlier(self) -> str:
    """Returns the config of the run whose encoder made the labels; "": none."""
    return ""

  # State beside the parameters: an EMA teacher, online codebooks ...

  def init_extra(self, params: Any) -> Any:
    """Returns what is carried from update to update, {} for nothing.

    It is `inputs["extra"]`, whole in every part of a batch and without
    gradient; saved, resumed and placed on devices as parameters are.
    """
    del params
    return {}

  def update_extra(
    self, extra: Any, params: Any, means: dict, update: jax.Array
  ) -> Any:
    """Returns the extra state after an update.

    Args:
      extra: before it.
      params: after it.
      means: the batch's mean terms.
      update: which, from 0.
    """
    del params, means, update
    return extra
