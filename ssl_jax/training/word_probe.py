"""Word retrieval while a run goes on: a loss says too little of an encoder."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ssl_jax import SAMPLE_RATE, num_frames
from ssl_jax.data.sources import open_source
from ssl_jax.data.sources.source import name_hash
from ssl_jax.devices import sharding
from ssl_jax.errors import UserError
from ssl_jax.models.backbone import Backbone, compute_dtype
from ssl_jax.training.metrics import MetricsWriter, Progress

# Probes are imported where they are used: most runs need none of that.
if TYPE_CHECKING:
  from ssl_jax.probes import words as words_lib

_LONGEST = 1.5  # Seconds: longer words would make all of the batch longer.


class WordProbe:
  """Measures the run's encoder every `eval.probe` updates; 0: never.

  The words are the first `eval.probe_words` of those that two speakers say, in
  an order that depends on their names alone. The layer is chosen on half of the
  units and scored on the other half, as the task `words` does it.
  """

  def __init__(self, config: ConfigDict, mesh: Mesh):
    """Reads the words, which are heard in one batch.

    Args:
      config: of the run; `eval` is read, and what the encoder is.
      mesh: of the run.

    Raises:
      UserError: `eval.probe_dir` has no words of two speakers.
    """
    self._every = config.eval.probe
    if self._every:
      from ssl_jax.probes import words as words_lib

      clips, words = _words(config)
      self._retrieval, self._count = words_lib.Retrieval(words), len(words)
      # As arguments: constants of a program would be folded for minutes.
      self._heard = _batch(clips, words, mesh.size)
      self._vectors = jax.jit(
        functools.partial(_vectors, config, mesh),
        out_shardings=sharding.replicated(mesh),
      )

  def due(self, update: int, updates: int) -> bool:
    """Tells whether the run measures after this update, of so many."""
    if not self._every:
      return False
    return update % self._every == 0 or update == updates

  def log(
    self, update: int, state: Any, writer: MetricsWriter, progress: Progress
  ) -> None:
    """Measures a state, and says it in metrics.jsonl and on the screen."""
    if not self._every:
      return
    from ssl_jax.tally import choose

    vectors = self._vectors(state["params"]["backbone"], *self._heard)
    by_layer = jax.device_get(vectors)[:, : self._count]
    tallies = [self._retrieval.tally(vectors) for vectors in by_layer]
    found = choose(tallies, True, 1).scores["map"]
    writer.write(update, "probe", {"word_map": found})
    progress.print(f"update {update}: word retrieval {100 * found:.1f} %")


def _batch(
  clips: Sequence[np.ndarray], words: "Sequence[words_lib.Word]", multiple: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns waveform [N, S], length [N], weights of frames [N, parts, T].

  Empty rows make N a multiple of the devices.
  """
  from ssl_jax.probes import words as words_lib

  longest = max(map(len, clips))
  frames = int(num_frames(longest))
  own = [words_lib.part_weights(w.first, w.end, frames) for w in words]
  rows = -(-len(clips) // multiple) * multiple
  waveform = np.zeros((rows, longest), np.float32)
  length = np.zeros(rows, np.int32)
  weights = np.zeros((rows, *own[0].shape), np.float32)
  for row, clip in enumerate(clips):
    waveform[row, : len(clip)] = clip / 2**15
    length[row], weights[row] = len(clip), own[row]
  return waveform, length, weights


def _vectors(
  config: ConfigDict,
  mesh: Mesh,
  params: Any,
  waveform: jax.Array,
  length: jax.Array,
  weights: jax.Array,
) -> jax.Array:
  """Returns each word's vector in each layer, float32 [L + 1, N, parts D]."""
  backbone = Backbone(config, compute_dtype(config))
  with sharding.suit(mesh):
    hidden = backbone.apply(
      {"params": params}, waveform, length, all_states=True
    ).hidden.astype(jnp.float32)  # [L + 1, N, T, D].
  hidden = hidden[:, :, : weights.shape[-1]]
  means = jnp.einsum("npt,lntd->lnpd", weights, hidden)
  return means.reshape(*means.shape[:2], -1)


def _words(
  config: ConfigDict,
) -> "tuple[list[np.ndarray], list[words_lib.Word]]":
  """Returns int16 clips, and each's word: frames are of its own clip."""
  from ssl_jax.probes import words as words_lib
  from ssl_jax.probes.config import base
  from ssl_jax.tally import LEAST_UNITS

  settings, where = base(), config.eval.probe_dir
  settings.task, settings.data.min_seconds = "words", 0.1
  if where:
    settings.data.source, settings.data.dir = "manifest", where
  clips, found = [], []
  for split in ("train", "valid") if where else ("train", "valid", "test"):
    try:
      opened = open_source(settings.data, split)
    except UserError as error:
      raise UserError(f"--config.eval.probe_dir={where!r}: {error}") from error
    source, own = words_lib.single(settings, split, opened)
    begin = 0
    for row, word in enumerate(own):
      samples = int(source.num_samples[row])
      if samples <= _LONGEST * SAMPLE_RATE:
        clips.append((source, row, samples))
        found.append(
          word._replace(first=word.first - begin, end=word.end - begin)
        )
      begin += int(num_frames(samples))
  kinds: dict[tuple[str, str], list[int]] = {}
  for place, word in enumerate(found):
    language = word.language.partition("-")[0]
    kinds.setdefault((language, word.name), []).append(place)
  chosen: list[int] = []
  for kind in sorted(kinds, key=lambda x: name_hash(" ".join(x))):
    if len({found[i].speaker for i in kinds[kind]}) > 1:
      chosen += kinds[kind]
    if len(chosen) >= config.eval.probe_words:
      break
  words = [found[i] for i in chosen]
  if len({(w.language, w.name) for w in words}) < LEAST_UNITS:
    raise UserError(
      f"--config.eval.probe_dir={where!r}: fewer than {LEAST_UNITS} words are "
      "said by two speakers of a language: give clips with `word`, `speaker` "
      "and `language`, or set config.eval.probe to 0"
    )
  heard = (clips[i] for i in chosen)
  return [source.read(row, 0, size) for source, row, size in heard], words
