"""A family of runs: what they are, what they share, and what goes wrong."""

import ast
import json
from pathlib import Path

import pytest
from doors import door

from ssl_jax import config as config_lib
from ssl_jax.budget import law as law_lib
from ssl_jax.budget import updates
from ssl_jax.config import override
from ssl_jax.errors import UserError
from ssl_jax.files import read_jsonl
from ssl_jax.knobs import flatten
from ssl_jax.training import sweep as family_lib
from ssl_jax.training import sweep_probes

ROOT = Path(__file__).parents[1]
TINY = [
  "hubert.clusters=(20,)",
  "kmeans.num_restarts=1",
  "batch.seconds=4.0",
  "data.bucket_seconds=(0.8,1.6)",
  "log.every=2",
]


def smoke(**changes):
  family = config_lib.load(f"{ROOT}/configs/isoflop.py:scale=smoke")
  family.update(changes)
  family.config = f"{ROOT}/{family.config}"
  return family


def flags_of(run):
  given = dict(
    flag.removeprefix("--config.").split("=", 1) for flag in run.flags
  )
  return given


def test_every_cell_is_a_run_with_the_flops_asked_for(tmp_path):
  groups = family_lib.expand(
    smoke(objective=("hubert", "tera"), seed=(0, 1), hours=(0.0, 0.02)),
    [],
    tmp_path,
  )
  runs = [run for group in groups for run in group]
  assert len(groups) == 4 * 2 * 2 * 2 and len(runs) == 2 * len(groups)
  assert len({run.name for run in runs}) == len(runs)
  for run in runs:
    flops = float(flags_of(run)["budget.flops"])
    cost = run.facts["padded_flops_per_update"]
    assert flops - cost <= run.facts["flops"] <= flops
  names = {run.name for run in runs}
  assert {
    "hubert-2x32x64x4-3e11",
    "tera-1x16x32x4-0.02h-seed1-9e11",
  } <= names


def test_smaller_budgets_branch_off_the_largest(tmp_path):
  (group,) = family_lib.expand(
    smoke(size=("3x96x192x4",), flops=(1e12, 5e11, 2e12)), [], tmp_path
  )
  longest, *others = group
  assert [float(flags_of(run)["budget.flops"]) for run in group] == [
    2e12,
    1e12,
    5e11,
  ]
  kept = ast.literal_eval(flags_of(longest)["checkpoint.at"])
  assert longest.trunk == "" and len(kept) == 2
  warmups = {flags_of(run)["optimizer.warmup_updates"] for run in group}
  assert len(warmups) == 1
  warmup = int(warmups.pop())
  for run, left in zip(others, sorted(kept, reverse=True)):
    assert run.trunk == longest.name
    assert flags_of(run)["budget.trunk"] == str(tmp_path / longest.name)
    decay = round(0.2 * (run.facts["updates"] - warmup))
    assert left == run.facts["updates"] - decay
    share = run.facts["own_flops"] / run.facts["flops"]
    assert share == pytest.approx(decay / run.facts["updates"])


def test_the_table_has_the_losses_of_the_planner(tmp_path):
  family = config_lib.load(f"{ROOT}/configs/isoflop.py")
  family.config = f"{ROOT}/{family.config}"
  family.size, family.flops = ("100",), (1.33e18,)
  overrides = ["data.source=embedded", "data.min_seconds=0.3"]
  ((run,),) = family_lib.expand(family, overrides, tmp_path)
  law = law_lib.fit(law_lib.published("hubert"))
  audio = run.facts["updates"] * run.facts["seconds_per_update"]
  loss = law.loss(run.facts["params"], audio, law_lib.PUBLISHED)
  assert f"{loss:.3f}" in family_lib.table([run], tmp_path)
  # Nothing is known of runs with another frontend.
  groups = family_lib.expand(smoke(), [], tmp_path)
  lines = family_lib.table(groups[0], tmp_path).splitlines()
  assert all(line.endswith("-") for line in lines[1:-1])
  # But what a finished one has.
  done = tmp_path / groups[0][0].name
  done.mkdir()
  (done / "result.json").write_text(
    json.dumps({"flops": 1e12, "train_seconds": 9.0, "valid_loss": 2.3456})
  )
  first, *others = family_lib.table(groups[0], tmp_path).splitlines()[1:-1]
  assert first.endswith("done   2.346")
  assert all(line.endswith("-") for line in others)


