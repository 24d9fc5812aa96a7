#!/usr/bin/env bash
# Pretrains on the GPUs of this machine, all of them as one process.
#
#   bash launch/gpu.sh                      the smoke run
#   bash launch/gpu.sh --config=configs/slim.py --config.data.dir=DIR ...
#
# As local.sh, with what GPUs need: CUDA comes with the package, 13 or, where the
# machine's driver is too old for that, 12. For many machines see slurm.sbatch.
set -euo pipefail

needed=525 newest=580 # Drivers that CUDA 12 and CUDA 13 need.
if ! driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null); then
  echo "error: no NVIDIA driver answers (nvidia-smi): install version $needed" \
    "or newer, in a container start it with --gpus=all, or train on the CPU" \
    "with launch/local.sh" >&2
  exit 1
fi
driver=${driver%%$'\n'*}
if ((${driver%%.*} < needed)); then
  echo "error: the NVIDIA driver is version $driver, and CUDA 12 needs" \
    "$needed: install a newer one" >&2
  exit 1
fi

extras=gpu
if ((${driver%%.*} < newest)); then
  extras=gpu12
fi
export SSL_JAX_EXTRAS=${SSL_JAX_EXTRAS:-$extras}
# JAX takes 75 % of the memory unless told otherwise: the rest would be idle, as
# nothing else runs here. Some is left to cuDNN and NCCL.
if [[ ! ${XLA_PYTHON_CLIENT_MEM_FRACTION:-} ]]; then # The old name of it.
  export XLA_CLIENT_MEM_FRACTION=${XLA_CLIENT_MEM_FRACTION:-0.92}
fi
exec bash "$(dirname "${BASH_SOURCE[0]}")/local.sh" "$@"
