"""Configs: every knob collected, files of `configs/` read, values checked.

Experiments in `configs/` start from `base()` and state what differs. Code reads
`config.x.y`; defaults are in the knobs' declarations and nowhere else.
"""

import ast
import importlib.util
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from ssl_jax.errors import UserError, nearest, one_line
from ssl_jax.knobs import (
  ROLES,
  RUN,
  Knob,
  by_key,
  check_values,
  flatten,
  make_config,
)

# paper.md, "Architectures": (num_layers, hidden_size, ffn_size, num_heads).
SIZES = {
  "small": (3, 640, 2048, 8),
  "30": (4, 192, 320, 4),
  "40": (5, 256, 640, 8),
  "50": (5, 320, 768, 8),
  "60": (7, 320, 768, 8),
  "70": (7, 384, 768, 8),
  "80": (12, 320, 768, 8),
  "90": (12, 352, 768, 8),
  "100": (12, 384, 768, 8),
  "130": (13, 416, 1024, 8),
  "160": (13, 496, 1024, 16),
  "190": (15, 512, 1024, 16),
  "200": (15, 528, 1024, 12),
  "base": (12, 768, 3072, 12),
  "large": (24, 1024, 4096, 16),
}
MADE_BY = "made_by"  # In a saved config: who made it; no knob.
_BUDGETS = ("updates", "flops", "match")


def sections() -> dict[str, dict[str, Knob]]:
  """Returns every knob, {section: {name: knob}}, as its component declares it.

  Components are read from their tables each time, so that one added by a user's
  config has its knobs too.
  """
  # Imported late: only who makes a config needs JAX.
  from ssl_jax import objectives, optimizers
  from ssl_jax.data import buckets, sources
  from ssl_jax.models import encoders, frontends
  from ssl_jax.signal import augment, kmeans, masking

  return (
    RUN
    | {
      "data": sources.knobs() | buckets.KNOBS,
      "frontend": frontends.knobs(),
      "encoder": encoders.knobs(),
      "augment": augment.KNOBS,
      "masking": masking.KNOBS,
      "kmeans": kmeans.KNOBS,
      "optimizer": optimizers.knobs(),
    }
    | objectives.sections()
  )


def knobs() -> dict[str, Knob]:
  """Returns every knob by its key, as in `encoder.num_layers`."""
  return by_key(sections())


def base() -> ConfigDict:
  """Returns the Slim (100 %) recipe of the paper, with HuBERT as objective."""
  return make_config(sections())


def validate(config: ConfigDict) -> None:
  """Checks every value, and values against each other.

  Raises:
    UserError: naming the key, its value, and what is allowed.
  """
  from ssl_jax import objectives, optimizers
  from ssl_jax.data import buckets
  from ssl_jax.models import encoders, frontends
  from ssl_jax.signal import augment

  check_values(sections(), config)
  _check_run(config)
  for part in (
    *(buckets, augment, frontends, encoders, objectives, optimizers),
  ):
    part.check(config)


def _check_run(config: ConfigDict) -> None:
  mesh, budget = config.mesh, config.budget
  sizes = [n for n in mesh if isinstance(n, int) and (n == -1 or n >= 1)]
  if len(mesh) != 3 or len(sizes) != 3 or sizes.count(-1) > 1:
    raise UserError(
      f"config.mesh={mesh!r}: expected (data, fsdp, tensor), counts of devices "
      "of which one may be -1"
    )
  if budget.trunk and config.init_from:
    raise UserError("config.budget.trunk and config.init_from: give one")
  if budget.trunk and not (
    config.optimizer.warmup_updates and config.optimizer.decay_fraction < 1
  ):
    raise UserError(
      f"config.budget.trunk={budget.trunk!r} needs a schedule that runs "
      "of several budgets share: set config.optimizer.warmup_updates, and "
      "config.optimizer.decay_fraction below 1"
    )
  stated = [key for key in _BUDGETS if budget[key]]
  if len(stated) != 1:
    raise UserError(
      "config.budget: set one of updates, flops and match, not "
      + (" and ".join(stated) or "none")
    )


