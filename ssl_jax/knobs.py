"""Knobs: each setting of a run is declared once, beside the code that reads it.

A module declares `KNOBS = {name: Knob(...)}`; `ssl_jax.config` collects them.
Defaults, limits, help, and whether a resume or a branch may change a knob all
come from that declaration.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from ssl_jax.errors import UserError, nearest

MOST = 1e30  # The largest number that any knob takes.
_LONGEST = 1_000  # Items of a tuple.


@dataclasses.dataclass(frozen=True)
class Role:
  """The kind of a knob: it says where the knob may differ.

  Attributes:
    meaning: for people.
    resume: a run may be resumed with another value.
    branch: a branch of a trunk may have another value than the trunk.
    recipe: runs that differ in it are of different recipes in a report.
  """

  meaning: str
  resume: bool = False
  branch: bool = False
  recipe: bool = False


ROLES = {
  "architecture": Role("what the encoder is; `init_from` sets it", recipe=True),
  "recipe": Role("how it is trained", recipe=True),
  "data": Role("which audio it hears", recipe=True),
  "place": Role("where the audio is; its clips are checked one by one"),
  "budget": Role("how long it is trained", branch=True),
  "seed": Role("which random draws it gets"),
  "speed": Role("how fast, never what, it computes", resume=True, branch=True),
  "logging": Role("what is written, and how often", resume=True, branch=True),
}


@dataclasses.dataclass(frozen=True)
class Knob:
  """One setting.

  Attributes:
    default: whose type every value has; an int does for a float.
    meaning: for people: what it is, with its unit.
    role: a key of ROLES.
    low: the least number, of a tuple each number.
    high: the greatest, inclusive.
    choices: strings that are allowed, or a function that returns them; (): any.
  """

  default: Any
  meaning: str
  role: str = "recipe"
  low: float = 0
  high: float = MOST
  choices: Iterable[str] | Callable[[], Iterable[str]] = ()

  def __post_init__(self):
    assert self.role in ROLES, self.role

  @property
  def allowed(self) -> tuple[str, ...]:
    """The strings that are allowed; () for any."""
    choices = self.choices() if callable(self.choices) else self.choices
    return tuple(choices)

  @property
  def item(self) -> type:
    """The type of a tuple's items; float where the default has none."""
    return type(next(iter(self.default), 0.0))

  def check(self, name: str, value: Any) -> None:
    """Checks a value.

    Args:
      name: what the user calls it, as in `config.encoder.num_layers`.
      value: to be checked.

    Raises:
      UserError: naming the knob, its value, and what is allowed.
    """
    given = f"{name}={_short(value)}"
    kind = type(self.default)
    if not is_of(value, kind):
      raise UserError(f"{given}: expected a {kind.__name__}")
    if self.allowed and value not in self.allowed:
      raise UserError(f"{given}: {nearest(str(value), self.allowed)}")
    numbers = value if isinstance(value, tuple | list) else [value]
    if kind is tuple and not (
      len(value) <= _LONGEST and all(is_of(x, self.item) for x in value)
    ):
      raise UserError(
        f"{given}: expected at most {_LONGEST} items, each a "
        f"{self.item.__name__}"
      )
    for number in numbers:
      # Written so that NaN is outside.
      if is_of(number, float) and not self.low <= number <= self.high:
        unit = kind if kind in (int, float) else type(number)
        low, high = unit(self.low), unit(self.high)
        raise UserError(f"{given} is outside [{low}, {high}]")


def _short(value: object) -> str:
  try:
    return f"{value!r}"[:200]
  except ValueError:  # An int of too many digits.
    return "..."


def is_of(value: object, kind: type) -> bool:
  """Tells whether a value is of a kind: ints are floats, bools are no ints."""
  if kind is float:
    return type(value) in (int, float)
  if kind in (tuple, list):
    return isinstance(value, tuple | list)
  return type(value) is kind


def by_key(sections: Mapping[str, Mapping[str, Knob]]) -> dict[str, Knob]:
  """Returns the knobs of {section: {name: knob}} as {"section.name": knob}."""
  return {
    f"{section}.{name}".removeprefix("."): knob
    for section, declared in sections.items()
    for name, knob in declared.items()
  }


def make_config(sections: Mapping[str, Mapping[str, Knob]]) -> ConfigDict:
  """Returns a locked config of the defaults of {section: {name: knob}}."""
  config = ConfigDict()
  for section, declared in sections.items():
    values = {name: knob.default for name, knob in declared.items()}
    if section:
      config[section] = ConfigDict(values)
    else:
      config.update(values)
  return config.lock()


def check_values(
  sections: Mapping[str, Mapping[str, Knob]], config: ConfigDict
) -> None:
  """Checks each value of a config by itself.

  Raises:
    UserError: naming the key, its value, and what is allowed.
  """
  declared = by_key(sections)
  for key, value in flatten(config).items():
    if key not in declared:
      raise UserError(
        f"unknown config key {key[:80]!r}; {nearest(key[:80], declared)}"
      )
    declared[key].check(f"config.{key}", value)


