#!/usr/bin/env bash
# One worker's part of tpu_vm.sh, which copies it there with the code.
#
#   bash launch/worker.sh going             whether a run goes on here
#   bash launch/worker.sh install [BUCKET]  the package; BUCKET at ~/bucket
#   bash launch/worker.sh start ARGS        local.sh, which outlives this shell
#   bash launch/worker.sh follow            its log; on stdout what it printed
#                                           last, and how it ended
#   bash launch/worker.sh stop              ends it if it does not end by itself
#
# `follow` ends with "ended STATUS", or "ended lost" where the same command is
# to go on: the run, or another process of it, was killed.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export SSL_JAX_EXTRAS=tpu
here=.worker

# A lock and not a process id, which after a reboot may be another process's.
going() {
  [[ -e $here/lock ]] && ! flock --shared --nonblock "$here/lock" true
}

install() {
  if ! [[ -x .venv/bin/python ]]; then
    # Runtime images come with Python 3.10.
    PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
    python3 -m uv python install --quiet 3.12
    SSL_JAX_PYTHON=$(python3 -m uv python find 3.12)
    export SSL_JAX_PYTHON
  fi
  bash launch/setup.sh
  if (($#)) && ! mountpoint --quiet ~/bucket; then
    mount_bucket "$1"
  fi
}

mount_bucket() {
  local version=3.8.0 file
  if ! command -v gcsfuse >/dev/null; then
    file=gcsfuse_${version}_$(dpkg --print-architecture).deb
    curl -fsSL -o "/tmp/$file" \
      "https://github.com/GoogleCloudPlatform/gcsfuse/releases/download/v$version/$file"
    # A worker that has just started may still be upgrading itself.
    sudo apt-get -qq -o DPkg::Lock::Timeout=300 install -y "/tmp/$file"
  fi
  mkdir -p ~/bucket
  # Workers see what others wrote at once, and checkpoints, which are folders,
  # can be renamed.
  gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 \
    --rename-dir-limit=100000 "$1" ~/bucket >&2
}

start() {
  set -- "${@/#\~\//$HOME/}"
  set -- "${@/=\~\//=$HOME/}"
  mkdir -p "$here"
  if going; then
    if [[ "$(<"$here/args")" != "$(printf '%q ' "$@")" ]]; then
      echo "error: a run goes on here: local.sh $(<"$here/args")" >&2
      return 1
    fi
    return
  fi
  rm -f "$here/status"
  printf '%q ' "$@" >"$here/args"
  setsid flock --timeout 10 "$here/lock" bash launch/worker.sh run "$@" \
    </dev/null >"$here/out" 2>"$here/log" &
  echo $! >"$here/session"
  while kill -0 $! 2>/dev/null && ! going; do sleep 0.1; done
}

run() {
  local status=0
  bash launch/local.sh "$@" || status=$?
  echo "$status" >"$here/status"
}

follow() {
  if going; then
    tail -n 100 -f --pid="$(<"$here/session")" "$here/log" >&2
  else
    tail -n 100 "$here/log" >&2
  fi
  tail -n 1 "$here/out"
  local status=lost
  if [[ -e $here/status ]]; then
    status=$(<"$here/status")
    # What a run says that could not go on without another of its processes.
    if tail -n 20 "$here/log" | grep -q 'goes on from its newest checkpoint'; then
      status=lost
    fi
  fi
  echo "ended $status"
}

stop() {
  for _ in {1..10}; do
    going || return 0
    sleep 1
  done
  kill -KILL -- "-$(<"$here/session")"
}

"$@"
