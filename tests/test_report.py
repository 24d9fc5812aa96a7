"""Reports on finished runs: numbers, minima, and what was left out."""

import csv
import html.parser
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from ssl_jax import config as config_lib
from ssl_jax.budget import isoflop, page, runs
from ssl_jax.objectives import OBJECTIVES

ROOT = Path(__file__).parents[1]
SIZES = {"30": 5.9e6, "50": 9.9e6, "100": 2.0e7, "200": 4.0e7, "base": 9.47e7}


def write_run(
  workdir, size="100", flops=1e18, loss=3.0, objective="hubert", **more
):
  workdir.mkdir(parents=True)
  config = config_lib.base()
  config_lib.set_size(config, size)
  config.objective.name = objective
  config.data.hours = more.pop("hours", 0.0)
  config.seed = more.pop("seed", 0)
  (workdir / "config.json").write_text(config_lib.to_json(config))
  result = {
    "params": int(SIZES.get(size, 2e7)),
    "updates": 100,
    "flops": flops,
    "trunk_flops": 0,
    "audio_seconds": 7200.0,
    "valid_loss": loss,
    "alarms": [],
    "train_seconds": 3600.0,
    "devices": 8,
    "device_kind": "TPU v5 lite",
  }
  (workdir / "result.json").write_text(json.dumps(result | more))
  main = OBJECTIVES[objective].main
  lines = [
    {"update": 0, "split": "valid", main: 6.0, "chance": 5.0, "loss": 6.0},
    {"update": 100, "split": "train", "flops": flops, "epoch": 2.0},
    {"update": 100, "split": "valid", main: loss, "chance": 5.0, "loss": loss},
  ]
  text = "".join(json.dumps(line) + "\n" for line in lines)
  (workdir / "metrics.jsonl").write_text(text)


def u_shape(params, budget):
  """Bottom at 30 M parameters, and half of that at half the budget."""
  bottom = 30e6 * budget / 1e18
  return (
    3.0 - 0.3 * math.log(budget / 1e18) + 0.05 * math.log(params / bottom) ** 2
  )


@pytest.fixture
def family(tmp_path):
  for budget in (5e17, 1e18):
    for size, params in SIZES.items():
      write_run(
        tmp_path / "runs" / f"{size}-{budget:g}",
        size,
        budget * 0.99,
        u_shape(params, budget),
      )
  return tmp_path / "runs"