def test_without_sharing_each_run_is_whole(tmp_path):
  groups = family_lib.expand(smoke(decay_fraction=1.0), [], tmp_path)
  for group in groups:
    for run in group:
      assert run.trunk == "" and run.facts["own_flops"] == run.facts["flops"]
      assert not {"budget.trunk", "checkpoint.at"} & flags_of(run).keys()


def test_a_family_that_cannot_start_names_the_run(tmp_path):
  with pytest.raises(UserError, match=r"hubert-1x16x32x4: .* buys 0 updates"):
    family_lib.expand(smoke(flops=(1e3, 1e12)), [], tmp_path)
  with pytest.raises(UserError, match=r"hubert-31: unknown size '31'"):
    family_lib.expand(smoke(size=("31",)), [], tmp_path)
  with pytest.raises(UserError, match=r"mean 'data\.dir'"):
    family_lib.expand(smoke(), ["data.dri=x"], tmp_path)


@pytest.mark.parametrize(
  ("given", "key", "value"),
  [
    ("data.dir=a=b", "data.dir", "a=b"),
    ("batch.seconds=4", "batch.seconds", 4.0),
    ("budget.flops=1e17", "budget.flops", 1e17),
    ("encoder.num_layers=3", "encoder.num_layers", 3),
    ("encoder.scan_layers=True", "encoder.scan_layers", True),
    ("checkpoint.at=(3, 4)", "checkpoint.at", (3, 4)),
    ("seed=7", "seed", 7),
  ],
)
def test_overrides_are_those_of_the_command_line(given, key, value):
  config = config_lib.base()
  override(config, [given])
  found = flatten(config)[key]
  assert found == value and type(found) is type(value)
  if key == "budget.flops":
    assert config.budget.updates == 0
    assert updates.resolve(config).budget.updates > 0


@pytest.mark.parametrize("given", ["seed=x", "seed=1.5", "data.hours=(1,)"])
def test_a_value_of_another_type_is_refused(given):
  with pytest.raises(UserError, match="expected a"):
    override(config_lib.base(), [given])


def sweep(workdir, *args):
  done = door(
    "sweep",
    "--config=configs/isoflop.py:scale=smoke",
    "--config.size=('2x32x64x4','2x48x64x4')",
    "--config.flops=(3e9,9e9)",
    f"--workdir={workdir}",
    *[f"--config.{item}" for item in TINY],
    *args,
  )
  lines = done.stdout.splitlines()
  return done.returncode, json.loads(lines[-1]) if lines else None, done.stderr


@pytest.mark.slow
def test_a_sweep_goes_on_past_a_failure_and_is_resumed(tmp_path):
  status, planned, err = sweep(tmp_path, "--dry_run")
  assert status == 0 and len(planned["runs"]) == 4
  assert "4 runs" in err and not [*tmp_path.iterdir()]
  broken, branch, *fine = [run["name"] for run in planned["runs"]]

  (tmp_path / broken).mkdir()  # Another run's.
  (tmp_path / broken / "config.json").write_text('{"seed": 3}')
  status, result, err = sweep(tmp_path)
  assert status == 1
  assert [*result["failed"]] == [broken, branch]
  assert "another config" in result["failed"][broken]
  assert "its trunk" in result["failed"][branch]
  assert f"failed: {broken}" in err
  finished = {run["name"]: run["finished"] for run in result["runs"]}
  assert finished == {broken: False, branch: False} | dict.fromkeys(fine, True)
  trunk, short = (
    json.loads((tmp_path / name / "result.json").read_text()) for name in fine
  )
  assert trunk["trunk_flops"] == 0 < short["trunk_flops"] < short["flops"]
  assert 2.4e9 < short["flops"] < 3.6e9 < 8e9 < trunk["flops"] < 9.9e9

  before = read_jsonl(tmp_path / fine[0] / "metrics.jsonl")
  status, again, _ = sweep(tmp_path, "--index=1", "--count=2")
  assert status == 0 and [run["name"] for run in again["runs"]] == fine
  assert read_jsonl(tmp_path / fine[0] / "metrics.jsonl") == before

  # Probes asked for later are made up for.
  probed = "--index=1", "--count=2", "--config.probes=('rank',)"
  status, again, err = sweep(tmp_path, *probed)
  assert status == 0 and not again["failed"]
  made = [tmp_path / name / "probes" / "rank-smoke.json" for name in fine]
  for path in made:
    assert json.loads(path.read_text())["encoder"] == "model"
    assert not [*path.parents[1].glob("features*")]
  made[0].write_text(made[0].read_text().replace("{", '{"seen": 1,', 1))
  made[1].unlink()
  assert sweep(tmp_path, *probed)[0] == 0
  assert "seen" in json.loads(made[0].read_text()) and made[1].exists()


