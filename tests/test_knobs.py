"""Each knob has one declaration, which everything else asks."""

import copy
import json
import re
import shlex
import sys

import jax
import pytest

from ssl_jax import config as config_lib
from ssl_jax.errors import UserError
from ssl_jax.knobs import ROLES, Knob, flatten
from ssl_jax.training import workdir as workdir_lib


def changed(key, value):
  config = config_lib.base()
  section, _, name = key.rpartition(".")
  (config[section] if section else config)[name] = value
  return config


def test_every_key_of_a_config_is_declared_and_explained():
  declared = config_lib.knobs()
  assert declared.keys() == flatten(config_lib.base()).keys()
  for key, knob in declared.items():
    assert knob.meaning.endswith("."), key
    knob.check(key, knob.default)


def test_the_default_recipe_is_valid():
  config_lib.validate(config_lib.base())


@pytest.mark.parametrize(
  ("knob", "value", "message"),
  [
    (Knob(1, "A count.", low=1, high=9), 0, "x=0 is outside [1, 9]"),
    (Knob(1, "A count."), 1.5, "x=1.5: expected a int"),
    (Knob(1, "A count."), True, "x=True: expected a int"),
    (Knob(0.5, "A share.", high=1.0), 2, "x=2 is outside [0.0, 1.0]"),
    (Knob(0.5, "A share."), float("nan"), "x=nan is outside"),
    (Knob((1.0,), "Numbers.", high=2.0), (1.0, 3.0), "outside [0.0, 2.0]"),
    (Knob((1.0,), "Numbers."), (0.0,) * 1_001, "at most 1000 items"),
    (Knob("a", "A word.", choices=("apple", "a")), "aple", "mean 'apple'?"),
    (Knob("a", "A word.", choices=lambda: {"b": 1}), "c", "(have: b)"),
  ],
)
def test_a_wrong_value_is_refused_with_what_is_allowed(knob, value, message):
  with pytest.raises(UserError) as error:
    knob.check("x", value)
  assert message in str(error.value)


@pytest.mark.parametrize(
  ("key", "value", "resume", "branch"),
  [
    ("batch.microbatches", 4, True, True),
    ("encoder.scan_layers", True, True, True),
    ("mesh", (1, 1, 1), True, True),
    ("log.every", 7, True, True),
    ("checkpoint.keep", 7, True, True),
    ("budget.updates", 7, False, True),
    ("seed", 7, False, False),
    ("data.dir", "elsewhere", False, False),
    ("optimizer.learning_rate", 0.1, False, False),
    ("encoder.hidden_size", 32, False, False),
  ],
)
def test_a_role_says_where_a_knob_may_differ(key, value, resume, branch):
  saved = json.loads(config_lib.to_json(config_lib.base()))
  config = changed(key, value)
  for question, may in (("resume", resume), ("branch", branch)):
    differing = config_lib.differing(saved, config, question)
    assert [line.partition(":")[0] for line in differing] == (
      [] if may else [key]
    )


def test_a_workdir_of_a_version_without_a_knob_is_resumed(tmp_path):
  saved = json.loads(config_lib.to_json(config_lib.base()))
  del saved["encoder"]["layerdrop"], saved["augment"]
  (tmp_path / "config.json").write_text(json.dumps(saved))
  workdir_lib.claim(tmp_path, config_lib.base())
  with pytest.raises(UserError, match=r"encoder.layerdrop: 0.05 there, 0.2"):
    workdir_lib.claim(tmp_path, changed("encoder.layerdrop", 0.2))


def test_knobs_of_other_objectives_cannot_strand_a_run(tmp_path):
  saved = json.loads(config_lib.to_json(config_lib.base()))
  saved["tera"]["time_swap"] = 0.3
  saved["made_by"] = {"version": "0"}
  assert not config_lib.differing(saved, config_lib.base(), "resume")
  for section, name, value in (
    ("hubert", "final_dim", 128),
    ("objective", "name", "tera"),
    ("objective", "feature_penalty", 3.0),
  ):
    other = copy.deepcopy(saved)
    other[section][name] = value
    (line,) = config_lib.differing(other, config_lib.base(), "resume")
    assert line.startswith(f"{section}.{name}")


def test_a_workdir_says_who_made_it(tmp_path):
  workdir_lib.claim(tmp_path, config_lib.base())
  made = json.loads((tmp_path / "config.json").read_text())["made_by"]
  assert made["jax"] == jax.__version__
  assert made["command"] == shlex.join(sys.argv)
  assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", made["commit"] or "0" * 40)
  workdir_lib.claim(tmp_path, config_lib.base())  # It is no other config.


def test_another_length_is_refused_with_the_ways_there_are(tmp_path):
  workdir_lib.claim(tmp_path, config_lib.base())
  with pytest.raises(UserError, match=r"another length .*--init_from=.*trunk"):
    workdir_lib.claim(tmp_path, changed("budget.updates", 7))


def test_every_role_is_used_and_said():
  used = {knob.role for knob in config_lib.knobs().values()}
  assert used == ROLES.keys()
  assert all(role.meaning for role in ROLES.values())
