"""Columns of the report's tables: {name: text of a row's cell}."""

from collections.abc import Callable, Sequence
from typing import Any

from ssl_jax.budget.flops import readable
from ssl_jax.reports import crossings
from ssl_jax.reports.cells import best, cells, group, panel_name, size_name
from ssl_jax.reports.isoflop import Optimum
from ssl_jax.reports.runs import Run

NONE = "-"  # A value that is missing.

Columns = dict[str, Callable[[Any], str]]


def run_columns(price: float | None) -> Columns:
  """Returns columns that say what a run is, and what it cost."""
  return {
    "Run": lambda r: r.name,
    "Objective": lambda r: r.series,
    "Size": lambda r: size_name(r.size),
    "Params, M": lambda r: number(r.params / 1e6),
    "Frontend": lambda r: r.frontend or NONE,
    "Data, h": lambda r: f"{r.data_hours:,g}" if r.data_hours else "all",
    "Seed": lambda r: str(r.seed),
    "Updates": lambda r: f"{r.updates:,}",
    "Epochs": lambda r: number(r.epochs),
    "Audio, h": lambda r: number(r.audio_hours),
    "FLOPs": lambda r: readable(r.flops),
    "First": lambda r: _loss(r.first_loss),
    "Loss": lambda r: _loss(r.loss),
    "Best": lambda r: _loss(r.best_loss),
    "Of chance": lambda r: _loss(r.share),
    "Accuracy": lambda r: _loss(r.accuracy),
    "Devices": lambda r: str(r.devices or NONE),
    "Device": lambda r: r.device_kind or NONE,
    "Device h": lambda r: number(r.device_hours),
    "Cost, $": lambda r: _money(cost(r, price)),
    "Alarms": lambda r: ", ".join(r.alarms) or NONE,
  }


def probe_columns(runs: Sequence[Run]) -> Columns:
  """Returns columns of scores."""
  tasks = sorted({task for run in runs for task in run.probes})
  columns = run_columns(None)
  return {
    **{name: columns[name] for name in ("Run", "Objective", "Size", "FLOPs")},
    **{task: lambda r, t=task: number(r.probes.get(t)) for task in tasks},
  }


def time_columns(runs: Sequence[Run]) -> Columns:
  """Returns columns of the wall time's parts."""
  parts = dict.fromkeys(part for run in runs for part in run.seconds)
  return {
    "Run": lambda r: r.name,
    "Wall, h": lambda r: number(r.wall_hours),
    **{p: lambda r, p=p: _part(r.seconds.get(p, 0), r) for p in parts},
  }


def _part(seconds: float, run: Run) -> str:
  return f"{seconds / sum(run.seconds.values()):.1%}"


def difference_columns() -> Columns:
  """Returns columns of a `Difference`."""
  return {
    "Measure": lambda d: d.measure,
    "Better": lambda d: d.one,
    "Other": lambda d: d.other,
    "Seeds": lambda d: f"{d.seeds[0]}, {d.seeds[1]}",
    "Difference, points": lambda d: f"{100 * d.difference:+.2f}",
    "90 % interval": lambda d: (
      f"{100 * d.interval[0]:+.2f} to {100 * d.interval[1]:+.2f}"
    ),
    "p": lambda d: f"{d.p:.2g}",
    "Verdict": lambda d: "real" if d.real else "cannot be told apart",
  }


def best_rows(runs: Sequence[Run]) -> list[Run]:
  """Returns the best run of each panel and budget."""
  groups = group(cells(runs), lambda c: (panel_name(c.one, runs), c.one.budget))
  return [best(found) for found in groups.values()]


def best_columns(runs: Sequence[Run]) -> Columns:
  """Returns columns of the runs in `best_rows`."""
  return {
    "Objective": lambda c: panel_name(c.one, runs),
    "Budget": lambda c: f"{readable(c.one.budget)}FLOP",
    "Size": lambda c: size_name(c.one.size),
    "Params, M": lambda c: number(c.one.params / 1e6),
    "Seeds": lambda c: str(len(c.runs)),
    "Loss": lambda c: _loss(c.loss),
    "Of chance": lambda c: _loss((c.values("share") or [None])[0]),
    "Accuracy": lambda c: _loss((c.values("accuracy") or [None])[0]),
    "Device h, each": lambda c: number(c.one.device_hours),
  }


def optimum_columns(runs: Sequence[Run]) -> Columns:
  """Returns columns of an `Optimum`."""
  return {
    "Objective": lambda o: panel_name(o.best.one, runs),
    "Budget": lambda o: f"{readable(o.budget)}FLOP",
    "Sizes": lambda o: str(len(o.points)),
    "Lowest at": lambda o: (
      f"{size_name(o.best.one.size)} ({number(o.best.one.params / 1e6)} M)"
    ),
    "Lowest": lambda o: _loss(o.best.loss),
    "Best size, M": lambda o: (
      ("at or beyond the edge: " if o.at_edge else "") + number(o.params / 1e6)
    ),
    "90 % interval, M": _interval,
    "Fitted loss": lambda o: _loss(o.loss),
    "RMSE": lambda o: NONE if o.rmse is None else f"{o.rmse:.3f}",
  }


def _interval(optimum: Optimum) -> str:
  """In millions of parameters; beyond the measured sizes, no number is."""
  if not optimum.interval:
    return NONE
  least, most = (optimum.points[i].one.params for i in (0, -1))
  low, high = optimum.interval
  below = f"below {number(least / 1e6)}"
  above = f"above {number(most / 1e6)}"
  return (
    (number(low / 1e6) if low >= least else below)
    + " to "
    + (number(high / 1e6) if high <= most else above)
  )


def shape_columns(runs: Sequence[Run]) -> Columns:
  """Returns columns of a pair, Slim and Small."""
  return {
    "Objective": lambda pair: panel_name(pair[0].one, runs),
    "Budget": lambda pair: f"{readable(pair[0].one.budget)}FLOP",
    "Slim": lambda pair: _loss(pair[0].loss),
    "Small": lambda pair: _loss(pair[1].loss),
    "Small less Slim": lambda pair: f"{pair[1].loss - pair[0].loss:+.4f}",
  }


def cost(run: Run, price: float | None) -> float | None:
  """Returns what a run cost in dollars; None: it is not known."""
  if price is None or run.device_hours is None:
    return None
  return price * run.device_hours


def number(value: float | None) -> str:
  """Three digits, or all before the point."""
  if value is None:
    return NONE
  return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _loss(value: float | None) -> str:
  return NONE if value is None else f"{value:.4f}"


def _money(value: float | None) -> str:
  return NONE if value is None else f"{value:,.2f}"


def crossing_columns() -> Columns:
  """Returns columns of a `Crossing`."""
  return {
    "Measure": lambda c: c.measure,
    "Recipe": lambda c: c.recipe,
    "Size": lambda c: size_name(c.size),
    "Seeds": lambda c: f"{c.seeds[0]}, {c.seeds[1]}",
    "Control's FLOPs": lambda c: readable(c.budget),
    "Its score": lambda c: number(c.score),
    "Times fewer": lambda c: crossings.times(c, c.factor),
    "90 % interval": lambda c: (
      f"{crossings.times(c, c.interval[0])} to "
      f"{crossings.times(c, c.interval[1])}"
    ),
  }
