"""Names of components in transformers, where it has the same."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class HfNames:
  """Names of a component in HubertModel and Wav2Vec2Model of transformers.

  A component without it cannot be exported to transformers.

  Attributes:
    modules: {module here: module there}.
    keys: {key of their config: (knob here, their default)}.
    fixed: {key of their config: the value that it always has here}.
  """

  modules: dict[str, str]
  keys: dict[str, tuple[str, Any]]
  fixed: dict[str, Any]
