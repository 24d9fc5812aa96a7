"""Every command starts in an interpreter of its own, and as its fork does."""

import pytest
from doors import ROOT, fresh

DOORS = [
  path.stem
  for path in sorted(ROOT.glob("ssl_jax/*.py"))
  if "cli.run(" in path.read_text()
]


def test_these_are_all_the_doors():
  assert len(DOORS) == 12 and {"main", "prepare", "bench"} <= {*DOORS}


@pytest.mark.parametrize("name", DOORS)
def test_a_command_starts(name):
  helped = fresh(name, "--help")
  assert helped.returncode == 0 and not helped.stderr
  assert f"python -m ssl_jax.{name}" in helped.stdout
  wrong = fresh(name, "--nothing")
  assert (wrong.returncode, wrong.stdout) == (2, "")
  (line,) = wrong.stderr.splitlines()
  assert line.startswith("error: ") and "nothing" in line
