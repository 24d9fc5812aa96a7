"""The look of the report's figures: panels, axes, points, legends, files."""

import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from ssl_jax.budget.flops import readable

# Okabe and Ito's colours, told apart by the colour-blind too.
COLOURS = (
  "#0072B2",
  "#D55E00",
  "#009E73",
  "#CC79A7",
  "#E69F00",
  "#56B4E9",
  "#000000",
)
MARKERS = "osD^vPX"
GREY, LIGHT, DARK = "#8a8a8a", "#d0d0d0", "#222222"
STYLE = {
  "font.size": 8.5,
  "axes.titlesize": 9,
  "axes.titleweight": "bold",
  "axes.titlelocation": "left",
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.edgecolor": "#444444",
  "axes.linewidth": 0.7,
  "axes.grid": True,
  "axes.axisbelow": True,
  "grid.color": "#e4e4e4",
  "grid.linewidth": 0.6,
  "xtick.color": "#444444",
  "ytick.color": "#444444",
  "xtick.labelcolor": "black",
  "ytick.labelcolor": "black",
  "legend.frameon": False,
  "legend.title_fontsize": 8.5,
  "lines.linewidth": 1.3,
  "lines.markersize": 5,
  "errorbar.capsize": 2.5,
  "svg.hashsalt": "ssl_jax",  # The same runs: the same file.
}
LOSS, PARAMS, FLOPS = "validation loss, nats", "parameters", "training FLOPs"
_DPI = 200


Made = tuple[Figure, str, str, str]  # With file name, title and caption.


class Drawn(NamedTuple):
  """A figure: its files' stem, words about it, its files, inches of width."""

  name: str
  title: str
  caption: str
  png: bytes
  svg: bytes
  width: float


def export(figure: Figure, name: str, title: str, caption: str) -> Drawn:
  """Renders a figure."""
  FigureCanvasAgg(figure)
  files = {}
  for kind, metadata in (("png", {}), ("svg", {"Date": None})):
    content = io.BytesIO()
    figure.savefig(content, format=kind, dpi=_DPI, metadata=metadata)
    files[kind] = content.getvalue()
  width = float(figure.get_size_inches()[0])
  return Drawn(name, title, caption, files["png"], files["svg"], width)


def panels(
  titles: Sequence[str], x: str, y: str, columns: int = 0
) -> tuple[Figure, list[Axes]]:
  """A panel a title, at most three side by side; the axes' names once."""
  columns = columns or (2 if len(titles) == 4 else min(3, len(titles)))
  rows = -(-len(titles) // columns)
  wide = {1: 4.3, 2: 3.4}.get(columns, 2.75)
  high = {1: 3.1, 2: 2.7}.get(columns, 2.4)
  figure = Figure(
    figsize=(wide * columns + 0.6, high * rows + 0.7), layout="constrained"
  )
  figure.get_layout_engine().set(h_pad=0.08)
  grid = figure.subplots(rows, columns, squeeze=False)
  for axes in grid.flat[len(titles) :]:
    axes.remove()
  all_axes = list(grid.flat[: len(titles)])
  for i, (axes, title) in enumerate(zip(all_axes, titles)):
    axes.set_title(title)
    axes.set_xlabel(x)
    if i % columns == 0:
      axes.set_ylabel(y)
  return figure, all_axes


def log_x(
  axes: Axes, text: Callable[[float, Any], str], inches: float = 0.75
) -> None:
  """A logarithmic x axis, with ticks as dense as their labels let them be.

  Args:
    axes: with everything drawn.
    text: of a tick.
    inches: that a label may take.
  """
  axes.set_xscale("log")
  low, high = np.log10(axes.get_xlim())
  room = inches / axes.get_figure().get_figwidth() * axes.get_gridspec().ncols
  for steps in (range(1, 10), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
    ticks = np.add.outer(np.arange(-9, 30), np.log10(steps)).ravel()
    ticks = ticks[(low <= ticks) & (ticks <= high)]
    if len(ticks) < 2 or np.diff(ticks).min() > room * (high - low):
      break
  axes.xaxis.set_major_locator(FixedLocator(10**ticks))
  axes.xaxis.set_major_formatter(FuncFormatter(text))
  axes.xaxis.set_minor_formatter(NullFormatter())


def power(x: float, _: Any = None) -> str:
  """A count of FLOPs, as in 2 x 10^18."""
  factor, exponent = f"{x:.0e}".split("e")
  factor = "" if factor == "1" else rf"{factor}\!\cdot\!"
  return f"${factor}10^{{{int(exponent)}}}$"


def plain(x: float, _: Any = None) -> str:
  """A count of parameters, as in 20 M."""
  return readable(x).strip()


def point(
  axes: Axes,
  x: float,
  values: tuple[float, float, float],
  marker: str,
  colour: Any,
  filled: bool = True,
) -> None:
  """A mean, with a bar from the lowest to the highest."""
  mean, low, high = values
  axes.errorbar(
    x,
    mean,
    [[mean - low], [high - mean]] if high > low else None,
    fmt=marker,
    color=colour,
    fillstyle="full" if filled else "none",
    zorder=3,
  )


def line(label: str, **style: Any) -> Line2D:
  """An entry of a legend."""
  return Line2D([], [], label=label, **style)


def legend(figure: Figure, handles: Sequence[Line2D], title: str = "") -> None:
  """Outside the panels: beside a single one or two, below more."""
  wide = figure.get_size_inches()[0] > 8
  longest = max(len(str(handle.get_label())) for handle in handles)
  columns = max(1, min(len(handles), 120 // (longest + 7))) if wide else 1
  figure.legend(
    handles=handles,
    loc="outside lower center" if wide else "outside right upper",
    ncols=columns,
    title=title or None,
    alignment="left",
  )
  if not wide:
    width, height = figure.get_size_inches()
    figure.set_size_inches(
      width + 0.55 + 0.068 * longest,
      max(height, 0.4 + 0.175 * (len(handles) + bool(title))),
    )


def ramp(count: int) -> list[Any]:
  """Colours of so many ordered things, dark to light."""
  # The lightest of the map cannot be seen on white.
  last = 0.75 if count < 4 else 0.88
  return list(matplotlib.colormaps["viridis"](np.linspace(0.05, last, count)))


def looks(ordered: Sequence[Any]) -> dict[Any, tuple[Any, str]]:
  """{thing: (colour, marker)}."""
  colours = ramp(len(ordered))
  return {
    thing: (colours[i], MARKERS[i % len(MARKERS)])
    for i, thing in enumerate(ordered)
  }


def entries(
  looks: dict[Any, tuple[Any, str]], names: Sequence[str]
) -> list[Line2D]:
  """A legend of what `looks` made."""
  return [
    line(name, color=colour, marker=marker)
    for name, (colour, marker) in zip(names, looks.values())
  ]


def colours(names: Sequence[str]) -> dict[str, str]:
  """A colour for each of things without an order."""
  return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
