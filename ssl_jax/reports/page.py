"""The report: a page that needs nothing else, its figures, and a CSV."""

import base64
import csv
import dataclasses
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2

from ssl_jax.budget.flops import readable
from ssl_jax.files import write_atomically
from ssl_jax.reports import figures
from ssl_jax.reports.cells import (
  best,
  cells,
  group,
  panel_name,
  size_name,
  slim_and_small,
)
from ssl_jax.reports.differences import Difference, differences
from ssl_jax.reports.isoflop import Optimum, optima
from ssl_jax.reports.runs import Run
from ssl_jax.reports.style import Drawn

_TEMPLATE = Path(__file__).with_name("page.html")
_NONE = "-"  # A value that is missing.
# Columns of words, set flush left.
_TEXT = "Run,Objective,Size,Frontend,Device,Alarms,Lowest at,Measure,Better"
_TEXT = {*_TEXT.split(","), "Other", "Verdict"}
_IN_CSV_LAST = ("recipe", "curve", "probes", "measured", "alarms", "seconds")


def write(
  runs: Sequence[Run],
  broken: dict[str, str],
  out: Path,
  title: str,
  price: float | None,
) -> dict[str, Any]:
  """Writes report.html, runs.csv and the figures, each as PNG and SVG.

  Args:
    runs: finished ones, at least one.
    broken: {workdir: why it is left out}.
    out: folder; made if there is none.
    title: of the page.
    price: of a device's hour, in dollars.

  Returns:
    The report's JSON object.
  """
  found = optima(runs)
  drawn = figures.draw(runs, found)
  compared = differences(runs)
  page = _render(runs, broken, found, compared, drawn, title, price)
  out.mkdir(parents=True, exist_ok=True)
  for figure in drawn:
    write_atomically(out / f"{figure.name}.png", figure.png)
    write_atomically(out / f"{figure.name}.svg", figure.svg)
  write_atomically(out / "runs.csv", to_csv(runs, price))
  write_atomically(out / "report.html", page)
  return {
    "page": str(out / "report.html"),
    "runs": len(runs),
    "broken": [{"run": run, "reason": why} for run, why in broken.items()],
    "csv": str(out / "runs.csv"),
    "figures": [str(out / f"{figure.name}.png") for figure in drawn],
    "optima": [
      {
        "objective": optimum.objective,
        "series": optimum.series,
        "data_hours": optimum.data_hours,
        "budget": optimum.budget,
        "params": optimum.params,
        "interval": optimum.interval,
        "at_edge": optimum.at_edge,
      }
      for optimum in found
    ],
    "differences": [each._asdict() for each in compared],
  }


def to_csv(runs: Sequence[Run], price: float | None) -> str:
  """A line a run, numbers unrounded; losses in nats."""
  names = [f.name for f in dataclasses.fields(Run)]
  names = [name for name in names if name not in _IN_CSV_LAST]
  names += ["share", "own_flops", "device_hours"]
  tasks = sorted({task for run in runs for task in run.probes})
  lines = io.StringIO()
  writer = csv.writer(lines, lineterminator="\n")
  writer.writerow([*names, "cost", "alarms", *(f"probe {t}" for t in tasks)])
  for run in runs:
    writer.writerow(
      [getattr(run, name) for name in names]
      + [_cost(run, price), " ".join(run.alarms)]
      + [run.probes.get(task) for task in tasks]
    )
  return lines.getvalue()


def summary(runs: Sequence[Run], broken: dict[str, str]) -> str:
  """Returns what is reported, as a short table for a terminal."""
  lines = [f"{'best of':34}{'size':>10}{'budget':>13}{'valid loss':>12}"]
  for name, own in group(runs, lambda run: panel_name(run, runs)).items():
    run = best(cells(own)).one
    lines.append(
      f"{name[:33]:34}{size_name(run.size):>10}"
      f"{readable(run.budget) + 'FLOP':>13}{run.loss:>12.4f}"
    )
  lines.append(_facts(runs, None) + ".")
  lines += [f"left out: {run}: {why}" for run, why in broken.items()]
  return "\n".join(lines)


