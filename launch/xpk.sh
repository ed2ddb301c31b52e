#!/usr/bin/env bash
# One run as an XPK workload on a GKE cluster that `xpk cluster create` made, on one slice or
# several.
set -euo pipefail

usage() {
  cat <<'TEXT'
launch/xpk.sh [options] -- OPTIONS OF seva_jax.train

  --name NAME        of the workload (default seva, or $TPU_NAME)
  --cluster CLUSTER  ($XPK_CLUSTER)
  --type TYPE        as v5litepod-16, v5p-8, v6e-16 ($TPU_TYPE)
  --slices N         how many (default 1); the mesh axis data spans them
  --image IMAGE      with seva_jax installed ($TPU_IMAGE)
  --zone ZONE        ($TPU_ZONE)
  --project PROJECT  (default: gcloud's own, or $TPU_PROJECT)
  --attempts N       restarts at most (default 100)
  --dry-run          print the command, run nothing

  launch/xpk.sh --cluster pool --type v5litepod-16 --slices 2 --zone us-west4-a --image IMAGE -- \
    --config configs/llava15_7b_seva.py --mesh.fsdp 16 --workdir /mnt/bucket/runs/seva
TEXT
}

die() { echo "error: $1" >&2; exit 2; }

name=${TPU_NAME:-seva} cluster=${XPK_CLUSTER:-} type=${TPU_TYPE:-} slices=1 image=${TPU_IMAGE:-}
zone=${TPU_ZONE:-} project=${TPU_PROJECT:-} attempts=100 dry=''
while (($#)); do
  case $1 in
    --name | --cluster | --type | --slices | --image | --zone | --project | --attempts)
      (($# > 1)) || die "$1 needs a value"
      printf -v "${1#--}" '%s' "$2"
      shift 2
      ;;
    --dry-run) dry=yes && shift ;;
    --help | -h) usage && exit 0 ;;
    --) shift && break ;;
    *) die "unknown option $1; see --help (options of seva_jax.train go after --)" ;;
  esac
done
for needed in cluster type image zone; do
  [[ ${!needed} ]] || die "give --$needed; see --help"
done
[[ $slices =~ ^[1-9][0-9]*$ ]] || die "--slices must be a whole number of at least 1"
[[ $attempts =~ ^[1-9][0-9]*$ ]] || die "--attempts must be a whole number of at least 1"
(($#)) || die "give options of seva_jax.train after --"

printf -v train ' %q' "$@"
command=(xpk workload create --workload "$name" --cluster "$cluster" --tpu-type "$type"
  --num-slices "$slices" --docker-image "$image" --zone "$zone" --max-restarts "$attempts"
  --command "python3 -m seva_jax.train$train")
[[ ! $project ]] || command+=(--project "$project")
printf '+'
printf ' %q' "${command[@]}"
printf '\n'
[[ $dry ]] || exec "${command[@]}"
