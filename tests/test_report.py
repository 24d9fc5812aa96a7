"""Reports on finished runs: numbers, best sizes, and what is left out."""

import csv
import html.parser
import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
from doors import door
from fake_runs import SIZES, measured, write_run

from ssl_jax.errors import UserError
from ssl_jax.objectives import OBJECTIVES
from ssl_jax.reports import cells as cells_lib
from ssl_jax.reports import differences, isoflop, loss_picture, page, runs

ROOT = Path(__file__).parents[1]


def u_shape(params, budget=1e18):
  """Its bottom is at 30 M parameters, at half of that for half the budget."""
  bottom = 30e6 * budget / 1e18
  return (
    3.0 - 0.3 * math.log(budget / 1e18) + 0.05 * math.log(params / bottom) ** 2
  )


def optima(folder):
  return isoflop.optima(runs.read([folder])[0])


def report(*args):
  done = door("report", *args)
  lines = done.stdout.splitlines()
  return done.returncode, json.loads(lines[-1]) if lines else None, done.stderr


class Page(html.parser.HTMLParser):
  def __init__(self, path):
    super().__init__()
    self.links, self.tags, self.words = [], set(), ""
    self.source = Path(path).read_text()
    self.feed(self.source)

  def handle_starttag(self, tag, attrs):
    self.tags.add(tag)
    named = ("src", "href", "srcset", "data", "action", "poster")
    self.links += [value for key, value in attrs if key in named]

  def handle_data(self, data):
    self.words += data


@pytest.fixture
def family(tmp_path):
  for budget in (5e17, 1e18):
    for size, params in SIZES.items():
      name = tmp_path / "runs" / f"{size}-{budget:g}"
      loss = u_shape(params, budget)
      config = [f"budget.flops={budget}"]
      write_run(name, size, budget * 0.99, loss, config=config)
  return tmp_path / "runs"


def test_a_sweep_is_a_page_that_needs_nothing_else(family, tmp_path):
  out = tmp_path / "out"
  status, found, err = report(family, f"--out={out}", "--price=2")
  assert status == 0, err
  assert found["runs"] == 10 and found["broken"] == []
  shown = Page(found["page"])
  assert len(shown.links) == len(found["figures"]) == 3
  assert all(x.startswith("data:image/svg+xml;base64,") for x in shown.links)
  assert not {"script", "link", "iframe", "object"} & shown.tags
  assert "url(" not in shown.source and "@import" not in shown.source
  for figure in map(Path, found["figures"]):
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in figure.with_suffix(".svg").read_bytes()
  for optimum in found["optima"]:
    bottom = 30e6 * optimum["budget"] / 1e18
    assert optimum["params"] == pytest.approx(bottom, rel=1e-3)
    assert optimum["interval"] == pytest.approx([bottom] * 2, rel=1e-3)
    assert not optimum["at_edge"]
  assert [optimum["budget"] for optimum in found["optima"]] == [5e17, 1e18]
  with open(found["csv"]) as f:
    rows = list(csv.DictReader(f))
  assert len(rows) == 10
  row = next(row for row in rows if row["name"] == "100-1e+18")
  assert row["size"] == "100" and float(row["flops"]) == 0.99e18
  assert float(row["loss"]) == u_shape(SIZES["100"])
  assert float(row["share"]) == pytest.approx(float(row["loss"]) / 5)
  assert float(row["device_hours"]) == 8 and float(row["cost"]) == 16
  assert "$160.00" in shown.words and found["page"] in err
  # Once more: the same files.
  before = {path.name: path.read_bytes() for path in out.iterdir()}
  report(family, f"--out={out}", "--price=2")
  assert before == {path.name: path.read_bytes() for path in out.iterdir()}


def test_a_page_suits_any_window(family, tmp_path):
  class Layout(html.parser.HTMLParser):
    """Notes which elements lie within one that can be scrolled."""

    def __init__(self):
      super().__init__()
      self.scrolls, self.within = False, set()

    def handle_starttag(self, tag, attrs):
      if tag == "div":
        self.scrolls = "scroll" in dict(attrs)["class"].split()
      if tag in ("img", "table"):
        self.within.add((tag, self.scrolls))

    def handle_endtag(self, tag):
      self.scrolls = self.scrolls and tag != "div"

  found, _ = runs.read([family])
  written = page.write(found, {"lost": "why"}, tmp_path / "out", "t", 2.0)
  source = Path(written["page"]).read_text()
  layout = Layout()
  layout.feed(source)
  # Figures shrink with the window, and tables scroll.
  assert layout.within == {("img", False), ("table", True)}
  assert 'name="viewport" content="width=device-width' in source
  css = source.partition("<style>")[2].partition("</style>")[0]
  assert "figure img { display: block; max-width: 100%; height: auto; }" in css
  assert not re.search(r"img[^{}]*{[^}]*max-width: none", css)
  assert re.search(r"\.scroll {[^}]*overflow-x: auto", css)
  # The widest table's headings and names take more than a line, not numbers.
  assert ".wide th, .wide td.text { white-space: normal; }" in css
  assert "100\u00a0%" in source