def report(*args):
  done = subprocess.run(
    [sys.executable, "-m", "ssl_jax.report", *map(str, args)],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  lines = done.stdout.splitlines()
  return done.returncode, json.loads(lines[-1]) if lines else None, done.stderr


class Links(html.parser.HTMLParser):
  def __init__(self, text):
    super().__init__()
    self.found, self.tags = [], []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.found += [v for k, v in attrs if k in ("src", "href", "srcset")]


def test_a_sweep_is_a_page_that_needs_nothing_else(family, tmp_path):
  status, found, err = report(family, f"--out={tmp_path / 'out'}", "--price=2")
  assert status == 0 and found["runs"] == 10 and found["broken"] == {}
  text = Path(found["page"]).read_text()
  links = Links(text)
  assert len(links.found) == len(found["figures"]) == 3
  assert all(link.startswith("data:image/png;base64,") for link in links.found)
  assert "script" not in links.tags and "url(" not in text
  for figure in found["figures"]:
    assert Path(figure).read_bytes().startswith(b"\x89PNG")
  assert found["page"] in err
  for optimum in found["optima"]:
    expected = 30e6 * optimum["budget"] / 0.99e18
    assert optimum["params"] == pytest.approx(expected, rel=0.02)
    low, high = optimum["interval"]
    assert low <= optimum["params"] <= high and not optimum["edge"]
  with open(found["csv"]) as f:
    rows = list(csv.DictReader(f))
  assert len(rows) == 10
  row = next(row for row in rows if row["name"] == "100-1e+18")
  assert row["size"] == "100" and float(row["flops"]) == 0.99e18
  assert float(row["loss"]) == u_shape(SIZES["100"], 1e18)
  assert float(row["own_device_hours"]) == 8 and float(row["cost"]) == 16


def test_a_minimum_at_the_edge_is_said(tmp_path):
  for i, size in enumerate(SIZES):
    write_run(tmp_path / size, size, loss=3.0 + 0.1 * i)
  _, found, _ = report(tmp_path)
  assert [optimum["edge"] for optimum in found["optima"]] == [True]
  text = Path(found["page"]).read_text()
  assert "at or beyond the measured sizes" in text


def test_three_sizes_have_no_interval(tmp_path):
  for size in ("50", "100", "base"):
    write_run(tmp_path / size, size, loss=u_shape(SIZES[size], 1e18))
  rows, _ = runs.read_all([tmp_path])
  found = isoflop.minimum(rows, "hubert", 1e18)
  assert found.params == pytest.approx(30e6, rel=1e-3)
  assert found.interval is None
  assert isoflop.minimum(rows[:2], "hubert", 1e18) is None


def test_seeds_are_averaged(tmp_path):
  for size in ("50", "100", "base"):
    loss = u_shape(SIZES[size], 1e18)
    for seed, change in ((0, -0.2), (1, 0.2)):
      write_run(
        tmp_path / f"{size}-{seed}", size, loss=loss + change, seed=seed
      )
  rows, _ = runs.read_all([tmp_path])
  found = isoflop.minimum(rows, "hubert", 1e18)
  assert found.params == pytest.approx(30e6, rel=1e-3)


def test_each_question_has_its_figure(tmp_path):
  for objective in OBJECTIVES:
    write_run(tmp_path / f"{objective}-100", objective=objective)
  write_run(tmp_path / "small", "small")
  write_run(tmp_path / "ten", hours=10.0)
  probes = {"KS": 0.93, "ASR": {"value": 14.5, "metric": "WER"}, "why": "text"}
  (tmp_path / "small" / "probes.json").write_text(json.dumps(probes))
  _, found, _ = report(tmp_path)
  names = {Path(figure).stem for figure in found["figures"]}
  assert names == {
    "loss_over_flops",
    "slim_and_small",
    "loss_over_hours",
    "objectives",
    "probes",
  }
  text = Path(found["page"]).read_text()
  assert "14.5" in text and "0.93" in text


def test_branches_pay_only_for_what_they_add(tmp_path):
  write_run(tmp_path / "branch", flops=1e18, trunk_flops=8e17)
  (row,), _ = runs.read_all([tmp_path])
  assert row.own_flops == 2e17
  assert page.own_hours(row) == pytest.approx(0.2 * 8)
  assert row.curve[0][0] == 8e17  # Where it left its trunk.


def test_budgets_a_few_per_cent_apart_are_one(tmp_path):
  for i, flops in enumerate((1e18, 0.98e18, 1.02e18, 2e18)):
    write_run(tmp_path / str(i), flops=flops)
  rows, _ = runs.read_all([tmp_path])
  assert runs.budgets(rows) == pytest.approx([1e18, 2e18])


def test_broken_runs_are_listed_and_the_rest_reported(tmp_path):
  write_run(tmp_path / "<script>alert(1)</script>", flops=1e18)
  for name, file, content in (
    ("torn", "result.json", '{"params": 3'),
    ("lacking", "result.json", "{}"),
    ("binary", "config.json", b"\xff\xfe"),
    ("silent", "metrics.jsonl", ""),
  ):
    write_run(tmp_path / name)
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / name / file).write_bytes(data)
  write_run(tmp_path / "running")
  (tmp_path / "running" / "result.json").unlink()
  status, found, err = report(tmp_path)
  assert status == 0 and found["runs"] == 1
  assert {*found["broken"]} == {
    "torn",
    "lacking",
    "binary",
    "silent",
    "running",
  }
  assert "not finished" in found["broken"]["running"]
  lines = err.splitlines()
  assert sum(line.startswith("left out: ") for line in lines) == 5
  text = Path(found["page"]).read_text()
  assert "<script>" not in text and "&lt;script&gt;" in text
  assert "not finished" in text


@pytest.mark.parametrize(
  ("args", "status", "said"),
  [
    ([], 2, "DIR is missing"),
    (["nowhere"], 1, "nowhere: no such folder"),
    (["docs"], 1, "docs: no finished run in it or below"),
  ],
)
def test_nothing_to_report_is_one_line(args, status, said):
  found, result, err = report(*args)
  assert (found, result, len(err.splitlines())) == (status, None, 1)
  assert said in err
