"""Files that survive a kill: written whole or not at all, read up to a tear."""

import json
import os
from pathlib import Path
from typing import Any


def read_jsonl(path: Path) -> list[dict[str, Any]]:
  """The complete lines of a JSONL file; [] where there is none."""
  lines = []
  if path.exists():
    for line in path.read_text().splitlines():
      try:
        lines.append(json.loads(line))
      except json.JSONDecodeError:  # Cut short when its writer was killed.
        break
  return lines


def write_atomically(path: Path, content: str | bytes) -> None:
  """Replaces a file so that a reader sees the old or the new one, whole."""
  # Of this process: others may write the same file.
  temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
  data = content.encode() if isinstance(content, str) else content
  with temporary.open("wb") as f:
    f.write(data)
    f.flush()
    os.fsync(f.fileno())
  temporary.replace(path)