def test_the_interval_holds_the_true_best_size_nine_times_in_ten():
  x = np.log(np.array(list(SIZES.values())) / 2e7)
  a, bottom, noise = 0.05, 0.4, 0.01
  rng = np.random.default_rng(0)
  held = []
  for _ in range(1_000):
    losses = a * (x - bottom) ** 2 + noise * rng.standard_normal(len(x))
    ends = isoflop._interval(x, losses, np.polyfit(x, losses, 2))
    # Without an end, it holds everything.
    held.append(ends is None or ends[0] <= bottom <= ends[1])
  assert np.mean(held) == pytest.approx(0.9, abs=0.02)


def test_runs_of_an_objective_we_lack_are_reported(tmp_path):
  write_run(tmp_path / "ours", "100", loss=3.0)
  write_run(tmp_path / "theirs", "100", loss=2.0)
  path = tmp_path / "theirs" / "config.json"
  config = json.loads(path.read_text())
  config["objective"]["name"] = "mine"
  config["frontend"]["name"] = "new"
  path.write_text(json.dumps(config))
  rows, broken = runs.read([tmp_path])
  assert not broken
  ours, theirs = rows
  assert (ours.series, theirs.series) == ("HuBERT", "mine")
  assert (theirs.loss, theirs.main, theirs.share) == (2.0, None, None)
  page.write(rows, broken, tmp_path / "out", "T", None)


def test_a_picture_needs_neither_a_healthy_run_nor_the_objective(
  tmp_path, caplog
):
  workdir = tmp_path / "run"
  write_run(workdir, "100")
  loss_picture.try_to_draw(workdir)
  before = (workdir / "loss.png").read_bytes()
  path = workdir / "config.json"
  path.write_text(path.read_text().replace('"hubert"', '"mine"'))
  loss_picture.try_to_draw(workdir)
  assert not caplog.text
  assert (workdir / "loss.png").read_bytes() != before
  (workdir / "metrics.jsonl").write_text("{}\n{}\n")
  loss_picture.try_to_draw(workdir)
  assert "loss.png cannot be drawn" in caplog.text


def test_a_minimum_at_the_edge_is_said(tmp_path):
  for i, size in enumerate(SIZES):
    write_run(tmp_path / size, size, loss=3.0 + 0.1 * i)
  rows, broken = runs.read([tmp_path])
  found = page.write(rows, broken, tmp_path / "out", "T", None)
  (optimum,) = found["optima"]
  assert optimum["at_edge"] and optimum["interval"] is None
  assert optimum["params"] == SIZES["30"]
  words = Page(found["page"]).words
  assert "at or beyond the edge: 5.9" in words


def test_sizes_that_only_guess_have_no_best(tmp_path):
  for i, size in enumerate(SIZES):
    write_run(tmp_path / size, size, loss=4.95 + 0.01 * i)  # Chance is 5.
  assert not optima(tmp_path)
  rows, broken = runs.read([tmp_path])
  page.write(rows, broken, tmp_path / "out", "T", None)


def test_three_sizes_have_a_minimum_without_an_interval(tmp_path):
  for size in ("50", "100", "base"):
    write_run(tmp_path / size, size, loss=u_shape(SIZES[size]))
  (found,) = optima(tmp_path)
  assert found.params == pytest.approx(30e6, rel=1e-3)
  assert found.interval is None and not found.at_edge
  rows, _ = runs.read([tmp_path])
  assert isoflop.optima(rows[:2]) == []


def test_only_what_compares_is_fitted_together(family):
  before = [found.params for found in optima(family)]
  write_run(family / "small", "small", 1e18, 2.0)
  write_run(family / "hours", "base", 1e18, 1.0, config=["data.hours=10.0"])
  write_run(family / "tera", "base", 1e18, 1.0, "tera")
  mel = ["frontend.name=logmel"]
  write_run(family / "logmel", "base", 1e18, 1.0, config=mel)
  # A worse learning rate of a size that is there.
  rate = ["optimizer.learning_rate=1.0"]
  write_run(family / "rate", "base", 1e18, 9.0, config=rate)
  assert [found.params for found in optima(family)] == before
  rows, _ = runs.read([family])
  assert {row.series for row in rows} == {
    "HuBERT, waveform",
    "HuBERT, logmel",
    "TERA",
  }
  names = {cells_lib.panel_name(row, rows) for row in rows}
  assert {"HuBERT, waveform, 10 h", "HuBERT, waveform, all data"} <= names


