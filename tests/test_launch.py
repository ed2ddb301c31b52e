"""Launch scripts parse, quote, print what they run, and start again after a preemption."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parent.parent / "launch"
TPU = LAUNCH / "tpu_vm.sh"

# Answers like gcloud, and lets as many runs fail as the file $LEFT says.
GCLOUD = r"""#!/usr/bin/env bash
printf '%s\n' "$*" >> "$LOG"
case "$*" in
  *describe*) cat "$STATE" 2>/dev/null || exit 1 ;;
  *"tpu-vm create"* | *"queued-resources create"*) echo "${CREATED:-READY}" > "$STATE" ;;
  *seva_jax.train*)
    left=$(cat "$LEFT")
    if ((left > 0)); then
      echo $((left - 1)) > "$LEFT"
      echo "$ENDED" > "$STATE"
      exit "${STATUS:-1}"
    fi ;;
esac
"""


def run(*arguments, **env):
    return subprocess.run(
        list(map(str, arguments)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | env,
        cwd=LAUNCH.parent,
    )


def test_script_parses():
    assert run("bash", "-n", TPU).returncode == 0
    if shutil.which("shellcheck"):
        done = run("shellcheck", TPU)
        assert done.returncode == 0, done.stdout


def test_dry_run_quotes_and_runs_nothing():
    done = run(
        *(TPU, "--dry-run", "--type", "v5litepod-16", "--zone", "us-west4-a", "--spot"),
        *("--project", "p q", "--", "--config", "my run.py", "--workdir", "$(touch /tmp/no)"),
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("+ gcloud compute tpus tpu-vm create seva --accelerator-type")
    assert "--version v2-alpha-tpuv5-lite --spot --zone us-west4-a --project p\\ q" in lines[0]
    assert len([line for line in lines if line.startswith("+")]) == 4
    assert not Path("/tmp/no").exists()
    # The words that the worker's shell would make of the command.
    train = next(line for line in lines if "seva_jax.train" in line)
    words = subprocess.run(
        ["bash", "-c", f"set -- {train[2:]}; printf '%s\\n' \"$@\""],
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    remote = words[words.index("--command") + 1]
    inner = subprocess.run(
        ["bash", "-c", f"set -- {remote.split('exec ')[1]}; printf '%s\\n' \"$@\""],
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    assert inner[-4:] == ["--config", "my run.py", "--workdir", "$(touch /tmp/no)"]


def fake_gcloud(folder, left, **state):
    """Writes a fake `gcloud` with one TPU, and returns an environment that finds it.

    Args:
        folder: directory for the command, its log and its state.
        left: number of runs that fail before one succeeds.
        state: further variables that it reads.
    """
    (folder / "gcloud").write_text(GCLOUD)
    (folder / "gcloud").chmod(0o755)
    (folder / "left").write_text(str(left))
    files = {name: str(folder / name.lower()) for name in ("LOG", "STATE", "LEFT")}
    return {"PATH": f"{folder}:{os.environ['PATH']}", **files, **state}


@pytest.mark.parametrize(
    ("queued", "slices"), [(False, 1), (True, 1), (True, 2)], ids=["vm", "queued", "multislice"]
)
def test_preemptions_are_survived(tmp_path, queued, slices):
    env = fake_gcloud(tmp_path, 2, ENDED="PREEMPTED", CREATED="ACTIVE" if queued else "READY")
    options = ["--type", "v6e-16", "--zone", "z", *(["--queued"] if queued else [])]
    options += ["--slices", "2"] if slices == 2 else []
    done = run(TPU, *options, "--", "--seed", "1", **env)
    assert done.returncode == 0, done.stdout + done.stderr
    calls = (tmp_path / "log").read_text().splitlines()
    kind = "queued-resources" if queued else "tpu-vm"
    assert len([c for c in calls if f"{kind} create" in c]) == 3
    assert len([c for c in calls if f"{kind} delete" in c]) == 2
    assert len([c for c in calls if "seva_jax.train --seed 1" in c]) == 3
    assert "costs money until it is deleted" in done.stdout
    if slices == 2:
        assert "--node-count 2 --node-prefix seva" in calls[1]
        ran = [c for c in calls if "seva_jax.train" in c]
        assert ran[0].startswith("compute tpus queued-resources ssh seva --node all --worker all")


def test_a_failing_run_is_not_repeated(tmp_path):
    env = fake_gcloud(tmp_path, 9, ENDED="READY")
    done = run(TPU, "--type", "v6e-16", "--zone", "z", "--", "--seed", "1", **env)
    assert done.returncode == 2
    assert "the run failed, but the TPU is healthy" in done.stderr


def test_a_stopped_run_is_resumed(tmp_path):
    """After status 75 on a healthy TPU, the same command runs again on the same TPU."""
    env = fake_gcloud(tmp_path, 1, ENDED="READY", STATUS="75")
    done = run(TPU, "--type", "v6e-16", "--zone", "z", "--", "--seed", "1", **env)
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "log").read_text().splitlines()
    ran = [call.partition("seva_jax && ")[2] for call in calls if "seva_jax.train" in call]
    ran = [command.partition(" --zone")[0] for command in ran]
    train = "exec python3 -m seva_jax.train --seed 1"
    assert ran == [train, f"SEVA_JAX_RESTARTED=1 {train}"]
    assert not any("delete" in call for call in calls)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --type"),
        (["--type", "v5p-8"], "give --zone"),
        (["--type", "v5p-8", "--zone", "z"], "give options of seva_jax.train after --"),
        (["--type", "x-8", "--zone", "z", "--", "a"], "no default runtime for type x-8"),
        (["--typ", "v5p-8"], "unknown option --typ"),
        (["--type"], "--type needs a value"),
        (["--type", "v5p-8", "--zone", "z", "--attempts", "0", "--", "a"], "--attempts must be"),
    ],
)
def test_mistakes(arguments, message):
    clean = dict.fromkeys(("TPU_NAME", "TPU_TYPE", "TPU_ZONE", "TPU_PROJECT"), "")
    done = run(TPU, *arguments, **clean)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