def flatten(config: ConfigDict) -> dict[str, Any]:
  """Returns `{'encoder.num_layers': 12, ...}` in sorted order."""
  flat = {}
  for key, value in config.items():
    if isinstance(value, ConfigDict):
      flat |= {f"{key}.{name}": v for name, v in flatten(value).items()}
    else:
      flat[key] = value
  return dict(sorted(flat.items()))


# Knobs of a whole run; those of its parts are declared in the parts.
RUN = {
  "": {
    "seed": Knob(
      0,
      "Seed of everything random: data order, crops, masks, dropout.",
      role="seed",
      high=2**63 - 1,
    ),
    "compute_dtype": Knob(
      "auto",
      "`float32`, `bfloat16`, or `auto`: bfloat16 on accelerators, float32 on "
      "CPUs. Parameters, optimizer, norms, softmax and losses are float32.",
      choices=("auto", "float32", "bfloat16"),
    ),
    "recipe": Knob("", "Name of the recipe in reports.", "logging"),
    "init_from": Knob(
      "",
      "An encoder to start from, whose architecture replaces this config's: "
      "`hf:DIR` (HuBERT or wav2vec 2.0 of transformers), or a run's workdir.",
    ),
    "mesh": Knob(
      (-1, 1, 1),
      "Devices along (data, fsdp, tensor); -1: those that the others leave. "
      "`data` shares out clips; `fsdp` parameters and optimizer state as well, "
      "to fit large models; `tensor` the heads and units of each layer.",
      role="speed",
      low=-1,
    ),
  },
  "batch": {
    "seconds": Knob(
      156.0,
      "Seconds of audio an update, over all devices, padding not counted.",
      low=0.1,
      high=1e7,
    ),
    "microbatches": Knob(
      1,
      "Parts that a batch is computed in (gradient accumulation): the same run "
      "in less memory.",
      role="speed",
      low=1,
      high=10_000,
    ),
  },
  "loader": {
    "num_threads": Knob(
      4, "Threads that read audio.", role="speed", low=1, high=10_000
    ),
    "num_workers": Knob(
      0, "Processes that read audio; 0: threads only.", "speed", high=10_000
    ),
    "prefetch": Knob(4, "Batches read ahead.", "speed", low=1, high=10_000),
  },
  "budget": {
    "updates": Knob(
      400_000,
      "Updates. State one of updates, flops and match; one given on the "
      "command line replaces the config's.",
      role="budget",
      high=10**12,
    ),
    "flops": Knob(
      0.0, "Training FLOPs as logged: padding counts.", role="budget"
    ),
    "match": Knob(
      "",
      "A config, as for --config: as many FLOPs as its run, with its "
      "batch.seconds.",
      role="budget",
    ),
    "trunk": Knob(
      "",
      "Workdir of a run of this config with a larger budget: this run starts "
      "from its checkpoint where the decay begins. Needs "
      "optimizer.warmup_updates, and optimizer.decay_fraction below 1; the "
      "trunk saves there by checkpoint.at.",
      role="budget",
    ),
  },
  "log": {
    "every": Knob(
      100, "Updates between lines of metrics.", "logging", 1, 10**12
    ),
    "to": Knob(
      "",
      "Trackers beside the workdir: `wandb`, `mlflow` or `wandb,mlflow`, where "
      "installed.",
      role="logging",
    ),
    "stop_on_alarm": Knob(
      False, "A run that learns nothing stops; else it warns.", "logging"
    ),
  },
  "eval": {
    "every": Knob(
      5_000,
      "Updates between validations; also before the first and at the end.",
      role="logging",
      low=1,
      high=10**12,
    ),
    "batch_seconds": Knob(
      60.0,
      "Seconds of audio a validation batch, padding not counted: memory only.",
      role="speed",
      low=0.1,
      high=1e7,
    ),
    "probe": Knob(
      0,
      "Updates between measures of word retrieval (probe task `words`); also "
      "before the first and at the end; 0: never.",
      role="logging",
      high=10**12,
    ),
    "probe_words": Knob(
      200, "Words that are heard for it.", role="logging", low=2, high=10_000
    ),
    "probe_dir": Knob(
      "",
      "Folder or manifest of clips that are words, with `word`, `speaker` and "
      "`language`; empty: the packaged ones.",
      role="logging",
    ),
  },
  "encode": {
    "batch_seconds": Knob(
      60.0,
      "Seconds of padded audio a batch where an encoder runs over a corpus "
      "(codebooks, labels): memory only.",
      role="speed",
      low=0.1,
      high=1e7,
    ),
  },
  "checkpoint": {
    "every": Knob(
      5_000,
      "Updates between checkpoints; also at the end.",
      role="logging",
      low=1,
      high=10**12,
    ),
    "keep": Knob(
      2,
      "Newest checkpoints that are kept, beside the best.",
      role="logging",
      low=1,
      high=10_000,
    ),
    "at": Knob((), "Updates that are saved and kept as well.", "logging"),
  },
}


def merge(*parts: dict[str, Knob]) -> dict[str, Knob]:
  """Returns the knobs of several components that share a section.

  Raises:
    ValueError: two declare a name differently.
  """
  merged: dict[str, Knob] = {}
  for part in parts:
    for name, knob in part.items():
      if merged.setdefault(name, knob) != knob:
        raise ValueError(f"the knob {name!r} is declared twice, differently")
  return merged
