"""Metrics at Weights & Biases and MLflow, of which these are fakes."""

import sys
import types

import pytest
from tiny import tiny

from ssl_jax.errors import UserError
from ssl_jax.files import read_jsonl
from ssl_jax.training import loop, tracking


class WandB(types.ModuleType):
  """Takes the arguments that wandb 0.31 takes of those used."""

  def __init__(self):
    super().__init__("wandb")
    self.__spec__ = types.SimpleNamespace(name="wandb")
    self.runs, self.fail = {}, False

  def init(self, *, dir, id, name, config, resume):
    assert resume == "allow" and name and config["seed"] == 0 and dir
    if self.fail == "init":
      raise ConnectionError("no\nnetwork")
    run = self.runs.setdefault(id, types.SimpleNamespace(lines=[], summary={}))
    run.log, run.finish, run.ended = self.logger(run), self.ender(run), None
    return run

  def logger(self, run):
    def log(values, step):
      if self.fail == "log":
        raise ConnectionError("no network")
      run.lines.append((step, values))

    return log

  def ender(self, run):
    def finish(exit_code):
      run.ended = exit_code

    return finish


class MLflow(types.ModuleType):
  """Takes the arguments that mlflow 3 takes of those used."""

  def __init__(self):
    super().__init__("mlflow")
    self.__spec__ = types.SimpleNamespace(name="mlflow")
    self.runs, self.now = {}, None

  def start_run(self, run_id=None, run_name=None):
    assert (run_id is None) != (run_name is None)
    run_id = run_id or f"run-{len(self.runs)}"
    self.now = self.runs.setdefault(
      run_id,
      types.SimpleNamespace(
        info=types.SimpleNamespace(run_id=run_id), lines=[], params={}
      ),
    )
    return self.now

  def log_params(self, params):
    assert not self.now.params.keys() & params.keys()
    assert all(len(value) <= 500 for value in params.values())
    self.now.params |= params

  def log_metrics(self, metrics, step=None):
    assert all(isinstance(x, int | float) for x in metrics.values())
    self.now.lines.append((step, metrics))

  def end_run(self, status):
    assert status in ("FINISHED", "KILLED")
    self.now.status = status


@pytest.fixture
def services(monkeypatch):
  wandb, mlflow = WandB(), MLflow()
  monkeypatch.setitem(sys.modules, "wandb", wandb)
  monkeypatch.setitem(sys.modules, "mlflow", mlflow)
  return wandb, mlflow


def settings(updates=6):
  config = tiny(updates)
  config.log.to = "wandb, mlflow"
  return config


def logged(run):
  return {
    (step, name): value
    for step, values in run.lines
    for name, value in values.items()
    if step is not None
  }


def test_both_get_what_the_workdir_gets(services, tmp_path):
  result = loop.train(settings(), tmp_path)
  expected = {
    (line["update"], f"{line['split']}/{name}"): value
    for line in read_jsonl(tmp_path / "metrics.jsonl")
    for name, value in line.items()
    if name not in ("update", "split") and line["split"] != "alarm"
  }
  wandb, mlflow = (next(iter(x.runs.values())) for x in services)
  assert len(services[0].runs) == len(services[1].runs) == 1
  assert logged(wandb) == logged(mlflow) == expected
  assert wandb.ended == 0 and mlflow.status == "FINISHED"
  assert wandb.summary["updates"] == 6
  assert wandb.summary["valid_loss"] == result["valid_loss"]
  assert mlflow.params["encoder.num_layers"] == "2"


@pytest.mark.slow
def test_a_resumed_run_goes_on_in_the_same_ones(
  services, tmp_path, monkeypatch
):
  write = tracking.Trackers.log

  def interrupted(self, update, values):
    write(self, update, values)
    if update == 4:
      raise KeyboardInterrupt

  monkeypatch.setattr(tracking.Trackers, "log", interrupted)
  with pytest.raises(KeyboardInterrupt):
    loop.train(settings(), tmp_path)
  assert [x.ended for x in services[0].runs.values()] == [1]
  monkeypatch.setattr(tracking.Trackers, "log", write)
  loop.train(settings(), tmp_path)
  for service in services:
    (run,) = service.runs.values()
    assert max(step for step, _ in logged(run)) == 6


@pytest.mark.parametrize("fail", ["init", "log"])
def test_one_that_fails_is_left_out_and_the_run_goes_on(
  fail, services, tmp_path, caplog
):
  services[0].fail = fail
  assert loop.train(settings(), tmp_path)["updates"] == 6
  (line,) = [x for x in caplog.messages if "wandb failed" in x]
  assert "\n" not in line
  (run,) = services[1].runs.values()
  assert run.status == "FINISHED" and len(logged(run)) > 10


def test_what_cannot_be_asked_for_is_said_before_anything_is_done(
  tmp_path, monkeypatch
):
  config = settings()
  config.log.to = "wandb"
  monkeypatch.setitem(sys.modules, "wandb", None)
  monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError, match="pip install wandb"):
    loop.train(config, tmp_path / "run")
  config.log.to = "wanb"
  with pytest.raises(UserError, match="did you mean 'wandb'"):
    loop.train(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_a_workdir_may_be_resumed_with_other_services(services, tmp_path):
  loop.train(tiny(6), tmp_path)
  assert loop.train(settings(), tmp_path)["updates"] == 6
