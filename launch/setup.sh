#!/usr/bin/env bash
# Makes .venv, the environment in which this checkout runs, on one machine. See --help.
set -euo pipefail

usage() {
  cat <<'TEXT'
bash launch/setup.sh [--extra NAME]... [--workdir DIR_OR_URL]

Makes .venv in the checkout that holds this script: Python 3.11 or later and the versions of
uv.lock. Needs no root, works from any directory, and installs nothing the second time. Then start
programs in the checkout with .venv/bin/python, for example

  .venv/bin/python -m seva_jax.train --help

  --extra NAME          an extra of pyproject.toml (default tpu): tpu, cuda12, cuda13, gcs, ...
                        Give it several times for several extras. Packages that are neither in
                        uv.lock nor in these extras are removed from .venv.
  --workdir DIR_OR_URL  also run launch/check.py with this work directory at the end, which proves
                        that the machine can train: it uses all devices, and writes and reads the
                        work directory. On a slice of several hosts give this only if you start
                        the script on all of them at once, because the check waits for the others.
                        Otherwise run `.venv/bin/python launch/check.py` on all hosts afterwards.

It uses the uv on PATH or in ~/.local/bin. Without one it installs uv in ~/.local/bin, with pip or
else with uv's install script (curl or wget). uv takes a Python that is on the machine, or else
downloads Python 3.12. On success it prints one line, on failure the reason, with a status above 0.
TEXT
}

host=${HOSTNAME:-this machine}
log=$(mktemp -d)
trap 'rm -rf "$log"' EXIT

# Prints a reason and the last lines of what the failed command said, and ends the script.
fail() {
  printf 'error: %s: %s\n' "$host" "$1" >&2
  [[ ! -s $log/output ]] || tail -n 12 "$log/output" | while IFS= read -r line; do
    printf '  %s\n' "$line" >&2
  done
  exit 1
}

works() { "$1" --version >/dev/null 2>&1; }

# Installs uv in ~/.local/bin. With --target pip also installs where the system's Python is
# "externally managed" (PEP 668), and neither pip nor the script changes anything else.
install_uv() {
  mkdir -p "$HOME/.local/bin"
  if python3 -m pip --version; then
    if PIP_USER=0 python3 -m pip install --disable-pip-version-check --only-binary :all: \
      --target "$log/uv" uv && cp "$log/uv/bin/uv" "$HOME/.local/bin/uv"; then
      return
    fi
  fi
  local url=https://astral.sh/uv/install.sh
  if type curl; then
    curl -LsSf --retry 3 --output "$log/install.sh" "$url" || return
  elif type wget; then
    wget -nv -O "$log/install.sh" "$url" || return
  else
    echo "none of pip (of python3), curl and wget is there" && return 1
  fi
  UV_UNMANAGED_INSTALL="$HOME/.local/bin" sh "$log/install.sh"
}

extras=() workdir=''
while (($#)); do
  case $1 in
    --extra | --workdir)
      (($# > 1)) || { echo "error: $1 needs a value" >&2 && exit 2; }
      [[ $1 == --workdir ]] && workdir=$2 || extras+=(--extra "$2")
      shift 2
      ;;
    --help | -h) usage && exit 0 ;;
    *) echo "error: unknown option $1; see --help" >&2 && exit 2 ;;
  esac
done
((${#extras[@]})) || extras=(--extra tpu)

cd "$(dirname "${BASH_SOURCE[0]}")/.."
uv=uv
works "$uv" || uv=$HOME/.local/bin/uv
if ! works "$uv"; then
  install_uv >"$log/output" 2>&1 || true
  works "$uv" || fail "uv could not be installed; install it by hand (https://docs.astral.sh/uv) \
or give this machine access to pypi.org or astral.sh"
fi

# Whatever an earlier shell activated, the environment is .venv here.
export UV_PROJECT_ENVIRONMENT=.venv
unset VIRTUAL_ENV CONDA_PREFIX
problem='uv could not make .venv; its last lines:'
if [[ ! ${UV_PYTHON:-} && ! -e .venv ]] &&
  ! "$uv" python find --no-python-downloads '>=3.11' >/dev/null 2>&1; then
  export UV_PYTHON=3.12 # uv would download the newest one
  problem="there is no Python 3.11 or later here, and $problem"
fi
"$uv" sync --frozen --no-progress "${extras[@]}" >"$log/output" 2>&1 || fail "$problem"
changes='nothing to install'
[[ ! $(<"$log/output") =~ Installed\ ([0-9]+)\ package ]] ||
  changes="packages installed: ${BASH_REMATCH[1]}"
versions='import platform, jax, seva_jax
print(f"Python {platform.python_version()}, jax {jax.__version__}")'
versions=$(.venv/bin/python -c "$versions" 2>"$log/output") ||
  fail "the packages in .venv cannot be imported; its last lines:"
echo "$host: .venv is ready: $versions, $changes, $SECONDS s"
if [[ $workdir ]]; then
  rm -rf "$log"
  exec .venv/bin/python launch/check.py --workdir "$workdir"
fi
