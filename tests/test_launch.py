"""Launch scripts parse, quote, print what they run, and start again after a preemption."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

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


@pytest.mark.parametrize(("state", "requeued"), [("RUNNING", True), ("CANCELLED", False)])
def test_slurm_requeues_a_stopped_job(tmp_path, state, requeued):
    """A cancelled job is not queued again."""
    script = f'#!/bin/bash\necho "$*" >> {tmp_path}/log\necho JobState={state}\n'
    for name, text in (("scontrol", script), ("srun", "#!/bin/bash\nexit 75\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    assert run("bash", LAUNCH / "slurm.sbatch", "--seed", "1", **env).returncode == 75
    assert ("requeue 7" in (tmp_path / "log").read_text()) == requeued


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


def gke(*arguments, **env):
    return run(sys.executable, LAUNCH / "gke.py", *arguments, **env)


def test_gke_job_set():
    done = gke(
        *("--topology", "v5p:4x4x4", "--slices", "3", "--image", "registry/image", "--spot"),
        *("--claim", "shared", "--context", "pool", "--queue", "multislice-queue", "--dry-run"),
        *("--", "--config", "a 'b' $c.py"),
    )
    assert done.returncode == 0, done.stderr
    text, command = done.stdout.rsplit("\n+ ", 1)
    assert command.strip() == "kubectl --context pool apply --namespace default -f -"
    job_set = json.loads(text)
    assert job_set == yaml.safe_load(text)
    # The fields of a JobSet: the server refuses a misspelt one.
    assert set(job_set) == {"apiVersion", "kind", "metadata", "spec"}
    assert (job_set["apiVersion"], job_set["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert set(job_set["metadata"]) == {"name", "annotations", "labels"}
    assert job_set["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "multislice-queue"}
    assert set(job_set["spec"]) == {"failurePolicy", "replicatedJobs"}
    (replicated,) = job_set["spec"]["replicatedJobs"]
    assert set(replicated) == {"name", "replicas", "template"}
    assert replicated["replicas"] == 3
    job = replicated["template"]["spec"]
    assert set(job) == {"parallelism", "completions", "backoffLimit", "template"}
    assert job["parallelism"] == job["completions"] == 16  # 64 chips, 4 a host
    pod = job["template"]["spec"]
    assert set(pod) == {"restartPolicy", "nodeSelector", "containers", "volumes"}
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "4x4x4",
        "cloud.google.com/gke-spot": "true",
    }
    (container,) = pod["containers"]
    assert container["command"][-2:] == ["--config", "a 'b' $c.py"]  # no shell in between
    assert container["resources"] == {"limits": {"google.com/tpu": 4}}
    assert container["volumeMounts"] == [{"name": "shared", "mountPath": "/mnt/shared"}]


def test_gke_sends_it(tmp_path):
    (tmp_path / "kubectl").write_text('#!/bin/sh\necho "$*" > "$LOG"\ncat >> "$LOG"\nexit 7\n')
    (tmp_path / "kubectl").chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(tmp_path / "log")}
    done = gke("--topology", "v5e:2x2", "--image", "i", "--", "--seed", "1", **env)
    assert done.returncode == 7
    first, rest = (tmp_path / "log").read_text().split("\n", 1)
    assert first == "apply --namespace default -f -"
    assert json.loads(rest)["metadata"]["name"] == "seva"
    assert "labels" not in json.loads(rest)["metadata"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "i", "--", "a"], "for example v5e:4x4"),
        (["--topology", "v5e:4x4", "--", "a"], "give --image"),
        (["--topology", "v5e:4x4", "--image", "i"], "give options of seva_jax.train after --"),
        (["--topology", "v9:4x4", "--image", "i", "--", "a"], "for example v5e:4x4"),
        (["--topology", "v5e:4x4", "--image", "i", "--name", "A_b", "--", "a"], "small letters"),
        (["--topology", "v5e:4x4", "--image", "i", "--slices", "0", "--", "a"], "at least 1"),
    ],
)
def test_gke_mistakes(arguments, message):
    done = gke(*arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_sky_task():
    """Fields are named as in SkyPilot's reference, and scripts parse and quote."""
    task = yaml.safe_load((LAUNCH / "sky.yaml").read_text())
    known = {"name", "workdir", "resources", "envs", "file_mounts", "setup", "run"}
    assert set(task) <= known
    assert set(task["resources"]) <= {"infra", "accelerators", "accelerator_args", "use_spot"}
    for script in ("setup", "run"):
        assert run("bash", "-n", "-c", task[script]).returncode == 0
    script = task["run"].replace("python3 -m", "printf '%s\\n'")
    done = run("bash", "-c", script, TRAIN="--config 'my run.py'", SKYPILOT_TASK_ID="t")
    expected = ["seva_jax.train", "--config", "my run.py", "--workdir", "/bucket/runs/t"]
    assert done.stdout.splitlines() == expected