@pytest.mark.parametrize(
  ("given", "said"),
  [
    ({"probes": ("rink",)}, "did you mean 'rank'"),
    ({"probes": ("phone",)}, "packaged clips are not enough for phone"),
    ({"probes": ("words",), "probe_dir": "none"}, "no such corpus"),
  ],
)
def test_probes_that_cannot_be_made_are_refused_at_once(given, said):
  with pytest.raises(UserError, match=said):
    sweep_probes.of_family(smoke(**given))


def test_a_result_of_another_corpus_is_not_the_probes(tmp_path):
  (tmp_path / "probes").mkdir()
  path = tmp_path / "probes" / "phone-study.json"
  probe = sweep_probes.Probe("phone", "here")
  assert not probe.is_done(tmp_path)
  for folder, done in (("there", False), ("here", True)):
    path.write_text(json.dumps({"config": {"data": {"dir": folder}}}))
    assert probe.is_done(tmp_path) == done
  path.write_text("cut sh")
  assert not probe.is_done(tmp_path)


def test_recipes_are_an_axis(tmp_path):
  family = config_lib.load(f"{ROOT}/configs/race.py")
  family.config = f"{ROOT}/{family.config}"
  groups = family_lib.expand(family, TINY, tmp_path)
  assert len(groups) == len(family.recipe) * len(family.seed)
  runs = [run for group in groups for run in group]
  assert {run.name.partition("-")[0] for run in runs} == {*family.recipe}
  assert all(run.facts["objective"] == "hubert" for run in runs)
  del family.recipe
  with pytest.raises(UserError, match="neither objectives nor recipes"):
    family_lib.expand(family, TINY, tmp_path)


@pytest.mark.slow
def test_a_run_is_overridden_as_everywhere_and_by_the_old_name(tmp_path):
  ways = [
    ("--config.batch.seconds=8.0", "--config.encoder.num_layers", "1"),
    ("--set=batch.seconds=8.0", "--set", "encoder.num_layers=1"),
  ]
  results = [sweep(tmp_path, "--dry_run", *way) for way in ways]
  _, plain, _ = sweep(tmp_path, "--dry_run")
  assert results[0][:2] == (0, results[1][1])
  assert results[0][1]["runs"][0]["params"] < plain["runs"][0]["params"]
  notice = "--set=KEY=VALUE is --config.KEY=VALUE now"
  assert results[1][2].splitlines()[0] == notice
  assert notice not in results[0][2]
  status, _, err = sweep(tmp_path, "--dry_run", "--config.batch.second=8")
  assert status == 1 and "did you mean 'batch.seconds'" in err
  status, _, err = sweep(tmp_path, "--dry_run", "--config.sizes=('30',)")
  assert status == 2 and "unknown config key" in err


def test_a_share_beyond_the_last_is_refused(tmp_path):
  status, result, err = sweep(tmp_path, "--index=2", "--count=2")
  assert (status, result) == (2, None)
  assert err.strip() == "error: --index=2 is not below --count=2"


@pytest.mark.parametrize("family", ["race", "isoflop"])
@pytest.mark.parametrize("name", ["main", "flops", "probe"])
def test_a_family_given_as_a_run_is_one_line(family, name):
  more = ["--encoder=logmel"] * (name == "probe")
  done = door(name, f"--config={ROOT}/configs/{family}.py", *more)
  assert done.returncode == 1
  (line,) = done.stderr.splitlines()
  assert line.startswith("error: ") and "ssl_jax.sweep" in line
