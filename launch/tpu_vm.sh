#!/usr/bin/env bash
# Runs seva_jax.train on Cloud TPU slices: creates them, brings this checkout to every worker and
# sets it up there, starts the run on all of them, and starts it again after preemptions until it is
# finished. What happens on a worker is in setup.sh, check.py, stage.py and worker.py beside this
# file. Runs on Linux and macOS (bash 3.2: no empty arrays, no associative ones).
set -euo pipefail

usage() {
  cat <<'TEXT'
launch/tpu_vm.sh [options] -- OPTIONS OF seva_jax.train

  --name NAME         name of the TPU (default seva, or $TPU_NAME)
  --type TYPE         accelerator type, such as v5litepod-16, v5p-8, v6e-16 ($TPU_TYPE)
  --zone ZONE         ($TPU_ZONE)
  --project PROJECT   (default: gcloud's own, or $TPU_PROJECT)
  --version VERSION   runtime version (default by type)
  --queued            request the TPU as a queued resource and wait for it
  --slices N          number of slices (default 1); more imply --queued, and the mesh axis data
                      spans them
  --spot              spot capacity: cheaper, may be preempted
  --stage URL         copy gs://BUCKET/PATH to the disk of every worker first, once; options that
                      begin with URL then mean the copy, ~/staged/BUCKET/PATH. May be repeated
  --shared-dir DIR    a directory that is mounted on all workers; --workdir may lie in it
  --attempts N        most starts of the run (default 100)
  --delete-when-done  delete the TPU when the run has ended, also after an error or Ctrl-C
  --status            say how TPU and run are doing, and end; needs --zone and perhaps --name
  --dry-run           print the commands, run nothing

The options must name a --workdir, from which a restarted run resumes: gs://BUCKET/PATH, which the
service account of the TPU may write. A local path serves only a TPU with one worker, and is lost
with it; on several workers it must lie in --shared-dir (Filestore, for example).

The tracked files travel as they are in the work tree. A run does not end with the connection: the
same command finds it again. Ctrl-C asks it to save and end; a second one leaves it.

  launch/tpu_vm.sh --type v5litepod-16 --zone us-west4-a --spot --delete-when-done -- \
    --config configs/llava15_7b_seva.py --mesh.fsdp 16 --workdir gs://bucket/runs/seva
TEXT
}

die() { echo "error: $1" >&2; exit 2; }

name=${TPU_NAME:-seva} type=${TPU_TYPE:-} zone=${TPU_ZONE:-} project=${TPU_PROJECT:-}
version='' queued='' slices=1 spot='' attempts=100 dry='' status_only='' delete_when_done=''
shared_dir='' workdir='' staged=(.) # the first element of lists that may be empty is skipped
poll=${TPU_POLL_S:-30}              # seconds between questions about a state
while (($#)); do
  case $1 in
    --name | --type | --zone | --project | --version | --slices | --attempts | --shared-dir)
      (($# > 1)) || die "$1 needs a value"
      variable=${1#--}
      printf -v "${variable//-/_}" '%s' "$2"
      shift 2
      ;;
    --stage)
      (($# > 1)) || die "$1 needs a value"
      [[ $2 == ?*://?* ]] || die "--stage takes the URL of a bucket, such as gs://bucket/data, not $2"
      staged+=("${2%/}")
      shift 2
      ;;
    --queued) queued=yes && shift ;;
    --spot) spot=yes && shift ;;
    --delete-when-done) delete_when_done=yes && shift ;;
    --status) status_only=yes && shift ;;
    --dry-run) dry=yes && shift ;;
    --help | -h) usage && exit 0 ;;
    --) shift && break ;;
    *) die "unknown option $1; see --help (options of seva_jax.train go after --)" ;;
  esac
done
[[ $type || $status_only ]] || die "give --type, for example v5litepod-16"
[[ $zone ]] || die "give --zone, for example us-west4-a"
[[ $slices =~ ^[1-9][0-9]*$ ]] || die "--slices must be a whole number of at least 1"
((slices == 1)) || queued=yes
[[ $attempts =~ ^[1-9][0-9]*$ ]] || die "--attempts must be a whole number of at least 1"
where=(--zone "$zone")
[[ ! $project ]] || where+=(--project "$project")
# shellcheck source=launch/tpu_cloud.sh
source "$(dirname "${BASH_SOURCE[0]}")/tpu_cloud.sh"

