"""Launchers of GKE, SkyPilot and Slurm print and send what these systems accept."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "launch"


def run(*arguments, cwd=ROOT, **env):
    return subprocess.run(
        list(map(str, arguments)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | env,
        cwd=cwd,
    )


def write_command(path, script):
    """Writes an executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{script}\n")
    path.chmod(0o755)


def test_slurm_script_parses():
    assert run("bash", "-n", LAUNCH / "slurm.sbatch").returncode == 0
    if shutil.which("shellcheck"):
        done = run("shellcheck", LAUNCH / "slurm.sbatch")
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("state", "requeued"), [("RUNNING", True), ("CANCELLED", False)])
def test_slurm_requeues_a_stopped_job(tmp_path, state, requeued):
    """A cancelled job is not queued again."""
    write_command(tmp_path / "scontrol", f'echo "$*" >> {tmp_path}/log; echo JobState={state}')
    write_command(tmp_path / "srun", "exit 75")
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    assert run("bash", LAUNCH / "slurm.sbatch", "--seed", "1", **env).returncode == 75
    assert ("requeue 7" in (tmp_path / "log").read_text()) == requeued


@pytest.mark.parametrize(("made", "python"), [(False, "python"), (True, ".venv/bin/python")])
def test_slurm_dry_run(tmp_path, made, python):
    """The environment of `setup.sh` is used if the directory of submission has one."""
    if made:
        write_command(tmp_path / ".venv" / "bin" / "python", "")
    done = run(
        "bash", LAUNCH / "slurm.sbatch", "--config", "my run.py",
        DRY_RUN="1", SLURM_GPUS_ON_NODE="4", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = f"+ srun --kill-on-bad-exit=1 {python} -m seva_jax.train --config my\\ run.py"
    assert done.stdout.strip() == expected


def test_slurm_needs_options():
    assert run("bash", LAUNCH / "slurm.sbatch").returncode == 2


def gke(*arguments, **env):
    return run(sys.executable, LAUNCH / "gke.py", *arguments, **env)


def printed_job_set(*arguments):
    """Returns what `gke.py --dry-run` prints: the JobSet, and its pod template."""
    done = gke("--topology", "v5e:4x4", "--image", "registry/image", "--dry-run", *arguments)
    assert done.returncode == 0, done.stderr
    job_set = json.loads(done.stdout.rsplit("\n+ ", 1)[0])
    (replicated,) = job_set["spec"]["replicatedJobs"]
    return job_set, replicated["template"]["spec"]["template"]


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
    assert set(job["template"]) == {"spec"}
    pod = job["template"]["spec"]
    assert set(pod) == {"restartPolicy", "nodeSelector", "containers", "volumes"}
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "4x4x4",
        "cloud.google.com/gke-spot": "true",
    }
    (container,) = pod["containers"]
    assert container["command"][1:3] == ["-m", "seva_jax.train"]
    assert container["command"][-2:] == ["--config", "a 'b' $c.py"]  # no shell in between
    assert container["resources"] == {"limits": {"google.com/tpu": 4}}
    assert pod["volumes"] == [{"name": "shared", "persistentVolumeClaim": {"claimName": "shared"}}]
    assert container["volumeMounts"] == [{"name": "shared", "mountPath": "/mnt/shared"}]


def test_gke_mounts_a_bucket():
    """Fields and mount options are those of the documentation of the Cloud Storage FUSE driver.

    It asks for `uid`, `gid`, `file-mode` and `dir-mode` if the image has a user that is not root.
    """
    options = ["--bucket", "my-bucket", "--mount", "/data", "--service-account", "trainer"]
    _, template = printed_job_set(*options, "--", "--seed", "1")
    assert template["metadata"] == {"annotations": {"gke-gcsfuse/volumes": "true"}}
    pod = template["spec"]
    assert pod["serviceAccountName"] == "trainer"
    (volume,) = pod["volumes"]
    assert set(volume) == {"name", "csi"}
    assert volume["csi"] == {
        "driver": "gcsfuse.csi.storage.gke.io",
        "volumeAttributes": {
            "bucketName": "my-bucket",
            "mountOptions": "implicit-dirs,uid=1000,gid=1000,file-mode=664,dir-mode=775",
        },
    }
    mounts = pod["containers"][0]["volumeMounts"]
    assert mounts == [{"name": volume["name"], "mountPath": "/data"}]


