# shellcheck shell=bash disable=SC2034,SC2154 # variables shared with tpu_vm.sh
# What launch/tpu_vm.sh asks gcloud about a TPU and has it do: states, waiting, creating, deleting,
# and what to try after an error. Sourced by it.

print() { # a command as a shell would read it
  printf '+'
  printf ' %q' "$@"
  printf '\n'
}
run() {
  print "$@"
  [[ $dry ]] || "$@"
}
tpu() { run gcloud compute tpus "$@" "${where[@]}"; }

# Prints fields of a TPU VM or queued resource, nothing if there is none. Fails if gcloud cannot say:
# a TPU must not count as gone because the network is.
describe() { # KIND FORMAT
  local errors tries
  errors=$(mktemp)
  for ((tries = 1; tries <= 10; tries++)); do
    if gcloud compute tpus "$1" describe "$name" "${where[@]}" --format "$2" 2>"$errors" ||
      grep -q 'NOT_FOUND' "$errors"; then
      rm "$errors"
      return 0
    fi
    grep -q -i -E 'unavailable|timed? ?out|connect|network|resolve|deadline|internal|[^0-9](429|50[0-9])[^0-9]' \
      "$errors" || break
    sleep "$poll"
  done
  cat "$errors" >&2
  explain "$errors" || true
  rm "$errors"
  echo "error: gcloud cannot say in which state $name is; nothing was deleted" >&2
  return 1
}

# Says in a line what to try after an error of gcloud. Succeeds if waiting may help.
explain() { # FILE
  local hint='' temporary=1
  if grep -q -i -E 'no more capacity|insufficient (reserved )?capacity|stockout|POOL_EXHAUSTED' "$1"; then
    hint="$zone has no free $type now. Wait in line with --queued, try another --zone, or --spot"
    temporary=0
  elif grep -q -i 'quota' "$1"; then
    hint="the project's quota for $type in $zone is used up or 0 (spot and on-demand have separate
ones). Delete TPUs and queued resources that are left over (gcloud compute tpus queued-resources list
--zone $zone), use a zone where you have quota, or ask for more: console.cloud.google.com/iam-admin/quotas"
  elif grep -q 'RESOURCE_EXHAUSTED' "$1"; then
    hint="$zone has no free $type now, or the quota is used up. Wait in line with --queued, or try
another --zone"
    temporary=0
  elif grep -q -i -E 'SERVICE_DISABLED|has not been used in project' "$1"; then
    hint="switch the Cloud TPU API on: gcloud services enable tpu.googleapis.com"
  elif grep -q -i -E 'PERMISSION_DENIED|does not have permission|denied on' "$1"; then
    hint="your account needs the roles TPU Admin and Service Account User in the project; check
--project, and the account that gcloud auth list shows"
  elif grep -q -i -E 'active account|reauthentication|invalid_grant|credentials' "$1"; then
    hint="log in: gcloud auth login"
  elif grep -q -i -E 'runtime.?version|tensorflow.?version' "$1"; then
    hint="list the runtimes: gcloud compute tpus tpu-vm versions list --zone $zone; choose one with --version"
  elif grep -q -i -E 'accelerator.*not found|not found.*accelerator' "$1"; then
    hint="list what $zone has: gcloud compute tpus accelerator-types list --zone $zone"
  elif grep -q -i -E 'ALREADY_EXISTS|already exists' "$1"; then
    hint="the name is taken; choose another --name, or delete the other one"
  fi
  [[ ! $hint ]] || echo "try this: $(tr '\n' ' ' <<<"$hint")" >&2
  return $temporary
}

# Sets `now` to the state: READY or ACTIVE of a healthy TPU, nothing if there is none.
look() {
  now=''
  if [[ $dry ]]; then
    ((slices == 1)) && print gcloud compute tpus tpu-vm describe "$name" "${where[@]}" \
      --format 'value(state)'
    [[ ! $queued ]] || print gcloud compute tpus queued-resources describe "$name" "${where[@]}" \
      --format 'value(state.state)'
    return
  fi
  if ((slices == 1)); then
    now=$(describe tpu-vm 'value(state)') || exit 2
  fi
  if [[ $queued && ! $now ]]; then
    now=$(describe queued-resources 'value(state.state)') || exit 2
  fi
}
healthy() { [[ $now == READY || ($now == ACTIVE && $slices -gt 1) ]]; }

request() {
  local more=(--accelerator-type "$type") errors=$scratch/errors result=0 waited
  if [[ $queued ]]; then
    more=("${nodes[@]}" "${more[@]}" --runtime-version "$version")
  else
    more+=(--version "$version")
  fi
  [[ ! $spot ]] || more+=(--spot)
  tpu "$kind" create "$name" "${more[@]}" 2> >(trap '' INT TERM HUP && exec tee "$errors" >&2) ||
    result=$?
  ((result)) || return 0
  for waited in 1 2 3 4 5; do [[ -s $errors ]] || sleep "0.$waited"; done # for tee
  result=0
  explain "$errors" || result=2
  look
  [[ $now ]] || begun='' # nothing is left
  ((result == 0 && attempt > 1)) || exit 2 # at the first start the user can still choose another zone
  echo "trying again after ten pauses of $poll s"
  for waited in 1 2 3 4 5 6 7 8 9 10; do sleep "$poll"; done
  return 1
}

# Waits until the TPU can be used, and shows its state whenever that changes.
await() {
  local start=$SECONDS shown='' told=$SECONDS reason first=$now
  while look && ! healthy; do
    if [[ $now != "$shown" ]] || ((SECONDS - told >= 600)); then
      echo "$name is ${now:-gone} ($(((SECONDS - start) / 60)) min)"
      shown=$now told=$SECONDS
    fi
    # Slices that were preempted after they were granted are requested again.
    [[ $first$now != SUSPENDINGSUSPENDED ]] || return 1
    case $now in
      FAILED | SUSPENDED)
        describe "$kind" 'value(state.failedData.error.message,state.stateInitiator)' \
          >"$scratch/errors" || exit 2
        reason=$(tr -s '\t\n' ' ' <"$scratch/errors")
        echo "error: the queued resource $name is $now: ${reason:-no reason was given}" >&2
        explain "$scratch/errors" || true
        exit 2
        ;;
      '' | PREEMPTED | TERMINATED) return 1 ;;
      STOPPED | STOPPING | HIDDEN | HIDING)
        die "$name is $now: start it (gcloud compute tpus tpu-vm start $name ${where[*]}), or delete it"
        ;;
    esac
    sleep "$poll"
  done
}

delete() { run "${delete_command[@]}"; }
