"""Where arrays live: one mesh, and rules that place parameters and batches.

The mesh has three axes. A batch's rows are shared out over `data` and `fsdp`;
parameters and optimizer state are cut over `fsdp` where they are large, and
over `tensor` where a layer's heads and units divide. Models name none of them:
what moves between devices, and how, is XLA's.
"""

import contextlib
import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from ssl_jax import SAMPLE_RATE
from ssl_jax.errors import UserError
from ssl_jax.models import target

AXES = ("data", "fsdp", "tensor")
_ROWS = P(("data", "fsdp"))

# Dimensions cut over `tensor`, by the end of a parameter's path: the heads and
# units of a layer, so that only the sums after `output` and `down` are shared.
_TENSOR_RULES = (
  (r"layers/(query|key|value|up)/(kernel|bias)$", -1),
  (r"layers/(output|down)/kernel$", -2),
)
_STACKED = re.compile(r"layers/")  # Leading axis: the layer, which stays whole.
# Modules that share their rows out over all axes: a convolution has no heads
# to cut, and XLA (jaxlib 0.10) sums the gradients of a grouped one once for
# each device of `tensor` that holds the same rows.
_SPREAD = ("PositionalConv", "WaveformStem")
_TPU_ROWS = 8  # Of which XLA wants a multiple in a convolution.
_MIN_FSDP_SIZE = 2**14  # Of a parameter; smaller ones are everywhere.

_log = logging.getLogger("ssl_jax")


