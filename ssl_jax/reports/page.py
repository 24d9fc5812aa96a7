"""The report: a page that needs nothing else, its figures, and a CSV."""

import base64
import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from ssl_jax.budget.flops import readable
from ssl_jax.files import write_atomically
from ssl_jax.reports import figures, tables
from ssl_jax.reports.cells import (
  best,
  cells,
  group,
  panel_name,
  size_name,
  slim_and_small,
)
from ssl_jax.reports.crossings import Crossing, crossings
from ssl_jax.reports.differences import Difference, differences
from ssl_jax.reports.isoflop import Optimum, optima
from ssl_jax.reports.runs import Run
from ssl_jax.reports.style import Drawn

_TEMPLATE = Path(__file__).with_name("page.html")
# Columns of words, set flush left.
_TEXT = "Run,Objective,Size,Frontend,Device,Alarms,Lowest at,Measure,Better"
_TEXT = {*_TEXT.split(","), "Other", "Verdict", "Recipe"}
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
  compared, crossed = differences(runs), crossings(runs)
  page = _render(runs, broken, found, compared, crossed, drawn, title, price)
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
    "crossings": [each._asdict() for each in crossed],
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
      + [tables.cost(run, price), " ".join(run.alarms)]
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
  crossed: Sequence[Crossing],
  drawn: Sequence[Drawn],
  title: str,
  price: float | None,
) -> str:
  columns, same = _split(tables.run_columns(price), runs)
  made = {
    "best": _table(tables.best_columns(runs), tables.best_rows(runs)),
    "optima": _table(tables.optimum_columns(runs), found),
    "probes": _table(tables.probe_columns(runs), [r for r in runs if r.probes]),
    "crossings": _table(tables.crossing_columns(), crossed),
    "differences": _table(tables.difference_columns(), compared),
    "time": _table(tables.time_columns(runs), [r for r in runs if r.seconds]),
    "shapes": _table(tables.shape_columns(runs), slim_and_small(runs)),
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
    tables=made,
    runs=_table(columns, runs),
    same=same,
    broken=broken,
    price=price,
    branches=any(run.trunk_flops for run in runs),
    text=_TEXT,
  )


def _table(columns: tables.Columns, rows: Sequence[Any]) -> dict[str, Any]:
  """Names and cells; columns in which no row has anything are left out."""
  cells = {name: [text(row) for row in rows] for name, text in columns.items()}
  kept = {name: c for name, c in cells.items() if {*c} - {tables.NONE, ""}}
  return {"columns": list(kept), "rows": list(zip(*kept.values()))}


def _split(
  columns: tables.Columns, runs: Sequence[Run]
) -> tuple[tables.Columns, dict[str, str]]:
  """Columns of a table, and what is the same in all rows, to be said once."""
  constant = ("Frontend", "Data, h", "Seed", "Devices", "Device")
  same = {
    name: columns[name](runs[0])
    for name in constant
    if len({columns[name](run) for run in runs}) == 1
  }
  left = {name: text for name, text in columns.items() if name not in same}
  return left, {
    name: text for name, text in same.items() if text != tables.NONE
  }


def _facts(runs: Sequence[Run], price: float | None) -> str:
  hours = sum(run.device_hours or 0 for run in runs)
  kinds = sorted({run.device_kind for run in runs} - {""})
  parts = [
    f"{len(runs)} finished run{'s' * (len(runs) > 1)}",
    f"{readable(sum(run.own_flops for run in runs))}FLOP of training",
    f"{tables.number(sum(run.audio_hours for run in runs))} h of audio heard",
    f"{tables.number(hours)} device hours"
    + f" ({', '.join(kinds)})" * bool(kinds),
  ]
  if price is not None:
    parts.append(f"${price * hours:,.2f}")
  return ", ".join(parts)
