#!/usr/bin/env bash
# Pretrains on a Cloud TPU VM or pod slice, and goes on when it is preempted.
#
#   bash launch/tpu_vm.sh --name=mine --zone=us-west4-a --type=v5litepod-16 \
#     --spot --bucket=my-bucket -- --config=configs/slim.py \
#     --config.data.dir=~/bucket/audio --workdir=~/bucket/runs/slim
#   bash launch/tpu_vm.sh --name=mine --zone=us-west4-a --delete
#
# Creates the slice, or uses the one of that name, copies this checkout to all
# its workers, installs it, and runs `bash launch/local.sh ARGS` on all, ARGS
# being what stands after --. Worker 0's log is shown; the last line on stdout
# is the run's JSON object. When the slice is preempted or out of reach, it is
# deleted and created again, and the same command goes on from its --workdir,
# which is therefore to be in the bucket. The run outlives this script: the same
# command shows its log again.
#
#   --name=NAME       of the slice
#   --type=TYPE       such as v5litepod-16, v6e-8, v4-32
#   --zone=ZONE, --project=PROJECT
#                     gcloud's own defaults where left out
#   --version=NAME    of the runtime; by default that of the type
#   --spot            a fraction of the price, may be preempted
#   --queued          waits in the queue of requests until there is capacity
#   --bucket=NAME     is mounted at ~/bucket on every worker (with gcsfuse). Make
#                     it with --enable-hierarchical-namespace
#                     --uniform-bucket-level-access, in the zone's region: a
#                     checkpoint then appears there in one step, or not at all
#   --dir=DIR         for the code, in the workers' home; ssl_jax by default
#   --workers=WHICH   as gcloud's --worker; all by default
#   --delete          deletes the slice when the run has ended, well or not;
#                     without -- at once (with --queued if it was made so)
#   --dry_run         prints every command and runs none
#
# Needs gcloud, logged in; for several workers `ssh-add
# ~/.ssh/google_compute_engine` first, a key that gcloud makes at its first ssh.

set -euo pipefail

die() {
  echo "error: $1" >&2
  exit "${2:-1}"
}

name='' type='' zone='' project='' version='' bucket='' dir=ssl_jax workers=all
spot='' queued='' delete='' dry_run='' train=''
while (($#)); do
  case $1 in
  --help | -h)
    sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit
    ;;
  --spot | --queued | --delete | --dry_run) printf -v "${1#--}" yes ;;
  --name=* | --type=* | --zone=* | --project=* | --version=* | --bucket=* | \
    --dir=* | --workers=*)
    flag=${1%%=*}
    printf -v "${flag#--}" %s "${1#*=}"
    ;;
  --name | --type | --zone | --project | --version | --bucket | --dir | --workers)
    (($# > 1)) || die "$1 needs a value; see --help" 2
    set -- "$1=$2" "${@:3}"
    continue
    ;;
  --)
    train=yes
    shift
    break
    ;;
  *) die "unexpected '$1': the run's own arguments stand after --; see --help" 2 ;;
  esac
  shift
done

[[ $name ]] || die "--name is missing; see --help" 2
[[ $train || $delete ]] ||
  die "what to run is missing: give local.sh's arguments after --; see --help" 2
[[ $type || ! $train ]] || die "--type is missing; see --help" 2

# FLAG VALUE PATTERN EXAMPLE
check() {
  [[ $2 =~ ^($3)$ ]] || die "--$1='$2' is not such as $4"
}
bucket=${bucket#gs://} dir=${dir#\~/}
check name "$name" '[a-z]([-a-z0-9]{0,61}[a-z0-9])?' my-slice-1
check type "$type" '(v[0-9]+[a-z]*-[0-9]+)?' v5litepod-16
check zone "$zone" '([a-z]+-[a-z]+[0-9]+-[a-z])?' us-west4-a
check project "$project" '([a-z][a-z0-9.:-]+)?' my-project
check version "$version" '([a-z][a-z0-9._-]+)?' v2-alpha-tpuv6e
check bucket "$bucket" '([a-z0-9][a-z0-9._-]+)?' my-bucket
check workers "$workers" 'all|[0-9]+([-,][0-9]+)*' 'all, 0 or 1-3'
check dir "$dir" '[^-].*' ssl_jax
if [[ $train && ! $version ]]; then
  case $type in
  v[234]-*) version=tpu-ubuntu2204-base ;;
  v5litepod-*) version=v2-alpha-tpuv5-lite ;;
  v5p-*) version=v2-alpha-tpuv5 ;;
  v6e-*) version=v2-alpha-tpuv6e ;;
  *) die "no runtime is known for --type=$type: give --version" ;;
  esac
