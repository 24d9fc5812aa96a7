"""KEY=VALUE of a command line, set in a config."""

import ast
from collections.abc import Iterable

from ml_collections import ConfigDict

from ssl_jax.config import flatten, nearest
from ssl_jax.errors import UserError


def override(config: ConfigDict, given: Iterable[str]) -> None:
  """Sets KEY=VALUE as --config.KEY=VALUE does; values have their key's type.

  Raises:
    UserError: there is no such key, or the value is of another type.
  """
  values = dict(item.partition("=")[::2] for item in given)
  flat = flatten(config)
  for key, text in values.items():
    if key not in flat:
      raise UserError(
        f"unknown config key {key[:80]!r}; {nearest(key[:80], flat)}"
      )
    section, _, name = key.rpartition(".")
    place, old = config[section] if section else config, flat[key]
    try:
      if isinstance(old, str):
        place[name] = text
      else:
        value = ast.literal_eval(text)
        place[name] = float(value) if isinstance(old, float) else value
    except (
      *(ValueError, SyntaxError, OverflowError, MemoryError, RecursionError),
      TypeError,  # Of a locked type.
    ) as error:
      kind = type(old).__name__
      raise UserError(f"{key}={text[:80]!r}: expected a {kind}") from error
  clear_other_budgets(config, values)


def clear_other_budgets(config: ConfigDict, given: Iterable[str]) -> None:
  """Lets a budget among the keys `given` take the place of the config's."""
  ways = ("updates", "flops", "match")
  if any(f"budget.{way}" in given for way in ways):
    for way in ways:
      if f"budget.{way}" not in given:
        config.budget[way] = type(config.budget[way])()
