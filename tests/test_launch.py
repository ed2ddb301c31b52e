"""Launch scripts: they parse, quote, say what they do, and start again after a preemption."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parent.parent / "launch"
TPU = LAUNCH / "tpu_vm.sh"

# Answers like gcloud: two preemptions on the way, when it is told so.
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
      exit 1
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


@pytest.mark.parametrize("script", ["tpu_vm.sh", "slurm.sbatch"])
def test_scripts_parse(script):
    assert run("bash", "-n", LAUNCH / script).returncode == 0
    if shutil.which("shellcheck"):
        done = run("shellcheck", LAUNCH / script)
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
    # What the shell of the worker would make of the command.
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


@pytest.mark.parametrize("queued", [False, True])
def test_preemptions_are_survived(tmp_path, queued):
    (tmp_path / "gcloud").write_text(GCLOUD)
    (tmp_path / "gcloud").chmod(0o755)
    (tmp_path / "left").write_text("2")
    env = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "LOG": str(tmp_path / "log"),
        "STATE": str(tmp_path / "state"),
        "LEFT": str(tmp_path / "left"),
        "ENDED": "PREEMPTED",
        "CREATED": "ACTIVE" if queued else "READY",
    }
    options = ["--type", "v6e-16", "--zone", "z", *(["--queued"] if queued else [])]
    done = run(TPU, *options, "--", "--seed", "1", **env)
    assert done.returncode == 0, done.stdout + done.stderr
    calls = (tmp_path / "log").read_text().splitlines()
    kind = "queued-resources" if queued else "tpu-vm"
    assert len([c for c in calls if f"{kind} create" in c]) == 3
    assert len([c for c in calls if f"{kind} delete" in c]) == 2
    assert len([c for c in calls if "seva_jax.train --seed 1" in c]) == 3
    assert "goes on costing until it is deleted" in done.stdout


def test_a_failing_run_is_not_repeated(tmp_path):
    (tmp_path / "gcloud").write_text(GCLOUD)
    (tmp_path / "gcloud").chmod(0o755)
    (tmp_path / "left").write_text("9")
    env = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        **{k: str(tmp_path / k.lower()) for k in ("LOG", "STATE", "LEFT")},
        "ENDED": "READY",
    }
    done = run(TPU, "--type", "v6e-16", "--zone", "z", "--", "--seed", "1", **env)
    assert done.returncode == 2
    assert "the run failed, and the TPU is in order" in done.stderr


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


def test_slurm_dry_run():
    done = run(
        "bash", LAUNCH / "slurm.sbatch", "--config", "my run.py",
        DRY_RUN="1", SLURM_GPUS_ON_NODE="4",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = "+ srun --kill-on-bad-exit=1 python -m seva_jax.train --config my\\ run.py"
    assert done.stdout.strip() == expected
    assert run("bash", LAUNCH / "slurm.sbatch").returncode == 2
