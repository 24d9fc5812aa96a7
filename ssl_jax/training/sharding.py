"""Where arrays live: state on every device, each batch's rows shared out."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from ssl_jax import SAMPLE_RATE

_log = logging.getLogger("ssl_jax")


def over_devices() -> tuple[Sharding, Sharding]:
  """(by row, replicated) over all devices."""
  mesh = Mesh(np.array(jax.devices()), ("data",))
  return (
    NamedSharding(mesh, PartitionSpec("data")),
    NamedSharding(mesh, PartitionSpec()),
  )


def compile_shapes(
  step: Callable,
  abstract_state: Any,
  abstract_batch: Callable[[int, int], dict],
  shapes: Sequence[tuple[int, int]],
  row_multiple: int,
  by_row: Sharding,
) -> dict[int, Callable]:
  """Compiles a step for each (rows, length in samples), keyed by length.

  `abstract_batch(rows, length)` gives the shapes and types of its batch.
  """
  compiled = {}
  for rows, length in shapes:
    rows = -(-rows // row_multiple) * row_multiple
    before = time.monotonic()
    compiled[length] = step.lower(
      abstract_state, abstract(abstract_batch(rows, length), by_row)
    ).compile()
    _log.info(
      "compiled %d of %d shapes: %d x %.4g s, in %.1f s",
      len(compiled),
      len(shapes),
      rows,
      length / SAMPLE_RATE,
      time.monotonic() - before,
    )
  return compiled


def put(batch: dict, rows: np.ndarray, by_row: Sharding) -> dict:
  """Sends a batch to the devices; rows [B] tell its random draws apart."""
  batch = dict(batch)
  del batch["record"]
  batch["rows"] = np.maximum(rows, 0).astype(np.int32)
  return jax.device_put(batch, by_row)


def abstract(tree: Any, sharding: Sharding) -> Any:
  """Shapes and types of a tree's arrays, to be placed by `sharding`."""
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
  )
