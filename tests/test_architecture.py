"""Imports point one way (docs/clip.md)."""

import ast
from pathlib import Path

import pytest

import ssl_jax

ROOT = Path(ssl_jax.__file__).parent
# What each package may import of the others.
ALLOWED = {
  "data": set(),
  "signal": set(),
  "models": {"signal"},
  "objectives": {"models", "signal"},
  "budget": {"objectives", "models", "signal"},
  "benchmarks": {
    "budget",
    "data",
    "interop",
    "models",
    "signal",
    "training",
  },
  "interop": {"models", "signal"},
  "labelling": {"signal", "data"},
  "probes": {"budget", "data", "labelling", "models", "signal", "training"},
  "training": {
    "budget",
    "data",
    "interop",
    "labelling",
    "models",
    "objectives",
    "signal",
  },
}
# Small modules any package may import; they import no package.
SHARED = {
  *("config", "errors", "files", "host", "overrides", "reading", "validation"),
}
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
    assert not any(
      name.startswith("flax") for name in names - {"flax.linen"}
    ), path


def test_data_never_imports_jax():
  for path in MODULES:
    if path.parts[0] == "data":
      assert not {n for n in imports(path) if n.split(".")[0] == "jax"}, path


def test_files_are_read_in_one_sitting():
  for path in MODULES:
    assert len((ROOT / path).read_text().splitlines()) <= 350, path