def make_mesh(
  shape: Sequence[int] = (-1, 1, 1), devices: Sequence[Any] | None = None
) -> Mesh:
  """The mesh (data, fsdp, tensor); -1 is what the others leave.

  Of several TPU slices, each holds whole rows of `data`, the one axis whose
  traffic is small enough for the network between them.

  Raises:
    UserError: `shape` does not fit the devices.
  """
  devices = jax.devices() if devices is None else devices
  known = math.prod(n for n in shape if n != -1)
  sizes = tuple(len(devices) // known if n == -1 else n for n in shape)
  if math.prod(sizes) != len(devices):
    raise UserError(
      f"config.mesh={tuple(shape)} (data, fsdp, tensor) needs a multiple of "
      f"{known} devices; there are {len(devices)}: give sizes whose product "
      "that is, -1 for what the others leave"
    )
  slices = len({getattr(device, "slice_index", 0) for device in devices})
  if slices > 1:
    if sizes[0] % slices:
      raise UserError(
        f"config.mesh={tuple(shape)}: data must be a multiple of the {slices} "
        "slices"
      )
    inner = sizes[0] // slices, *sizes[1:]
    placed = mesh_utils.create_hybrid_device_mesh(
      inner, (slices, 1, 1), devices, allow_split_physical_axes=True
    )
  else:
    placed = mesh_utils.create_device_mesh(
      sizes, devices, allow_split_physical_axes=True
    )
  return Mesh(placed, AXES)


def by_row(mesh: Mesh) -> NamedSharding:
  """Of arrays [rows of a batch, ...]."""
  return NamedSharding(mesh, _ROWS)


def replicated(mesh: Mesh) -> NamedSharding:
  """Of what is whole on every device."""
  return NamedSharding(mesh, P())


def row_shards(mesh: Mesh) -> int:
  """How many runs of rows a batch is cut into."""
  return mesh.shape["data"] * mesh.shape["fsdp"]


def my_shards(mesh: Mesh) -> tuple[int, ...]:
  """Which of them live on this process's devices, in order."""
  count = row_shards(mesh)
  places = by_row(mesh).addressable_devices_indices_map((count,))
  return tuple(sorted({rows.start or 0 for (rows,) in places.values()}))


def of_state(mesh: Mesh, abstract_state: Any) -> Any:
  """A sharding for each array of a training state, or of parameters alone.

  Moments of the optimizer end in the path of what they are of, and lie where it
  lies.
  """
  return _placed(mesh, abstract_state, mesh.shape["fsdp"])


def _placed(mesh: Mesh, tree: Any, fsdp: int) -> Any:
  return jax.tree_util.tree_map_with_path(
    lambda path, x: NamedSharding(
      mesh,
      spec(
        jax.tree_util.keystr(path, simple=True, separator="/"),
        x.shape,
        fsdp,
        mesh.shape["tensor"],
      ),
    ),
    tree,
  )


def gather(mesh: Mesh, params: Any) -> Any:
  """The parameters as layers use them: whole, but for `tensor`.

  Else XLA would rather move activations than parameters between the devices of
  `fsdp`: 20 times the bytes for Base.
  """
  if mesh.shape["fsdp"] == 1:
    return params
  return jax.lax.with_sharding_constraint(params, _placed(mesh, params, 1))


@contextlib.contextmanager
def suit(mesh: Mesh) -> Iterator[None]:
  """While models are traced in it, they suit the mesh's devices.

  Convolutions use all of `tensor` for rows, and each TPU gets a multiple of 8
  rows of the stem, which cuts clips for it; kernels, which XLA cannot cut, get
  each device's rows and heads.
  """
  platform = mesh.devices.flat[0].platform
  rows = P(AXES) if mesh.shape["tensor"] > 1 else _ROWS
  # Of each one's arguments, and of what it returns.
  kernels = {
    "Attention": (
      P(*_ROWS, None, None, "tensor", None),
      _ROWS,
      _ROWS,
      P("tensor"),
      P(*_ROWS, None, "tensor", None),
    ),
    "FirstLayer": (rows,) * 3,  # Or _ROWS, where there are too few.
    "AddNorm": (_ROWS, _ROWS, P(), P(), P(), _ROWS, _ROWS),
  }

  def place(tree: Any) -> Any:
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, rows))

  def call(function: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
    name = type(context.module).__name__
    if context.method_name != "__call__":
      return function(*args, **kwargs)
    if name == "WaveformStem" and platform == "tpu":
      count = mesh.size if mesh.shape["tensor"] > 1 else row_shards(mesh)
      held = -(-args[0].shape[0] // count)
      kwargs = kwargs | {"segments": _TPU_ROWS // math.gcd(held, _TPU_ROWS)}
    if name in _SPREAD and mesh.size > 1:
      return place(function(*place(args), **kwargs))
    if name in kernels and mesh.size > 1 and target.kernels():
      specs = kernels[name]
      if name == "FirstLayer" and args[0].shape[0] % mesh.size:
        specs = (_ROWS,) * 3
      *in_specs, out_specs = specs
      function = jax.shard_map(
        function,
        mesh=mesh,
        in_specs=tuple(in_specs),
        out_specs=out_specs,
        check_vma=False,
      )
    return function(*args, **kwargs)

  device = mesh.devices.flat[0]
  with (
    target.tracing_for(platform, device.device_kind),
    nn.intercept_methods(call),
  ):
    yield


def suited(by_row: NamedSharding, function: Callable) -> Callable:
  """A function of a batch placed `by_row`, traced to suit its devices."""

  def call(*batch: jax.Array) -> Any:
    with suit(by_row.mesh):
      return function(*batch)

  return call


def spec(path: str, shape: tuple[int, ...], fsdp: int, tensor: int) -> P:
  """How the array at `path`, "params/.../kernel", is cut."""
  axes: list[str | None] = [None] * len(shape)
  for pattern, axis in _TENSOR_RULES:
    if re.search(pattern, path) and tensor > 1 and not shape[axis] % tensor:
      axes[axis] = "tensor"
  if fsdp > 1 and math.prod(shape) >= _MIN_FSDP_SIZE:
    first = bool(_STACKED.search(path))
    free = [
      i
      for i in range(first, len(shape))
      if axes[i] is None and shape[i] % fsdp == 0
    ]
    if free:
      axes[max(free, key=lambda i: (shape[i], i))] = "fsdp"
  while axes and axes[-1] is None:
    axes.pop()
  return P(*axes)


def check(config: ConfigDict, mesh: Mesh) -> None:
  """Checks that a model can be cut as the mesh has it.

  Raises:
    UserError: its heads or units do not divide.
  """
  tensor = mesh.shape["tensor"]
  for key in ("num_heads", "ffn_size"):
    if config.encoder[key] % tensor:
      raise UserError(
        f"config.mesh={tuple(config.mesh)}: tensor={tensor} does not divide "
        f"config.encoder.{key}={config.encoder[key]}"
      )


def compile_shapes(
  programs: Sequence[tuple[Callable, Any, Sequence[tuple[int, int]]]],
  abstract_batch: Callable[[int, int], dict],
  row_multiple: int,
  by_row: Sharding,
) -> list[dict[int, Callable]]:
  """Compiles programs for each shape of their batches, all at once.

  Args:
    programs: (jitted, shapes and types of what it takes before a batch, shapes
      of its batches as (rows, length in samples)).
    abstract_batch: of rows and length; gives shapes and types of a batch.
    row_multiple: that rows are rounded up to.
    by_row: how batches are placed.

  Returns:
    Of each of `programs`, what it became, keyed by length.
  """
  with ThreadPoolExecutor() as pool, _cancelling(pool):
    before = time.monotonic()
    pending = {}
    for i, (jitted, first, shapes) in enumerate(programs):
      for rows, length in shapes:
        rows = -(-rows // row_multiple) * row_multiple
        # Each is traced while those before it compile.
        lowered = jitted.lower(
          first, abstract(abstract_batch(rows, length), by_row)
        )
        pending[pool.submit(lowered.compile)] = i, rows, length
    compiled: list[dict[int, Callable]] = [{} for _ in programs]
    for count, done in enumerate(as_completed(pending), 1):
      i, rows, length = pending[done]
      compiled[i][length] = done.result()
      _log.info(
        "compiled %d of %d programs: %s of %d x %.4g s, after %.1f s",
        count,
        len(pending),
        programs[i][0].__name__,
        rows,
        length / SAMPLE_RATE,
        time.monotonic() - before,
      )
  return compiled


@contextlib.contextmanager
def _cancelling(pool: ThreadPoolExecutor) -> Iterator[None]:
  """An error or an interrupt does not wait for what has not begun."""
  try:
    yield
  except BaseException:
    pool.shutdown(wait=False, cancel_futures=True)
    raise


def put(batch: dict, mesh: Mesh) -> dict:
  """Sends this process's shards of a batch to its devices."""
  sharding, shards = by_row(mesh), my_shards(mesh)
  if jax.process_count() == 1:
    return jax.device_put(batch, sharding)

  def place(local: np.ndarray) -> jax.Array:
    size = len(local) // len(shards)  # Rows of a shard.

    def part(index: tuple[slice, ...]) -> np.ndarray:
      first = shards.index((index[0].start or 0) // size) * size
      return local[first : first + size]

    shape = (size * row_shards(mesh), *local.shape[1:])
    return jax.make_array_from_callback(shape, sharding, part)

  return jax.tree.map(place, batch)


def abstract(tree: Any, shardings: Any) -> Any:
  """Shapes and types of a tree's arrays, to be placed by one or a tree of."""
  if isinstance(shardings, Sharding):
    shardings = jax.tree.map(lambda _: shardings, tree)
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    tree,
    shardings,
  )
