"""No command: says that `python -m ssl_jax.main` trains."""

import sys

from ssl_jax import __main__

if __name__ == "__main__":
  sys.exit(__main__.main(["train"]))
