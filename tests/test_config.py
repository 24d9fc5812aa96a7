"""Every experiment, expanded: an edit shows its consequences as a diff.

After an intended change, write the new files with
  UPDATE_GOLDEN=1 bash launch/test.sh tests/test_config.py
"""

import ast
import importlib.util
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from doors import door

from ssl_jax import config as config_lib
from ssl_jax import manual, optimizers
from ssl_jax.budget import flops
from ssl_jax.errors import UsageError, UserError
from ssl_jax.knobs import flatten
from ssl_jax.objectives import OBJECTIVES, make_objective
from ssl_jax.optimizers import schedule as schedule_lib
from ssl_jax.probes import TASKS
from ssl_jax.text import readable_time
from ssl_jax.training import step

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"
EXPERIMENTS = [
  "smoke",
  "smoke:objective=tera",
  "smoke:objective=wav2vec2",
  "slim",
  "slim:iteration=1",
  "slim:iteration=2",
  "slim:objective=tera",
  "slim:objective=wav2vec2",
  "slim:objective=bestrq",
  "slim:objective=wav2vec2,size=large",
  "fast",
  "fast:recipe=control",
  "fast:recipe=visible,scale=smoke",
  "probe:task=asr",
  "probe:task=asr,profile=mini",
  *(f"probe:task={task},profile=full" for task in TASKS),
] + [f"slim:size={size}" for size in config_lib.SIZES if size != "100"]

# paper.md, "Architectures": updates at the full budget (None: not published);
# peak learning rates in 1e-5: HuBERT, TERA, wav2vec 2.0.
TABLE = {
  "small": (400_000, 50, 50, 50),
  "30": (550_070, 50, 50, 40),
  "40": (None, None, None, 40),
  "50": (499_953, 50, 50, 40),
  "60": (477_321, None, None, 40),
  "70": (454_811, 50, 50, 40),
  "80": (None, None, None, 40),
  "90": (414_242, None, None, 40),
  "100": (400_000, 50, 50, 40),
  "130": (363_047, None, None, 40),
  "160": (328_915, None, None, 40),
  "190": (304_098, None, None, 40),
  "200": (297_370, 40, 40, 30),
  "base": (187_222, 30, 30, 20),
  "large": (None, 20, 5, 10),
}
LARGE_UPDATES = {"hubert": 160_144, "tera": 160_144, "wav2vec2": 72_234}


def load(name: str, arg: str | None = None):
  path = ROOT / "configs" / f"{name}.py"
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(arg)


def describe(config) -> str:
  objective = make_objective(config, jnp.float32)
  adam = optimizers.make_optimizer(config)
  state = jax.eval_shape(lambda: step.init_state(objective, adam, config))
  crop = round(16_000 * config.data.bucket_seconds[-1])
  forward = flops.forward_flops(
    config,
    crop,
    objective.head_flops(crop),
    objective.target_flops(crop),
    masked=True,
  )
  lines = [f"{k} = {v!r}" for k, v in flatten(config).items()]
  lines += [
    "",
    f"parameters = {sum(x.size for x in jax.tree.leaves(state['params'])):,}",
    f"warm-up updates = {schedule_lib.warmup_updates(config):,}",
    f"updates = {config.budget.updates:,}",
    f"forward FLOPs of a {crop:,}-sample crop = {forward.total:,}",
    f"training FLOPs of a {crop:,}-sample crop = {forward.training:,}",
  ]
  return "\n".join(lines) + "\n"


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_expanded_config_is_the_golden_one(experiment):
  name, _, arg = experiment.partition(":")
  config = load(name, arg)
  path = GOLDEN / f"{experiment.translate(str.maketrans(':,=', '..-'))}.txt"
  if name == "probe":
    text = config_lib.to_json(config) + "\n"
  else:
    config_lib.validate(config)
    text = describe(config)
  if "UPDATE_GOLDEN" in os.environ:
    path.write_text(text)
  assert text == path.read_text(), "intended? see the top of this file"


@pytest.mark.parametrize("size", TABLE)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("budget", ["full", "half"])
def test_every_published_run_is_that_of_the_table(size, objective, budget):
  arg = f"size={size},objective={objective},budget={budget}"
  config = load("slim", arg)
  updates, *rates = TABLE[size]
  if size == "large":
    updates = LARGE_UPDATES[objective]
  if updates is not None:
    published = updates // (1 if budget == "full" else 2)
    assert config.budget.updates == published
  rate = rates[["hubert", "tera", "wav2vec2"].index(objective)]
  if rate is not None:
    assert config.optimizer.learning_rate == pytest.approx(rate * 1e-5)
  assert schedule_lib.warmup_updates(config) == 32_000
  assert config.masking.mask_prob == (0.65 if objective == "wav2vec2" else 0.8)
  halved = size == "large" and objective != "wav2vec2"
  assert config.batch.seconds == (78.0 if halved else 156.0)


