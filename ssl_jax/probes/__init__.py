"""What features are worth: SUPERB's tasks on a frozen encoder."""

from ssl_jax.probes import classify, ctc, verify

# A new task is a file with a `make`, or a line of one that has it.
TASKS = {
  "pr": ctc.make,
  "asr": ctc.make,
  "ks": classify.make,
  "sid": classify.make,
  "asv": verify.make,
  "er": classify.make,
  "ic": classify.make,
}
