#!/usr/bin/env bash
# Runs seva_jax.train on Cloud TPU slices: creates them, installs this checkout on every worker,
# starts the run on all of them, and starts it again after preemptions until it is finished.
set -euo pipefail

usage() {
  cat <<'TEXT'
launch/tpu_vm.sh [options] -- OPTIONS OF seva_jax.train

  --name NAME        name of the TPU (default seva, or $TPU_NAME)
  --type TYPE        accelerator type, such as v5litepod-16, v5p-8, v6e-16 ($TPU_TYPE)
  --zone ZONE        ($TPU_ZONE)
  --project PROJECT  (default: gcloud's own, or $TPU_PROJECT)
  --version VERSION  runtime version (default by type)
  --queued           request the TPU as a queued resource and wait for it
  --slices N         number of slices (default 1); more imply --queued, and the mesh axis data
                     spans them
  --spot             spot capacity: cheaper, may be preempted
  --attempts N       most starts of the run (default 100)
  --dry-run          print the commands, run nothing

--workdir must be a directory that all workers see (a mounted bucket or Filestore): a restarted run
resumes from the checkpoints in it.

  launch/tpu_vm.sh --type v5litepod-16 --zone us-west4-a --spot -- \
    --config configs/llava15_7b_seva.py --mesh.fsdp 16 --workdir /mnt/bucket/runs/seva
TEXT
}

die() { echo "error: $1" >&2; exit 2; }

name=${TPU_NAME:-seva} type=${TPU_TYPE:-} zone=${TPU_ZONE:-} project=${TPU_PROJECT:-}
version='' queued='' slices=1 spot=() attempts=100 dry=''
while (($#)); do
  case $1 in
    --name | --type | --zone | --project | --version | --slices | --attempts)
      (($# > 1)) || die "$1 needs a value"
      printf -v "${1#--}" '%s' "$2"
      shift 2
      ;;
    --queued) queued=yes && shift ;;
    --spot) spot=(--spot) && shift ;;
    --dry-run) dry=yes && shift ;;
    --help | -h) usage && exit 0 ;;
    --) shift && break ;;
    *) die "unknown option $1; see --help (options of seva_jax.train go after --)" ;;
  esac
done
[[ $type ]] || die "give --type, for example v5litepod-16"
[[ $zone ]] || die "give --zone, for example us-west4-a"
[[ $slices =~ ^[1-9][0-9]*$ ]] || die "--slices must be a whole number of at least 1"
((slices == 1)) || queued=yes
[[ $attempts =~ ^[1-9][0-9]*$ ]] || die "--attempts must be a whole number of at least 1"
(($#)) || die "give options of seva_jax.train after --"
if [[ ! $version ]]; then
  case $type in
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v6e-*) version=v2-alpha-tpuv6e ;;
    v4-*) version=tpu-ubuntu2204-base ;;
    *) die "no default runtime for type $type; give --version" ;;
  esac
fi
where=(--zone "$zone")
[[ ! $project ]] || where+=(--project "$project")

run() {
  printf '+'
  printf ' %q' "$@"
  printf '\n'
  [[ $dry ]] || "$@"
}

tpu() { run gcloud compute tpus "$@" "${where[@]}"; }

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

create() {
  if [[ $queued ]]; then
    tpu queued-resources create "$name" "${nodes[@]}" --accelerator-type "$type" \
      --runtime-version "$version" "${spot[@]}"
    until [[ $dry || $(state queued-resources 'value(state.state)') == ACTIVE ]]; do sleep 30; done
  else
    tpu tpu-vm create "$name" --accelerator-type "$type" --version "$version" "${spot[@]}"
  fi
  tpu "${each[@]}" scp --recurse "${all[@]}" . "$name:seva_jax"
  tpu "${each[@]}" ssh "$name" "${all[@]}" --command "cd seva_jax && pip install -q -e '.[tpu]'"
}

delete() {
  if [[ $queued ]]; then
    tpu queued-resources delete "$name" --force --quiet || true
  else
    tpu tpu-vm delete "$name" --quiet || true
  fi
}

state() { gcloud compute tpus "$1" describe "$name" "${where[@]}" --format "$2" 2>/dev/null || true; }

# Prints READY for a healthy TPU VM, ACTIVE for several healthy slices.
tpu_state() {
  if ((slices > 1)); then
    state queued-resources 'value(state.state)'
  else
    state tpu-vm 'value(state)'
  fi
}
healthy() { [[ $1 == READY || $1 == ACTIVE ]]; }

printf -v train ' %q' "$@"
if [[ $dry ]] || ! healthy "$(tpu_state)"; then
  create
fi
for ((attempt = 1; attempt <= attempts; attempt++)); do
  # exec: the shell must not outlive a killed trainer. The processes of an earlier attempt have
  # ended, so their lock may be taken over.
  restarted=''
  ((attempt == 1)) || restarted='SEVA_JAX_RESTARTED=1 '
  status=0
  tpu "${each[@]}" ssh "$name" "${all[@]}" \
    --command "cd seva_jax && ${restarted}exec python3 -m seva_jax.train$train" || status=$?
  if ((status == 0)); then
    [[ $dry ]] || echo "the run is finished; $name costs money until it is deleted:"
    if [[ $queued ]]; then
      echo "gcloud compute tpus queued-resources delete $name --force ${where[*]}"
    else
      echo "gcloud compute tpus tpu-vm delete $name ${where[*]}"
    fi
    exit 0
  fi
  now=$(tpu_state)
  if ((status == 75)) && healthy "$now"; then
    echo "attempt $attempt was stopped by a signal and has saved: starting the run again"
    continue
  fi
  ! healthy "$now" || die "the run failed, but the TPU is healthy; see above"
  echo "attempt $attempt ended and $name is ${now:-gone}: creating it again"
  delete
  create
done
die "gave up after $attempts attempts"
