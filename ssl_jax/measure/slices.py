"""The table of TPU slices: rows compiled one by one, a process each."""

import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssl_jax import process
from ssl_jax.budget.flops import readable
from ssl_jax.devices import chips
from ssl_jax.errors import UsageError, UserError, one_line
from ssl_jax.files import read_jsonl, write_atomically
from ssl_jax.text import readable_time

# The published table: every model on every slice, small slices first. Layers of
# the larger models are compiled once, as a loop: it takes half the time.
_MODELS = (
  "--config=configs/slim.py",
  "--config=configs/slim.py --config.frontend.name=logmel",
  "--config=configs/slim.py:size=200 --config.encoder.scan_layers",
  "--config=configs/slim.py:size=base --config.encoder.scan_layers",
  "--config=configs/slim.py:size=large --config.encoder.scan_layers",
)
_SLICES = (
  *("v5e:2x2", "v6e:2x2", "v5p:2x2x1", "tpu7x:2x2x1"),
  *("v5e:4x4", "v6e:4x4", "v5e:16x16", "v6e:16x16"),
)
PUBLISHED = tuple(
  f"{model} --topology={name}" for name in _SLICES for model in _MODELS
)
_COLUMNS = (
  *("model", "slice", "mesh", "rows (idle)", "GiB a chip"),
  *("between chips, an update", "compute ms", "memory ms", "network ms"),
  *("MFU at most", "compiled in"),
)
_TOPOLOGY = re.compile(r"--topology=(\S+)")
_ERROR = re.compile(r"(?:[\w.]*(?:Error|Exception)|error): *(.*)")

Line = dict[str, Any]  # {row, facts} or {row, error}

_log = logging.getLogger("ssl_jax")


def check(rows: Sequence[str]) -> None:
  """Checks that rows are words of a command that compiles.

  Raises:
    UsageError: one is not.
  """
  for row in rows:
    try:
      topology = next(filter(None, map(_TOPOLOGY.fullmatch, shlex.split(row))))
      chips.topology(topology[1])
      if "--config=" not in row:
        raise StopIteration
    except StopIteration:
      raise UsageError(
        f"--row={row!r}: expected '--config=configs/... --topology=v5e:4x4'"
      ) from None
    except (UserError, ValueError) as error:
      raise UsageError(f"--row={row!r}: {error}") from error


def fill(path: Path, rows: Sequence[str]) -> list[Line]:
  """Compiles the rows that a file lacks, and adds each to it.

  Args:
    path: JSONL, a line for each row. It is replaced whole after each, so that
      the same command goes on where it was killed.
    rows: words of a `python -m ssl_jax.compile` each.

  Returns:
    The file's lines for `rows`, in their order.
  """
  lines = read_jsonl(path)
  by_row = {line["row"]: line for line in lines}
  missing = [row for row in dict.fromkeys(rows) if row not in by_row]
  path.parent.mkdir(parents=True, exist_ok=True)
  for number, row in enumerate(missing, 1):
    place = f"row {number} of {len(missing)}"
    _log.info("%s: %s ...", place, row)
    before = time.monotonic()
    by_row[row] = line = {"row": row} | _compile(row)
    lines.append(line)
    write_atomically(path, "".join(json.dumps(x) + "\n" for x in lines))
    taken = readable_time(time.monotonic() - before)
    _log.info("%s, %s: %s", place, taken, line.get("error", "compiled"))
  return [by_row[row] for row in rows]


def _compile(row: str) -> Line:
  """Returns {facts} or {error} of a row, from a process of its own."""
  done = subprocess.run(
    [sys.executable, "-m", "ssl_jax.compile", *shlex.split(row)],
    env=os.environ | {process.PARENT: str(os.getpid())},
    capture_output=True,
    text=True,
  )
  if done.returncode == 0:
    return {"facts": json.loads(done.stdout.splitlines()[-1])}
  if done.returncode < 0:  # The kernel kills what takes the host's memory.
    name = signal.Signals(-done.returncode).name
    return {"error": f"killed by {name}; is the host's memory enough?"}
  said = done.stderr.splitlines() or [f"exit status {done.returncode}"]
  reasons = [found[1] for found in map(_ERROR.match, said) if found]
  return {"error": one_line((reasons or said)[-1])}


def table(lines: Sequence[Line]) -> str:
  """Returns the lines as a table in Markdown."""
  rows = [_COLUMNS, ["---"] * len(_COLUMNS), *map(_cells, lines)]
  return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cells(line: Line) -> list[str]:
  words = [x for x in shlex.split(line["row"]) if not _TOPOLOGY.fullmatch(x)]
  model = " ".join(
    re.sub(r"^--(config=configs/|config\.)", "", x) for x in words
  )
  topology = chips.topology(_TOPOLOGY.search(line["row"])[1])[1]
  cells = [model, topology.replace(":", " ")]
  if "error" in line:
    return [*cells, line["error"].replace("|", "/"), *[""] * 8]
  facts = line["facts"]
  memory, bounds = facts["hbm_bytes_per_chip"], facts["roofline_seconds"]
  sent = ", ".join(
    f"{kind} {readable(x['bytes'])}B"
    for kind, x in facts["collectives"].items()
    if x["bytes"] > 1e6
  )
  return [
    *cells,
    ",".join(str(n) for n in facts["mesh"].values()),
    f"{facts['rows']} ({facts['idle_rows']})",
    f"{memory['peak'] / 2**30:.2f} of {memory['available'] / 2**30:.0f}",
    sent or "nothing",
    *(f"{bounds[x] * 1e3:.3g}" for x in ("compute", "memory", "network")),
    f"{facts['mfu_bound']:.0%}",
    readable_time(facts["compile_seconds"]),
  ]
