"""Text for people at a terminal."""

from collections.abc import Mapping


def two_columns(rows: Mapping[str, str]) -> str:
  """Returns a line for each row: its name, right-aligned, and its value."""
  return "\n".join(f"{name:>14}  {value}" for name, value in rows.items())


def readable_time(seconds: float) -> str:
  """Returns a time in the unit that people would say it in."""
  for unit, size, most in (("s", 1, 120), ("min", 60, 120), ("h", 3600, 72)):
    if seconds < most * size:
      return f"{seconds / size:.3g} {unit}"
  return f"{seconds / 86_400:,.3g} days"