# --- status ---------------------------------------------------------------------------------------

worker=seva_jax/.venv/bin/python\ seva_jax/launch/worker.py
if [[ $status_only ]]; then
  node=$(describe tpu-vm 'value(state,health,acceleratorType)') || exit 2
  resource=$(describe queued-resources 'value(state.state)') || exit 2
  [[ $node || $resource ]] || { echo "$name in $zone: there is no such TPU" && exit 0; }
  [[ ! $resource ]] || echo "$name in $zone: queued resource $resource"
  [[ ! $node ]] || echo "$name in $zone: TPU $(tr '\t' ' ' <<<"$node")"
  ask="if [ -x ${worker%% *} ]; then $worker --status; else echo 'nothing is set up there yet'; fi"
  if [[ $node == READY* ]]; then
    gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker 0 --command "$ask"
  elif [[ $resource == ACTIVE ]]; then
    gcloud compute tpus queued-resources ssh "$name" "${where[@]}" --node 0 --worker 0 \
      --command "$ask"
  fi
  exit
fi

# --- what is wanted -------------------------------------------------------------------------------

(($#)) || die "give options of seva_jax.train after --"
previous=''
for word in "$@"; do
  [[ $previous != --workdir ]] || workdir=$word
  [[ $word != --workdir=* ]] || workdir=${word#*=}
  previous=$word
done
case $type in
  v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
  v5p-*) runtime=v2-alpha-tpuv5 ;;
  v6e-*) runtime=v2-alpha-tpuv6e ;;
  v4-*) runtime=tpu-ubuntu2204-base ;;
  *) runtime=$version ;;
esac
version=${version:-$runtime}
[[ $version ]] || die "no default runtime for type $type; give --version"
size=${type##*-}
[[ $size =~ ^[1-9][0-9]*$ ]] || die "--type must end with a number, as v5litepod-16 does, not $type"
case $type in # v5e and v6e count chips, of which one host has up to 8; others count cores, 8 a host
  v5litepod-* | v6e-*) hosts=$((size <= 8 ? 1 : size / 4)) devices=$size ;;
  v4-* | v5p-*) hosts=$((size <= 8 ? 1 : size / 8)) devices=$((size / 2)) ;; # a chip is one device
  *) hosts=$((size <= 8 ? 1 : size / 8)) devices=$size ;;
