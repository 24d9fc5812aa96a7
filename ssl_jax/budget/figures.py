"""The report's figures, each a PNG made of finished runs."""

import math

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes

from ssl_jax.budget.canvas import (
  COLOURS,
  Picture,
  draw_bars,
  log_x,
  make_panels,
  make_picture,
)
from ssl_jax.budget.flops import readable
from ssl_jax.budget.isoflop import Minimum, means, minimum
from ssl_jax.budget.runs import Row, budgets, of_budget


def draw_all(rows: list[Row]) -> tuple[list[Picture], list[Minimum]]:
  """Every figure that the runs have the data for, and the minima they show."""
  minima = [
    found
    for objective, own in _by_objective(rows).items()
    for budget in budgets(own)
    if (found := minimum(of_budget(own, budget), objective, budget))
  ]
  pictures = [
    _curves(rows),
    _sizes(rows, minima),
    _frontier(rows),
    _small(rows),
    _hours(rows),
    _objectives(rows),
    _probes(rows),
  ]
  return [picture for picture in pictures if picture], minima


def _by_objective(rows: list[Row]) -> dict[str, list[Row]]:
  names = sorted({row.objective for row in rows})
  return {n: [row for row in rows if row.objective == n] for n in names}


def _curves(rows: list[Row]) -> Picture | None:
  groups = _by_objective(rows)
  figure, axes = make_panels(len(groups))
  for panel, (objective, own) in zip(axes, groups.items()):
    params = np.log([row.params for row in own])
    span = max(np.ptp(params), 1e-9)
    for row, value in zip(own, params):
      colour = colormaps["viridis"](0.9 * (value - params.min()) / span)
      points = [(f, loss) for f, loss, _ in row.curve if f > 0]
      if points:
        panel.plot(*zip(*points), color=colour, linewidth=1.3)
        panel.plot(*points[-1], "o", color=colour, markersize=4)
    chance = np.mean([row.chance for row in own])
    panel.axhline(chance, color="#888888", linestyle="--", linewidth=0.8)
    panel.annotate(
      "chance",
      (0.99, chance),
      xycoords=("axes fraction", "data"),
      ha="right",
      va="bottom",
      color="#666666",
      fontsize=8,
    )
    log_x(panel)
    panel.set(xlabel="training FLOPs", title=objective)
    _name_sizes(panel, own)
  axes[0].set_ylabel("validation loss, nats")
  return make_picture(
    figure,
    "loss_over_flops",
    "Loss over compute",
    f"Validation loss of {len(rows)} runs over the FLOPs they had spent; dark "
    "lines are small models, light ones large. Losses of different objectives "
    "do not compare.",
  )


def _name_sizes(panel: Axes, rows: list[Row]) -> None:
  ordered = sorted(rows, key=lambda row: row.params)
  for row, share in ((ordered[0], 0.0), (ordered[-1], 0.9)):
    label = f"{row.size}: {readable(row.params)}"
    panel.plot([], [], color=colormaps["viridis"](share), label=label)
  panel.legend(frameon=False, fontsize=8, loc="lower left")


def _sizes(rows: list[Row], minima: list[Minimum]) -> Picture | None:
  groups = {
    objective: own
    for objective, own in _by_objective(rows).items()
    if any(len({r.params for r in of_budget(own, b)}) > 2 for b in budgets(own))
  }
  if not groups:
    return None
  figure, axes = make_panels(len(groups))
  for panel, (objective, own) in zip(axes, groups.items()):
    for i, budget in enumerate(budgets(own)):
      here, colour = of_budget(own, budget), COLOURS[i % len(COLOURS)]
      panel.plot(
        [row.params for row in here],
        [row.loss for row in here],
        "o",
        color=colour,
        markersize=5,
        label=f"{readable(budget)}FLOP",
      )
      found = [
        m for m in minima if (m.objective, m.budget) == (objective, budget)
      ]
      if not found:
        continue
      sizes, losses = means(here, lambda row: row.params)
      x = np.linspace(np.log(sizes[0]), np.log(sizes[-1]), 100)
      fitted = np.polyfit(np.log(sizes), losses, 2)
      style = "-" if found[0].interval else ":"
      panel.plot(
        np.exp(x), np.polyval(fitted, x), style, color=colour, linewidth=1.2
      )
      if not found[0].edge:
        panel.plot(
          found[0].params, found[0].loss, "*", color=colour, markersize=13
        )
        if found[0].interval:
          panel.hlines(
            found[0].loss,
            *found[0].interval,
            color=colour,
            linewidth=3,
            alpha=0.4,
          )
    log_x(panel)
    panel.set(xlabel="parameters", title=objective)
    panel.legend(frameon=False, fontsize=8, title="budget", title_fontsize=8)
  axes[0].set_ylabel("validation loss, nats")
  return make_picture(
    figure,
    "loss_over_size",
    "Model size at equal compute",
    "Validation loss over model size, a colour a budget. Lines are parabolas "
    "in the logarithm of size (dotted through just three sizes); stars their "
    "minima, bars the 90 % interval of these. A minimum at the edge of the "
    "measured sizes has no star.",
  )


