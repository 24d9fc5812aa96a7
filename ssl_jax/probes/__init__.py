"""Probes: what a frozen encoder is worth, and the table of tasks."""

from ssl_jax.probes import (
  abx,
  classify,
  ctc,
  phone,
  rank,
  units,
  verify,
  words,
)

# A new task is one file with a `TaskKind`, or a `MeasureKind` where no head is
# trained as SUPERB does, and one line here.
TASKS = {
  "ks": classify.KEYWORDS,
  "sid": classify.SPEAKERS,
  "pr": ctc.PHONES,
  "asr": ctc.CHARACTERS,
  "asv": verify.VERIFICATION,
  "er": classify.EMOTIONS,
  "ic": classify.INTENTS,
  "phone": phone.PHONES,
  "words": words.WORDS,
  "abx": abx.ABX,
  "units": units.UNITS,
  "rank": rank.RANK,
}
