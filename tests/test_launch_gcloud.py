"""What the launcher of Cloud TPU VMs asks gcloud for, and what it says about the answers.

Read `test_launch.py` first. The command lines are also given to the real gcloud, if there is one.
"""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers_cloud import TPU, cloud

LAUNCH = Path(__file__).parent.parent / "launch"


@pytest.fixture(name="tpu")
def _tpu(tmp_path):
    with cloud(tmp_path) as made:
        yield made


# As the service and gcloud print them.
CAPACITY = (
    'There is no more capacity in the zone "z"; you can try in another zone where Cloud TPU Nodes '
    "are offered (see https://cloud.google.com/tpu/docs/regions) [EID: 0x9f48947a7d57c8d]"
)


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (CAPACITY, "no free v5litepod-16 now. Wait in line with --queued"),
        ("Insufficient reserved capacity. Contact customer support", "no free v5litepod-16 now"),
        ("Quota limit 'TPUV6EPreemptiblePerProjectPerRegionForTPUAPI' has been exceeded. Limit: 0 "
         "in region us-east5.", "quota for v5litepod-16 in z is used up or 0"),
        ("RESOURCE_EXHAUSTED: Quota 'TPUV5sPreemptibleLitepod' exhausted. Limit 1 in region z",
         "quota for v5litepod-16"),
        ("PERMISSION_DENIED: Permission 'tpu.nodes.create' denied on 'projects/p/locations/z'",
         "roles TPU Admin"),
        ("PERMISSION_DENIED: Cloud TPU API has not been used in project 1 before or is disabled.",
         "gcloud services enable tpu.googleapis.com"),
        ("Cloud TPU received a bad request. the accelerator v5litepod-17 was not found in zone z",
         "gcloud compute tpus accelerator-types list --zone z"),
        ('INVALID_ARGUMENT: Cloud TPU received an invalid argument. The field "RuntimeVersion" '
         'cannot be "x".', "gcloud compute tpus tpu-vm versions list --zone z"),
        ("You do not currently have an active account selected.", "gcloud auth login"),
    ],
)  # fmt: skip
def test_errors_of_creation_are_explained(tpu, error, hint):
    tpu.put("create-errors", error + "\n")
    done = tpu.launch(*TPU, "--delete-when-done", *tpu.options())
    assert done.returncode == 2
    assert error in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("try this: ")]
    assert hint in line
    assert "costs money" not in done.stdout  # nothing was made
    assert not tpu.calls("delete")


def test_capacity_after_a_preemption_is_waited_for(tpu):
    tpu.trains(
        f"if start == 1:\n    (cloud / 'create-errors').write_text({CAPACITY!r})\n"
        "    tpu_is('PREEMPTED')\n    sys.exit(1)"
    )
    done = tpu.launch(*TPU, "--spot", *tpu.options())
    assert done.returncode == 0, done.stderr
    assert "trying again after" in done.stdout
    assert len(tpu.starts()) == 2


def test_queue_states_are_shown(tpu):
    tpu.trains("")
    waiting = "WAITING_FOR_RESOURCES\n"
    tpu.put("queue", f"ACCEPTED\n{waiting}{waiting}PROVISIONING\nACTIVE\n")
    tpu.put("state", "CREATING")  # requested by an earlier launch
    for worker in (0, 1):
        tpu.home(worker).mkdir(parents=True)
    done = tpu.launch(*TPU, "--queued", "--slices", "2", *tpu.options())
    assert done.returncode == 0, done.stderr
    states = re.findall(r"^seva is (\w+) \(\d+ min\)$", done.stdout, re.MULTILINE)
    assert states == ["WAITING_FOR_RESOURCES", "PROVISIONING"]
    assert not tpu.calls("create")


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED"])
def test_a_failed_request_ends_the_wait(tpu, state):
    tpu.put("queue", f"ACCEPTED\n{state}\n")
    tpu.put("state", "CREATING")
    tpu.put("reason", f"{CAPACITY}\tSERVICE")
    done = tpu.launch(*TPU, "--queued", "--slices", "2", "--delete-when-done", *tpu.options())
    assert done.returncode == 2
    assert f"the queued resource seva is {state}: {CAPACITY} SERVICE" in done.stderr
    assert "try this: z has no free" in done.stderr
    assert len(tpu.calls("delete", "--force")) == 1