def test_gke_needs_no_mount_for_a_url():
    _, template = printed_job_set("--", "--workdir", "gs://my-bucket/runs/seva")
    assert set(template) == {"spec"}
    assert "volumes" not in template["spec"]
    assert "securityContext" not in template["spec"]["containers"][0]


def test_gke_fits_the_image():
    """The interpreter and the owner of files on a bucket are those of the Dockerfile."""
    text = (LAUNCH / "Dockerfile").read_text()
    (workdir,) = re.findall(r"^WORKDIR (.*)", text, re.M)
    (user,) = re.findall(r"^USER (\d+):\d+", text, re.M)
    _, template = printed_job_set("--bucket", "my-bucket", "--", "--seed", "1")
    pod = template["spec"]
    command = pod["containers"][0]["command"]
    assert command == [f"{workdir}/.venv/bin/python", "-m", "seva_jax.train", "--seed", "1"]
    mount_options = pod["volumes"][0]["csi"]["volumeAttributes"]["mountOptions"]
    assert f"uid={user},gid={user}" in mount_options
    # The script of --check is in the checkout that the image copies.
    job_set, template = printed_job_set("--check", "--privileged", "--", "--expect-devices", "16")
    container = template["spec"]["containers"][0]
    script = container["command"][1]
    assert (LAUNCH.parent / Path(script).relative_to(workdir)).is_file()
    assert container["command"][2:] == ["--expect-devices", "16"]
    assert job_set["spec"]["failurePolicy"] == {"maxRestarts": 0}
    assert container["securityContext"] == {"privileged": True, "runAsUser": 0, "runAsGroup": 0}


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
        (
            ["--topology", "v5e:4x4", "--image", "i", "--bucket", "gs://b", "--", "a"],
            "without gs://",
        ),
        (
            ["--topology", "v5e:4x4", "--image", "i", "--bucket", "b1", "--claim", "c", "--", "a"],
            "not both",
        ),
        (
            ["--topology", "v5e:4x4", "--image", "i", "--mount", "/m", "--", "a"],
            "--mount needs --bucket or --claim",
        ),
    ],
)
def test_gke_mistakes(arguments, message):
    done = gke(*arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_sky_copies_no_repository_results_or_environments():
    """Where there is a .skyignore, SkyPilot does not read .gitignore."""
    ignored = (LAUNCH.parent / ".skyignore").read_text().splitlines()
    assert {".git/", *(LAUNCH.parent / ".gitignore").read_text().splitlines()} <= set(ignored)


def test_sky_task(tmp_path):
    """Fields are named as in SkyPilot's reference, and scripts run and quote."""
    task = yaml.safe_load((LAUNCH / "sky.yaml").read_text())
    known = {"name", "workdir", "resources", "envs", "setup", "run"}
    assert set(task) <= known
    assert set(task["resources"]) <= {"infra", "accelerators", "accelerator_args", "use_spot"}
    print_words = 'printf \'%s\\n\' "${SEVA_JAX_RESTARTED:-first}" "$@" >> words'
    write_command(tmp_path / ".venv" / "bin" / "python", print_words)
    write_command(tmp_path / "launch" / "setup.sh", print_words)
    env = task["envs"] | {"BUCKET": "b", "TRAIN": "--config 'my run.py'", "SKYPILOT_TASK_ID": "t"}
    for script in (task["setup"], task["run"]):
        done = run("bash", "-c", script, cwd=tmp_path, **env)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "words").read_text().splitlines() == [
        *("first", "--extra", "tpu", "--extra", "gcs"),
        *("first", "launch/check.py", "--workdir", "gs://b/runs/t"),
        *("1", "-m", "seva_jax.train", "--config", "my run.py", "--workdir", "gs://b/runs/t"),
    ]


def test_sky_does_not_train_where_the_check_fails(tmp_path):
    run_script = yaml.safe_load((LAUNCH / "sky.yaml").read_text())["run"]
    write_command(tmp_path / ".venv" / "bin" / "python", 'echo "$1"; exit 3')
    env = {"BUCKET": "b", "TRAIN": "", "SKYPILOT_TASK_ID": "t"}
    done = run("bash", "-c", run_script, cwd=tmp_path, **env)
    assert (done.returncode, done.stdout) == (3, "launch/check.py\n")