def test_seeds_are_one_setting_with_a_range(tmp_path):
  for seed, loss in enumerate((2.9, 3.0, 3.4)):
    config = [f"seed={seed}", "log.every=7"] if seed else []
    write_run(tmp_path / str(seed), loss=loss, config=config)
  dropout = ["encoder.dropout=0.3"]
  write_run(tmp_path / "other", loss=5.0, config=dropout)
  rows, _ = runs.read([tmp_path])
  found = {len(cell.runs): cell for cell in cells_lib.cells(rows)}
  assert sorted(found) == [1, 3]
  assert found[3].values("loss") == (pytest.approx(3.1), 2.9, 3.4)


def test_each_question_has_its_figure(tmp_path):
  for objective in OBJECTIVES:
    write_run(tmp_path / f"{objective}-100", objective=objective)
  write_run(tmp_path / "small", "small", loss=3.25)
  write_run(tmp_path / "ten", config=["data.hours=10.0"])
  (tmp_path / "small" / "probes").mkdir()
  for encoder, test in (("model", 0.145), ("logmel", 0.5)):
    probe = {"task": "asr", "metric": "WER", "profile": "mini", "test": test}
    path = tmp_path / "small" / "probes" / f"asr-mini-{encoder}.json"
    path.write_text(json.dumps(probe | {"encoder": encoder}))
  rows, broken = runs.read([tmp_path])
  found = page.write(rows, broken, tmp_path / "out", "T", None)
  assert {Path(figure).stem for figure in found["figures"]} == {
    "loss_over_flops",
    "share_over_flops",
    "objectives",
    "slim_and_small",
    "loss_over_hours",
    "probes",
  }
  words = Page(found["page"]).words
  assert "+0.2500" in words  # Small less Slim.
  (scored,) = (row.probes for row in rows if row.probes)
  assert scored == {"asr WER, mini": 0.145}
  assert "asr WER, mini" in words and "0.145" in words


def test_it_says_which_differences_are_real(tmp_path):
  """Runs of one recipe are its seeds; recipes are compared in pairs."""
  for name, seed, config, gain in (
    ("a0", 0, [], 0.03),
    ("a1", 1, [], 0.032),
    ("b0", 0, ["encoder.dropout=0.3"], 0.0),
    ("b1", 1, ["encoder.dropout=0.3"], 0.002),
    ("c0", 0, ["encoder.dropout=0.2"], 0.001),
    ("c1", 1, ["encoder.dropout=0.2"], 0.0015),
  ):
    write_run(tmp_path / name, config=[f"seed={seed}", *config])
    measured(tmp_path / name, [gain])
  # An older result, of other clips, is no match for these.
  write_run(tmp_path / "old", config=["seed=0", "encoder.dropout=0.4"])
  measured(tmp_path / "old", [0.9], units=30, identity="other")
  rows, broken = runs.read([tmp_path])
  found = page.write(rows, broken, tmp_path / "out", "T", None)
  pairs = {(d["one"], d["other"]): d for d in found["differences"]}
  assert len(pairs) == 3 and all(d["seeds"] == (2, 2) for d in pairs.values())
  assert pairs["a0", "b0"]["real"] and pairs["a0", "c0"]["real"]
  assert abs(pairs["a0", "b0"]["difference"] - 0.03) < 0.01
  (other,) = {*pairs} - {("a0", "b0"), ("a0", "c0")}
  assert not pairs[other]["real"]
  words = Page(found["page"]).words
  assert "cannot be told apart" in words and "real" in words


def test_several_pairs_are_judged_together():
  """Holm's step-down, by hand: 0.01 < .05 / 3, 0.04 > .05 / 2."""
  assert differences._holm([0.04, 0.01, 0.045]) == [False, True, False]
  assert differences._holm([0.02, 0.01, 0.03]) == [True, True, True]


def test_one_run_without_curves_is_reported(tmp_path):
  folder = tmp_path / "only"
  write_run(folder, devices="eight", train_seconds=None, alarms=None)
  (folder / "metrics.jsonl").write_text("{}\n")
  rows, broken = runs.read([folder])
  assert rows[0].name == "only" and rows[0].share is None
  found = page.write(rows, broken, folder / "report", "T", 1.0)
  assert found["figures"] == [] and found["optima"] == []
  assert "1 finished run," in Page(found["page"]).words


def test_it_says_where_the_wall_time_went(tmp_path):
  write_run(tmp_path / "fast")
  write_run(tmp_path / "slow", seconds={"train": 1.0, "redone": 3.0})
  write_run(tmp_path / "old", seconds=None)
  rows, broken = runs.read([tmp_path])
  found = page.write(rows, broken, tmp_path / "report", "T", None)
  words = Page(found["page"]).words
  assert "Where the wall time went" in words
  assert "2.5%" in words and "7.5%" in words and "90.0%" in words
  assert "25.0%" in words and "75.0%" in words
  assert {r.name: bool(r.seconds) for r in rows}["old"] is False


