#!/usr/bin/env bash
# Checks a machine with an NVIDIA GPU in ten minutes, and writes a page about it.
#
#   bash launch/gpu_check.sh [FOLDER]        FOLDER: runs/gpu_check
#   bash launch/gpu_check.sh --cpu [FOLDER]  rehearses it, tiny, without a GPU
#   bash launch/gpu_check.sh twice FOLDER --config=...  compares two runs only
#
# Tests the kernels, times steps, stem and compilation (beside torch where it is
# installed), and compares runs bit for bit. The page, in Markdown, goes to
# stdout and FOLDER/page.md; FOLDER has what each part printed, too. It installs
# nothing, and goes on after a part that fails (status 1 in the end).
#
#   SSL_JAX_PYTHON   the Python to use: .venv/bin/python, else python3
#   SSL_JAX_SECONDS  time for all of it: 590

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

die() {
  echo "error: $1" >&2
  exit 1
}

usage() {
  echo "error: $1: bash launch/gpu_check.sh [--cpu] [FOLDER]" >&2
  exit 2
}

PYTHON=${SSL_JAX_PYTHON:-.venv/bin/python}
[[ ${SSL_JAX_PYTHON:-} || -x $PYTHON ]] || PYTHON=python3

twice() { # FOLDER FLAG ...
  local home=$1 i
  shift
  rm -rf "$home/1" "$home/2" "$home/cache"
  mkdir -p "$home"
  export XDG_CACHE_HOME=$home/cache # The second run's programs are the first's.
  for i in 1 2; do
    "$PYTHON" -m ssl_jax.main "--workdir=$home/$i" "$@" >/dev/null
  done
  "$PYTHON" - "$home" <<'END'
import json, sys
clock = ("_seconds", "_per_second", "_wait_fraction")
def read(run):
  with open(f"{sys.argv[1]}/{run}/metrics.jsonl") as file:
    lines = [json.loads(line) for line in file]
  return [
    {k: repr(v) for k, v in line.items() if not k.endswith(clock)}
    for line in lines
  ]
first, second = read(1), read(2)
if not first or len(first) != len(second):
  sys.exit(f"error: {len(first)} and {len(second)} lines of metrics")
for a, b in zip(first, second):
  if names := [k for k in a | b if a.get(k) != b.get(k)]:
    k = names[0]
    print(f"differ from update {a['update']} on: {k} {a.get(k)}, {b.get(k)}")
    sys.exit()
print(f"the same bit for bit: {len(first)} lines of metrics")
END
}

if [[ ${1:-} == twice ]]; then
  shift
  [[ ${1:--} != -* ]] || usage "twice needs a FOLDER"
  twice "$@"
  exit
fi

cpu=
if [[ ${1:-} == --cpu ]]; then
  cpu=1
  shift
fi
folder=${1:-runs/gpu_check}
[[ $folder != -* ]] || usage "unknown flag $folder"

if [[ $cpu ]]; then
  export JAX_PLATFORMS=cpu CUDA_VISIBLE_DEVICES=
  # A rehearsal is of the script, not of speed: this compiles in half the time.
  export XLA_FLAGS=${XLA_FLAGS:---xla_backend_optimization_level=0}
  gpu="no GPU: a rehearsal on a CPU, whose speeds say nothing"
else
  gpu=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null) ||
    die "this machine has no GPU: no NVIDIA driver answers (nvidia-smi); --cpu rehearses the check"
  gpu=${gpu%%$'\n'*}
fi
# Two processes share a GPU.
export XLA_PYTHON_CLIENT_PREALLOCATE=false TF_CPP_MIN_LOG_LEVEL=2

find_facts() {
  "$PYTHON" - <<'END' 2>/dev/null
import importlib.metadata as installed, jax
def version(name):
  try:
    return f"{name} {installed.version(name)}"
  except installed.PackageNotFoundError:
    return f"no {name}"
names = ("jax", "torch", "transformers", "pytest")
print(jax.default_backend() + ";" + ", ".join(map(version, names)))
END
}

facts=$(find_facts) ||
  die "$PYTHON has no JAX: SSL_JAX_EXTRAS=gpu,test bash launch/setup.sh"
[[ $cpu || $facts == gpu\;* ]] ||
  die "JAX finds no GPU, only a ${facts%%;*}: SSL_JAX_EXTRAS=gpu,test bash launch/setup.sh"
