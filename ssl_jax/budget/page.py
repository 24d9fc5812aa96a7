"""The report: a page that needs nothing else, its figures, and a CSV."""

import base64
import csv
import io
import math
from pathlib import Path
from typing import Any

import jinja2

from ssl_jax.budget.canvas import Picture
from ssl_jax.budget.figures import draw_all
from ssl_jax.budget.flops import readable
from ssl_jax.budget.isoflop import Minimum
from ssl_jax.budget.runs import Row
from ssl_jax.files import write_atomically

_TEMPLATE = Path(__file__).with_name("page.html")
_TOTAL = "all"


def write(
  rows: list[Row],
  broken: dict[str, str],
  folder: Path,
  title: str,
  price: float | None,
) -> dict[str, Any]:
  """Writes report.html, runs.csv and the figures' PNGs.

  Args:
    rows: finished runs, at least one.
    broken: why others were left out, by name.
    folder: made if there is none.
    title: of the page.
    price: of a device's hour, in any currency.

  Returns:
    The report's JSON object.
  """
  pictures, minima = draw_all(rows)
  folder.mkdir(parents=True, exist_ok=True)
  for picture in pictures:
    write_atomically(folder / f"{picture.name}.png", picture.png)
  write_atomically(folder / "runs.csv", _csv(rows, price))
  page = _render(rows, broken, pictures, minima, title, price)
  write_atomically(folder / "report.html", page)
  return {
    "page": str(folder / "report.html"),
    "csv": str(folder / "runs.csv"),
    "figures": [str(folder / f"{picture.name}.png") for picture in pictures],
    "runs": len(rows),
    "broken": broken,
    "optima": [found._asdict() for found in minima],
  }


def own_hours(row: Row) -> float:
  """Device hours of training that this run added to those of its trunk."""
  return row.train_hours * row.devices * row.own_flops / max(1.0, row.flops)


def _render(
  rows: list[Row],
  broken: dict[str, str],
  pictures: list[Picture],
  minima: list[Minimum],
  title: str,
  price: float | None,
) -> str:
  tables = [_runs_table(rows, price)]
  if minima:
    tables.insert(0, _minima_table(minima))
  if any(row.probes for row in rows):
    tables.append(_probes_table(rows))
  if broken:
    tables.append(
      {
        "title": "Left out",
        "columns": ["run", "reason"],
        "text": ["run", "reason"],
        "rows": list(broken.items()),
      }
    )
  kinds = sorted({row.device_kind for row in rows} - {""})
  summary = (
    f"{len(rows)} finished runs: "
    f"{readable(sum(row.own_flops for row in rows))}FLOP of training, "
    f"{sum(map(own_hours, rows)):,.4g} device hours"
    + (f" on {', '.join(kinds)}" if kinds else "")
    + (f"; {len(broken)} left out" if broken else "")
    + "."
  )
  environment = jinja2.Environment(autoescape=True)
  shown = [
    picture._asdict() | {"base64": base64.b64encode(picture.png).decode()}
    for picture in pictures
  ]
  template = environment.from_string(_TEMPLATE.read_text("utf-8"))
  return template.render(
    title=title, summary=summary, pictures=shown, tables=tables
  )


def _runs_table(rows: list[Row], price: float | None) -> dict[str, Any]:
  columns = {
    "run": lambda r: r.name,
    "objective": lambda r: r.objective,
    "size": lambda r: r.size,
    "parameters": lambda r: readable(r.params),
    "updates": lambda r: f"{r.updates:,}",
    "FLOPs": lambda r: readable(r.flops),
    "own FLOPs": lambda r: readable(r.own_flops),
    "audio, h": lambda r: f"{r.audio_hours:,.3g}",
    "epochs": lambda r: _number(r.epochs),
    "valid loss": lambda r: f"{r.loss:.4f}",
    "of chance": lambda r: _number(r.main / (r.chance or math.nan)),
    "accuracy": lambda r: _number(r.accuracy),
    "device h": lambda r: f"{own_hours(r):.3g}",
    "alarms": lambda r: ", ".join(r.alarms),
  }
  if not any(row.alarms for row in rows):
    del columns["alarms"]
  if price is not None:
    columns["cost"] = lambda r: f"{own_hours(r) * price:,.2f}"
  body = [[value(row) for value in columns.values()] for row in rows]
  hours = sum(map(own_hours, rows))
  total = dict.fromkeys(columns, "") | {
    "run": _TOTAL,
    "own FLOPs": readable(sum(row.own_flops for row in rows)),
    "device h": f"{hours:,.4g}",
  }
  if price is not None:
    total["cost"] = f"{hours * price:,.2f}"
  return {
    "title": "Runs and what they cost",
    "columns": list(columns),
    "text": ["run", "objective", "size", "alarms"],
    "rows": [*body, list(total.values())],
    "total": _TOTAL,
    "note": "FLOPs are of training, as logged: padding counts. Own FLOPs and "
    "device hours leave out updates shared with a longer run, which are "
    "counted there.",
  }


def _minima_table(minima: list[Minimum]) -> dict[str, Any]:
  def interval(found: Minimum) -> str:
    if found.edge:
      return "at or beyond the measured sizes"
    if not found.interval:
      return "none: only three sizes"
    return " to ".join(map(readable, found.interval))

  return {
    "title": "Best size of each budget",
    "columns": ["objective", "budget", "parameters", "90 % interval", "loss"],
    "text": ["objective"],
    "rows": [
      [
        found.objective,
        f"{readable(found.budget)}FLOP",
        readable(found.params),
        interval(found),
        f"{found.loss:.4f}",
      ]
      for found in minima
    ],
  }


def _probes_table(rows: list[Row]) -> dict[str, Any]:
  names = sorted({name for row in rows for name in row.probes})
  return {
    "title": "Probe scores",
    "columns": ["run", *names],
    "text": ["run"],
    "rows": [
      [row.name, *(_number(row.probes.get(n, math.nan)) for n in names)]
      for row in rows
      if row.probes
    ],
  }


def _number(value: float) -> str:
  return f"{value:.3g}" if math.isfinite(value) else ""


def _csv(rows: list[Row], price: float | None) -> str:
  probes = sorted({name for row in rows for name in row.probes})
  fields = [f for f in Row._fields if f not in ("alarms", "probes", "curve")]
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow([*fields, "alarms", "own_device_hours", "cost", *probes])
  for row in rows:
    hours = own_hours(row)
    writer.writerow(
      [getattr(row, field) for field in fields]
      + [" ".join(row.alarms), hours, "" if price is None else hours * price]
      + [row.probes.get(name, "") for name in probes]
    )
  return text.getvalue()
