"""The report's figures of one thing against another, at equal FLOPs."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from ssl_jax.budget.flops import readable
from ssl_jax.reports import crossings, style
from ssl_jax.reports.cells import (
  Cell,
  best,
  cells,
  count,
  group,
  panel_name,
  seeds,
  size_name,
  slim_and_small,
)
from ssl_jax.reports.differences import measures
from ssl_jax.reports.runs import Run
from ssl_jax.reports.style import FLOPS, GREY, LOSS, MARKERS, PARAMS, line

_MOST_BUDGETS = 3
_MEASURES = {"share": "main term / chance", "accuracy": "masked accuracy"}


def objectives(runs: Sequence[Run]) -> style.Made | None:
  """Bars of share of chance, and accuracy, a row of panels a budget."""
  groups = group(
    cells(runs), lambda c: (c.one.budget, c.one.size, c.one.data_hours)
  )
  several = [
    found
    for found in groups.values()
    if len({cell.one.objective for cell in found}) > 1
    and any(cell.values("share") for cell in found)
  ]
  if not several:
    return None
  usual = Counter(found[0].one.data_hours for found in several)
  data_hours = usual.most_common(1)[0][0]
  several = [s for s in several if s[0].one.data_hours == data_hours]
  by_budget = group(several, lambda found: found[0].one.budget)
  shown = list(by_budget.items())[-_MOST_BUDGETS:]
  measures = {
    name: text
    for name, text in _MEASURES.items()
    if any(c.values(name) for _, alike in shown for s in alike for c in s)
  }
  colours = style.colours(list(group(runs, lambda run: run.series)))
  figure, all_axes = style.panels(
    [
      f"{readable(budget)}FLOP: {text}"
      for budget, _ in shown
      for text in measures.values()
    ],
    "size, % of Slim, or name",
    "",
    len(measures),
  )
  for i, axes in enumerate(all_axes):
    found = shown[i // len(measures)][1]
    _bars(axes, found, list(measures)[i % len(measures)], colours)
  style.legend(
    figure,
    [
      line(name, color=colour, ls="", marker="s", ms=7)
      for name, colour in colours.items()
    ],
  )
  drawn = [r for _, found in shown for s in found for c in s for r in c.runs]
  left_out = len(by_budget) - len(shown)
  return (
    figure,
    "objectives",
    "Objectives at equal compute",
    "Main term of the validation loss as a share of chance (dashed; lower is "
    "further from guessing), and accuracy at masked frames where there is one, "
    "of sizes that several objectives trained for the same FLOPs"
    + (f" on {data_hours:g} h of data" if data_hours else "")
    + f". {count(runs, drawn)}. Their tasks differ: what the encoders are "
    "worth is for probes to say."
    + (f" {left_out} smaller budgets are left out." if left_out else "")
    + seeds(drawn),
  )


def race(runs: Sequence[Run]) -> style.Made | None:
  """Scores of recipes over FLOPs, a panel a measure."""
  races = [
    (f"{measure}, {_of_race(race[0].cells[0].one)}", race)
    for measure in measures(runs)
    for race in crossings.curves(runs, measure)
  ]
  if not races:
    return None
  names = dict.fromkeys(curve.name for _, race in races for curve in race)
  colours = style.colours(list(names))
  figure, all_axes = style.panels([title for title, _ in races], FLOPS, "score")
  for axes, (_, race) in zip(all_axes, races):
    for curve in race:
      axes.errorbar(
        curve.flops,
        curve.scores,
        curve.errors,
        color=colours[curve.name],
        marker="o",
      )
    style.log_x(axes, style.power)
  style.legend(
    figure,
    [line(name, color=colours[name], marker="o") for name in colours],
  )
  shown = {
    run.name: run
    for _, race in races
    for curve in race
    for cell in curve.cells
    for run in cell.runs
  }
  return (
    figure,
    "race",
    "Recipes at equal compute",
    f"Scores over the FLOPs spent. {count(runs, list(shown.values()))}, means "
    "over seeds. Bars: the standard error over speakers and, where there are "
    "several, seeds. Accuracies and mean average precision are better high, "
    "ABX low.",
  )


def _of_race(run: Run) -> str:
  hours = f", {run.data_hours:g} h" if run.data_hours else ""
  return size_name(run.size) + hours


def _bars(
  axes: Axes, found: list[list[Cell]], name: str, colours: dict[str, str]
) -> None:
  width = 0.8 / len(colours)
  for x, alike in enumerate(found):
    by_series = group(alike, lambda cell: cell.one.series)
    for i, (series, colour) in enumerate(colours.items()):
      values = series in by_series and best(by_series[series]).values(name)
      if values:
        mean, low, high = values
        place = x + (i - (len(colours) - 1) / 2) * width
        axes.bar(place, mean, 0.92 * width, color=colour)
        if high > low:
          axes.vlines(place, low, high, color="black", linewidth=1)
  axes.set_xticks(range(len(found)), [alike[0].one.size for alike in found])
  axes.grid(visible=False, axis="x")
  if name == "share":
    axes.axhline(1, color=GREY, linestyle="--", linewidth=1)


def shapes(runs: Sequence[Run]) -> style.Made | None:
  """Slim beside Small, a line a budget."""
  pairs = slim_and_small(runs)
  if not pairs:
    return None
  looks = style.looks(sorted({slim.one.budget for slim, _ in pairs}))
  groups = group(pairs, lambda pair: panel_name(pair[0].one, runs))
  figure, all_axes = style.panels(list(groups), "", LOSS)
  for axes, here in zip(all_axes, groups.values()):
    for pair in here:
      colour, marker = looks[pair[0].one.budget]
      axes.plot((0, 1), [cell.loss for cell in pair], color=colour)
      for x, cell in enumerate(pair):
        style.point(axes, x, cell.values("loss"), marker, colour)
    axes.set_xticks((0, 1), ("Slim\n12 x 384", "Small\n3 x 640"))
    axes.set_xlim(-0.4, 1.4)
    axes.margins(y=0.15)
  names = [f"{readable(budget)}FLOP" for budget in looks]
  style.legend(figure, style.entries(looks, names))
  shown = [run for pair in pairs for cell in pair for run in cell.runs]
  return (
    figure,
    "slim_and_small",
    "Deep and narrow, or shallow and wide",
    "Slim against Small: 20 M parameters in 12 narrow layers or in 3 wide "
    f"ones, for the same FLOPs. {count(runs, shown)}.{seeds(shown)}",
  )


def hours(runs: Sequence[Run]) -> style.Made | None:
  """Loss over hours of data, a line a size and budget."""
  known = cells(run for run in runs if run.hours)
  lines = group(known, lambda c: (c.one.series, c.one.budget, c.one.size))
  lines = {
    key: sorted(found, key=lambda cell: cell.one.hours)
    for key, found in lines.items()
    if len({cell.one.data_hours for cell in found}) > 1
  }
  if not lines:
    return None
  shown = [run for found in lines.values() for c in found for run in c.runs]
  looks = style.looks(list(group(shown, lambda run: (run.budget, run.size))))
  by_series = group(lines, lambda key: key[0])
  figure, all_axes = style.panels(
    list(by_series), "hours of training audio", LOSS
  )
  for axes, keys in zip(all_axes, by_series.values()):
    for key in keys:
      colour, marker = looks[key[1:]]
      x = [cell.one.hours for cell in lines[key]]
      axes.plot(x, [cell.loss for cell in lines[key]], color=colour)
      for place, cell in zip(x, lines[key]):
        style.point(axes, place, cell.values("loss"), marker, colour)
    style.log_x(axes, lambda x, _: f"{x:,g}")
  names = [f"{size_name(s)}, {readable(b)}FLOP" for b, s in looks]
  style.legend(figure, style.entries(looks, names))
  return (
    figure,
    "loss_over_hours",
    "Hours of data at equal compute",
    "Validation loss over the hours of audio that the same FLOPs were spent "
    f"on: fewer hours are seen more often. {count(runs, shown)}: of sizes "
    "and budgets with several hours. Where all data was used, they are those "
    f"seen in an epoch.{seeds(shown)}",
  )


def probes(runs: Sequence[Run]) -> style.Made | None:
  """Scores over size, a panel a task, a line a series and budget."""
  shown = [run for run in runs if run.probes]
  tasks = sorted({task for run in shown for task in run.probes})
  if not tasks:
    return None
  colours = style.colours(list(group(runs, lambda run: run.series)))
  kinds = group(shown, lambda run: (run.series, run.budget))
  budgets = sorted({run.budget for run in shown})
  styles = {
    (series, budget): {
      "color": colours[series],
      "marker": MARKERS[budgets.index(budget) % len(MARKERS)],
      "linestyle": ("-", "--", ":", "-.")[budgets.index(budget) % 4],
    }
    for series, budget in kinds
  }
  figure, all_axes = style.panels(tasks, PARAMS, "score")
  for axes, task in zip(all_axes, tasks):
    for kind, here in kinds.items():
      scored = group((r for r in here if task in r.probes), lambda r: r.params)
      means = [
        np.mean([r.probes[task] for r in own]) for own in scored.values()
      ]
      axes.plot(list(scored), means, **styles[kind])
      errors = {
        run.params: found["std"]
        for run in here
        for name, found in run.measured.items()
        if name.startswith(f"{task},")
      }
      axes.errorbar(
        list(scored),
        means,
        [errors.get(params, 0.0) for params in scored],
        color=styles[kind]["color"],
        linestyle="none",
        capsize=3,
      )
    style.log_x(axes, style.plain, 0.5)
  style.legend(
    figure,
    [
      line(f"{series}, {readable(budget)}FLOP", **style)
      for (series, budget), style in styles.items()
    ],
  )
  return (
    figure,
    "probes",
    "What the encoders are worth",
    f"Probe scores over model size. {count(runs, shown)}; runs of a size and "
    "budget are averaged. Bars: of measures, the standard error over speakers. "
    "Error rates (WER, PER, EER, ABX) are better low, accuracies high.",
  )