@pytest.mark.parametrize("size", ["small", "100"])
def test_the_first_iteration_is_the_published_one(size):
  config = load("slim", f"size={size},iteration=1")
  assert config.objective.name == "hubert"
  assert (config.hubert.labels, config.hubert.clusters) == ("mfcc", (100,))
  assert config.budget.updates == 250_000
  assert schedule_lib.warmup_updates(config) == 20_000
  assert config.optimizer.learning_rate == 5e-4


@pytest.mark.parametrize("size", TABLE)
def test_the_second_iteration_is_the_published_one(size):
  config = load("slim", f"size={size},iteration=2")
  whole = load("slim", f"size={size}")
  assert config.hubert.clusters == (500,)
  assert config.budget == whole.budget
  assert config.optimizer == whole.optimizer


def test_every_file_of_configs_has_a_golden_text():
  files = {path.stem for path in (ROOT / "configs").glob("*.py")}
  families = {"isoflop", "race"}  # tests/test_sweep.py
  assert files == {e.partition(":")[0] for e in EXPERIMENTS} | families


@pytest.mark.parametrize(
  ("key", "value", "said"),
  [
    ("masking.mask_prob", 1.5, "mask_prob=1.5 is outside [0.0, 1.0]"),
    ("optimizer.learning_rate", -1.0, "outside"),
    ("optimizer.learning_rate", float("nan"), "outside"),
    ("batch.seconds", float("inf"), "outside"),
    ("budget.updates", 0, "one of updates, flops and match, not none"),
    ("budget.flops", 1e15, "not updates and flops"),
    ("objective.name", "tara", "did you mean 'tera'?"),
    ("frontend.name", "wavform", "did you mean 'waveform'?"),
    ("encoder.hidden_size", 100, "not divisible by config.encoder.num_heads=8"),
    ("data.bucket_seconds", (3.0, 2.0), "increasing"),
    ("data.min_seconds", 99.0, "longer than the last bucket"),
    ("hubert.labels", "a,b", "as many numbers as"),
    ("hubert.clusters", (1,), "(1,) is outside [2, 65534]"),
    ("wav2vec2.num_groups", 3, "code_dim=256 is not divisible"),
  ],
)
def test_a_value_out_of_range_is_an_error_that_names_it(key, value, said):
  config = config_lib.base()
  section, name = key.split(".")
  if section in OBJECTIVES:  # Knobs of others are not checked together.
    config.objective.name = section
  config[section][name] = value
  with pytest.raises(UserError) as error:
    config_lib.validate(config)
  assert f"config.{key}" in str(error.value) or "config." in str(error.value)
  assert said in str(error.value)


@pytest.mark.parametrize(
  ("args", "status", "said"),
  [
    (["--config=configs/slim.py:size=110"], 1, "unknown size '110'; did you"),
    (["--config=configs/slim.py:siz=50"], 1, "did you mean 'size'?"),
    (["--config=configs/slim.py:objective=hubrt"], 1, "you mean 'hubert'?"),
    (["--config=configs/slim.py:objective=tera,iteration=2"], 1, "iterations"),
    (
      ["--config=configs/smoke.py", "--config.encoder.num_layer=3"],
      2,
      "num_layers",
    ),
    (
      ["--config=configs/smoke.py", "--config.budget.updates=x"],
      2,
      "updates=x",
    ),
    (
      ["--config=configs/smoke.py", "--config.masking.mask_prob=2"],
      1,
      "[0.0, 1.0]",
    ),
    (["--config=configs/nope.py"], 2, "nope.py"),
    (["--confg=1"], 2, "Did you mean: config"),
    ([], 2, "--config"),
    (["--config=configs/slim.py", "--dry_run"], 1, "config.data.dir"),
    (
      ["--config=configs/smoke.py", "--workdir=gs://bucket/run"],
      1,
      "mount the bucket",
    ),
    (
      ["--config=configs/slim.py", "--config.data.dir=records:gs://bucket/x"],
      1,
      "mount the bucket",
    ),
  ],
)
def test_wrong_usage_is_one_line_and_a_status(args, status, said):
  done = door("main", *args)
  assert done.returncode == status, done.stderr
  assert said in done.stderr
  assert len(done.stderr.splitlines()) == 1
  assert done.stdout == ""


