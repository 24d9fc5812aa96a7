"""Our training step, stem or frozen encoder, beside transformers' in torch.

The same architecture, batch, masking and optimizer, on the same machine, each
side in a process of its own; rounds are interleaved.
"""

import importlib.util
import statistics
import tempfile
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from ssl_jax import SAMPLE_RATE, num_frames
from ssl_jax.budget.flops import readable
from ssl_jax.errors import UserError
from ssl_jax.measure import sides, work
from ssl_jax.measure.sides import OURS, THEIRS
from ssl_jax.pretrained import hf_names
from ssl_jax.signal.masking import sample_spans

# The training steps that transformers has, or has all but the frames of.
_RIVALS = (
  ("hubert", "waveform"),
  ("hubert", "clip-normed logmel"),
  ("wav2vec2", "waveform"),
)


def run(
  what: str,
  config: ConfigDict,
  against: str,
  rows: int,
  seconds: float,
  rounds: int,
) -> dict[str, Any]:
  """Measures one kind of work.

  Args:
    what: step, stem, probe (all states of a frozen encoder), or compile (from
      the start of a process to its first update).
    config: of any objective; HuBERT's labels are noise.
    against: "hf", or "" to measure ours alone.
    rows: clips of the batch; 0: what fits the kind of device.
    seconds: of each clip; 0 alike.
    rounds: of which medians are reported.

  Returns:
    For compile: ours, theirs: {cold_seconds, warm_seconds}, without and with
    programs compiled before; ratio, of theirs to ours when cold.
    Else ours, theirs: {seconds, audio_seconds_per_second, flops_per_second,
    mfu, peak_memory_bytes, first_seconds ...}; ratio (of audio a second, ours
    over theirs), mfu, peak_memory_bytes: ours. The peak of which mfu is the
    share is the faster of the sides' own large matrix products.

  Raises:
    UserError: that cannot be compared, or has no stem to train; torch or
      transformers is not installed; a side failed.
  """
  config = config.copy_and_resolve_references()
  _check(what, config, against)
  config.hubert.labels = "noise"  # Both sides are given their labels.
  config.hubert.clusters = config.hubert.clusters[:1]
  config.hubert.layers = config.hubert.label_weights = ()
  if against:
    config.hubert.loss = "cosine"  # The rival's.
  config.budget.updates = config.budget.updates or 1000
  cpu = jax.default_backend() == "cpu"
  rows, seconds = rows or (2 if cpu else 10), seconds or (10 if cpu else 15.625)
  given = {
    "config": config,
    "rows": rows,
    "length": round(seconds * SAMPLE_RATE),
  }
  work_name = "step" if what == "compile" else what
  makers = {OURS: (f"ssl_jax.measure.work:{work_name}", given)}
  if against:
    for library in ("torch", "transformers"):
      if importlib.util.find_spec(library) is None:
        raise UserError(f"--against=hf needs {library}: pip install '.[test]'")
    theirs = given | {"architecture": _architecture(config)}
    if work_name == "step":
      theirs["masked"] = _masked(config, rows, given["length"])
    makers[THEIRS] = (f"ssl_jax.measure.rival:{work_name}", theirs)
  if what == "compile":
    return _run_compile(makers, rounds, rows, seconds)
  found = sides.compare(makers, rounds)
  cost = rows * work.flops(what, config, given["length"])
  peak = max(side["matmul_flops_per_second"] for side in found.values())
  for side in found.values():
    side["audio_seconds_per_second"] = rows * seconds / side["seconds"]
    side["flops_per_second"] = cost / side["seconds"]
    side["mfu"] = side["flops_per_second"] / peak
  result = {
    "benchmark": what,
    "rows": rows,
    "clip_seconds": seconds,
    "rounds": rounds,
    "flops": cost,
    "matmul_flops_per_second": peak,
    **found,
    "mfu": found[OURS]["mfu"],
    "peak_memory_bytes": found[OURS]["peak_memory_bytes"],
  }
  if against:
    result["ratio"] = found[THEIRS]["seconds"] / found[OURS]["seconds"]
  return result