def _frontier(rows: list[Row]) -> Picture | None:
  groups = {
    name: own
    for name, own in _by_objective(rows).items()
    if len(budgets(own)) > 1
  }
  if not groups:
    return None
  figure, axes = make_panels(len(groups))
  for panel, (objective, own) in zip(axes, groups.items()):
    panel.plot(
      [row.flops for row in own],
      [row.loss for row in own],
      "o",
      color="#bbbbbb",
      markersize=4,
      label="runs",
    )
    best = [
      min(of_budget(own, budget), key=lambda row: row.loss)
      for budget in budgets(own)
    ]
    panel.plot(
      [row.flops for row in best],
      [row.loss for row in best],
      "o-",
      color=COLOURS[0],
      label="best of a budget",
    )
    for row in best:
      panel.annotate(
        row.size,
        (row.flops, row.loss),
        xytext=(0, -11),
        textcoords="offset points",
        ha="center",
        fontsize=8,
      )
    panel.margins(y=0.15)
    log_x(panel)
    panel.set(xlabel="training FLOPs", title=objective)
    panel.legend(frameon=False, fontsize=8)
  axes[0].set_ylabel("validation loss, nats")
  return make_picture(
    figure,
    "frontier",
    "What a budget buys",
    "The lowest validation loss of each budget, with the size that reached it.",
  )


def _small(rows: list[Row]) -> Picture | None:
  pairs = []
  for objective, own in _by_objective(rows).items():
    for budget in budgets(own):
      here = of_budget(own, budget)
      slim, small = (
        [row.loss for row in here if row.size == size]
        for size in ("100", "small")
      )
      if slim and small:
        name = f"{objective}\n{readable(budget)}FLOP"
        pairs.append((name, np.mean(slim), np.mean(small)))
  if not pairs:
    return None
  figure, (panel,) = make_panels(1)
  names, slim, small = zip(*pairs)
  draw_bars(
    panel, names, {"Slim (deep, narrow)": slim, "Small (3 wide)": small}
  )
  panel.set_ylabel("validation loss, nats")
  return make_picture(
    figure,
    "slim_and_small",
    "Slim against Small",
    "Two shapes of about 20 M parameters at equal budgets.",
  )


def _hours(rows: list[Row]) -> Picture | None:
  groups = {
    name: own
    for name, own in _by_objective(rows).items()
    if len({row.data_hours for row in own}) > 1
  }
  if not groups:
    return None
  figure, axes = make_panels(len(groups))
  for panel, (objective, own) in zip(axes, groups.items()):
    # All of a corpus is 0 in a config: shown one step to the right.
    every = 4 * max(row.data_hours for row in own)

    def hours_of(row: Row, every: float = every) -> float:
      return row.data_hours or every

    for i, budget in enumerate(budgets(own)):
      here = of_budget(own, budget)
      hours, losses = means(here, hours_of)
      panel.plot(
        hours,
        losses,
        "o-",
        color=COLOURS[i % len(COLOURS)],
        label=f"{readable(budget)}FLOP",
      )
    ticks = sorted({hours_of(row) for row in own})
    labels = [f"{tick:g}" if tick < every else "all" for tick in ticks]
    panel.set(xscale="log", xlabel="hours of training audio", title=objective)
    panel.set_xticks(ticks, labels)
    panel.minorticks_off()
    panel.legend(frameon=False, fontsize=8, title="budget", title_fontsize=8)
  axes[0].set_ylabel("validation loss, nats")
  return make_picture(
    figure,
    "loss_over_hours",
    "Hours of data at equal compute",
    "Validation loss over the hours of audio that were trained on, again and "
    "again as the budget lasts.",
  )


def _objectives(rows: list[Row]) -> Picture | None:
  shared = [of_budget(rows, budget) for budget in budgets(rows)]
  shared = [here for here in shared if len(_by_objective(here)) > 1]
  if not shared:
    return None
  best: dict[str, list[float]] = {}
  for objective, own in _by_objective(shared[-1]).items():
    row = min(own, key=lambda row: row.main)
    best[f"{objective}\nsize {row.size}"] = [
      row.main / (row.chance or math.nan),
      row.accuracy,
    ]
  figure, axes = make_panels(2)
  for panel, i, title in zip(
    axes, (0, 1), ("main term, share of chance", "masked accuracy")
  ):
    kept = {n: v[i] for n, v in best.items() if math.isfinite(v[i])}
    draw_bars(panel, tuple(kept), {title: tuple(kept.values())})
    panel.set_title(title, fontsize=10)
  return make_picture(
    figure,
    "objectives",
    "Objectives at equal compute",
    f"The best run of each objective at {readable(shared[-1][0].flops)}FLOP. "
    "Lower shares and higher accuracies are better, but each is of its own "
    "task: what the encoders are worth is for probes to say.",
  )


def _probes(rows: list[Row]) -> Picture | None:
  names = sorted({name for row in rows for name in row.probes})
  if not names:
    return None
  figure, axes = make_panels(len(names))
  for panel, name in zip(axes, names):
    for i, (objective, own) in enumerate(_by_objective(rows).items()):
      points = [(r.params, r.probes[name]) for r in own if name in r.probes]
      if points:
        panel.plot(*zip(*points), "o", color=COLOURS[i], label=objective)
    log_x(panel)
    panel.set(xlabel="parameters", title=name)
    panel.legend(frameon=False, fontsize=8)
  return make_picture(
    figure, "probes", "Probes", "Scores of frozen features over model size."
  )
