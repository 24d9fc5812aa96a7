"""Counts what a run costs, before anything is trained or read.

  python -m ssl_jax.flops --config=configs/slim.py:size=50
  python -m ssl_jax.flops --config=configs/slim.py:size=50 \\
      --match=configs/slim.py:size=100
  python -m ssl_jax.flops --config=configs/slim.py --config.budget.flops=1e18 \\
      --hours=100

A multiply-add is 2 FLOPs; training is 3 times the forward pass, and the
targets. Counted on crops of 14 s, to which the published budgets refer, without
padding (`ssl_jax.main --dry_run` counts that of your data). The last line on
stdout is a JSON object.
"""

import logging
import os

from absl import flags

from ssl_jax import cli

_MATCH = flags.DEFINE_string(
  "match",
  None,
  "Another config, whose run's FLOPs and batch.seconds this run gets. Short "
  "for --config.budget.match.",
)
_HOURS = flags.DEFINE_float(
  "hours",
  960.0,
  "Hours of audio in the corpus, to count epochs and labelling.",
  1e-6,
)
_WITH_EARLIER = flags.DEFINE_bool(
  "with_earlier",
  False,
  "Pay for HuBERT's labels out of the budget as well: the earlier iteration "
  "and labelling. Their costs are shown either way.",
)


def main() -> dict:
  """Counts; returns the JSON object."""
  # Imported late: --help and usage errors need no JAX.
  from ssl_jax.budget import cost
  from ssl_jax.config import validate
  from ssl_jax.objectives.inputs import num_params

  config = cli.FLAGS.config
  if _MATCH.value:
    config.budget.update(updates=0, flops=0.0, match=_MATCH.value)
  validate(config)
  facts = cost.facts(
    config, num_params(config), _HOURS.value, _WITH_EARLIER.value
  )
  logging.getLogger("ssl_jax").info("%s", cost.table(facts, config))
  return facts


if __name__ == "__main__":
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  cli.define_config()
  cli.run(main)
