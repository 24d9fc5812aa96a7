"""What a compiled program sends between devices, read from its HLO."""

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
    if branches := _BRANCHES.search(line):
      each = [
        _traffic(branch.strip().lstrip("%"), bodies, known)
        for branch in branches[1].split(",")
      ]
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
  """How often a loop runs, from 0 to the constant it is compared with."""
  names, constants = [condition], [1]
  while names:
    for line in bodies.get(names.pop(), ()):
      constants += map(int, _CONSTANT.findall(line))
      names += _CALLED.findall(line)
  return max(constants)
