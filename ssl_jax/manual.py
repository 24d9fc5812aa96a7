"""The knobs in words: --help of the doors, and docs/config.md."""

import textwrap
from typing import Any

from ssl_jax.errors import UsageError, nearest
from ssl_jax.knobs import ROLES, Knob, by_key

Sections = dict[str, dict[str, Knob]]
_INTRO = """# Knobs

Every setting of a run: `--config.KEY=VALUE` on the command line, or
`config.KEY = VALUE` in a file of `configs/`. `python -m ssl_jax.main
--help=KEY` says the same of one key. This page is written from the knobs'
declarations by

    UPDATE_GOLDEN=1 bash launch/test.sh tests/test_config.py

A knob's role says where it may differ.
"""


def wrap(text: str) -> list[str]:
  """Returns a paragraph as indented lines of at most 80 characters."""
  return textwrap.wrap(
    text,
    80,
    initial_indent="  ",
    subsequent_indent="      ",
    break_on_hyphens=False,
    break_long_words=False,
  )


def explain(about: str, sections: Sections) -> str:
  """Explains a knob, every knob of a section, or every knob of a name.

  Raises:
    UsageError: there is none; it names the nearest.
  """
  knobs = by_key(sections)
  chosen = {k: v for k, v in knobs.items() if about in (k, *k.split("."))}
  if not chosen:
    names = {part for key in knobs for part in (key, *key.split("."))}
    problem = nearest(about[:80], names, filter(None, sections))
    raise UsageError(f"unknown config key {about[:80]!r}; {problem}")
  lines = []
  for key, knob in chosen.items():
    role = ROLES[knob.role]
    free = [x for x in ("resume", "branch") if getattr(role, x)]
    lines += [f"{key}={knob.default}", *wrap(knob.meaning)]
    lines += wrap(f"Values: {values(knob)}.")
    lines += wrap(
      f"Role: {knob.role} ({role.meaning}). "
      + (f"A {' or a '.join(free)} may" if free else "No resume or branch may")
      + " change it."
    )
  return "\n".join(lines)


def values(knob: Knob) -> str:
  """Returns the values that a knob takes, in words."""
  kind, low, high = type(knob.default), knob.low, knob.high
  name = {float: "number", int: "whole number", bool: "True or False"}.get(kind)
  if knob.allowed:
    return ", ".join(knob.allowed)
  if kind is str or kind is bool:
    return name or "any text"
  number = kind if name else knob.item
  name = name or "a tuple, each item"
  least = f"{name} from {number(low):.12g}"
  return least + (f" to {number(high):.12g}" if high < 1e18 else "")


def markdown(sections: Sections) -> str:
  """Returns docs/config.md: the roles, and a table of each section."""
  yes = {True: "yes", False: "no"}
  roles = [
    (name, role.meaning, yes[role.resume], yes[role.branch], yes[role.recipe])
    for name, role in ROLES.items()
  ]
  columns = "role", "it decides", "resume", "branch", "recipe"
  lines = [
    _INTRO,
    *_table(columns, roles),
    "",
    "Resume, branch: a run that is resumed, or that leaves a trunk, may have "
    "another value.",
    "Recipe: runs that differ in it are of different recipes in a report.",
  ]
  for section, declared in sections.items():
    rows = [
      (
        f"`{section}.{name}`".replace("`.", "`"),
        f"`{knob.default!r}`",
        knob.meaning,
        values(knob),
        knob.role,
      )
      for name, knob in declared.items()
    ]
    columns = "key", "default", "meaning", "values", "role"
    lines += ["", f"## {section or 'The run'}", "", *_table(columns, rows)]
  return "\n".join(lines) + "\n"


def _table(columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> list[str]:
  rows = [columns, ("---",) * len(columns), *rows]
  return [
    "| " + " | ".join(x.replace("|", "\\|") for x in row) + " |" for row in rows
  ]