def differing(
  there: dict[str, Any], config: ConfigDict, may_differ: str
) -> list[str]:
  """Lists the knobs in which a saved config is another experiment.

  Args:
    there: the saved config, nested; keys that it lacks, because its version had
      no such knob, have their defaults.
    config: of the run.
    may_differ: which knobs are passed over: "resume" or "branch", as in ROLES.

  Returns:
    "KEY: VALUE there, VALUE here" of each.
  """
  declared = knobs()
  here = flatten(ConfigDict(json.loads(to_json(config))))
  defaults = flatten(ConfigDict(json.loads(to_json(base()))))
  saved = defaults | flatten(ConfigDict(there))
  others = _objectives() - {config.objective.name}
  free = {
    key
    for key, knob in declared.items()
    if getattr(ROLES[knob.role], may_differ)
  }
  return [
    f"{key}: {saved.get(key)!r} there, {here.get(key)!r} here"
    for key in sorted((saved.keys() | here.keys()) - free)
    if saved.get(key) != here.get(key)
    and key.partition(".")[0] not in {MADE_BY, *others}
  ]


def _objectives() -> set[str]:
  from ssl_jax import objectives

  return {*objectives.OBJECTIVES}


def set_size(config: ConfigDict, size: str) -> None:
  """Sets the encoder's shape to a row of the published table, or any other.

  Args:
    config: changed in place.
    size: a key of SIZES, or its four numbers with an x between.

  Raises:
    UserError: it is neither.
  """
  size = str(size).removesuffix("%")
  shape = SIZES.get(size, ())
  if re.fullmatch(r"[1-9][0-9]{0,8}(x[1-9][0-9]{0,8}){3}", size):
    shape = tuple(map(int, size.split("x")))
  if not shape:
    size = size[:80]
    raise UserError(
      f"unknown size {size!r}; {nearest(size, SIZES)}, or layers, width, FFN "
      "and heads as in 3x96x192x4"
    )
  encoder = config.encoder
  (
    encoder.num_layers,
    encoder.hidden_size,
    encoder.ffn_size,
    encoder.num_heads,
  ) = shape


def parse_arg(arg: str | None, **defaults: str) -> dict[str, str]:
  """Parses `size=200,objective=tera` of `configs/slim.py:size=200,...`.

  Raises:
    UserError: for a key that is not in `defaults`.
  """
  values = dict(defaults)
  for part in filter(None, (arg or "").split(",")):
    key, _, value = part.partition("=")
    if key not in defaults or not value:
      raise UserError(
        f"config argument {part[:80]!r}: expected key=value; "
        + nearest(key[:80], defaults)
      )
    values[key] = value
  return values


def check_file(file: str) -> None:
  """Checks that there is a config of that name.

  Raises:
    UserError: there is none; says which was meant.
  """
  if os.path.isfile(file) and file.endswith(".py"):
    return
  folders = {Path(file).parent, Path("configs")}
  there = [str(path) for folder in folders for path in folder.glob("*.py")]
  raise UserError(f"no config file {file!r}; {nearest(file, there)}")


def load(path: str) -> ConfigDict:
  """Reads the config of `FILE.py:ARGUMENT`, as --config takes it.

  Raises:
    UserError: there is no such file, or no such argument.
  """
  file, _, arg = path.partition(":")
  check_file(file)
  spec = importlib.util.spec_from_file_location(Path(file).stem, file)
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    config = module.get_config(arg or None)
  except UserError:
    raise
  except Exception as error:  # The file is the user's code.
    message = f"{type(error).__name__}: {one_line(error)}"
    raise UserError(f"config {path!r} fails ({message})") from error
  if not isinstance(config, ConfigDict):
    raise UserError(f"config {path!r} is a {type(config).__name__}")
  return config


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
      TypeError,  # A locked config refuses another type.
    ) as error:
      kind = type(old).__name__
      raise UserError(f"{key}={text[:80]!r}: expected a {kind}") from error
  clear_other_budgets(config, values)


def clear_other_budgets(config: ConfigDict, given: Iterable[str]) -> None:
  """Lets a budget among the keys `given` take the place of the config's."""
  if any(f"budget.{way}" in given for way in _BUDGETS):
    for way in _BUDGETS:
      if f"budget.{way}" not in given:
        config.budget[way] = type(config.budget[way])()


def to_json(config: ConfigDict) -> str:
  """Returns the resolved config, as saved in a workdir."""
  return json.dumps(json.loads(config.to_json()), indent=2, sort_keys=True)
