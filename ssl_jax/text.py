"""Text for people at a terminal."""

from collections.abc import Mapping


def two_columns(rows: Mapping[str, str]) -> str:
  """Returns a line for each row: its name, right-aligned, and its value."""
  return "\n".join(f"{name:>14}  {value}" for name, value in rows.items())