facts=${facts#*;}

mkdir -p "$folder"
page=$folder/page.md failed=0
total=${SSL_JAX_SECONDS:-590}
child= # An interrupt must end the part, too, which has a process group of its own.
trap 'kill $child 2>/dev/null; exit 130' INT TERM
later=100 # Per cent of the time that parts not yet begun may take.

row() { # PART RESULT COMMAND
  local result=${2//|/\\|}
  echo "| $1 | ${result//$'\n'/ } | \`$3\` |" >>"$page"
}

# Runs a command, and puts what `said` makes of it in the page. What earlier
# parts left of their time is this one's, but never that of later ones.
part() { # PER_CENT NAME COMMAND ...
  local share=$1 name=$2 limit status=0 log before=$SECONDS
  shift 2
  later=$((later - share))
  limit=$((total - SECONDS - total * later / 100))
  log=$folder/${name//[^A-Za-z0-9]/_}
  local shown python
  printf -v shown '%q ' "$@"
  printf -v python %q "$PYTHON"
  shown=${shown//"$python"/python} shown=${shown% }
  if ((limit < 1)); then
    failed=1
    row "$name" "skipped: no time was left" "$shown"
    return
  fi
  echo "$name, $limit s at most ..." >&2
  timeout --kill-after=5 "$limit" "$@" >"$log.out" 2>"$log.err" </dev/null &
  child=$!
  wait "$child" || status=$?
  if ((status && SECONDS - before >= limit)); then
    failed=1
    row "$name" "failed: it took longer than $limit s" "$shown"
  elif ((status)); then
    failed=1
    row "$name" "failed: $(reason "$log")" "$shown"
  else
    row "$name" "$(said "$log.out")" "$shown"
  fi
}

reason() { # LOG
  local line
  line=$(cat "$1.out" "$1.err" | grep -aE '^(error: |FAILED |E  )' | tail -n 1) || true
  [[ $line ]] || line=$(cat "$1.out" "$1.err" | grep -av '^ *$' | tail -n 1) || true
  echo "${line:0:200}"
}

# A benchmark's numbers, or the last line of anything else.
said() { # FILE
  "$PYTHON" - "$1" <<'END'
import json, sys
lines = open(sys.argv[1]).read().split("\n")
last = ([line for line in lines if line.strip()] or ["nothing was printed"])[-1]
try:
  result = json.loads(last)
except ValueError:
  sys.exit(print(last.strip("= ")))
def side(name):
  x = result[name]
  if "seconds" not in x:
    return f"{x['cold_seconds']:.1f} s cold, {x['warm_seconds']:.1f} s warm"
  return (
    f"{1e3 * x['seconds']:.2f} ms, {x['audio_seconds_per_second']:.0f} audio s/s, "
    f"{x['flops_per_second'] / 1e12:.3g} TFLOP/s, MFU {x['mfu']:.1%}, "
    f"{x['peak_memory_bytes'] / 2**30:.2f} GiB"
  )
text = f"{result['rows']} x {result['clip_seconds']:g} s: {side('ours')}"
if "theirs" in result:
  text += f"; torch {side('theirs')}; **{result['ratio']:.2f} x torch**"
print(text)
END
}

has() {
  local name
  for name in "$@"; do
    [[ "$facts" != *"no $name"* ]] || return 1
  done
}

bench() { # PER_CENT NAME COMPARED BENCHMARK CONFIG FLAG ...
  local share=$1 name=$2 against=() kind=$4 config=$5
  if [[ $3 ]] && has torch transformers; then
    against=(--against=hf)
  elif [[ $3 ]]; then
    name+=" (ours alone: torch or transformers is not installed)"
  fi
  shift 5
  part "$share" "$name" "$PYTHON" -m ssl_jax.bench "$kind" \
    "--config=configs/slim.py:$config$tiny" "$@" "${against[@]}" "${sizes[@]}"
}

tests() { # PER_CENT NAME FILE PREFIX ...
  local share=$1 name=$2 file=$3
  shift 3
  if has pytest; then
    part "$share" "$name" "$@" "$PYTHON" -m pytest -o addopts= -q -m "not slow" \
      -p no:cacheprovider "$file"
  else
    later=$((later - share))
    row "$name" "skipped: pytest is not installed" "pytest $file"
  fi
}

pair() { # PER_CENT NAME XLA_FLAGS
  part "$1" "$2" env "XLA_FLAGS=$3" bash launch/gpu_check.sh twice \
    "$folder/${2//[^A-Za-z0-9]/_}" --config=configs/smoke.py \
    --config.kmeans.num_restarts=1 --config.budget.flops=0 \
    "--config.budget.updates=$updates" --config.log.every=1 "${small[@]}"
}

tiny='' sizes=(--rounds=3) small=("--config.data.bucket_seconds=(2.0,)") updates=40
if [[ $cpu ]]; then
  tiny=,size=2x32x64x2 sizes=(--rounds=1 --rows=1 --seconds=0.5) updates=3
  small+=(--config.encoder.num_layers=1 --config.encoder.hidden_size=32
    --config.encoder.ffn_size=64 --config.encoder.num_heads=2
    --config.batch.seconds=4 --config.eval.batch_seconds=4
    --config.kmeans.num_frames=2000 --config.data.hours=0.05)
fi

{
  echo "# GPU check"
  echo
  echo "$gpu; $facts; $("$PYTHON" --version 2>&1). Code: $(git rev-parse --short HEAD 2>/dev/null || echo no git)."
  echo
  echo "| part | result | command |"
  echo "|---|---|---|"
} >"$page"

tests 7 "kernels compiled for this GPU, bfloat16" tests/test_on_gpu.py
tests 7 "kernels interpreted" tests/test_kernels.py env JAX_PLATFORMS=cpu
bench 15 "step, HuBERT" compared step objective=hubert
bench 15 "step, wav2vec 2.0" compared step objective=wav2vec2
bench 12 "step, HuBERT on log-mel" compared step objective=hubert --config.frontend.name=logmel
bench 7 "step, TERA" "" step objective=tera
bench 7 "stem" compared stem objective=hubert
pair 11 "two runs" ""
pair 11 "two runs, deterministic" --xla_gpu_deterministic_ops=true
sizes+=(--rounds=1)
bench 8 "start to first update" "" compile objective=hubert

echo >>"$page"
echo "$((SECONDS / 60)) min $((SECONDS % 60)) s in all." >>"$page"
cat "$page"
exit "$failed"
