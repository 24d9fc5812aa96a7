"""What a run shows when it ends: a table and a picture of its losses."""

import io
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ssl_jax.budget.flops import readable
from ssl_jax.files import read_jsonl, write_atomically


def draw_losses(workdir: Path) -> Path:
  """Draws `loss.png` from a workdir's metrics.jsonl; returns its path."""
  lines = read_jsonl(workdir / "metrics.jsonl")
  figure = Figure(figsize=(7, 4), layout="constrained")
  axes = figure.add_subplot()
  for split, style in (("train", "-"), ("valid", "o-")):
    points = [(x["update"], x["loss"]) for x in lines if x["split"] == split]
    if points:
      axes.plot(*zip(*points), style, label=f"{split} {points[-1][1]:.3f}")
  axes.set(xlabel="update", ylabel="loss", title=workdir.name)
  axes.xaxis.set_major_locator(MaxNLocator(integer=True))
  axes.grid(alpha=0.3)
  axes.legend()
  png = io.BytesIO()
  FigureCanvasAgg(figure).print_png(png)
  path = workdir / "loss.png"
  write_atomically(path, png.getvalue())
  return path


def summary(result: dict[str, Any]) -> str:
  """The table at the end of a run, from its JSON object."""
  first, last = result["first_valid_loss"], result["valid_loss"]
  speed = result["audio_seconds"] / max(1e-9, result["train_seconds"])
  mfu = "" if result["mfu"] is None else f", MFU {result['mfu']:.1%}"
  rows = {
    "valid loss": f"{first:.4f} -> {last:.4f} "
    f"(best {result['best_valid_loss']:.4f})",
    "spent": f"{readable(result['flops'])}FLOP, {result['updates']:,} updates, "
    f"{result['audio_seconds'] / 3600:.3g} h of audio",
    "time": f"{result['wall_seconds']:.0f} s, of which training "
    f"{result['train_seconds']:.0f} s at {speed:.0f}x real time{mfu}",
    "picture": f"{result['workdir']}/loss.png",
    "TensorBoard": f"tensorboard --logdir {result['workdir']}",
  }
  return "\n".join(f"{name:>14}  {value}" for name, value in rows.items())
