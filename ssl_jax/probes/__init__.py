"""Probes: SUPERB's tasks on a frozen encoder, and the table of them."""

from ssl_jax.probes import classify, ctc, verify

# A new task is one file with a `TaskKind`, and one line here.
TASKS = {
  "ks": classify.KEYWORDS,
  "sid": classify.SPEAKERS,
  "pr": ctc.PHONES,
  "asr": ctc.CHARACTERS,
  "asv": verify.VERIFICATION,
  "er": classify.EMOTIONS,
  "ic": classify.INTENTS,
}