def test_branches_pay_only_for_what_they_add(tmp_path):
  write_run(tmp_path / "branch", flops=1e18, trunk_flops=8e17)
  ((row,), _) = runs.read([tmp_path])
  assert row.own_flops == 2e17
  assert row.device_hours == pytest.approx(0.2 * 8)


def test_runs_within_three_per_cent_have_one_budget(tmp_path):
  for i, flops in enumerate((1.04e18, 1.06e18, 1.09e18, 2e18, 4.1e18)):
    config = ["budget.flops=4e18"] if i == 4 else []
    write_run(tmp_path / str(i), flops=flops, config=config)
  rows, _ = runs.read([tmp_path])
  budgets = [row.budget for row in rows]
  assert budgets == [1.05e18, 1.05e18, 1.09e18, 2e18, 4e18]


def test_broken_runs_are_listed_and_the_rest_reported(tmp_path):
  write_run(tmp_path / "<script>alert(1)<")
  for name, file, content in (
    ("torn", "result.json", b'{"params": 3'),
    ("lacking", "result.json", b"{}"),
    ("diverged", "result.json", b'{"flops": 1, "valid_loss": NaN}'),
    ("list", "result.json", b"[]"),
    ("binary", "config.json", b"\xff\xfe"),
    ("empty", "config.json", b"{}"),
    ("odd", "metrics.jsonl", b"\xff\n"),
  ):
    write_run(tmp_path / name)
    (tmp_path / name / file).write_bytes(content)
  write_run(tmp_path / "running")
  (tmp_path / "running" / "result.json").unlink()
  (tmp_path / "just<b>").mkdir()
  (tmp_path / "just<b>" / "config.json").write_text("{}")
  status, found, err = report(tmp_path, "--title=<b>mine</b>")
  assert status == 0 and found["runs"] == 1, err
  why = {Path(x["run"]).name: x["reason"] for x in found["broken"]}
  assert why["torn"].startswith("result.json is not readable JSON")
  assert "'flops' is None" in why["lacking"]
  assert "no 'objective.name'" in why["empty"]
  assert why["running"] == "not finished: no result.json (at update 100)"
  assert {*why} == {
    "torn",
    "lacking",
    "diverged",
    "list",
    "binary",
    "empty",
  } | {
    "odd",
    "running",
    "just<b>",
  }
  said = [x for x in err.splitlines() if x.startswith("left out: ")]
  assert len(said) == len(why) and "Traceback" not in err
  shown = Page(found["page"])
  assert not {"script", "b>mine"} & shown.tags
  assert "<script>alert" not in shown.source and "<b>mine" not in shown.source
  assert "<script>alert(1)<" in shown.words and "just<b>" in shown.words


def test_runs_are_found_once_at_any_depth(tmp_path):
  write_run(tmp_path / "a" / "deep" / "er" / "run")
  write_run(tmp_path / "b" / "run", loss=2.0)
  (tmp_path / "b" / "run" / "checkpoints" / "1").mkdir(parents=True)
  (tmp_path / "b" / "run" / "checkpoints" / "1" / "config.json").touch()
  os.symlink(tmp_path / "b", tmp_path / "a" / "link")
  os.symlink(tmp_path, tmp_path / "a" / "loop")
  exported = tmp_path / "b" / "exported"
  exported.mkdir()
  (exported / "config.json").write_text('{"model_type": "hubert"}')
  folders = [tmp_path / "a", tmp_path / "b", tmp_path / "b" / "run"]
  rows, broken = runs.read(folders)
  assert broken == {}
  assert sorted(row.loss for row in rows) == [2.0, 3.0]
  assert len({row.name for row in rows}) == 2


@pytest.mark.parametrize(
  ("args", "status", "said"),
  [
    ([], 2, "DIR is missing"),
    (["docs"], 1, "no finished run in docs: give a folder"),
    (["docs", "--out"], 2, "--out"),
  ],
)
def test_nothing_to_report_is_one_line(args, status, said):
  found, result, err = report(*args)
  assert (found, result, len(err.splitlines())) == (status, None, 1)
  assert said in err


def test_a_missing_folder_and_one_of_broken_runs_are_named(tmp_path):
  with pytest.raises(UserError, match="nowhere: no such folder"):
    runs.read([tmp_path / "nowhere"])
  (tmp_path / "config.json").write_text("{}")
  with pytest.raises(UserError, match=r"\(1 unfinished or unreadable\)"):
    runs.read([tmp_path])