def _render(
  runs: Sequence[Run],
  broken: dict[str, str],
  found: Sequence[Optimum],
  compared: Sequence[Difference],
  drawn: Sequence[Drawn],
  title: str,
  price: float | None,
) -> str:
  columns, same = _split(_run_columns(price), runs)
  tables = {
    "best": _table(_best_columns(runs), _best_rows(runs)),
    "optima": _table(_optimum_columns(runs), found),
    "probes": _table(_probe_columns(runs), [r for r in runs if r.probes]),
    "differences": _table(_difference_columns(), compared),
    "time": _table(_time_columns(runs), [r for r in runs if r.seconds]),
    "shapes": _table(_shape_columns(runs), slim_and_small(runs)),
  }
  environment = jinja2.Environment(
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
  )
  template = environment.from_string(_TEMPLATE.read_text("utf-8"))
  return template.render(
    title=title,
    facts=_facts(runs, price),
    figures=[
      figure._asdict() | {"data": base64.b64encode(figure.svg).decode()}
      for figure in drawn
    ],
    tables=tables,
    runs=_table(columns, runs),
    same=same,
    broken=broken,
    price=price,
    branches=any(run.trunk_flops for run in runs),
    text=_TEXT,
  )


_Columns = dict[str, Callable[[Any], str]]


def _table(columns: _Columns, rows: Sequence[Any]) -> dict[str, Any]:
  """Names and cells; columns in which no row has anything are left out."""
  cells = {name: [text(row) for row in rows] for name, text in columns.items()}
  kept = {name: c for name, c in cells.items() if {*c} - {_NONE, ""}}
  return {"columns": list(kept), "rows": list(zip(*kept.values()))}


def _split(
  columns: _Columns, runs: Sequence[Run]
) -> tuple[_Columns, dict[str, str]]:
  """Columns of a table, and what is the same in all rows, to be said once."""
  constant = ("Frontend", "Data, h", "Seed", "Devices", "Device")
  same = {
    name: columns[name](runs[0])
    for name in constant
    if len({columns[name](run) for run in runs}) == 1
  }
  left = {name: text for name, text in columns.items() if name not in same}
  return left, {name: text for name, text in same.items() if text != _NONE}


def _run_columns(price: float | None) -> _Columns:
  return {
    "Run": lambda r: r.name,
    "Objective": lambda r: r.series,
    "Size": lambda r: size_name(r.size),
    "Params, M": lambda r: _number(r.params / 1e6),
    "Frontend": lambda r: r.frontend or _NONE,
    "Data, h": lambda r: f"{r.data_hours:,g}" if r.data_hours else "all",
    "Seed": lambda r: str(r.seed),
    "Updates": lambda r: f"{r.updates:,}",
    "Epochs": lambda r: _number(r.epochs),
    "Audio, h": lambda r: _number(r.audio_hours),
    "FLOPs": lambda r: readable(r.flops),
    "First": lambda r: _loss(r.first_loss),
    "Loss": lambda r: _loss(r.loss),
    "Best": lambda r: _loss(r.best_loss),
    "Of chance": lambda r: _loss(r.share),
    "Accuracy": lambda r: _loss(r.accuracy),
    "Devices": lambda r: str(r.devices or _NONE),
    "Device": lambda r: r.device_kind or _NONE,
    "Device h": lambda r: _number(r.device_hours),
    "Cost, $": lambda r: _money(_cost(r, price)),
    "Alarms": lambda r: ", ".join(r.alarms) or _NONE,
  }


def _probe_columns(runs: Sequence[Run]) -> _Columns:
  tasks = sorted({task for run in runs for task in run.probes})
  columns = _run_columns(None)
  return {
    **{name: columns[name] for name in ("Run", "Objective", "Size", "FLOPs")},
    **{task: lambda r, t=task: _number(r.probes.get(t)) for task in tasks},
  }


def _time_columns(runs: Sequence[Run]) -> _Columns:
  parts = dict.fromkeys(part for run in runs for part in run.seconds)
  return {
    "Run": lambda r: r.name,
    "Wall, h": lambda r: _number(r.wall_hours),
    **{p: lambda r, p=p: _part(r.seconds.get(p, 0), r) for p in parts},
  }


