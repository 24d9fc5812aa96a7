"""Prepares a corpus once, so that training never waits for decoding.

  python -m ssl_jax.prepare --input=LibriSpeech/train-clean-100 --out=ls100
  python -m ssl_jax.prepare --input=clips.jsonl --out=mine --pack_seconds=12
  python -m ssl_jax.prepare --input=tfds:librispeech --out=ls960
  python -m ssl_jax.prepare --out=ls100 --verify
  python -m ssl_jax.main --config=configs/slim.py \\
      --config.data.source=records --config.data.dir=ls100

The input is a folder tree, a manifest (.jsonl, .csv, fairseq's .tsv), a tar or
zip of these, or a dataset that TFDS prepared (all that is named train..., or
--split); of a LibriSpeech tree, speakers and texts are kept. The output
is 16 kHz int16 in ArrayRecord files, 115 MB an hour. Killed, the same command
goes on. Clips that cannot be read are listed in skipped.jsonl. The last line on
stdout is a JSON object.
"""

import logging
import os
import tempfile
import time
from pathlib import Path

from absl import flags

from ssl_jax import cli

_INPUT = flags.DEFINE_string(
  "input", None, "A folder, a manifest, a tar or zip of these, or tfds:NAME."
)
_SPLIT = flags.DEFINE_string(
  "split", "", "Splits of tfds:NAME, as train_clean100+train_clean360."
)
_SAMPLE_RATE = flags.DEFINE_integer(
  "sample_rate", 0, "Sample rate of a tfds:NAME that lacks it, Hz.", 0
)
_OUT = flags.DEFINE_string("out", None, "Folder of the prepared corpus.")
_MIN_SECONDS = flags.DEFINE_float(
  "min_seconds", 0.1, "Shorter clips are skipped.", 0.025
)
_MAX_SECONDS = flags.DEFINE_float(
  "max_seconds",
  60.0,
  "Longer ones become windows of equal length, at most this; 0: none does.",
  0.0,
)
_PACK_SECONDS = flags.DEFINE_float(
  "pack_seconds",
  0.0,
  "Joins short clips of one speaker to records of up to this; 0: none.",
  0.0,
)
_WORKERS = flags.DEFINE_integer(
  "num_workers", os.cpu_count() or 1, "Processes that decode.", lower_bound=1
)
_VERIFY = flags.DEFINE_bool(
  "verify", False, "Reads all of --out again, against its checksums."
)


def main() -> dict:
  """Prepares, or verifies; returns facts of the corpus."""
  from ssl_jax.data import prepare
  from ssl_jax.data.sources import archives, manifest, records, tfds
  from ssl_jax.errors import UsageError, UserError

  if not _OUT.value or bool(_INPUT.value) == _VERIFY.value:
    raise UsageError("give --input and --out, or --out and --verify")
  out = Path(_OUT.value)
  if _VERIFY.value:
    if problems := prepare.verify(out):
      clip, problem = next(iter(problems.items()))
      raise UserError(
        f"--out={out}: {len(problems)} clips are damaged, the first being "
        f"{clip!r} ({problem}): delete it and prepare it again"
      )
    return _facts(records.read_header(f"--out={out}", out)) | {"verified": True}
  started, fresh = time.monotonic(), not out.exists()
  kind, _, name = _INPUT.value.partition(":")
  with (
    prepare.alone(out),
    tempfile.TemporaryDirectory(prefix=prepare.UNPACKED, dir=out) as unpacked,
  ):
    if kind == "tfds":
      source = tfds.open_all(name, _SPLIT.value, _SAMPLE_RATE.value)
    else:
      path = Path(_INPUT.value)
      if archives.is_archive(path):
        archives.unpack(path, Path(unpacked))
        path = archives.root_of(Path(unpacked))
      source = manifest.open_clips(manifest.find_clips(path))
    made = prepare.prepare(
      source,
      out,
      _MIN_SECONDS.value,
      _MAX_SECONDS.value,
      _PACK_SECONDS.value,
      _WORKERS.value,
    )
  taken = time.monotonic() - started
  logging.getLogger("ssl_jax").info(
    "%14s  %s clips, %.4g h, %d speakers, %d skipped, in %.0f s%s",
    "prepared",
    f"{made['clips']:,}",
    made["hours"],
    made["speakers"],
    made["skipped"],
    taken,
    f" ({made['clips'] / taken:,.0f} clips/s)" if fresh else "",
  )
  return {"out": str(out)} | _facts(made)


def _facts(header: dict) -> dict:
  return {k: v for k, v in header.items() if k not in ("format", "crc32")}


if __name__ == "__main__":
  cli.run(main)