def _check(what: str, config: ConfigDict, against: str) -> None:
  objective, frontend = config.objective.name, config.frontend.name
  frames = frontend
  if frontend == "logmel":
    frames = f"{config.frontend.mel_norm}-normed logmel"
  if what in ("step", "compile"):
    can = not against or (objective, frames) in _RIVALS
  else:
    can = frontend == "waveform" or (what == "probe" and not against)
  if not can:
    raise UserError(
      "what can be compared is a step of HuBERT on waveforms or clip-normed "
      "log-mel, or of wav2vec 2.0 on waveforms, and a stem or frozen encoder "
      f"on waveforms; this is {what} of {objective} on {frames} frames"
    )


def _architecture(config: ConfigDict) -> dict[str, Any]:
  """As arguments of transformers' HubertConfig or Wav2Vec2Config."""
  config = config.copy_and_resolve_references()
  config.frontend.name = "waveform"  # Log-mel takes the place of its stem.
  layout = hf_names.Layout(config)
  flat, keys = dict(layout.fixed), dict(layout.keys)
  if config.objective.name == "wav2vec2":
    keys |= hf_names.HEAD_KEYS
  for key, (ours, _) in keys.items():
    section, name = ours.split(".")
    flat[key] = config[section][name]
  return flat


def _masked(config: ConfigDict, rows: int, length: int) -> np.ndarray:
  """The masked frames, as our training masks. bool [B, T]."""
  masking, frames = config.masking, num_frames(length)
  mask = sample_spans(
    jax.random.split(jax.random.key(0), rows),
    np.full(rows, frames),
    frames,
    masking.mask_prob,
    masking.mask_length,
    masking.min_masks,
  )
  return np.array(mask)


def _run_compile(
  makers: dict[str, tuple[str, dict[str, Any]]],
  rounds: int,
  rows: int,
  seconds: float,
) -> dict[str, Any]:
  taken: dict[str, dict[str, list[float]]] = {side: {} for side in makers}
  for _ in tqdm(range(rounds), desc="measuring", disable=None):
    for side, (maker, given) in makers.items():
      with tempfile.TemporaryDirectory() as cache:
        given = given | {"cache": cache}
        for kind in ("cold", "warm"):
          spent = sides.first_seconds(side, maker, given)
          taken[side].setdefault(f"{kind}_seconds", []).append(spent)
  found = {
    side: {kind: statistics.median(each) for kind, each in kinds.items()}
    for side, kinds in taken.items()
  }
  result = {
    "benchmark": "compile",
    "rows": rows,
    "clip_seconds": seconds,
    "rounds": rounds,
    **found,
  }
  if THEIRS in found:
    cold = [found[side]["cold_seconds"] for side in (THEIRS, OURS)]
    result["ratio"] = cold[0] / cold[1]
  return result


def table(result: dict[str, Any]) -> str:
  """The result as a person reads it."""
  if result["benchmark"] == "compile":
    return "\n".join(
      f"{side:8}first update after "
      + ", ".join(
        f"{seconds:.1f} s {kind.removesuffix('_seconds')}"
        for kind, seconds in result[side].items()
      )
      for side in (OURS, THEIRS)
      if side in result
    )
  lines = [
    f"{result['benchmark']}, {result['rows']} clips of "
    f"{result['clip_seconds']:g} s, {readable(result['flops'])}FLOP; matrix "
    f"products do {readable(result['matmul_flops_per_second'])}FLOP/s",
    f"{'':8}{'ms':>10}{'audio s/s':>12}{'FLOP/s':>10}{'MFU':>7}"
    f"{'peak GiB':>10}{'first s':>9}",
  ]
  for name in (OURS, THEIRS):
    if side := result.get(name):
      lines.append(
        f"{name:8}{1e3 * side['seconds']:10.1f}"
        f"{side['audio_seconds_per_second']:12.1f}"
        f"{readable(side['flops_per_second']):>10}{side['mfu']:7.1%}"
        f"{side['peak_memory_bytes'] / 2**30:10.2f}{side['first_seconds']:9.1f}"
        f"  {side['library']}, {side['dtype']}, {side['device']}"
      )
  if "ratio" in result:
    lines.append(f"ours does {result['ratio']:.2f} x theirs")
  return "\n".join(lines)
