"""The report's figures of loss and compute, each where the runs support it."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ssl_jax.budget.flops import readable
from ssl_jax.reports import comparisons, style
from ssl_jax.reports.cells import (
  cells,
  count,
  group,
  panel_name,
  ranked_with,
  seeds,
  size_name,
)
from ssl_jax.reports.isoflop import Optimum
from ssl_jax.reports.runs import Run
from ssl_jax.reports.style import DARK, FLOPS, GREY, LIGHT, LOSS, PARAMS, line


def draw(runs: Sequence[Run], optima: Sequence[Optimum]) -> list[style.Drawn]:
  """Draws every figure that the runs support."""
  with matplotlib.rc_context(style.STYLE):
    made = [
      _isoflop(runs, optima),
      _frontier(runs),
      _loss_over_flops(runs),
      _share_over_flops(runs),
      comparisons.objectives(runs),
      comparisons.shapes(runs),
      comparisons.hours(runs),
      comparisons.race(runs),
      comparisons.probes(runs),
    ]
    return [style.export(*figure) for figure in made if figure]


def _isoflop(
  runs: Sequence[Run], optima: Sequence[Optimum]
) -> style.Made | None:
  if not optima:
    return None
  looks = style.looks(sorted({found.budget for found in optima}))
  groups = group(optima, lambda found: panel_name(found.points[0].one, runs))
  figure, all_axes = style.panels(list(groups), PARAMS, LOSS)
  others = False
  for axes, here in zip(all_axes, groups.values()):
    for found in here:
      colour, marker = looks[found.budget]
      params = [cell.one.params for cell in found.points]
      sizes = np.geomspace(params[0], params[-1], 200)
      dashes = "-" if len(params) > 3 else ":"
      axes.plot(sizes, found.curve(sizes), dashes, color=colour)
      for cell in cells(runs):
        if ranked_with(cell) == ranked_with(found.points[0]):
          fitted = cell in found.points
          others |= not fitted
          values = cell.values("loss")
          style.point(axes, cell.one.params, values, marker, colour, fitted)
      if not found.at_edge:
        _mark(axes, found, colour)
    style.log_x(axes, style.plain, 0.5)
  handles = style.entries(looks, [f"{readable(b)}FLOP" for b in looks])
  if not all(found.at_edge for found in optima):
    handles.append(line("minimum", color=GREY, ls="", marker="*", ms=10))
  if any(found.interval for found in optima):
    handles.append(line("its 90 % interval", color=GREY, lw=5, alpha=0.5))
  if others:
    handles.append(
      line("not fitted", color=GREY, ls="", marker="o", fillstyle="none")
    )
  style.legend(figure, handles)
  fitted = [run for o in optima for cell in o.points for run in cell.runs]
  edges = sum(found.at_edge for found in optima)
  caption = (
    "Validation loss over model size at equal FLOPs, and parabolas in the "
    f"logarithm of the parameters. {count(runs, fitted)} are fitted: those of "
    "budgets with three sizes or more, the best of each size."
  )
  if any(run.size == "small" for run in runs):
    caption += " Small is of another shape and left out of the fits."
  if any(len(found.points) == 3 for found in optima):
    caption += (
      " A dotted parabola goes through just three points: nothing is known of "
      "its error."
    )
  if edges:
    caption += (
      f" {edges} of {len(optima)} minima are at or beyond the edge of the "
      "sizes, and not marked."
    )
  title = "The best size of a budget"
  return figure, "isoflop", title, caption + seeds(runs)


def _mark(axes: Axes, found: Optimum, colour: str) -> None:
  if found.interval:
    params = [cell.one.params for cell in found.points]
    ends = np.clip(found.interval, params[0], params[-1])
    # Below the parabola, where the star does not hide it.
    low, high = axes.get_ylim()
    below = found.loss - 0.045 * (high - low)
    axes.plot(
      ends,
      (below, below),
      color=colour,
      linewidth=5,
      alpha=0.5,
      solid_capstyle="butt",
    )
  axes.plot(
    found.params,
    found.loss,
    "*",
    color=colour,
    markersize=12,
    markeredgecolor="white",
    markeredgewidth=0.8,
    zorder=5,
  )


def _frontier(runs: Sequence[Run]) -> style.Made | None:
  shown = _with_curve(runs)
  groups = group(shown, lambda run: panel_name(run, shown))
  groups = {name: here for name, here in groups.items() if len(here) > 2}
  if not groups:
    return None
  shown = [run for here in groups.values() for run in here]
  colours = _size_colours(shown)
  figure, all_axes = style.panels(list(groups), FLOPS, LOSS)
  for axes, here in zip(all_axes, groups.values()):
    for run in here:
      _curve(axes, run, LIGHT, 1)
      axes.plot(run.flops, run.loss, "o", color=colours[run.size], zorder=4)
    points = sorted(x[:2] for run in here for x in run.curve if x[0] > 0)
    flops, losses = np.array(points).T
    lowest = np.minimum.accumulate(losses)
    axes.step(flops, lowest, where="post", color=DARK, zorder=3)
    # The first fall, the same in every run, would leave no room for the ends.
    bottom, top = lowest[-1], max(run.loss for run in here)
    margin = max(top - bottom, 0.2 * (losses.max() - bottom))
    axes.set_ylim(bottom - 0.12 * margin, top + 0.7 * margin)
    inside = flops[losses < top + 0.7 * margin]
    axes.set_xlim(0.8 * inside.min(), 1.2 * flops.max())
    style.log_x(axes, style.power)
  handles = [line("lowest so far", color=DARK), line("each run", color=LIGHT)]
  dots = _size_handles(colours, shown, ls="", marker="o")
  style.legend(figure, handles + dots)
  return (
    figure,
    "frontier",
    "What compute buys",
    "The lowest validation loss that any run had reached after so many FLOPs. "
    f"{count(runs, shown)}; dots are their ends. A run on its way has not "
    "decayed its learning rate yet: one of just that length would have reached "
    "less.",
  )


def _loss_over_flops(runs: Sequence[Run]) -> style.Made | None:
  shown = _with_curve(runs)
  if not shown:
    return None
  colours = _size_colours(shown)
  by_series = group(shown, lambda run: run.series)
  figure, all_axes = style.panels(list(by_series), FLOPS, LOSS)
  for axes, here in zip(all_axes, by_series.values()):
    for run in here:
      _curve(axes, run, colours[run.size], 1)
    style.log_x(axes, style.power)
  style.legend(figure, _size_handles(colours, shown))
  return (
    figure,
    "loss_over_flops",
    "Loss over compute",
    "Validation loss over the training FLOPs spent. "
    f"{count(runs, shown)}, a line each, a dot at its end.",
  )


def _share_over_flops(runs: Sequence[Run]) -> style.Made | None:
  shown = [run for run in _with_curve(runs) if run.share]
  series = list(group(shown, lambda run: run.series))
  if len(series) < 2:
    return None
  figure, (axes,) = style.panels([""], FLOPS, "main term of the loss / chance")
  colours = style.colours(series)
  for run in shown:
    _curve(axes, run, colours[run.series], 2)
  axes.axhline(1, color=GREY, linestyle="--", linewidth=1)
  style.log_x(axes, style.power)
  handles = [line(name, color=colour) for name, colour in colours.items()]
  chance = line("chance", color=GREY, linestyle="--")
  style.legend(figure, [*handles, chance])
  return (
    figure,
    "share_over_flops",
    "How far from guessing",
    "Main term of the validation loss as a share of its value at chance, over "
    f"the FLOPs spent. {count(runs, shown)}, a line each, a dot at its end. "
    "Losses of different objectives do not compare; their shares of chance are "
    "a rough guide, no ranking.",
  )


def _with_curve(runs: Sequence[Run]) -> list[Run]:
  return [run for run in runs if any(flops > 0 for flops, _, _ in run.curve)]


def _curve(axes: Axes, run: Run, colour: str, value: int) -> None:
  """Draws column `value` of a run's curve, and its end."""
  points = np.array([point for point in run.curve if point[0] > 0])
  axes.plot(points[:, 0], points[:, value], color=colour, linewidth=0.9)
  axes.plot(points[-1, 0], points[-1, value], "o", color=colour, markersize=4)


def _size_colours(runs: Sequence[Run]) -> dict[str, str]:
  ordered = sorted(runs, key=lambda run: run.params)
  sizes = list(group(ordered, lambda run: run.size))
  return dict(zip(sizes, style.ramp(len(sizes))))


def _size_handles(
  colours: dict[str, str], runs: Sequence[Run], **style: str
) -> list[Line2D]:
  params = {run.size: run.params for run in reversed(runs)}
  return [
    line(f"{size_name(size)} ({readable(params[size])})", color=colour, **style)
    for size, colour in colours.items()
  ]
