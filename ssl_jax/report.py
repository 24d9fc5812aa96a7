"""Reports on finished runs: one page with figures and tables, PNGs, a CSV.

  python -m ssl_jax.report runs/isoflop
  python -m ssl_jax.report runs/a runs/b --out=report --price=2.5

Each DIR is a workdir or a folder of such, at any depth. The page needs no
network: send it, or print it. Runs that are not finished or cannot be read are
listed in it. The last line on stdout is a JSON object.
"""

import logging
from pathlib import Path

from absl import flags

from ssl_jax import cli

_OUT = flags.DEFINE_string(
  "out", None, "Where the report goes. Default: DIR/report, of the first DIR."
)
_PRICE = flags.DEFINE_float(
  "price", None, "Of a device's hour, in any currency.", 0.0
)
_TITLE = flags.DEFINE_string("title", None, "Default: the first DIR's name.")


def main(arguments: list[str]) -> dict:
  """Writes the report; returns its JSON object."""
  # Imported late: --help and usage errors need no matplotlib.
  from ssl_jax.budget import page, runs
  from ssl_jax.errors import UserError

  folders = [Path(argument) for argument in arguments]
  for folder in folders:
    if not folder.is_dir():
      raise UserError(f"{folder}: no such folder; give workdirs of runs")
  rows, broken = runs.read_all(folders)
  log = logging.getLogger("ssl_jax")
  for name, reason in broken.items():
    log.warning("left out: %s: %s", name, reason)
  if not rows:
    raise UserError(
      f"{', '.join(arguments)}: no finished run in it or below; give the "
      "--workdir of one, or the folder of a sweep"
    )
  title = _TITLE.value or folders[0].resolve().name
  out = Path(_OUT.value) if _OUT.value else folders[0] / "report"
  written = page.write(rows, broken, out, title, _PRICE.value)
  log.info("%14s  %s", "report", written["page"])
  return written


if __name__ == "__main__":
  cli.run(main, arguments="DIR")
