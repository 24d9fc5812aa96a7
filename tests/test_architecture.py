"""Imports point one way (docs/clip.md)."""

import ast
from pathlib import Path

import pytest

import ssl_jax

ROOT = Path(ssl_jax.__file__).parent
# Packages from the ground up: each may import those above it in this list and,
# of its own floor, those named beside it.
FLOORS = [
  {"signal": set(), "data": set()},
  {"models": set()},
  {"objectives": set(), "optimizers": set()},
  {"budget": set(), "checkpoints": {"devices"}, "devices": set()},
  {
    "pretrained": set(),
    "labelling": {"pretrained"},
    "reports": set(),
    "training": {"labelling", "pretrained", "probes", "reports"},
    "probes": {"labelling", "pretrained"},
    "measure": {"pretrained", "training"},
  },
]
# Floors from `budget` up may also import `config`, which collects the knobs of
# every component when it is asked for them.
CONFIG_FROM = 3
ALLOWED = {
  package: beside.union(
    *FLOORS[:floor], {"config"} if floor >= CONFIG_FROM else set()
  )
  for floor, packages in enumerate(FLOORS)
  for package, beside in packages.items()
}
# Small modules that any package may import; they import no package.
SHARED = {"errors", "files", "knobs", "process", "tally", "text"}
MODULES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))


def imports(path: Path) -> set[str]:
  """Dotted names of everything a module imports, wherever in it."""
  names = set()
  for node in ast.walk(ast.parse((ROOT / path).read_text())):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: relative import"
      names |= {f"{node.module}.{alias.name}" for alias in node.names}
  return names


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_point_one_way(path):
  names = imports(path)
  inside = {n.split(".")[1] for n in names if n.startswith("ssl_jax.")}
  inside -= {"SAMPLE_RATE", "FRAME_WINDOW", "FRAME_HOP", "num_frames"}
  package = path.parts[0]
  if path.parent == Path("."):
    if path.stem in SHARED:
      assert inside <= SHARED
  else:
    assert inside - SHARED - {package} <= ALLOWED[package], path
  if package not in ("models", "objectives", "probes"):
    assert not any(name.startswith("flax") for name in names), path


def test_data_never_imports_jax():
  for path in MODULES:
    if path.parts[0] == "data":
      assert not {n for n in imports(path) if n.split(".")[0] == "jax"}, path


def test_files_are_read_in_one_sitting():
  for path in MODULES:
    assert len((ROOT / path).read_text().splitlines()) <= 350, path
