"""Knobs of a probe, each declared once."""

import dataclasses

from ml_collections import ConfigDict

from ssl_jax import config as config_lib
from ssl_jax.errors import UserError
from ssl_jax.knobs import RUN, Knob, check_values, make_config
from ssl_jax.probes import TASKS

PROFILES = ("smoke", "study", "mini", "full")

_KNOBS = {
  "": {
    "seed": RUN[""]["seed"],
    "profile": Knob(
      "full", "Name of the settings, kept with every score.", choices=PROFILES
    ),
    "where": Knob(
      ("",),
      "Conditions on the metadata of clips: `('text', 'language=en|en-US')` "
      "takes those that have a text and are in one of these languages.",
    ),
    "label": Knob(
      "", "ks, sid, er: the metadata key of the class; empty: the task's."
    ),
    "within": Knob(
      "", "asv: trials are pairs of clips alike in this metadata key."
    ),
    "trials": Knob(
      "",
      "asv: a list of test's trials, as Vox1-O's: `1 ONE OTHER` (one speaker) "
      "or `0 ONE OTHER` a line; empty: every pair.",
      role="place",
    ),
    "alignments": Knob(
      "",
      "phone, abx, words, units: phones (words) of clips with their times, as "
      "ssl_jax/data/alignments.py reads them: .jsonl, .ctm, .item or a folder "
      "of .TextGrid; empty: those in the metadata.",
      role="place",
    ),
    "scored": Knob(("valid", "test"), "words: the splits whose words ask."),
    "clusters": Knob(100, "units: clusters of k-means.", low=2, high=65_534),
    "distance": Knob(
      "pooled",
      "abx: between the means of two segments, or along the best path "
      "through their frames.",
      choices=("pooled", "dtw"),
    ),
    "libri_light": Knob(
      False, "abx: leave out the last frame of segments, as Libri-light does."
    ),
  },
  "features": {
    "normalize": Knob(
      False, "Each layer passes a LayerNorm without parameters."
    ),
  },
  "head": {
    "projector": Knob(
      256, "Width that the layers' sum is projected to.", low=1, high=65_536
    ),
    "recurrent_layers": Knob(2, "asr: BiLSTM layers.", high=100),
    "recurrent_size": Knob(1024, "asr: width a direction.", low=1, high=65_536),
    "dropout": Knob(0.2, "asr: after each recurrent layer.", high=0.99),
  },
  "fit": {
    "updates": Knob(200_000, "Updates of the head.", low=1, high=10**12),
    "batch_size": Knob(32, "Clips an update.", low=1, high=100_000),
    "learning_rates": Knob(
      (1e-1, 1e-2, 1e-3, 1e-4, 1e-5),
      "Rates that are all tried; the best on dev is tested.",
      low=1e-12,
    ),
    "num_seeds": Knob(1, "Seeds of heads and batches.", low=1, high=10_000),
    "clip_norm": Knob(1.0, "Largest norm of the gradient.", low=1e-6),
    "eval_every": Knob(
      5_000,
      "Updates between evaluations; the best on dev is tested.",
      low=1,
      high=10**12,
    ),
    "chunk_size": Knob(
      10, "Updates a call of the compiled program.", low=1, high=10_000
    ),
  },
  "encode": RUN["encode"],
}
_DATA = {"source": "embedded", "min_seconds": 0.1}  # Defaults unlike a run's.


def sections() -> dict[str, dict[str, Knob]]:
  """Returns every knob, {section: {name: knob}}; data is read as in a run."""
  run = config_lib.sections()
  meanings = "; ".join(
    f"`{name}`: {kind.meaning}" for name, kind in TASKS.items()
  )
  task = Knob(
    "ks",
    f"{meanings}; `all`: those that the packaged clips are enough for.",
    choices=lambda: (*TASKS, "all"),
  )
  changed = {
    name: dataclasses.replace(run["data"][name], default=default)
    for name, default in _DATA.items()
  }
  return _KNOBS | {
    "": {"task": task} | _KNOBS[""],
    "data": run["data"] | changed,
    "loader": run["loader"],
  }


def base() -> ConfigDict:
  """Returns keyword spotting on the packaged clips, by SUPERB's recipe."""
  return make_config(sections())


def validate(config: ConfigDict) -> None:
  """Checks every value.

  Raises:
    UserError: naming the key, its value, and what is allowed.
  """
  check_values(sections(), config)
  if not config.fit.learning_rates:
    raise UserError("config.fit.learning_rates=(): expected some rates")
