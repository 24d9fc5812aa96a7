"""Scores of probes that were left in a run's workdir."""

from pathlib import Path
from typing import Any

from ssl_jax.files import read_object

_MEASURED = ("tests", "draws", "std", "higher_is_better", "identity")


def read(workdir: Path) -> tuple[dict[str, float], dict[str, dict[str, Any]]]:
  """Reads what `ssl_jax.probe` wrote of a run's encoder.

  Returns:
    {`task metric, profile`: score on test}; of measures {the same, with the
    corpus and its clips: tests, draws, std, higher_is_better, identity}, which
    are what a comparison in pairs needs. Results of several seeds at once are
    left out: they are no single run's.

  Raises:
    ValueError: a file is no result of a probe.
  """
  scores, measured = {}, {}
  for path in sorted((workdir / "probes").glob("*.json")):
    try:
      found = read_object(path)
    except ValueError as error:
      raise ValueError(
        f"probes/{path.name} is not readable JSON ({error})"
      ) from error
    if found.get("encoder") == "model" and len(found.get("origins", "1")) == 1:
      name = f"{found['task']} {found['metric']}, {found['profile']}"
      scores[name] = float(found["test"])
      if found.get("draws") and found.get("compared", True):
        clips = sum(map(int, found["clips"].values()))
        measured[f"{name}, {found['corpus']}, {clips:,} clips"] = {
          key: found[key] for key in _MEASURED
        }
  return scores, measured
