"""Commands that documents give are commands that the code takes."""

import json
import re
import shlex
import subprocess
import sys

import pytest
from doors import ROOT

FILES = ["README.md", "docs/*.md", "docs/results/*.md", "configs/*.py"]
FILES += ["ssl_jax/*.py"]  # Their docstrings are --help.

# Parses each command's flags and config as the door does, and calls nothing.
PARSE = """
import json, os, runpy, sys
from ssl_jax import cli, objectives, probes
name, commands = sys.argv[1], json.loads(sys.argv[2])

def parse(main, arguments="", needs_config=True):
  rewrite = main.__globals__.get("_for_runs", list)  # Of ssl_jax.sweep.
  for words in commands:
    if not os.fork():
      try:
        sys.argv = rewrite([f"ssl_jax.{name}", *words])
        cli._parse(arguments, needs_config)
      except Exception as error:
        print(json.dumps([words, str(error)]), flush=True)
      os._exit(0)
    os.wait()
  return {"failed": []}

cli.run = parse
runpy.run_module(f"ssl_jax.{name}", run_name="__main__")
"""


def commands():
  """{door: [(document, its words)]}"""
  found = {}
  for path in sorted(path for glob in FILES for path in ROOT.glob(glob)):
    text = path.read_text()
    if path.suffix == ".py":
      text = re.sub(r"\\\\\n\s*", " ", text)
    text = re.sub(r"\\\n\s*", " ", text)
    for line in re.findall(r"^ +(python -m ssl_jax\.\w+ .*)", text, re.M):
      words = shlex.split(line, comments=True)
      if "..." not in words:
        door = words[2].removeprefix("ssl_jax.")
        found.setdefault(door, []).append((path.name, words[3:]))
  return found


COMMANDS = commands()


def test_they_are_found():
  assert sum(map(len, COMMANDS.values())) > 50 and len(COMMANDS) > 9


@pytest.mark.slow
@pytest.mark.parametrize("door", sorted(COMMANDS))
def test_they_are_taken(door, tmp_path):
  # Configs that a document has the reader write.
  given = [
    [
      re.sub(r"=\$\w+", "=1", word.replace("OBJECTIVE", "tera"))
      for word in words
    ]
    for _, words in COMMANDS[door]
    if not any(re.match(r"--config=\w+\.py", word) for word in words)
  ]
  done = subprocess.run(
    [sys.executable, "-c", PARSE, door, json.dumps(given)],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  refused = [json.loads(line) for line in done.stdout.splitlines()]
  assert not refused
