"""Traffic of a compiled program, between devices and to memory, by its HLO."""

import collections
import re

_BYTES = {
  "pred": 1,
  "s8": 1,
  "u8": 1,
  "bf16": 2,
  "f16": 2,
  "s16": 2,
  "u16": 2,
  "f32": 4,
  "s32": 4,
  "u32": 4,
  "f64": 8,
  "s64": 8,
  "u64": 8,
}
_KINDS = (
  "all-reduce",
  "all-gather",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)
_HEAD = re.compile(r"^(ENTRY )?%?(\S+) \(.*\{$")
_COLLECTIVE = re.compile(rf" = (.*?) ({'|'.join(_KINDS)})(-start)?\(")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|body|async_computation)=%?([^\s,)}]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_CONDITION = re.compile(r"condition=%?([^\s,)}]+)")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?(\S+) = (.*?) ([\w-]+)\((.*)$")
_PLACED = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")
_OPERAND = re.compile(r"%([\w.-]+)")
# Only name what is there.
_FREE = (
  *("parameter", "constant", "tuple", "get-tuple-element", "bitcast"),
  *("after-all", "partition-id", "replica-id"),
)
_CONSTANT = re.compile(r"s32\[\]\S* constant\((\d+)\)")

Traffic = dict[str, tuple[float, float]]  # {kind: (operations, bytes)}


def collectives(text: str) -> Traffic:
  """Collective operations of one run of a program, and their results' bytes.

  Each device's own; a loop's as often as it runs, a conditional's as of its
  costliest branch.

  Args:
    text: HLO, as a compiled program's `as_text()` has it.
  """
  bodies, entry = _computations(text)
  return _traffic(entry, bodies, {})


def hbm_bytes(text: str) -> float:
  """Bytes that one run of a TPU program reads from and writes to HBM, at most.

  What each operation takes and makes, less what its layout puts into a memory
  on the chip, S(1); a copy between the two once. XLA's own count takes those in
  too. A loop's as often as it runs, a conditional's of its costliest branch. A
  fusion counts as reading the whole of what it slices.

  Args:
    text: HLO, as a compiled program's `as_text()` has it.
  """
  bodies, entry = _computations(text)
  return _moved(entry, bodies, {})


def _moved(
  name: str, bodies: dict[str, list[str]], known: dict[str, float]
) -> float:
  if name in known:
    return known[name]
  total, sizes = 0.0, {}
  for line in bodies.get(name, ()):
    if not (found := _INSTRUCTION.match(line)):
      continue
    made, shape, kind, rest = found.groups()
    sizes[made] = _hbm_size(shape)
    if kind == "while" and (condition := _CONDITION.search(line)):
      (body,) = _CALLED.findall(line)
      total += _trips(condition[1], bodies) * _moved(body, bodies, known)
    elif kind == "conditional":
      total += max(_moved(x, bodies, known) for x in _branches(line))
    elif kind == "call":
      called = re.search(r"to_apply=%?([^\s,)}]+)", line)
      total += _moved(called[1], bodies, known) if called else 0
    elif kind in _FREE or kind.endswith("-done"):
      continue
    elif kind.endswith("-start"):
      total += sizes[made]  # Sizes of the original and the copy.
    else:
      operands = _OPERAND.findall(rest.partition("), ")[0])
      total += sizes[made] + sum(sizes.get(x, 0) for x in set(operands))
  known[name] = total
  return total


def _hbm_size(shape: str) -> float:
  total = 0.0
  for dtype, dimensions, layout in _PLACED.findall(shape):
    if re.search(r"S\([1-9]", layout):
      continue
    size = float(_BYTES.get(dtype, 0))
    for n in filter(None, dimensions.split(",")):
      size *= int(n)
    total += size
  return total


def _branches(line: str) -> list[str]:
  (found,) = _BRANCHES.findall(line) or [""]
  return [branch.strip().lstrip("%") for branch in found.split(",")]


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
  bodies: dict[str, list[str]] = {}
  entry, lines = "", []
  for line in text.splitlines():
    if head := _HEAD.match(line):
      lines = bodies[head[2]] = []
      entry = head[2] if head[1] else entry
    elif line.startswith("  "):
      lines.append(line)
  return bodies, entry


def _traffic(
  name: str, bodies: dict[str, list[str]], known: dict[str, Traffic]
) -> Traffic:
  if name in known:
    return known[name]
  total: dict[str, list[float]] = collections.defaultdict(lambda: [0.0, 0.0])

  def add(found: Traffic, times: int) -> None:
    for kind, (count, size) in found.items():
      total[kind][0] += times * count
      total[kind][1] += times * size

  for line in bodies.get(name, ()):
    if found := _COLLECTIVE.search(line):
      shape, kind, started = found.groups()
      add({kind: (1, _size(shape, kind, bool(started)))}, 1)
    times = 1
    if " while(" in line and (condition := _CONDITION.search(line)):
      times = _trips(condition[1], bodies)
    for called in _CALLED.findall(line):
      add(_traffic(called, bodies, known), times)
    if _BRANCHES.search(line):
      each = [_traffic(branch, bodies, known) for branch in _branches(line)]
      add(max(each, key=lambda x: sum(size for _, size in x.values())), 1)
  known[name] = {kind: (n, size) for kind, (n, size) in total.items()}
  return known[name]


def _size(shape: str, kind: str, started: bool) -> float:
  """Bytes of a collective's result."""
  sizes = []
  for dtype, dimensions in _ARRAY.findall(shape):
    size = _BYTES.get(dtype, 0)
    for n in filter(None, dimensions.split(",")):
      size *= int(n)
    sizes.append(size)
  if started and kind != "all-reduce":
    # (operands, results, flags): of as many operands as results.
    sizes = [size for size in sizes if size > 4]
    sizes = sizes[len(sizes) // 2 :]
  return float(sum(sizes))


def _trips(condition: str, bodies: dict[str, list[str]]) -> int:
  """Returns the trips of a loop: the constant its counter is compared with."""
  names, constants = [condition], [1]
  while names:
    for line in bodies.get(names.pop(), ()):
      constants += map(int, _CONSTANT.findall(line))
      names += _CALLED.findall(line)
  return max(constants)
