"""Labels at a glance: how clusters are used, and one clip's labels."""

import io
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ssl_jax import FRAME_HOP, SAMPLE_RATE, num_frames
from ssl_jax.data.labels import NO_LABEL
from ssl_jax.data.sources.source import Source
from ssl_jax.files import write_atomically
from ssl_jax.signal import fbank

_SECONDS = 4.0  # The drawn part of a clip.


def draw(folder: Path, usage: np.ndarray, source: Source) -> Path:
  """Draws `labels.png` of a folder whose "train" split is written.

  Args:
    folder: of the labels.
    usage: int [K] frames of each cluster.
    source: of the split.
  """
  labels = np.memmap(folder / "train.labels", "<u2", "r")
  frames = num_frames(np.asarray(source.num_samples, np.int64))
  firsts = np.cumsum(frames) - frames
  figure = Figure(figsize=(8, 6), layout="constrained")
  top, middle, bottom = figure.subplots(3, height_ratios=(2, 2, 1))
  top.bar(np.arange(len(usage)), 100 * np.sort(usage)[::-1] / usage.sum())
  top.axhline(100 / len(usage), color="grey", linestyle=":")
  top.set(xlabel="clusters, by use", ylabel="% of frames")

  # The longest of the clips that could be read.
  read = labels[np.minimum(firsts, len(labels) - 1)] != NO_LABEL
  clip = int(np.argmax(np.where(read, frames, 0)))
  audio = source.read(clip, 0, round(_SECONDS * SAMPLE_RATE))
  mels = np.asarray(fbank.log_mel(audio[None] / np.float32(2**15)))[0]
  count = num_frames(len(audio))
  end = count * FRAME_HOP / SAMPLE_RATE
  middle.imshow(
    mels.T, origin="lower", aspect="auto", extent=(0, end, 0, mels.shape[1])
  )
  middle.set(ylabel="mel bin")
  middle.set_title(source.ids[clip], fontsize="x-small")
  time = np.arange(count) * FRAME_HOP / SAMPLE_RATE
  shown = labels[firsts[clip] :][:count]
  bottom.plot(time, shown, drawstyle="steps-post", linewidth=0.7)
  bottom.set(xlabel="seconds", ylabel="label", xlim=(0, end))
  png = io.BytesIO()
  FigureCanvasAgg(figure).print_png(png)
  write_atomically(folder / "labels.png", png.getvalue())
  return folder / "labels.png"
