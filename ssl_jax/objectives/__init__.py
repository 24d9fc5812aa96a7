"""Objectives: one file each, and the table of them."""

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ssl_jax.errors import check_choice
from ssl_jax.knobs import Knob
from ssl_jax.objectives import hubert, tera, terms, wav2vec2
from ssl_jax.objectives.objective import Objective

# A new objective is one file with an `Objective`, and one line here.
OBJECTIVES: dict[str, type[Objective]] = {
  "hubert": hubert.Hubert,
  "wav2vec2": wav2vec2.Wav2Vec2,
  "tera": tera.Tera,
}


def make_objective(
  config: ConfigDict,
  dtype: jnp.dtype = jnp.float32,
  codebooks: tuple[np.ndarray, ...] = (),
) -> Objective:
  """Returns the objective `config.objective.name`, with the backbone inside.

  Args:
    config: of the run.
    dtype: of the backbone's computation.
    codebooks: of `fitted_codebooks`; () where only shapes matter.

  Raises:
    UserError: there is no such objective.
  """
  check_choice("config.objective.name", config.objective.name, OBJECTIVES)
  return OBJECTIVES[config.objective.name](config, dtype, codebooks)


def sections() -> dict[str, dict[str, Knob]]:
  """Returns the knobs of `config.objective`, and a section an objective."""
  name = Knob("hubert", "The objective.", choices=lambda: OBJECTIVES)
  return {
    "objective": {"name": name, **terms.KNOBS},
    **{name: one.knobs for name, one in OBJECTIVES.items()},
  }


def check(config: ConfigDict) -> None:
  """Checks the knobs of the config's objective against each other.

  Raises:
    UserError: naming the knobs that do not go together.
  """
  make_objective(config).check()


def setting(config: ConfigDict) -> str:
  """Returns an objective with the knobs that its losses must share."""
  name, knobs = config.objective.name, make_objective(config).setting()
  return f"{name} ({knobs})" if knobs else name


def title(name: str) -> str:
  """Returns the name that people know an objective by."""
  return getattr(OBJECTIVES.get(name), "title", "") or name
