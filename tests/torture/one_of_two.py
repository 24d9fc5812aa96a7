"""A process of a tiny run of two: 1 may fail to read, 0 may keep it waiting.

With `stages` for a fault there is none: they train an encoder for their labels.

python one_of_two.py WORKDIR HOST:PORT ID FAULT
"""

import sys
import time
from pathlib import Path

from tiny import staged, tiny

from ssl_jax import cli
from ssl_jax.checkpoints import manager
from ssl_jax.devices import processes
from ssl_jax.training import loop

FAULTS = {
  "torn": lambda: ValueError("DATA_LOSS: of this process's shard alone"),
  "busy": lambda: OSError(24, "Too many open files"),
}


def main(workdir: str, coordinator: str, process: str, fault: str) -> dict:
  processes.join(coordinator, 2, int(process), 20)
  read = manager._read_arrays

  def failing(folder, *args, **kwargs):
    if process == "1" and fault in FAULTS and folder.name == "6":
      raise FAULTS[fault]()
    return read(folder, *args, **kwargs)

  manager._read_arrays = failing
  fit = loop.mfcc_codebooks

  def late(*args):
    if (process, fault) == ("0", "late"):
      time.sleep(40)  # As of a large corpus; CPU collectives wait for 30 s.
    return fit(*args)

  loop.mfcc_codebooks = late
  config = staged() if fault == "stages" else tiny(6)
  return loop.train(config, Path(workdir))


if __name__ == "__main__":
  words, sys.argv[1:] = sys.argv[1:], []
  cli.run(lambda: main(*words))