def test_slices_that_are_being_suspended_are_requested_again(tpu):
    """A queued resource whose slices are preempted is SUSPENDING for a while, then SUSPENDED."""
    states = "SUSPENDING\n" * 2 + "SUSPENDED\n" * 2 + "ACTIVE\n" * 9
    tpu.trains(
        f"if worker or start > 1:\n    sys.exit()\n(cloud / 'queue').write_text({states!r})\n"
        "sys.exit(1)"
    )
    tpu.put("queue", "ACTIVE\n")
    done = tpu.launch(*TPU, "--spot", "--slices", "2", *tpu.options())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "seva is SUSPENDED: deleting it and creating it again" in done.stdout
    assert len(tpu.calls("create")) == len(tpu.starts()) == 2


@pytest.mark.parametrize("delete", [[], ["--delete-when-done"]])
def test_a_lost_network_deletes_nothing(tpu, delete):
    """If gcloud cannot say whether the TPU exists it is asked again; then nothing is done."""
    tpu.trains(
        "times = 3 if start == 1 else 99\n"
        "(cloud / 'describe-errors').write_text('Connection timed out\\n' * times)\n"
        "sys.exit(75)"
    )
    done = tpu.launch(*TPU, *delete, *tpu.options())
    assert done.returncode == 2
    assert len(tpu.starts()) == 2
    assert "nothing was deleted" in done.stderr
    assert "seva stays, and costs money, until it is deleted" in done.stdout
    assert not tpu.calls("delete")
    assert len(tpu.calls("create")) == 1