esac
hosts=$((hosts * slices)) devices=$((devices * slices))
[[ $workdir ]] || die "give --workdir gs://BUCKET/PATH among the options of seva_jax.train"
if [[ $workdir != *://* && ! ($shared_dir && $workdir/ == "${shared_dir%/}"/*) ]]; then
  ((hosts == 1)) || die "--workdir $workdir is a path on each of the $hosts workers of $type, which
do not share it: give gs://BUCKET/PATH, or name the directory above it that is mounted on all of them
with --shared-dir"
  [[ ! $delete_when_done ]] || die "--delete-when-done would delete --workdir $workdir, which is on the
disk of the TPU: give gs://BUCKET/PATH"
  echo "warning: --workdir $workdir is on the disk of the TPU and is lost with it" \
    "${spot:+(also by a preemption)}" >&2
fi

for url in "${staged[@]}"; do
  [[ $url == . || $workdir/ != "$url"/* ]] || die "--workdir $workdir lies below --stage $url, and
would mean the copy on the disk of each worker: stage only the data, or choose another work directory"
done

# A TPU VM is one slice; a queued resource may hold several, which it calls nodes.
if ((slices > 1)); then
  nodes=(--node-count "$slices" --node-prefix "$name")
  each=(queued-resources)
  all=(--node all --worker all)
else
  nodes=(--node-id "$name")
  each=(tpu-vm)
  all=(--worker all)
fi
kind="tpu-vm"
[[ ! $queued ]] || kind="queued-resources"
delete_command=(gcloud compute tpus "$kind" delete "$name" "${where[@]}" --quiet)
[[ ! $queued ]] || delete_command+=(--force)

# --- a worker -------------------------------------------------------------------------------------

remote() { tpu "${each[@]}" ssh "$name" "${all[@]}" --command "$1"; }

# An archive of the tracked files as they are in the work tree. Sets `archive`.
pack() {
  local root commit changed untracked
  root=$(git -C "$(dirname "${BASH_SOURCE[0]}")" rev-parse --show-toplevel 2>/dev/null) ||
    die "launch/tpu_vm.sh must be in a git checkout: only its tracked files travel"
  commit=$(git -C "$root" rev-parse HEAD) || exit 2
  changed=$(git -C "$root" diff --name-only HEAD | wc -l | tr -d ' ')
  untracked=$(git -C "$root" ls-files --others --exclude-standard)
  echo "what travels: commit ${commit:0:12} and $changed changed files"
  [[ ! $untracked ]] || echo "warning: untracked files do not travel (git add them if the run needs" \
    "them): $(tr '\n' ' ' <<<"$untracked")" >&2
  if ((changed)); then # a commit of the work tree that no branch knows
    commit=$(git -C "$root" -c user.name=launch -c user.email=launch@localhost stash create) ||
      die "git cannot pack the changed files; see above"
  fi
  archive=$scratch/seva_jax.tar.gz
  run git -C "$root" archive --format=tar.gz -o "$archive" "$commit"
}

# Files of an earlier archive go; what else is in the folder (.venv, results) stays.
unpack='set -e; mkdir -p seva_jax; cd seva_jax
if [ -f .archived ]; then tr "\n" "\0" <.archived | xargs -0 rm -f --; fi
tar --quoting-style=literal -tzf ../seva_jax.tar.gz | grep -v "/$" >.archived
tar -xzf ../seva_jax.tar.gz'

# Succeeds if a run is in progress on a worker; 1 if there is none, 2 if that is unknown.
in_progress() {
  local result=0
  remote "mkdir -p seva_jax_run && flock -n -E 76 seva_jax_run/lock true" || result=$?
  case $result in
    0) return 1 ;;
    76) return 0 ;;
    *) return 2 ;;
  esac
}

prepare() {
  local quoted
  tpu "${each[@]}" scp "${all[@]}" "$archive" "$name:seva_jax.tar.gz" &&
    remote "$unpack; bash launch/setup.sh --extra tpu" || return
  if ((${#staged[@]} > 1)); then
    printf -v quoted ' %q' "${staged[@]:1}"
    remote "cd seva_jax && .venv/bin/python launch/stage.py$quoted" || return
  fi
  if ((slices > 1 && hosts > 64)); then
    echo "check.py is left out: gcloud reaches 64 workers of several slices at a time, not $hosts"
    return
  fi
  printf -v quoted %q "$workdir"
  remote "cd seva_jax && .venv/bin/python launch/check.py --workdir $quoted --expect-devices $devices"
}

command_of() { # ARGUMENTS of worker.py
  local restarted='' options urls=''
  ((attempt == 1)) || restarted='SEVA_JAX_RESTARTED=1 '
  printf -v options ' %q' "${train[@]}"
  ((${#staged[@]} == 1)) || printf -v urls ' --staged %q' "${staged[@]:1}"
  echo "cd seva_jax && $restarted.venv/bin/python launch/worker.py $1$urls --$options"
}

# Shows the run until it ends and returns its status. A lost connection is not the end of it.
follow() {
  local status lost known='' command
  command=(gcloud compute tpus "${each[@]}" ssh "$name" "${all[@]}" --command "$worker --follow")
  for ((lost = 0; lost < 100; lost++)); do
    print "${command[@]}" "${where[@]}"
    [[ ! $dry ]] || return 0
    "${command[@]}" "${where[@]}" & # a job in the background does not get Ctrl-C itself
    following=$!
    while :; do
      interrupted=''
      wait "$following" && status=0 || status=$?
      [[ $interrupted ]] || break
    done
    following=''
    ((status)) || return 0
    look
    healthy || return "$status"
    [[ $known != 1 ]] || return "$status" # the run had ended already, so this is its status
    in_progress && known=0 || known=$?
    ((known != 1 || status == 255)) || return "$status" # 255 is that of a lost connection
    echo "the connection to $name was lost: following the run again"
    ((known != 2)) || sleep "$poll"
  done
  die "$name cannot be reached; the run may be in progress. The same command follows it again"
}

# --- the run ---------------------------------------------------------------------------------------

# Brings the TPU into a usable state. Fails if another start should try that again.
ensure() {
  begun=yes
  case $now in
    PREEMPTED | TERMINATED | SUSPENDED | FAILED)
      echo "$name is $now: deleting it and creating it again"
      delete || true
      now=''
      ;;
  esac
  if [[ ! $now ]]; then
    existed='' prepared=''
    request || return
  fi
  [[ $dry ]] || await
}

# Makes all workers ready, starts the run on them and follows it. Returns its status.
run_once() {
  local known=1 result
  if [[ ! $prepared ]]; then
    [[ ! $existed ]] || { in_progress && known=0 || known=$?; }
    if ((known == 2)); then
      foreign=yes
      echo "error: $name cannot be reached, and a run may be in progress there" >&2
      return 2
    elif ((known == 0)); then
      echo "a run is in progress on $name: its code and set-up stay as they are"
      foreign=yes
      remote "$(command_of --adopt)" || return
      foreign=''
    else
      prepare || return
    fi
    prepared=yes
  fi
  running=yes
  if ((known)); then
    remote "$(command_of "--start $launch-$attempt")" || {
      result=$?
      ((result != 2)) || foreign=yes # another run is in progress
      return "$result"
    }
  fi
  follow
}

# shellcheck disable=SC2329 # traps call these two
on_signal() {
  interrupted=yes
  if [[ ! $following ]]; then
    echo "interrupted" >&2
    exit 130
  elif [[ ! $stopping ]]; then
    stopping=yes
    echo "asking the run to save and end; once more leaves it as it is" >&2
    remote "$worker --stop" &
  else
    pkill -P "$following" 2>/dev/null || true # the connections of gcloud
    kill "$following" 2>/dev/null || true
    exit 130
  fi
}

# Says what is left, and deletes it if that is wanted and no run may be in progress.
# shellcheck disable=SC2329
on_exit() {
  local status=$?
  trap '' INT TERM HUP
  set +e # the deletion must not depend on whether its lines can be written
  rm -rf "$scratch"
  [[ $begun ]] || exit "$status"
  if [[ $delete_when_done && ! $foreign && ! $running ]]; then
    [[ $dry ]] || echo "deleting $name; kept: $workdir, and all that was printed in its folder logs"
    delete && exit "$status"
    echo "error: $name could not be deleted" >&2
    ((status)) || status=2
  fi
  if [[ ! $dry ]]; then
    echo "$name stays, and costs money, until it is deleted:"
    print "${delete_command[@]}"
  fi
  exit "$status"
}

train=("$@") scratch=$(mktemp -d) launch=$(date +%s)-$$ # identifies this launch to the workers
attempt=1 existed=yes begun='' prepared='' now='' archive=''
following='' interrupted='' stopping='' # the process that shows the run, and what signals asked for
running='' foreign=''                   # whether this run may be in progress, or another one
trap on_exit EXIT
trap on_signal INT TERM
trap 'exit 129' HUP # the terminal was closed; the run continues
trap '' PIPE        # a closed pipe, as after | tee, must not prevent the clean-up

pack
look
for (( ; attempt <= attempts; attempt++)); do
  ensure || { look && continue; }
  status=0
  run_once || status=$?
  running=''
  [[ ! $foreign ]] || exit 2
  if ((status == 0)); then
    [[ $dry ]] || echo "the run is finished: $workdir"
    exit 0
  fi
  [[ ! $stopping ]] || exit "$status"
  look
  if ! healthy; then
    echo "start $attempt ended with status $status, and $name is ${now:-gone}"
    prepared='' existed=yes
  elif [[ ! $prepared ]]; then
    echo "error: the workers could not be made ready; see above" >&2
    exit "$status"
  elif ((status == 75)); then
    echo "start $attempt was stopped by a signal and has saved: starting the run again"
  else
    echo "error: the run failed with status $status, but the TPU is healthy; see above" >&2
    exit "$status"
  fi
done
die "gave up after $attempts starts"
