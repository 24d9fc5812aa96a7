# shellcheck shell=bash
# Sourced by the other scripts: leaves $PYTHON, an interpreter in which the
# package is installed with the extras asked for. Uses .venv in the checkout and
# makes it if there is none; does nothing when nothing changed since.
#
#   SSL_JAX_EXTRAS  extras to install, as in "gpu" or "test,tpu"
#   SSL_JAX_PYTHON  the Python (3.11 to 3.13) to make the environment with

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

supported() {
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
    2>/dev/null
}

find_python() {
  local candidate
  for candidate in ${SSL_JAX_PYTHON:-python3 python3.13 python3.12 python3.11 python}; do
    if supported "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  echo "error: no Python 3.11 to 3.13 found; install one or set SSL_JAX_PYTHON" >&2
  return 1
}

install_package() {
  local extras="${SSL_JAX_EXTRAS:-}" stamp wanted
  stamp=".venv/installed${extras:+-$extras}"
  wanted=$(cat pyproject.toml constraints.txt | cksum)
  if [[ -x .venv/bin/python && -f $stamp && "$(<"$stamp")" == "$wanted" ]]; then
    return
  fi
  if ! [[ -x .venv/bin/python ]] || ! supported .venv/bin/python; then
    local python
    python=$(find_python)
    echo "making an environment in .venv with $("$python" --version) ..." >&2
    "$python" -m venv --clear .venv || {
      echo "error: $python -m venv failed; on Debian install python3-venv" >&2
      return 1
    }
  fi
  echo "installing ssl_jax${extras:+[$extras]} (a minute or two) ..." >&2
  .venv/bin/python -m pip install --quiet --disable-pip-version-check \
    --constraint constraints.txt --editable ".${extras:+[$extras]}" >&2
  echo "$wanted" >"$stamp"
}

install_package
# shellcheck disable=SC2034
PYTHON=.venv/bin/python