def dry_runs():
    """Returns command lines of gcloud that dry runs print, one for every kind of launch."""
    runs = []
    for more in ([], ["--queued", "--spot", "--project", "p"], ["--slices", "2", "--spot"]):
        done = subprocess.run(
            ["bash", LAUNCH / "tpu_vm.sh", "--dry-run", *TPU, *more, "--stage", "gs://b/data",
             "--delete-when-done", "--", "--config", "my run.py",
             "--workdir", "gs://b/$(touch no)"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        lines = [line[2:] for line in done.stdout.splitlines() if line.startswith("+ gcloud")]
        runs.append([words_of(line) for line in lines])
    return runs


def words_of(line):
    """Returns the words that bash makes of a command line."""
    text = subprocess.check_output(["bash", "-c", f"printf '%s\\0' {line}"], text=True)
    return text.split("\0")[:-1]


def test_dry_run_prints_all_commands():
    vm, queued, slices = dry_runs()
    kinds = ("tpu-vm", "queued-resources", "queued-resources")
    for lines, kind in zip((vm, queued, slices), kinds, strict=True):
        verbs = [line[4] for line in lines]
        assert verbs[:1] == ["describe"]
        assert [verb for verb in verbs if verb != "describe"] == [
            "create", "scp", "ssh", "ssh", "ssh", "ssh", "ssh", "delete",
        ]  # fmt: skip
        assert next(line for line in lines if line[4] == "create")[3] == kind
    create = " ".join(vm[1])
    assert create.endswith(
        "create seva --accelerator-type v5litepod-16 --version v2-alpha-tpuv5-lite --zone z"
    )
    commands = [line[line.index("--command") + 1] for line in vm if "--command" in line]
    assert [re.search(r"launch/(\w+\.\w+)", command)[1] for command in commands] == [
        "setup.sh", "stage.py", "check.py", "worker.py", "worker.py",
    ]  # fmt: skip
    start = shlex.split(commands[3])
    assert start[start.index("--staged") + 1 :] == [
        "gs://b/data", "--", "--config", "my run.py", "--workdir", "gs://b/$(touch no)",
    ]  # fmt: skip


def test_workers_that_gcloud_reaches_in_batches_are_not_checked_together():
    """Those of the first batch would wait for the others. The run is started, and then followed."""
    done = subprocess.run(
        ["bash", LAUNCH / "tpu_vm.sh", "--dry-run", "--type", "v5litepod-256", "--zone", "z",
         "--slices", "2", "--", "--workdir", "gs://b/r"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "check.py is left out: gcloud reaches 64 workers" in done.stdout
    assert "not 128" in done.stdout
    assert "launch/check.py" not in done.stdout
    assert "--start" in done.stdout


@pytest.mark.skipif(not shutil.which("gcloud"), reason="gcloud is not installed")
def test_gcloud_knows_all_options(tmp_path):
    """The real gcloud parses before it asks for an account, which the test has none of."""
    env = os.environ | {"CLOUDSDK_CONFIG": str(tmp_path), "CLOUDSDK_CORE_DISABLE_PROMPTS": "1"}
    (tmp_path / "a").write_text("")

    def said(line):
        words = [f"{tmp_path}/a" if re.search(r"^/.*gz$", word) else word for word in line]
        if "--project" not in words:
            words += ["--project", "p"]
        done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
        assert done.returncode != 0
        return done.stderr

    lines = {tuple(line[3:5]): line for run in dry_runs() for line in run}
    lines |= {("slices", line[4]): line for line in dry_runs()[2]}
    assert len(lines) >= 10
    for line in lines.values():
        text = said(line)
        assert "active account" in text, f"{' '.join(line)}\n{text}"
    done = subprocess.run(
        ["bash", LAUNCH / "tpu_vm.sh", *TPU, "--project", "p", "--", "--workdir", "gs://b/r"],
        env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "try this: log in: gcloud auth login" in done.stderr
    wrong = said([*next(iter(lines.values())), "--no-such-option"])
    assert "unrecognized arguments" in wrong


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --type"),
        (["--type", "v5p-8"], "give --zone"),
        (["--type", "v5p-8", "--zone", "z"], "give options of seva_jax.train after --"),
        (["--type", "v5p-8", "--zone", "z", "--", "a"], "give --workdir gs://BUCKET/PATH"),
        (["--type", "x-8", "--zone", "z", "--", "a"], "no default runtime for type x-8"),
        (["--typ", "v5p-8"], "unknown option --typ"),
        (["--type"], "--type needs a value"),
        (["--type", "v5p-8", "--zone", "z", "--attempts", "0", "--", "a"], "--attempts must be"),
        ([*TPU, "--stage", "/data", "--", "a"], "--stage takes the URL of a bucket"),
        ([*TPU, "--stage", "gs://b/", "--", "--workdir", "gs://b/runs/x"],
         "stage only the data, or choose another work directory"),
        ([*TPU, "--", "--workdir", "runs/x"], "on each of the 4 workers of v5litepod-16"),
        ([*TPU, "--shared-dir", "/mnt/nfs", "--", "--workdir=/mnt/nfs2/x"], "do not share it"),
        (["--type", "v5litepod-8", "--slices", "2", "--zone", "z", "--", "--workdir", "x"],
         "on each of the 2 workers"),
        (["--type", "v6e-8", "--zone", "z", "--delete-when-done", "--", "--workdir", "x"],
         "would delete --workdir x"),
    ],
)  # fmt: skip
def test_mistakes(arguments, message):
    clean = dict.fromkeys(("TPU_NAME", "TPU_TYPE", "TPU_ZONE", "TPU_PROJECT"), "")
    done = subprocess.run(
        ["bash", LAUNCH / "tpu_vm.sh", *arguments], capture_output=True, text=True, check=False,
        env=os.environ | clean,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr


def test_a_local_workdir_on_one_worker_is_warned_about():
    done = subprocess.run(
        ["bash", LAUNCH / "tpu_vm.sh", "--dry-run", "--type", "v6e-8", "--zone", "z", "--spot",
         "--", "--workdir", "runs/x"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "runs/x is on the disk of the TPU and is lost with it (also by a" in done.stderr
