"""A picture of a run's losses, and the table at its end."""

import io
import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np

from ssl_jax.budget.flops import readable
from ssl_jax.errors import one_line
from ssl_jax.files import read_jsonl, write_atomically
from ssl_jax.objectives import OBJECTIVES
from ssl_jax.text import two_columns

_CURVES = Path(__file__).parent / "curves"
_log = logging.getLogger("ssl_jax")


class Picture:
  """Keeps `loss.png` current, for at most a hundredth of a run's time."""

  def __init__(self, workdir: Path):
    self._workdir, self._next = workdir, 0.0

  def draw(self) -> None:
    """Draws the losses, unless that was done too shortly before."""
    began = time.monotonic()
    if began >= self._next:
      try_to_draw(self._workdir)
      now = time.monotonic()
      self._next = now + 99 * (now - began)


def try_to_draw(workdir: Path) -> None:
  """Draws `loss.png`; a failure is a warning."""
  try:
    draw_losses(workdir)
  except Exception as error:  # Nothing depends on the picture.
    _log.warning("loss.png cannot be drawn: %s", one_line(error))


def draw_losses(workdir: Path) -> Path:
  """Draws `loss.png` of a workdir; returns its path.

  Beside the loss is its share of the loss at chance, with a healthy short run
  of the same objective behind it, where there is one of the same audio.
  """
  # Imported late: a run begins half a second earlier.
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure
  from matplotlib.ticker import MaxNLocator

  lines = read_jsonl(workdir / "metrics.jsonl")
  config = json.loads((workdir / "config.json").read_text())
  name = config["objective"]["name"]
  main = _main(name)
  figure = Figure(figsize=(10, 4), layout="constrained")
  left, right = figure.subplots(1, 2)
  healthy = _CURVES / f"{name}.json"
  if healthy.exists() and config["data"]["source"] == "embedded":
    reference = json.loads(healthy.read_text())
    right.plot(
      reference["update"],
      np.divide(reference["main"], reference["chance"]),
      color="lightgrey",
      linewidth=5,
      label=f"healthy: {reference['run']}",
    )
  for split, style in (("train", "-"), ("valid", "o-")):
    own = [x for x in lines if x["split"] == split]
    own = [x for x in own if x.get("loss") is not None]
    if own:
      updates = [x["update"] for x in own]
      loss = [x["loss"] for x in own]
      label = f"{split} {loss[-1]:.3f}"
      (line,) = left.plot(updates, loss, style, label=label)
      chance = [(x["update"], x["chance"]) for x in own if "chance" in x]
      if chance:  # Each split has its own targets.
        label = f"{main} at chance, {split}"
        color = line.get_color()
        left.plot(*zip(*chance), "--", color=color, alpha=0.5, label=label)
      if all(x.get(main) is not None and "chance" in x for x in own):
        # Chance is 0 if all targets are the same.
        shares = [x[main] / (x["chance"] or np.nan) for x in own]
        right.plot(np.maximum(1, updates), shares, style)
  right.axhline(1, linestyle="--", color="grey")
  for line in lines:
    if line["split"] == "alarm":
      for axes in (left, right):
        axes.axvline(line["update"], color="red", linestyle=":")
      left.plot([], [], ":", color="red", label=f"alarm: {line['name']}")
  for kind, color in (("skipped", "red"), ("spike", "orange")):
    if at := [line["update"] for line in lines if line["split"] == kind]:
      left.plot(
        at,
        np.zeros(len(at)),  # At the bottom, whatever the losses are.
        "|",
        color=color,
        transform=left.get_xaxis_transform(),
        markersize=14,
        label=f"{kind}: {len(at)}",
      )
  left.set(xlabel="update", ylabel="loss, nats", title=workdir.name)
  left.xaxis.set_major_locator(MaxNLocator(integer=True))
  right.set(xlabel="update", xscale="log", title=f"{main}, share of chance")
  for axes in (left, right):
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
      axes.legend(fontsize="small")
  png = io.BytesIO()
  FigureCanvasAgg(figure).print_png(png)
  path = workdir / "loss.png"
  write_atomically(path, png.getvalue())
  return path


def _main(objective: str) -> str:
  """Returns the name of an objective's main term, if we have the objective."""
  return getattr(OBJECTIVES.get(objective), "main", "main term")


def curve(workdir: Path, run: str) -> dict[str, Any]:
  """The training curve of a run, as `curves/` keeps those of healthy ones."""
  lines = read_jsonl(workdir / "metrics.jsonl")
  name = json.loads((workdir / "config.json").read_text())["objective"]["name"]
  lines = [x for x in lines if x["split"] == "train" and x["loss"] is not None]
  keys = {"update": "update", "main": _main(name), "chance": "chance"}
  return {"run": run} | {
    key: [round(line[field], 4) for line in lines]
    for key, field in keys.items()
  }


def parts_of_time(seconds: dict[str, float]) -> str:
  """Returns what took at least a second, the longest first, in words."""
  parts = sorted(seconds.items(), key=lambda part: -part[1])
  return ", ".join(f"{name} {s:,.0f} s" for name, s in parts if s >= 1)


def summary(result: dict[str, Any]) -> str:
  """The table at the end of a run, from its JSON object."""
  first, last, best = (
    "not finite" if result[key] is None else f"{result[key]:.4f}"
    for key in ("first_valid_loss", "valid_loss", "best_valid_loss")
  )
  speed = result["audio_seconds"] / max(1e-9, result["train_seconds"])
  mfu = "" if result["mfu"] is None else f", MFU {result['mfu']:.1%}"
  rows = {
    "valid loss": f"{first} -> {last} (best {best})",
    "spent": f"{readable(result['flops'])}FLOP, {result['updates']:,} updates, "
    f"{result['audio_seconds'] / 3600:.3g} h of audio",
    "time": f"{result['wall_seconds']:.0f} s, of which training "
    f"{result['train_seconds']:.0f} s at {speed:.0f}x real time{mfu}",
    "time went to": parts_of_time(result["seconds"]),
    "picture": f"{result['workdir']}/loss.png",
    "TensorBoard": f"tensorboard --logdir {result['workdir']}",
  }
  return two_columns(rows)