fi
if [[ $train && $spot && ! $bucket ]]; then
  echo "warning: --spot without --bucket: what a preempted slice has on its" \
    "disks is lost" >&2
fi
[[ $dry_run ]] || command -v gcloud >/dev/null ||
  die "gcloud is not installed; see cloud.google.com/sdk/docs/install"

cd "$(dirname "${BASH_SOURCE[0]}")/.."
tpus=(gcloud compute tpus)
flags=(--quiet ${zone:+"--zone=$zone"} ${project:+"--project=$project"})
poll=${SSL_JAX_POLL_SECONDS:-30}
archive=build/$name.tgz
made=''    # The slice, by this script; a dry run supposes what it would do.
ready=''   # It has been, once.
reached='' # Its workers have been.
begun=''   # A run on it, of which the end is not known.

# Commands are shown as a shell would read them.
exec 3>&2
[[ ! $dry_run ]] || exec 3>&1
run() {
  local word line='' quote="'\\''"
  for word; do
    case $word in
    '' | *[!A-Za-z0-9_./:=@%+,-]*) word="'${word//\'/$quote}'" ;;
    esac
    line+=" $word"
  done
  echo "${line:1}" >&3
  [[ $dry_run ]] || "$@"
}

# KIND FIELD USUAL: the state of the slice or request; ABSENT if there is none;
# fails where gcloud cannot say.
describe() {
  local said
  if said=$(run "${tpus[@]}" "$1" describe "$name" "${flags[@]}" \
    "--format=value($2)" 2>&1); then
    [[ ! $dry_run ]] || said=${made:+$3}
    grep -xE '[A-Z_]+' <<<"$said" || echo ABSENT
  elif [[ $said == *NOT_FOUND* ]]; then
    echo ABSENT
  else
    echo "$said" >&2
    return 1
  fi
}

state() {
  local found
  if [[ $queued ]]; then
    found=$(describe queued-resources state.state ACTIVE) || return
    if [[ $found != ACTIVE ]]; then
      echo "$found"
      return
    fi
  fi
  found=$(describe tpu-vm state READY) || return
  if [[ $queued && $found == ABSENT ]]; then
    found=SUSPENDED # A request that has lost its slice.
  fi
  echo "$found"
}

create() {
  local what=(tpu-vm create "$name" "--version=$version")
  if [[ $queued ]]; then
    what=(queued-resources create "$name" "--node-id=$name"
      "--runtime-version=$version")
  fi
  run "${tpus[@]}" "${what[@]}" "${flags[@]}" "--accelerator-type=$type" \
    ${spot:+--spot} >&2 && made=yes reached='' begun=''
}

delete_slice() {
  if [[ $queued ]]; then
    run "${tpus[@]}" queued-resources delete "$name" "${flags[@]}" --force >&2
  else
    run "${tpus[@]}" tpu-vm delete "$name" "${flags[@]}" >&2
  fi
}

# Waits, creates and deletes until the slice is READY.
be_ready() {
  local found='' before
  while :; do
    before=$found
    if ! found=$(state); then
      [[ $ready ]] || die "gcloud cannot say whether $name is there; see above"
      found=unknown
    fi
    [[ $found == "$before" || $dry_run ]] || echo "slice $name: $found" >&2
    case $found in
    READY)
      ready=yes
      return
      ;;
    ABSENT)
      if ! create; then
        [[ $ready ]] || die "$name could not be created; see above (for want of capacity: --queued, or another --zone)"
        sleep "$poll"
      fi
      ;;
    PREEMPTED | TERMINATED | SUSPENDED) delete_slice || sleep "$poll" ;;
    STOPPED | FAILED)
      die "$name is $found: start it, or remove it with --delete"
      ;;
    *) sleep "$poll" ;;
    esac
  done
}

