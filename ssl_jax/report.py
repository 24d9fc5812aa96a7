"""Reports on finished runs: one page of figures and tables, and a CSV.

  python -m ssl_jax.report runs/isoflop
  python -m ssl_jax.report runs/hubert runs/tera --out=report --price=1.2

Each DIR is a workdir, or a folder that holds some at any depth. The page,
report.html, needs no network and no other file. Beside it lie its figures (PNG
and SVG) and runs.csv. Runs that did not finish or cannot be read are left out,
and listed. The last line on stdout is a JSON object.
"""

import logging
from pathlib import Path

from absl import flags

from ssl_jax import cli

_OUT = flags.DEFINE_string(
  "out", None, "Folder of the report. Default: report/ in the first DIR."
)
_PRICE = flags.DEFINE_float(
  "price", None, "Price of an hour of one device, in dollars.", lower_bound=0.0
)
_TITLE = flags.DEFINE_string(
  "title", None, "Title of the page. Default: the names of the DIRs."
)


def main(given: list[str]) -> dict:
  """Writes the report on the runs in the folders `given`."""
  # Imported late: --help and usage errors need no matplotlib.
  from ssl_jax.errors import UserError
  from ssl_jax.reports import page, runs
  from ssl_jax.reports.crossings import Crossing, sentence

  folders = [Path(folder) for folder in given]
  finished, broken = runs.read(folders)
  names = dict.fromkeys(folder.resolve().name for folder in folders)
  out = Path(_OUT.value) if _OUT.value else folders[0] / "report"
  try:
    written = page.write(
      finished, broken, out, _TITLE.value or ", ".join(names), _PRICE.value
    )
  except OSError as error:
    raise UserError(
      f"--out={out} cannot be written ({error}); choose another"
    ) from error
  log = logging.getLogger("ssl_jax")
  crossed = [Crossing(**each) for each in written["crossings"]]
  lines = [page.summary(finished, broken), *map(sentence, crossed)]
  log.info("%s\n%s", "\n".join(lines), written["page"])
  return written


if __name__ == "__main__":
  cli.run(main, arguments="DIR")
