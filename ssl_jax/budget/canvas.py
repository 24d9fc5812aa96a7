"""Panels of one look, and pictures made of them."""

import io
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

# Okabe and Ito's, told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DPI = 160


class Picture(NamedTuple):
  """A figure: file name, title, what is shown, PNG, width in inches."""

  name: str
  title: str
  caption: str
  png: bytes
  width: float


def make_panels(count: int) -> tuple[Figure, list[Axes]]:
  """A figure of panels side by side."""
  figure = Figure(figsize=(1.2 + 4.6 * count, 3.8), layout="constrained")
  axes = figure.subplots(1, count, squeeze=False)[0]
  for panel in axes:
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(color="#dddddd", linewidth=0.6)
    panel.set_axisbelow(True)
  return figure, list(axes)


def log_x(panel: Axes) -> None:
  """Counts, such as 20M, in place of powers of ten."""
  panel.set_xscale("log")
  panel.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
  panel.xaxis.set_major_formatter(EngFormatter(sep=""))
  panel.xaxis.set_minor_formatter(NullFormatter())


def draw_bars(panel: Axes, names: tuple, values: dict[str, tuple]) -> None:
  """A group a name, a bar of it for each of `values`."""
  width = 0.8 / len(values)
  for i, (label, heights) in enumerate(values.items()):
    places = np.arange(len(names)) + width * (i - (len(values) - 1) / 2)
    bars = panel.bar(
      places, heights, 0.92 * width, color=COLOURS[i], label=label
    )
    panel.bar_label(bars, fmt="%.3g", fontsize=8, padding=2)
  panel.set_xticks(np.arange(len(names)), names, fontsize=9)
  panel.grid(visible=False, axis="x")
  panel.margins(y=0.18)
  if len(values) > 1:
    panel.legend(frameon=False, fontsize=8, ncols=len(values))


def make_picture(
  figure: Figure, name: str, title: str, caption: str
) -> Picture:
  """Renders a figure."""
  png = io.BytesIO()
  FigureCanvasAgg(figure)
  figure.savefig(png, format="png", dpi=_DPI)
  return Picture(name, title, caption, png.getvalue(), figure.get_figwidth())
