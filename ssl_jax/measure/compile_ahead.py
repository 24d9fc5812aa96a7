"""The training step compiled for a TPU slice that is not there."""

import functools
import logging
import time
from collections.abc import Mapping
from typing import Any

import jax
from jax.experimental import topologies
from ml_collections import ConfigDict

from ssl_jax import SAMPLE_RATE
from ssl_jax.budget.flops import readable
from ssl_jax.budget.updates import clip_flops
from ssl_jax.devices import sharding
from ssl_jax.devices.chips import Chip
from ssl_jax.measure import hlo
from ssl_jax.models.backbone import compute_dtype
from ssl_jax.objectives import inputs as inputs_lib
from ssl_jax.objectives import make_objective
from ssl_jax.optimizers import make_optimizer
from ssl_jax.text import two_columns
from ssl_jax.training import step as step_lib

_SOME_UPDATES = 1_000  # Length of the schedule; any would do.
# Traffic of a ring through each chip, in sizes of the result.
_WIRE = {"all-reduce": 2.0}


def compile_for(
  config: ConfigDict,
  chip: Chip,
  topology: str,
  chips: int,
  options: Mapping[str, str],
) -> dict[str, Any]:
  """Compiles the step of the longest bucket; says what it takes.

  Args:
    config: of a run; its data is not opened.
    chip: of the slice.
    topology: as JAX has it, "v5e:4x4".
    chips: of the slice.
    options: of the TPU compiler, beside the step's own.

  Returns:
    topology, chips, mesh; rows (of the batch, and idle among them),
    padded_seconds_per_update of audio; compile_seconds; hbm_bytes_per_chip
    {arguments, temporaries, peak, available} and fits; flops_per_update (as
    `ssl_jax.flops` counts); xla_flops_per_chip, xla_bytes_per_chip (of any
    memory), hbm_traffic_per_chip (bytes, of HBM alone), hbm_traffic_by_part (as
    `ssl_jax.measure.hlo.hbm_bytes` has it);
    collectives {kind: {operations, bytes}} of a chip; roofline_seconds
    {compute, memory, network, update}; mfu_bound.

  Raises:
    UserError: the mesh does not fit.
  """
  config = config.copy_and_resolve_references()
  if config.compute_dtype == "auto":
    config.compute_dtype = "bfloat16"
  config.budget.update(updates=_SOME_UPDATES, flops=0.0, match="", trunk="")
  described = topologies.get_topology_desc(
    platform="tpu", topology_name=topology
  )
  mesh = sharding.make_mesh(config.mesh, described.devices)
  devices = mesh.size
  sharding.check(config, mesh)

  objective = make_objective(config, compute_dtype(config))
  optimizer = make_optimizer(config)
  state = jax.eval_shape(
    functools.partial(step_lib.init_state, objective, optimizer, config)
  )
  placed, by_row = sharding.of_state(config, mesh, state), sharding.by_row(mesh)
  length = round(config.data.bucket_seconds[-1] * SAMPLE_RATE)
  clips = max(1, round(config.batch.seconds * SAMPLE_RATE / length))
  multiple = sharding.row_shards(mesh) * config.batch.microbatches
  rows = -(-clips // multiple) * multiple
  step = jax.jit(
    step_lib.make_train_step(objective, optimizer, config, mesh),
    in_shardings=(placed, by_row),
    out_shardings=(placed, sharding.replicated(mesh)),
    donate_argnums=0,
  )
  logging.getLogger("ssl_jax").info(
    "compiling %s, %d clips of %g s, for %s (some minutes) ...",
    config.objective.name,
    rows,
    length / SAMPLE_RATE,
    topology,
  )
  before = time.monotonic()
  compiled = step.lower(
    sharding.abstract(state, placed),
    sharding.abstract(inputs_lib.abstract_batch(config, rows, length), by_row),
  ).compile(compiler_options=dict(options))
  seconds = time.monotonic() - before

  memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
  arguments = memory.argument_size_in_bytes
  temporaries = memory.temp_size_in_bytes
  outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
  peak = arguments + temporaries + outputs + memory.generated_code_size_in_bytes
  program = compiled.as_text()
  traffic, parts = hlo.collectives(program), hlo.hbm_bytes(program)
  moved = sum(parts.values())
  wire = sum(_WIRE.get(kind, 1.0) * size for kind, (_, size) in traffic.items())
  training = clips * clip_flops(config, length).training
  # Padding and what XLA adds are computed too; loops it counts once.
  computed = max(cost["flops"], rows / clips * training / devices)
  roofline = {
    "compute": computed / chip.flops_per_second,
    "memory": moved / chip.hbm_bytes_per_second,
    "network": wire / chip.link_bytes_per_second,
  }
  roofline["update"] = max(roofline.values())
  return {
    "topology": topology,
    "chips": chips,
    "mesh": dict(mesh.shape),
    "rows": rows,
    "idle_rows": rows - clips,
    "padded_seconds_per_update": clips * length / SAMPLE_RATE,
    "compile_seconds": seconds,
    "hbm_bytes_per_chip": {
      "arguments": arguments,
      "temporaries": temporaries,
      "peak": peak,
      "available": chip.hbm_bytes,
    },
    "fits": peak <= chip.hbm_bytes,
    "flops_per_update": training,
    "xla_flops_per_chip": cost["flops"],
    "xla_bytes_per_chip": cost["bytes accessed"],
    "hbm_traffic_per_chip": moved,
    "hbm_traffic_by_part": parts,
    "collectives": {
      kind: {"operations": round(count), "bytes": size}
      for kind, (count, size) in sorted(traffic.items())
    },
    "roofline_seconds": roofline,
    "mfu_bound": training
    / devices
    / chip.flops_per_second
    / roofline["update"],
  }


def text(facts: dict[str, Any]) -> str:
  """The facts as a person reads them."""
  memory, roofline = facts["hbm_bytes_per_chip"], facts["roofline_seconds"]
  sent = ", ".join(
    f"{x['operations']} {kind} of {readable(x['bytes'])}B"
    for kind, x in facts["collectives"].items()
  )
  bound = max(("compute", "memory", "network"), key=roofline.get)
  rows = {
    "slice": f"{facts['topology']}, {facts['chips']} chips, mesh "
    + " x ".join(f"{axis} {n}" for axis, n in facts["mesh"].items()),
    "batch": f"{facts['rows']} rows, {facts['idle_rows']} of them idle; "
    f"{facts['padded_seconds_per_update']:.4g} s of audio",
    "memory": f"{memory['peak'] / 2**30:.2f} of "
    f"{memory['available'] / 2**30:.0f} GiB a chip"
    + ("" if facts["fits"] else ": does not fit"),
    "between chips": sent or "nothing",
    "at best": f"{roofline['update'] * 1e3:.3g} ms an update, bound by "
    f"{bound}; MFU at most {facts['mfu_bound']:.0%}",
    "compiled in": f"{facts['compile_seconds']:.0f} s",
  }
  if facts["idle_rows"] > facts["rows"] / 10:
    rows["advice"] = (
      "a larger config.batch.seconds or fewer chips: idle rows cost as much as "
      "others"
    )
  if not facts["fits"]:
    rows["advice"] = (
      "more chips, config.batch.microbatches, config.encoder.remat, or fsdp in "
      "config.mesh"
    )
  return two_columns(rows)