# WORKERS COMMAND, in the folder of the code
remote() {
  local folder
  printf -v folder %q "$dir"
  run "${tpus[@]}" tpu-vm ssh "$name" "${flags[@]}" "--worker=$1" \
    --ssh-flag=-oConnectTimeout=30 --ssh-flag=-oServerAliveInterval=30 \
    "--command=mkdir -p $folder && cd $folder && $2" </dev/null
}

# The code on every worker, and the run begun: both only where none goes on.
begin() {
  local words=''
  ((!$#)) || words=$(printf ' %q' "$@")
  run "${tpus[@]}" tpu-vm scp "$archive" "$name:" "${flags[@]}" \
    "--worker=$workers" --scp-flag=-oConnectTimeout=30 >&2 &&
    remote "$workers" "{ bash launch/worker.sh going 2>/dev/null || tar -xzf ~/$name.tgz; } && bash launch/worker.sh install $bucket" >&2 &&
    remote "$workers" "bash launch/worker.sh start$words" >&2
}

give_up() {
  [[ ! $delete ]] || delete_slice || true
  die "$1"
}

if [[ ! $train ]]; then
  made=yes
  found=$(state) || die "gcloud cannot say whether $name is there; see above"
  if [[ $found == ABSENT ]]; then
    echo "there is no $name" >&2
  else
    delete_slice || die "$name could not be deleted; see above"
  fi
  exit
fi

trap 'echo "the slice is left as it is: the same command attaches to a run that goes on there, --delete ends it" >&2; exit 130' INT
# Once: after a preemption the run goes on with the same code.
run mkdir -p build
run tar -czf "$archive" --exclude=./.git --exclude='./.venv*' --exclude=./runs \
  --exclude=./build --exclude=./dist --exclude=./.worker \
  --exclude=__pycache__ --exclude='.*_cache' --exclude='*.egg-info' . ||
  die "the code could not be packed; see above"

first=${workers%%[-,]*}
first=${first/all/0}
failures=0 # In a row, on a slice that is READY.
while :; do
  be_ready
  since=$SECONDS said='' ended=''
  if [[ $begun ]] || begin "$@"; then
    reached=yes begun=yes
    said=$(remote "$first" 'bash launch/worker.sh follow') || said=''
    [[ ! $dry_run ]] || said='ended 0'
    ended=${said##*$'\n'}
  fi
  if [[ $ended == 'ended 0' && $said != *'"preempted": true'* ]]; then
    break
  fi
  [[ ! $ended ]] || begun=''
  sleep "$poll" # A preemption takes a while to show.
  [[ "$(state || true)" == READY ]] || continue
  ((SECONDS - since < 900)) || failures=0
  case $ended in
  'ended 0' | 'ended lost')
    [[ $ended == 'ended 0' ]] || ((++failures))
    remote "$workers" 'bash launch/worker.sh stop' >&2 || true
    ((failures < 3)) ||
      give_up "the run was lost $failures times in a row on a READY slice; its log is above, another worker's in $dir/.worker/log"
    ;;
  ended*)
    give_up "the run failed with status ${ended#ended } on worker $first; its log is above, another worker's in $dir/.worker/log"
    ;;
  *)
    [[ $reached ]] || give_up "the run could not be begun on $name; see above"
    if ((++failures == 3)); then
      echo "slice $name: READY, but out of reach" >&2
      delete_slice || true
      failures=0
    fi
    ;;
  esac
done

status=0
if [[ $delete ]] && ! delete_slice; then
  echo "error: $name could not be deleted; see above" >&2
  status=1
fi
[[ $dry_run ]] || echo "${said%$'\n'*}"
exit $status
