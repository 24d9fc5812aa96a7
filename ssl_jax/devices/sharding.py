"""The placement of arrays: one mesh, rules for parameters and for batches.

The mesh has three axes. A batch's rows are shared out over `data` and `fsdp`;
parameters and optimizer state are cut over `fsdp` where they are large, and
over `tensor` where the encoder's block says so. Models name none of the axes,
only roles (`ssl_jax.models.placement`): what moves between devices, and how, is
XLA's.
"""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from ssl_jax.errors import UserError
from ssl_jax.models import encoders, placement

AXES = ("data", "fsdp", "tensor")
_ROWS = P(("data", "fsdp"))

_LAYERS = "/layers/"  # Their leading axis is the layer, which stays whole.
_MIN_FSDP_SIZE = 2**14  # Least size of a parameter that is cut.


def make_mesh(
  shape: Sequence[int] = (-1, 1, 1), devices: Sequence[Any] | None = None
) -> Mesh:
  """Makes the mesh (data, fsdp, tensor); -1 is what the others leave.

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
  """Returns the sharding of arrays [rows of a batch, ...]."""
  return NamedSharding(mesh, _ROWS)


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of arrays that are whole on every device."""
  return NamedSharding(mesh, P())


def row_shards(mesh: Mesh) -> int:
  """Returns the number of runs of rows that a batch is cut into."""
  return mesh.shape["data"] * mesh.shape["fsdp"]


def my_shards(mesh: Mesh) -> tuple[int, ...]:
  """Returns those of them on this process's devices, in order."""
  count = row_shards(mesh)
  places = by_row(mesh).addressable_devices_indices_map((count,))
  return tuple(sorted({rows.start or 0 for (rows,) in places.values()}))


def of_state(config: ConfigDict, mesh: Mesh, abstract_state: Any) -> Any:
  """Returns the shardings of a training state's arrays, or of parameters.

  The optimizer's moments lie where their parameters do, whose paths end theirs.
  """
  return _placed(config, mesh, abstract_state, mesh.shape["fsdp"])


def _placed(config: ConfigDict, mesh: Mesh, tree: Any, fsdp: int) -> Any:
  tensor_axes = encoders.make_block(config.encoder).tensor_axes
  return jax.tree_util.tree_map_with_path(
    lambda path, x: NamedSharding(
      mesh,
      spec(
        jax.tree_util.keystr(path, simple=True, separator="/"),
        x.shape,
        fsdp,
        mesh.shape["tensor"],
        tensor_axes,
      ),
    ),
    tree,
  )


def gather(config: ConfigDict, mesh: Mesh, params: Any) -> Any:
  """Returns the parameters as layers use them: whole, but for `tensor`.

  Otherwise XLA would rather move activations than parameters between the
  devices of `fsdp`: 20 times the bytes for Base.
  """
  if mesh.shape["fsdp"] == 1:
    return params
  return jax.lax.with_sharding_constraint(
    params, _placed(config, mesh, params, 1)
  )


def suit(mesh: Mesh) -> contextlib.AbstractContextManager[None]:
  """Has the models that are traced in it suit the mesh's devices."""
  return placement.use(_OnMesh(mesh))


class _OnMesh(placement.Placement):
  """The devices of a mesh, and what the roles of axes are on it."""

  def __init__(self, mesh: Mesh):
    super().__init__(mesh.devices.flat[0].platform)
    self._mesh = mesh

  @property
  def vmem(self) -> int:
    # The mesh's devices may not be JAX's own: those of a slice to compile for.
    with jax.sharding.use_abstract_mesh(self._mesh.abstract_mesh):
      return super().vmem

  def kernel(
    self,
    function: Callable[..., jax.Array],
    *args: jax.Array,
    axes: tuple[placement.Roles, ...],
    out: placement.Roles,
  ) -> jax.Array:
    if self._mesh.size == 1:
      return function(*args)
    enough = all(
      size % self._mesh.size == 0
      for x, roles in zip(args, axes, strict=True)
      for size, role in zip(x.shape, roles)
      if role == "all_rows"
    )
    cuts = {
      "rows": AXES[:2],
      "all_rows": AXES if enough else AXES[:2],
      "heads": "tensor",
      None: None,
    }
    *in_specs, out_specs = (
      P(*(cuts[role] for role in roles)) for roles in (*axes, out)
    )
    return jax.shard_map(
      function,
      mesh=self._mesh,
      in_specs=tuple(in_specs),
      out_specs=out_specs,
      check_vma=False,
    )(*args)

  def spread(self, x: jax.Array) -> jax.Array:
    # A convolution has no heads to cut, and XLA (jaxlib 0.10) sums the
    # gradients of a grouped one once for each device of `tensor` that holds the
    # same rows.
    if self._mesh.size == 1:
      return x
    return jax.lax.with_sharding_constraint(
      x, NamedSharding(self._mesh, P(AXES))
    )

  def segments(self, rows: int, size: int) -> int:
    if self.platform != "tpu":
      return 1
    held = -(-rows // self._mesh.size)
    segments = placement.TPU_ROWS // math.gcd(held, placement.TPU_ROWS)
    # The backward pass holds three arrays as large as the largest.
    room = self.vmem / 4
    while room and placement.TPU_ROWS * size > segments * room:
      segments *= 2
    return segments


def suited(by_row: NamedSharding, function: Callable) -> Callable:
  """Has a function of a batch placed `by_row` suit the batch's devices."""

  def call(*batch: jax.Array) -> Any:
    with suit(by_row.mesh):
      return function(*batch)

  return call


def spec(
  path: str,
  shape: tuple[int, ...],
  fsdp: int,
  tensor: int,
  tensor_axes: Mapping[str, int],
) -> P:
  """Returns how an array is cut.

  Args:
    path: of the array, "params/.../kernel".
    shape: of the array.
    fsdp: devices along that axis of the mesh.
    tensor: the same.
    tensor_axes: of the encoder's blocks, as `Block.tensor_axes`.
  """
  cut: list[str | None] = [None] * len(shape)
  _, in_layers, name = path.partition(_LAYERS)
  axis = tensor_axes.get(name)
  if axis is not None and tensor > 1 and shape[axis] % tensor == 0:
    cut[axis] = "tensor"
  if fsdp > 1 and math.prod(shape) >= _MIN_FSDP_SIZE:
    free = [
      i
      for i in range(bool(in_layers), len(shape))
      if cut[i] is None and shape[i] % fsdp == 0
    ]
    if free:
      cut[max(free, key=lambda i: (shape[i], i))] = "fsdp"
  while cut and cut[-1] is None:
    cut.pop()
  return P(*cut)


def check(config: ConfigDict, mesh: Mesh) -> None:
  """Checks that a model can be cut as the mesh has it.

  Raises:
    UserError: its heads or units do not divide.
  """
  tensor = mesh.shape["tensor"]
  for key in encoders.make_block(config.encoder).tensor_knobs:
    if config.encoder[key] % tensor:
      raise UserError(
        f"config.mesh={tuple(config.mesh)}: tensor={tensor} does not divide "
        f"config.encoder.{key}={config.encoder[key]}"
      )


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
