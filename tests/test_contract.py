"""Every entry of every table: it trains, resumes, is counted, swept, reported,
exported or refused, and probed; also one that a user adds.

Entries of all tables are dealt out to a few runs, so that a new entry is in one
of them without a line here.
"""

import itertools
import json
import shutil

import optax
import pytest
from doors import door
from tiny import CORPUS, ROOT, reproducible, tiny

import ssl_jax
from ssl_jax import config as config_lib
from ssl_jax.budget import cost
from ssl_jax.data.sources import SOURCES
from ssl_jax.devices import sharding
from ssl_jax.errors import UserError
from ssl_jax.models.encoders import ENCODERS
from ssl_jax.models.frontends import FRONTENDS
from ssl_jax.objectives import OBJECTIVES
from ssl_jax.objectives.inputs import num_params
from ssl_jax.optimizers import OPTIMIZERS
from ssl_jax.optimizers.optimizer import Optimizer
from ssl_jax.pretrained.export import export
from ssl_jax.probes import TASKS, encoders, run
from ssl_jax.reports import page, runs
from ssl_jax.training import loop
from ssl_jax.training import sweep as sweep_lib

TABLES = (OBJECTIVES, FRONTENDS, ENCODERS, OPTIMIZERS)
COUNT = max(map(len, TABLES))
ROWS = [
  tuple(name for name, _ in zip(itertools.cycle(table), range(COUNT)))
  for table in TABLES
]
ROWS = list(zip(*ROWS))
# Sources that the packaged clips can be given by; tests/test_tfds.py trains on
# datasets of TFDS.
GIVEN = ("embedded", "folder", "manifest", "records", "mixture")


def settings(objective, frontend, encoder, optimizer):
  config = tiny(4, objective)
  config.frontend.name, config.encoder.name = frontend, encoder
  config.optimizer.name = optimizer
  config.encoder.num_layers, config.encoder.hidden_size = 1, 16
  config.data.min_seconds = 0.6
  config.data.bucket_seconds, config.batch.seconds = (0.6,), 1.8
  config.log.every = config.checkpoint.every = 2
  return config


@pytest.fixture(scope="module", params=ROWS, ids="-".join)
def trained(request, tmp_path_factory):
  config = settings(*request.param)
  workdir = tmp_path_factory.mktemp("-".join(request.param))
  result = loop.train(config, workdir)
  assert result == json.loads((workdir / "result.json").read_text())
  return config, workdir


def test_every_entry_is_in_a_run():
  for place, table in enumerate(TABLES):
    assert {row[place] for row in ROWS} == set(table)
  assert set(GIVEN) | {"tfds"} == set(SOURCES)


def test_it_resumes_bit_for_bit(trained, tmp_path):
  config, workdir = trained
  again = tmp_path / "again"
  shutil.copytree(workdir, again)
  shutil.rmtree(again / "checkpoints" / "4")
  (again / "result.json").unlink()
  loop.train(config, again)
  assert reproducible(workdir) == reproducible(again)


def test_it_is_counted(trained):
  config, workdir = trained
  facts = cost.facts(config, num_params(config), 1.0, False)
  assert (
    facts["params"]
    == json.loads((workdir / "result.json").read_text())["params"]
  )
  assert facts["total_flops"] > 0


def test_it_is_swept(trained, tmp_path):
  config, _ = trained
  family = config_lib.load(f"{ROOT}/configs/isoflop.py:scale=smoke")
  family.config = f"{ROOT}/configs/smoke.py"
  family.update(objective=(config.objective.name,), size=("1x16x32x4",))
  family.flops = (1e14,)
  given = [
    f"frontend.name={config.frontend.name}",
    f"encoder.name={config.encoder.name}",
    f"optimizer.name={config.optimizer.name}",
  ]
  groups = sweep_lib.expand(family, given, tmp_path)
  assert all(one.facts["updates"] > 0 for group in groups for one in group)


def test_it_is_reported(trained, tmp_path):
  _, workdir = trained
  found, broken = runs.read([workdir])
  assert len(found) == 1 and not broken
  page.write(found, broken, tmp_path, "one run", None)
  assert (tmp_path / "report.html").stat().st_size > 10_000