def test_a_dry_run_can_time_itself():
  args = ["--config=configs/smoke.py:size=2x32x64x4", "--dry_run"]
  done = door("main", *args, "--time")
  assert done.returncode == 0, done.stderr
  said = json.loads(done.stdout.splitlines()[-1])
  expected = said["flops"] / said["flops_per_second"]
  assert said["train_seconds"] == pytest.approx(expected)
  assert 1 < said["train_seconds"] < 3_600
  assert readable_time(said["train_seconds"]) in done.stderr
  wrong = door("main", args[0], "--time")
  assert wrong.returncode == 2 and "--time needs --dry_run" in wrong.stderr


def test_times_are_as_people_say_them():
  given = (9, 94.44, 300, 7_300, 36_000, 338 * 86_400)
  assert [readable_time(x) for x in given] == [
    *("9 s", "94.4 s", "5 min", "2.03 h", "10 h", "338 days")
  ]


def test_the_page_of_knobs_is_current():
  path = ROOT / "docs" / "config.md"
  text = manual.markdown(config_lib.sections())
  if "UPDATE_GOLDEN" in os.environ:
    path.write_text(text)
  assert text == path.read_text(), "intended? see the top of this file"


@pytest.mark.parametrize(
  ("about", "lines"),
  [
    (
      "encoder.num_heads",
      [
        "encoder.num_heads=8",
        "Values: whole number from 1 to",
        "Role: architecture",
        "No resume or branch may change it",
      ],
    ),
    ("masking", ["masking.mask_prob=0.8", "number from 0 to 1.", "min_masks"]),
    ("objective.name", ["Values: hubert, wav2vec2, tera.", "Role: recipe"]),
    ("batch_seconds", ["eval.batch_seconds=60.0", "A resume or a branch may"]),
    ("mesh", ["a tuple, each item from -1", "Role: speed"]),
  ],
)
def test_a_knob_is_explained(about, lines):
  text = manual.explain(about, config_lib.sections())
  for line in lines:
    assert line in " ".join(text.split())
  assert max(map(len, text.splitlines())) <= 80


def test_an_unknown_knob_is_an_error_that_names_the_nearest():
  with pytest.raises(UsageError, match=r"did you mean 'encoder'\? \(have: "):
    manual.explain("encodr", config_lib.sections())


def helped(*args):
  done = subprocess.run(
    [sys.executable, "-m", *args],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stderr == ""
  return done.stdout


def test_help_lists_flags_and_keys():
  before = resource.getrusage(resource.RUSAGE_CHILDREN)
  text = helped("ssl_jax.main", "--help")
  after = resource.getrusage(resource.RUSAGE_CHILDREN)
  # CPU time, as other processes may be at work on this machine.
  assert after.ru_utime - before.ru_utime < 2
  assert text.startswith("Pretrains a speech encoder.")
  assert "--process_timeout: Seconds " in text and "Default: 300.0." in text
  for key, knob in config_lib.knobs().items():
    assert f"\n  {key}={knob.default}\n" in text
  here = helped("ssl_jax.main", "--config=configs/smoke.py", "--help")
  smoke = flatten(load("smoke"))
  assert f"\n  batch.seconds={smoke['batch.seconds']}\n" in here
  assert "\n  fit.clip_norm=" in helped(
    "ssl_jax.probe", "--help", "--config=configs/probe.py:task=sid"
  )


DOORS = ("main", "label", "flops", "plan", "sweep", "report", "extract")
DOORS += ("export", "compile", "bench")


@pytest.mark.parametrize("door", DOORS)
def test_flags_say_what_their_value_is(door):
  """Each begins with a noun or a verb for the value."""
  tree = ast.parse((ROOT / "ssl_jax" / f"{door}.py").read_text())
  calls = [
    node
    for node in ast.walk(tree)
    if isinstance(node, ast.Call) and "DEFINE_" in ast.unparse(node.func)
  ]
  assert calls
  for call in calls:
    words = [
      x.value
      for x in call.args[1:]
      if isinstance(x, ast.Constant) and isinstance(x.value, str)
    ]
    text = max(words, key=len)
    first = re.split(r"\W", text)[0]
    assert first[:1].isupper(), text
    assert first not in {"Of", "Or", "Else", "Not", "But", "By", "What", "Who"}
    assert first not in {"Where", "How", "Which", "Whose", "Whether", "Whom"}