def _part(seconds: float, run: Run) -> str:
  return f"{seconds / sum(run.seconds.values()):.1%}"


def _difference_columns() -> _Columns:
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


def _best_rows(runs: Sequence[Run]) -> list[Run]:
  groups = group(cells(runs), lambda c: (panel_name(c.one, runs), c.one.budget))
  return [best(found) for found in groups.values()]


def _best_columns(runs: Sequence[Run]) -> _Columns:
  return {
    "Objective": lambda c: panel_name(c.one, runs),
    "Budget": lambda c: f"{readable(c.one.budget)}FLOP",
    "Size": lambda c: size_name(c.one.size),
    "Params, M": lambda c: _number(c.one.params / 1e6),
    "Seeds": lambda c: str(len(c.runs)),
    "Loss": lambda c: _loss(c.loss),
    "Of chance": lambda c: _loss((c.values("share") or [None])[0]),
    "Accuracy": lambda c: _loss((c.values("accuracy") or [None])[0]),
    "Device h, each": lambda c: _number(c.one.device_hours),
  }


def _optimum_columns(runs: Sequence[Run]) -> _Columns:
  return {
    "Objective": lambda o: panel_name(o.best.one, runs),
    "Budget": lambda o: f"{readable(o.budget)}FLOP",
    "Sizes": lambda o: str(len(o.points)),
    "Lowest at": lambda o: (
      f"{size_name(o.best.one.size)} ({_number(o.best.one.params / 1e6)} M)"
    ),
    "Lowest": lambda o: _loss(o.best.loss),
    "Best size, M": lambda o: (
      ("at or beyond the edge: " if o.at_edge else "") + _number(o.params / 1e6)
    ),
    "90 % interval, M": _interval,
    "Fitted loss": lambda o: _loss(o.loss),
    "RMSE": lambda o: _NONE if o.rmse is None else f"{o.rmse:.3f}",
  }


def _interval(optimum: Optimum) -> str:
  """In millions of parameters; beyond the measured sizes, no number is."""
  if not optimum.interval:
    return _NONE
  least, most = (optimum.points[i].one.params for i in (0, -1))
  low, high = optimum.interval
  below = f"below {_number(least / 1e6)}"
  above = f"above {_number(most / 1e6)}"
  return (
    (_number(low / 1e6) if low >= least else below)
    + " to "
    + (_number(high / 1e6) if high <= most else above)
  )


def _shape_columns(runs: Sequence[Run]) -> _Columns:
  return {
    "Objective": lambda pair: panel_name(pair[0].one, runs),
    "Budget": lambda pair: f"{readable(pair[0].one.budget)}FLOP",
    "Slim": lambda pair: _loss(pair[0].loss),
    "Small": lambda pair: _loss(pair[1].loss),
    "Small less Slim": lambda pair: f"{pair[1].loss - pair[0].loss:+.4f}",
  }


def _facts(runs: Sequence[Run], price: float | None) -> str:
  hours = sum(run.device_hours or 0 for run in runs)
  kinds = sorted({run.device_kind for run in runs} - {""})
  parts = [
    f"{len(runs)} finished run{'s' * (len(runs) > 1)}",
    f"{readable(sum(run.own_flops for run in runs))}FLOP of training",
    f"{_number(sum(run.audio_hours for run in runs))} h of audio heard",
    f"{_number(hours)} device hours" + f" ({', '.join(kinds)})" * bool(kinds),
  ]
  if price is not None:
    parts.append(f"${price * hours:,.2f}")
  return ", ".join(parts)


def _cost(run: Run, price: float | None) -> float | None:
  if price is None or run.device_hours is None:
    return None
  return price * run.device_hours


def _number(value: float | None) -> str:
  """Three digits, or all before the point."""
  if value is None:
    return _NONE
  return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _loss(value: float | None) -> str:
  return _NONE if value is None else f"{value:.4f}"


def _money(value: float | None) -> str:
  return _NONE if value is None else f"{value:,.2f}"
