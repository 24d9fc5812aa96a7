#!/usr/bin/env bash
# Pretrains on this machine.
#
#   bash launch/local.sh                        the smoke run: minutes on 2 cores
#   bash launch/local.sh --config=configs/slim.py --config.data.dir=DIR ...
#   bash launch/local.sh --help                 every flag
#
# Arguments go to `python -m ssl_jax.main`. Without a GPU driver it runs on the
# CPU; SSL_JAX_EXTRAS=gpu or =tpu installs what an accelerator needs.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
if (($# == 0)); then
  set -- --config=configs/smoke.py --probe
fi
exec "$PYTHON" -m ssl_jax.main "$@"