def test_it_is_exported_or_refused(trained, tmp_path):
  _, workdir = trained
  encoder = ssl_jax.load(workdir)
  try:
    facts = export(encoder, "hf", tmp_path / "out")
  except UserError as error:
    assert "transformers has no" in str(error)
    assert not (tmp_path / "out").exists()
  else:
    assert facts["params"] > 0
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize(
  "objective",
  [
    name if name == "hubert" else pytest.param(name, marks=pytest.mark.slow)
    for name in OBJECTIVES
  ],
)
def test_it_is_planned(objective):
  done = door("plan", "--budget=1e17", f"--objective={objective}")
  assert done.returncode == 0, done.stderr
  assert json.loads(done.stdout.splitlines()[-1])["updates"] > 0


@pytest.fixture(scope="module")
def places(tmp_path_factory):
  """Where the packaged clips are, by source."""
  root = tmp_path_factory.mktemp("sources")
  # Of 10 kB, which is 4 s.
  clips = sorted(
    CORPUS.rglob("*.opus"), key=lambda path: abs(path.stat().st_size - 10_000)
  )
  (root / "folder").mkdir()
  for clip in clips[:12]:
    shutil.copy(clip, root / "folder")
  lines = [
    json.dumps({"audio": str(path)}) for path in (root / "folder").iterdir()
  ]
  (root / "clips.jsonl").write_text("\n".join(lines))
  prepared = door(
    *("prepare", f"--input={root / 'folder'}", f"--out={root / 'records'}")
  )
  assert prepared.returncode == 0, prepared.stderr
  return {
    "embedded": "",
    "folder": str(root / "folder"),
    "manifest": str(root / "clips.jsonl"),
    "records": str(root / "records"),
    "mixture": f"folder:{root / 'folder'},embedded",
  }


@pytest.mark.parametrize("source", GIVEN)
def test_every_source_is_trained_on(source, places, tmp_path):
  config = settings("tera", "logmel", "transformer", "adamw")
  config.data.source, config.data.dir = source, places[source]
  config.data.valid_fraction = 0.2
  assert loop.train(config, tmp_path)["updates"] == 4


@pytest.mark.parametrize(
  "task",
  [
    pytest.param(x, marks=pytest.mark.slow)
    if x in ("asr", "asv")
    else x  # Of long clips.
    for x in TASKS
  ],
)
def test_every_task_is_probed_or_says_what_the_clips_lack(task, tmp_path):
  config = config_lib.load(f"{ROOT}/configs/probe.py:task={task}")
  config.fit.updates = config.fit.eval_every = config.fit.chunk_size = 2
  config.fit.num_seeds, config.fit.learning_rates = 1, (1e-2,)
  if config.where == ("",):
    config.where = ("text",)  # Short clips, and a third of all.
  config.head.projector = config.head.recurrent_size = 8
  arguments = (
    config,
    [encoders.Candidate("logmel", [encoders.log_mel()])],
    tmp_path / "cache",
    tmp_path / "out",
    sharding.by_row(sharding.make_mesh()),
  )
  if TASKS[task].packaged:
    assert 0 <= run.probe(*arguments)["test"]
    return
  try:
    assert 0 <= run.probe(*arguments)["test"]
  except UserError as error:
    assert task in str(error) or "config." in str(error)


def test_an_optimizer_from_outside_trains_and_resumes(tmp_path, monkeypatch):
  sgd = Optimizer(lambda config, schedule: optax.sgd(schedule), {})
  monkeypatch.setitem(OPTIMIZERS, "sgd", sgd)
  config = settings("tera", "logmel", "transformer", "sgd")
  config_lib.validate(config)
  loop.train(config, tmp_path / "run")
  shutil.copytree(tmp_path / "run", tmp_path / "again")
  shutil.rmtree(tmp_path / "again" / "checkpoints" / "4")
  (tmp_path / "again" / "result.json").unlink()
  loop.train(config, tmp_path / "again")
  assert reproducible(tmp_path / "run") == reproducible(tmp_path / "again")
