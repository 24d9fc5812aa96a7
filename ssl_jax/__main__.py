"""Says which commands there are: each is a module, `python -m ssl_jax.NAME`."""

import ast
import sys
from pathlib import Path

from ssl_jax.errors import nearest

DOORS = (
  *("plan", "prepare", "main", "sweep", "report", "probe", "label", "extract"),
  *("export", "flops", "compile", "bench"),
)
_MEANT = {"train": "main", "pretrain": "main", "eval": "probe"}


def main(given: list[str]) -> int:
  """Prints the doors; returns the exit status, 2 if a command was given."""
  if given and not given[0].startswith("-"):
    name = _MEANT.get(given[0], given[0])
    there = (
      f"python -m ssl_jax.{name}" if name in DOORS else nearest(name, DOORS)
    )
    print(f"error: no command {given[0]!r}; {there}", file=sys.stderr)
    return 2
  print("Commands; --help after one says more:\n")
  for name in DOORS:
    text = (Path(__file__).parent / f"{name}.py").read_text("utf-8")
    about = (ast.get_docstring(ast.parse(text)) or "").splitlines()[0]
    print(f"  python -m ssl_jax.{name:9}{about}")
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
