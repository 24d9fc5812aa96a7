"""Traffic of a compiled program, between devices and to memory, by its HLO."""

import collections
import math
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
# TPU7x has collectives called beside other operations.
_CALL = re.compile(r" call(?:-start)?\(.*to_apply=%?([^\s,)}]+)")
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
_ALLOCATES = 'custom_call_target="AllocateBuffer"'
# Operations on a part of their first operand.
_PARTS = ("slice", "dynamic-slice", "dynamic-update-slice")
_TRACED = re.compile(r'op_name="([^"]+)"')
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


def hbm_bytes(text: str) -> dict[str, float]:
  """Bytes that one run of a TPU program reads from and writes to HBM, at most.

  What each operation takes and makes, less what its layout puts into a memory
  on the chip, S(1); a copy between the two once; of an array that is sliced, or
  updated in place, the slice alone. XLA's own count takes all of those in. A
  loop's as often as it runs, a conditional's of its costliest branch.

  Args:
    text: HLO, as a compiled program's `as_text()` has it.

  Returns:
    {part of the model, as "backbone/stem": bytes}; "step" for what is of none,
    "copies" for those that XLA makes ahead of an operation.
  """
  bodies, entry = _computations(text)
  return _moved(entry, bodies, {})


def _moved(
  name: str, bodies: dict[str, list[str]], known: dict[str, dict[str, float]]
) -> dict[str, float]:
  if name in known:
    return known[name]
  total: dict[str, float] = collections.defaultdict(float)
  sizes: dict[str, float] = {}

  def add(called: dict[str, float], times: int = 1) -> None:
    for part, size in called.items():
      total[part] += times * size

  for line in bodies.get(name, ()):
    if not (found := _INSTRUCTION.match(line)):
      continue
    made, shape, kind, rest = found.groups()
    sizes[made] = _hbm_size(shape)
    if kind == "while" and (condition := _CONDITION.search(line)):
      (body,) = _CALLED.findall(line)
      add(_moved(body, bodies, known), _trips(condition[1], bodies))
    elif kind == "conditional":
      branches = [_moved(x, bodies, known) for x in _branches(line)]
      add(max(branches, key=lambda x: sum(x.values())))
    elif called := _CALL.search(line):
      add(_moved(called[1], bodies, known))
    elif kind in _FREE or kind.endswith("-done") or _ALLOCATES in line:
      continue
    elif kind == "slice-start":  # ((original), slice, flags)
      original, _, copy = shape.partition("), ")
      read = _bytes(copy) if _hbm_size(original) else 0.0
      total[_part(line)] += read + _hbm_size(copy)
    elif kind.endswith("-start"):
      total[_part(line)] += sizes[made]  # Sizes of the original and the copy.
    else:
      called = _CALLED.search(line) if kind == "fusion" else None
      reads, kept = _slices(bodies.get(called[1], []) if called else [])
      operands = _OPERAND.findall(rest.partition("), ")[0])
      taken = {
        x: min(sizes.get(x, 0.0), reads.get(i, math.inf))
        for i, x in enumerate(operands)
      }
      total[_part(line)] += sum(taken.values()) + max(0.0, sizes[made] - kept)
  known[name] = dict(total)
  return known[name]


def _part(line: str) -> str:
  """Names the module that an instruction was traced in."""
  if not (found := _TRACED.search(line)):
    return "copies"
  *names, _ = found[1].split("/")  # The last is the operation.
  # Functions have parentheses, methods a dot.
  modules = [x for x in names if not re.search(r"[(.,]", x)]
  return "/".join(modules[:2]) or "step"


def _slices(body: list[str]) -> tuple[dict[int, float], float]:
  """Returns what a fusion need not move, by the lines of its computation.

  Returns:
    ({parameter: bytes read of it} of those that are only sliced or updated in
    place, bytes of the results that such updates leave as they are).
  """
  parameters: dict[str, int] = {}
  shapes: dict[str, str] = {}
  reads: dict[int, float] = collections.defaultdict(float)
  kept = 0.0
  for line in body:
    if not (found := _INSTRUCTION.match(line)):
      continue
    name, shape, kind, rest = found.groups()
    shapes[name] = shape
    operands = _OPERAND.findall(rest.partition("), ")[0])
    if kind == "parameter":
      parameters[name] = int(rest.partition(")")[0])
    elif kind == "bitcast" and operands[0] in parameters:
      parameters[name] = parameters[operands[0]]
    else:
      for i, operand in enumerate(operands):
        if operand in parameters:
          is_part = i == 0 and kind in _PARTS
          size = _bytes(shape) if is_part else math.inf
          updated = is_part and kind == "dynamic-update-slice"
          reads[parameters[operand]] += 0 if updated else size
    if kind == "dynamic-update-slice" and _hbm_size(shape):
      kept += _bytes(shape) - _bytes(shapes.get(operands[1], ""))
  return dict(reads), kept


def _hbm_size(shape: str) -> float:
  return sum(
    _bytes(f"{dtype}[{dimensions}]")
    for dtype, dimensions, layout in _PLACED.findall(shape)
    if not re.search(r"S\([1-9]", layout)
  )


def _bytes(shape: str) -> float:
  """Bytes of the first array of a shape; 0 where there is none."""
  if not (found := _ARRAY.search(shape)):
    return 0.0
  sizes = map(int, filter(None, found[2].split(",")))
  return float(_BYTES.get(found[1], 0) * math.prod(sizes))


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
    for called in (*_CALLED.findall(line), *_CALL.findall(line)):
      add(_traffic(called, bodies, known), times)
    if _BRANCHES.search(line):
      each = [_traffic(branch, bodies, known) for branch in _branches(line)]
      add(max(each, key=lambda x: sum(size for _, size in x.values())), 1)
  known[name] = {kind: (n, size) for kind, (n, size) in total.items()}
  return known[name]


def _size(shape: str, kind: str, started: bool) -> float:
  """Bytes of a collective's result."""
  sizes = [_bytes(found[0]) for found in _ARRAY.finditer(shape)]
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
