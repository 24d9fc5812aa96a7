"""A probe's picture: what layers it listens to, and which rate it needs."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ssl_jax.files import write_atomically


def draw(result: dict[str, Any], path: Path) -> None:
  """Draws scores, layer weights and the grid of a `probe` result."""
  encoders = {result["encoder"]: result} | result["baselines"]
  measured = "draws" in result
  figure = Figure(figsize=(12, 3.5), layout="constrained")
  scores, layers, rates = figure.subplots(1, 3)
  names = [*encoders]
  scores.bar(
    names,
    [x["test"] for x in encoders.values()],
    yerr=[x["std"] or 0 for x in encoders.values()],
    color=[f"C{i}" for i in range(len(names))],
    capsize=4,
  )
  scores.set(ylabel=f"{result['metric']}, test", title=result["task"])
  for i, (name, x) in enumerate(encoders.items()):
    by_layer = x["layers"][result["metric"]] if measured else x["layer_weights"]
    if len(by_layer) > 1 or measured:
      layers.plot(by_layer, "o-", color=f"C{i}", label=name)
    if measured:
      draws = np.sort(np.ravel(x["draws"]))
      share = np.arange(len(draws)) / max(1, len(draws) - 1)
      rates.plot(draws, share, color=f"C{i}", label=name)
      continue
    grid = {float(rate): cell["dev"] for rate, cell in x["grid"].items()}
    rates.errorbar(
      [*grid],
      [np.mean(dev) for dev in grid.values()],
      [np.std(dev) for dev in grid.values()],
      fmt="o-",
      color=f"C{i}",
      capsize=3,
      label=name,
    )
  layers.set_xlabel("layer (0: its input)")
  if measured:
    layers.set_ylabel(result["metric"])
    rates.set(xlabel=f"{result['metric']} over draws", ylabel="share of draws")
  else:
    layers.set(ylabel="weight", ylim=(0, None))
    rates.set(xlabel="learning rate", ylabel=f"{result['metric']}, dev")
    rates.set_xscale("log")
  for axes in (layers, rates):
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
      axes.legend(fontsize="small")
  png = io.BytesIO()
  FigureCanvasAgg(figure).print_png(png)
  write_atomically(path, png.getvalue())
