"""Warnings about runs that learn nothing, with what to change."""

import math
from typing import Any

from ml_collections import ConfigDict

from ssl_jax.objectives.objective import Objective
from ssl_jax.optimizers.schedule import warmup_updates

# Lines of metrics in a row with a symptom before it is told.
_PATIENCE = 3
# At chance: not this much below it, for this share of the run or more updates.
_MARGIN, _SHARE, _UPDATES = 0.02, 0.1, 100


class Alarms:
  """Watches the lines of metrics; tells each trouble once, when it begins.

  A trouble is told again only if it went away in between.
  """

  def __init__(
    self, objective: Objective, config: ConfigDict, history: list[dict]
  ):
    """Goes on from the lines written before a resume."""
    self._objective, self._config = objective, config
    self._since: dict[str, list[int]] = {}  # Updates of the lines in a row.
    self._told: set[str] = set()
    for line in history:
      if line.get("split") == "train":
        self.check(line["update"], line)

  def check(self, update: int, values: dict[str, Any]) -> dict[str, str]:
    """Symptoms that a line of training metrics makes an alarm: {name: text}."""
    main, chance = values[self._objective.main], values["chance"]
    if main is None or math.isnan(main):
      return {}  # Every update of the line was skipped.
    symptoms = self._objective.symptoms(values)
    if main > (1 - _MARGIN) * chance and update > warmup_updates(self._config):
      symptoms["chance"] = (
        f"{self._objective.main} {main:.3f} is at chance ({chance:.3f}) since "
        f"update {self._since.get('chance', [update])[0]}: nothing is learned. "
        "Change config.optimizer.learning_rate (try a third of it, then three "
        "times), give more audio an update (config.batch.seconds), or listen "
        "to the clips"
      )
    self._since = {
      name: [*self._since.get(name, []), update] for name in symptoms
    }
    self._told &= symptoms.keys()
    new = {
      name: text
      for name, text in symptoms.items()
      if name not in self._told and self._is_lasting(name)
    }
    self._told |= new.keys()
    return new

  def _is_lasting(self, name: str) -> bool:
    updates = self._since[name]
    lasting = len(updates) >= _PATIENCE
    if name == "chance":
      enough = max(_UPDATES, _SHARE * self._config.budget.updates)
      lasting = lasting and updates[-1] - updates[0] >= enough
    return lasting
