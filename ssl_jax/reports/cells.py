"""Runs side by side: what is a seed of what, and what is ranked with what."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ssl_jax.reports.runs import Run


class Cell(NamedTuple):
  """Runs that differ in their seed; `one` stands for what they share."""

  runs: tuple[Run, ...]

  @property
  def one(self) -> Run:
    """The first of them."""
    return self.runs[0]

  def values(self, name: str) -> tuple[float, float, float] | None:
    """Mean, lowest and highest of an attribute; None where none has it."""
    known = [getattr(run, name) for run in self.runs]
    known = [value for value in known if value is not None]
    return (float(np.mean(known)), min(known), max(known)) if known else None

  @property
  def loss(self) -> float:
    """Mean validation loss, in nats."""
    return self.values("loss")[0]


def cells(runs: Iterable[Run]) -> list[Cell]:
  """Groups runs that differ in their seed only, in the order of the runs."""
  groups = group(
    runs, lambda r: (r.series, r.budget, r.params, r.data_hours, r.recipe)
  )
  return [Cell(tuple(found)) for found in groups.values()]


def group(
  items: Iterable[Any], key: Callable[[Any], Any]
) -> dict[Any, list[Any]]:
  """{key: items}, in the order in which they come."""
  groups = defaultdict(list)
  for item in items:
    groups[key(item)].append(item)
  return dict(groups)


def ranked_with(cell: Cell) -> tuple[str, float, float]:
  """Returns what cells whose losses are ranked have in common."""
  return cell.one.series, cell.one.data_hours, cell.one.budget


def best(found: Iterable[Cell]) -> Cell:
  """The one with the lowest loss."""
  return min(found, key=lambda cell: cell.loss)


def slim_and_small(runs: Iterable[Run]) -> list[tuple[Cell, Cell]]:
  """Slim and Small, the paper's two shapes of 20 M parameters, at a budget."""
  found = cells(run for run in runs if run.size in ("100", "small"))
  pairs = []
  for alike in group(found, ranked_with).values():
    sizes = group(alike, lambda cell: cell.one.size)
    if len(sizes) == 2:
      pairs.append((best(sizes["100"]), best(sizes["small"])))
  return pairs


def size_name(size: str) -> str:
  """`100` of the published table is 100 %."""
  return f"{size} %" if size.isdigit() else size


def panel_name(run: Run, runs: Iterable[Run]) -> str:
  """Its series, with the hours of data where runs of the series differ."""
  alike = {other.data_hours for other in runs if other.series == run.series}
  if len(alike) == 1:
    return run.series
  hours = f"{run.data_hours:g} h" if run.data_hours else "all data"
  return f"{run.series}, {hours}"


def count(runs: Sequence[Run], shown: Sequence[Run]) -> str:
  """Says how many are shown."""
  if len(runs) == len(shown):
    return f"All {len(runs)} runs" if len(runs) > 1 else "One run"
  return f"{len(shown)} of {len(runs)} runs"


def seeds(runs: Iterable[Run]) -> str:
  """Says how seeds are shown; "" where there is one of each."""
  if all(len(cell.runs) == 1 for cell in cells(runs)):
    return ""
  return " Of several seeds the mean is shown, with a bar from least to most."
