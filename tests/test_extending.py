"""The files of docs/extending.md, run as a user would.

Each adds a component from outside the package; nothing else is changed.
"""

import json
import re
from pathlib import Path

import pytest
from doors import door

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "extending.md").read_text()
FILES = dict(
  re.findall(r"^`(\w+)\.py`,.*?```python\n(.*?)```", TEXT, re.M | re.S)
)
SHAPE = {
  "encoder.num_layers": 1,
  "encoder.hidden_size": 16,
  "encoder.num_heads": 2,
  "encoder.position_kernel": 8,
}
# One shape of batches, four updates.
SMALL = SHAPE | {
  "batch.seconds": 4,
  "budget.updates": 4,
  "data.bucket_seconds": "(1.0,)",
  "eval.every": 4,
  "checkpoint.every": 2,
  "log.every": 2,
  "kmeans.num_frames": 500,
  "kmeans.num_restarts": 1,
  "hubert.clusters": "(10,)",
}


def flags(keys):
  return [f"--config.{key}={value}" for key, value in keys.items()]


def run(name, *words, status=0):
  done = door(name, *words)
  assert done.returncode == status, done.stderr
  if status:
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr
  return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  folder = tmp_path_factory.mktemp("extending")
  for name, code in FILES.items():
    (folder / f"{name}.py").write_text(code)
  return folder


@pytest.fixture(
  scope="module",
  params=[
    "loudness",
    *(pytest.param(x, marks=pytest.mark.slow) for x in ("gated", "tones")),
  ],
)
def trained(request, written):
  """A run of a documented file: its config, and its workdir."""
  config = f"--config={written / request.param}.py"
  workdir = written / request.param
  result = run("main", config, f"--workdir={workdir}", *flags(SMALL))
  assert result["updates"] == 4
  assert result == json.loads((workdir / "result.json").read_text())
  return config, workdir


def test_the_page_has_a_file_of_each_kind_it_promises():
  assert FILES.keys() == {"loudness", "gated", "tones"}


def test_it_trains_resumes_and_is_drawn(trained):
  config, workdir = trained
  assert (workdir / "loss.png").exists()
  lines = (workdir / "metrics.jsonl").read_text()
  (workdir / "result.json").unlink()
  newest = workdir / "checkpoints" / "4"
  newest.rename(workdir / "elsewhere")
  run("main", config, f"--workdir={workdir}", *flags(SMALL))

  def losses(text):
    return [json.loads(line).get("loss") for line in text.splitlines()]

  assert losses(lines) == losses((workdir / "metrics.jsonl").read_text())


def test_it_is_counted_and_reported(trained):
  config, workdir = trained
  assert run("flops", config, *flags(SHAPE))["total_flops"] > 0
  report = run("report", str(workdir), f"--out={workdir / 'report'}")
  assert Path(report["page"]).stat().st_size > 10_000


def test_it_is_swept(trained, written):
  _, workdir = trained
  name = workdir.name
  family = written / f"{name}_family.py"
  family.write_text(
    "from ml_collections import ConfigDict\n"
    "def get_config(arg=None):\n"
    "  return ConfigDict(dict(\n"
    f"    config={str(written / name) + '.py'!r},\n"
    f"    objective=({'loudness' if name == 'loudness' else 'hubert'!r},),\n"
    "    hours=(0.0,), seed=(0,), decay_fraction=1.0,\n"
    "    size=('1x16x32x4',), flops=(1e11,)))\n"
  )
  made = run("sweep", f"--config={family}", "--dry_run")
  assert len(made["runs"]) == 1 and made["runs"][0]["updates"] > 0


def test_what_is_not_brought_is_refused_in_one_line(trained):
  _, workdir = trained
  message = run(
    *("export", f"--checkpoint={workdir}", "--format=hf"),
    f"--out={workdir / 'exported'}",
    status=1,
  )
  assert "transformers" in message or "unknown" in message


def test_a_wrong_knob_of_it_is_refused(written):
  message = run(
    *("main", f"--config={written / 'loudness.py'}"),
    *("--config.loudness.floor=-1", "--dry_run"),
    status=1,
  )
  assert "config.loudness.floor=-1.0 is outside [1e-12, 1.0]" in message
