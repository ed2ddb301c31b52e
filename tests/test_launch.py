"""The launcher of Cloud TPU VMs: what travels, what runs on the workers, and what ends a run.

The workers are real shells in empty homes (`helpers_cloud.py`); only the trainer and the set-up
scripts are stand-ins.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers_cloud import cloud

LAUNCH = Path(__file__).parent.parent / "launch"
TPU = ("--type", "v5litepod-16", "--zone", "z")


@pytest.fixture(name="tpu")
def _tpu(tmp_path):
    with cloud(tmp_path) as made:
        yield made


def run_options(tpu, *more):
    """Returns options of a run whose work directory all workers see, as a mounted one."""
    shared = str(tpu.folder)
    return ("--shared-dir", shared, "--", *more, "--workdir", f"{shared}/run")


def test_scripts_are_clean():
    for script in ("tpu_vm.sh", "tpu_cloud.sh"):
        assert subprocess.run(["bash", "-n", LAUNCH / script], check=False).returncode == 0
    shellcheck = shutil.which(
        "shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    )
    if shellcheck:
        done = subprocess.run(
            [shellcheck, "launch/tpu_vm.sh", "launch/tpu_cloud.sh"],
            cwd=LAUNCH.parent, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout


def test_a_run(tpu):
    """Every worker is set up and checked; only process 0 is shown; all logs are kept."""
    tpu.trains("print('line of', worker, sys.argv[1:])")
    done = tpu.launch(*TPU, *run_options(tpu, "--name", "it's $HOME; 'a' \\"))
    assert done.returncode == 0, done.stdout + done.stderr
    workdir = f"{tpu.folder}/run"
    options = ["--name", "it's $HOME; 'a' \\", "--workdir", workdir]
    for worker in (0, 1):
        assert tpu.starts(worker) == [[options, ""]]
        assert (tpu.home(worker) / "setup-calls").read_text() == "--extra tpu\n"
        checked = (tpu.home(worker) / "check-calls").read_text()
        assert checked == f"--workdir {workdir} --expect-devices 16\n"
        assert f"{worker}: ready" in done.stdout
        kept = Path(workdir, "logs", f"worker-{worker}.log").read_text()
        assert kept.splitlines()[1:] == [
            f"line of {worker} {options}",
            "==[seva_jax] ended with status 0",
        ]
        assert re.match(rf"==\[seva_jax\] worker {worker} on \S+, 20\d\d-", kept)
    assert f"line of 0 {options}" in done.stdout
    assert "line of 1" not in done.stdout
    assert f"the run is finished: {workdir}" in done.stdout
    assert "costs money, until it is deleted" in done.stdout
    assert not tpu.calls("delete")


def test_the_tracked_tree_travels(tpu):
    """Uncommitted changes travel; .git, ignored and untracked files do not, and old files go."""
    tpu.trains("print(pathlib.Path('seva_jax/__init__.py').read_text())")
    (tpu.checkout / "runs").mkdir()
    (tpu.checkout / "runs" / "big").write_text("x")
    (tpu.checkout / "notes.txt").write_text("mine")
    assert tpu.launch(*TPU, *run_options(tpu)).returncode == 0
    (tpu.home() / "seva_jax" / "results").write_text("kept")
    (tpu.checkout / "seva_jax" / "__init__.py").write_text("# changed")
    (tpu.checkout / "old.py").unlink()
    (tpu.checkout / "new file.py").write_text("")
    tpu.git("add", "new file.py")
    before = subprocess.check_output(["git", "status", "--short"], cwd=tpu.checkout)
    done = tpu.launch(*TPU, *run_options(tpu))
    assert done.returncode == 0, done.stderr
    assert subprocess.check_output(["git", "status", "--short"], cwd=tpu.checkout) == before
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=tpu.checkout, text=True)
    assert f"what travels: commit {commit[:12]} and 3 changed files" in done.stdout
    assert "untracked files do not travel" in done.stderr
    assert "notes.txt" in done.stderr
    assert "big" not in done.stderr
    assert "# changed" in done.stdout
    there = {path.name for path in (tpu.home() / "seva_jax").iterdir()}
    assert there == {
        ".archived", ".gitignore", ".venv", "launch", "new file.py", "results", "seva_jax",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("queued", "slices"), [(False, 1), (True, 1), (True, 2)], ids=["vm", "queued", "multislice"]
)
def test_preemptions_are_survived(tpu, queued, slices):
    tpu.trains("if start < 3:\n    tpu_is('PREEMPTED')\n    sys.exit(1)\nprint('trained')")
    tpu.put("queue", "ACTIVE\n" if queued else "")
    options = ["--queued"] if queued else []
    options += ["--slices", "2"] if slices == 2 else []
    command = tpu.command(*TPU, *options, *run_options(tpu))
    with subprocess.Popen(command, env=tpu.env, text=True, stdout=-1, stderr=-2) as launched:
        text = ""
        for line in launched.stdout:
            text += line
            if " create " in line and queued:  # each request waits in line
                tpu.put("queue", "WAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE\n")
    assert launched.returncode == 0, text
    kind = "queued-resources" if queued else "tpu-vm"
    assert len(tpu.calls(kind, "create")) == 3
    assert len(tpu.calls(kind, "delete")) == 2
    assert [restarted for _, restarted in tpu.starts()] == ["", "1", "1"]
    assert "trained" in text
    if slices == 2:
        (create, *_) = tpu.calls(kind, "create")
        assert "--node-count 2 --node-prefix seva" in " ".join(create)
        followed = next(call for call in tpu.calls("ssh") if call[-3].endswith("--follow"))
        assert followed[2:9] == [
            "queued-resources", "ssh", "seva", "--node", "all", "--worker", "all",
        ]  # fmt: skip


def test_a_failing_run_is_not_repeated(tpu):
    """Its status is passed on, and another worker's last lines are shown."""
    tpu.trains(
        "[print('line', i, 'of', worker) for i in range(30)]\n"
        "if worker == 1:\n    raise RuntimeError('broken here')\nsys.exit(65)"
    )
    done = tpu.launch(*TPU, *run_options(tpu))
    assert done.returncode == 65
    assert "the run failed with status 65, but the TPU is healthy" in done.stderr
    assert "worker 1 | RuntimeError: broken here" in done.stdout
    assert "line 3 of 0" in done.stdout
    assert "line 3 of 1" not in done.stdout
    log = f"{tpu.folder}/run/logs/worker-1.log"
    assert f"worker 1 ended with status 1; all its lines are in {log}" in done.stdout
    assert len(tpu.starts()) == 1


def test_a_stopped_run_is_resumed(tpu):
    """After status 75 on a healthy TPU, the same run is started again, without setting up again."""
    tpu.trains("print('start', start)\nsys.exit(75 if start == 1 else 0)")
    done = tpu.launch(*TPU, *run_options(tpu))
    assert done.returncode == 0, done.stderr
    assert [restarted for _, restarted in tpu.starts(1)] == ["", "1"]
    assert len(tpu.calls("scp")) == 1
    assert "start 2" in done.stdout
    kept = Path(f"{tpu.folder}/run/logs/worker-0.log").read_text()
    lines = [line for line in kept.splitlines() if not line.startswith("==")]
    assert lines == ["start 1", "start 2"]


SAVES = r"""
def stop(*_):
    os.write(1, b"saving\n")  # not print: a signal may come while another line is printed
    os._exit(75)
signal.signal(signal.SIGTERM, stop)
print("training")
(cloud / f"trains-{worker}").touch()
wait_for("never")
"""


def launched(tpu, *words):
    """Starts the launcher in a group of its own, as a terminal does."""
    return subprocess.Popen(
        tpu.command(*words), env=tpu.env, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def wait_until(condition):
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("never happened")


def trains(tpu):
    wait_until(lambda: all((tpu.folder / f"trains-{worker}").exists() for worker in (0, 1)))


def test_interrupt_saves_and_deletes(tpu):
    """Ctrl-C in a terminal, which signals all of the group, reaches every trainer once."""
    tpu.trains(SAVES)
    with launched(tpu, *TPU, "--delete-when-done", *run_options(tpu)) as process:
        trains(tpu)
        wait_until(lambda: tpu.calls("ssh", "--command", f"{WORKER} --follow"))
        os.killpg(process.pid, signal.SIGINT)
        text = process.stdout.read()
    assert process.returncode == 75, text
    assert "asking the run to save and end" in text
    assert text.count("saving") == 1  # process 0's
    for worker in (0, 1):
        assert "saving" in Path(f"{tpu.folder}/run/logs/worker-{worker}.log").read_text()
        assert len(tpu.starts(worker)) == 1
    assert f"deleting seva; kept: {tpu.folder}/run" in text
    assert not (tpu.folder / "state").exists()


def test_a_second_interrupt_leaves_the_run(tpu):
    """The TPU is not deleted under a run that may still be saving."""
    tpu.trains(SAVES.replace("os._exit(75)", "pass"))
    with launched(tpu, *TPU, "--delete-when-done", *run_options(tpu)) as process:
        trains(tpu)
        wait_until(lambda: tpu.calls("ssh", "--command", f"{WORKER} --follow"))
        os.killpg(process.pid, signal.SIGINT)
        for line in process.stdout:
            if "saving" in line:
                break
        os.killpg(process.pid, signal.SIGINT)
        text = process.stdout.read()
    assert process.returncode == 130, text
    assert "seva stays, and costs money, until it is deleted" in text
    assert (tpu.folder / "state").exists()
    assert len(tpu.starts()) == 1


def test_an_interrupted_creation_leaves_nothing(tpu):
    tpu.put("slow", "")
    with launched(tpu, *TPU, "--delete-when-done", *run_options(tpu)) as process:
        wait_until((tpu.folder / "state").exists)
        os.killpg(process.pid, signal.SIGINT)
        text = process.stdout.read()
    assert process.returncode == 130, text
    assert not (tpu.folder / "state").exists()


WORKER = "seva_jax/.venv/bin/python seva_jax/launch/worker.py"


def test_a_run_outlives_its_launcher(tpu):
    """The same command finds it again, and another one does not disturb it."""
    tpu.trains("print('one')\n(cloud / f'trains-{worker}').touch()\nwait_for('go')\nprint('two')")
    with launched(tpu, *TPU, *run_options(tpu, "--seed", "1")) as process:
        trains(tpu)
        wait_until(lambda: tpu.calls("ssh", "--command", f"{WORKER} --follow"))
        process.kill()
        process.stdout.close()
    other = tpu.launch(*TPU, "--delete-when-done", *run_options(tpu, "--seed", "2"))
    assert other.returncode == 2
    assert "another run is in progress on this machine" in other.stderr
    assert "--seed 1" in other.stderr
    assert (tpu.folder / "state").exists()
    with launched(tpu, *TPU, *run_options(tpu, "--seed", "1")) as process:
        wait_until(lambda: len(tpu.calls("ssh", "--command", f"{WORKER} --follow")) == 2)
        tpu.put("go", "")
        text = process.stdout.read()
    assert process.returncode == 0, text
    assert "its code and set-up stay as they are" in text
    assert "two" in text
    assert len(tpu.starts()) == 1


def test_a_lost_connection_is_not_the_end(tpu):
    tpu.trains("print('one')\nwait_for('go')\nprint('two')")
    tpu.put("cut", "1\n")
    with launched(tpu, *TPU, *run_options(tpu)) as process:
        text = ""
        for line in process.stdout:
            text += line
            if "connection to seva was lost" in line:
                tpu.put("go", "")
    assert process.returncode == 0, text
    assert [line for line in text.splitlines() if line in ("one", "two")] == ["one", "two"]
    assert len(tpu.starts()) == 1


@pytest.mark.parametrize("broken", ["run", "check", "deletion"])
def test_delete_when_done(tpu, broken):
    """The TPU is deleted after errors, too; an error of the deletion itself is told."""
    tpu.trains("sys.exit(1 if (cloud / 'run').exists() else 0)")
    files = {"run": "run", "check": "check-fails", "deletion": "delete-errors"}
    tpu.put(files[broken], "UNAVAILABLE")
    done = tpu.launch(*TPU, "--delete-when-done", "--", "--workdir", "gs://b/r")
    assert done.returncode == {"run": 1, "check": 1, "deletion": 2}[broken], done.stderr
    assert "deleting seva; kept: gs://b/r" in done.stdout
    if broken == "deletion":
        assert "seva could not be deleted" in done.stderr
        assert "+ gcloud compute tpus tpu-vm delete seva --zone z --quiet" in done.stdout
    else:
        assert not (tpu.folder / "state").exists()
    if broken == "check":
        assert "the work directory cannot be written" in done.stderr
        assert "the workers could not be made ready" in done.stderr
        assert not tpu.starts()


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
    done = tpu.launch(*TPU, "--delete-when-done", *run_options(tpu))
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
    done = tpu.launch(*TPU, "--spot", *run_options(tpu))
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
    done = tpu.launch(*TPU, "--queued", "--slices", "2", *run_options(tpu))
    assert done.returncode == 0, done.stderr
    states = re.findall(r"^seva is (\w+) \(\d+ min\)$", done.stdout, re.MULTILINE)
    assert states == ["WAITING_FOR_RESOURCES", "PROVISIONING"]
    assert not tpu.calls("create")


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED"])
def test_a_failed_request_ends_the_wait(tpu, state):
    tpu.put("queue", f"ACCEPTED\n{state}\n")
    tpu.put("state", "CREATING")
    tpu.put("reason", f"{CAPACITY}\tSERVICE")
    done = tpu.launch(*TPU, "--queued", "--slices", "2", "--delete-when-done", *run_options(tpu))
    assert done.returncode == 2
    assert f"the queued resource seva is {state}: {CAPACITY} SERVICE" in done.stderr
    assert "try this: z has no free" in done.stderr
    assert len(tpu.calls("delete", "--force")) == 1


def test_a_lost_network_deletes_nothing(tpu):
    """If gcloud cannot say whether the TPU exists it is asked again; then nothing is done."""
    tpu.trains(
        "times = 3 if start == 1 else 99\n"
        "(cloud / 'describe-errors').write_text('Connection timed out\\n' * times)\n"
        "sys.exit(75)"
    )
    done = tpu.launch(*TPU, *run_options(tpu))
    assert done.returncode == 2
    assert len(tpu.starts()) == 2
    assert "nothing was deleted" in done.stderr
    assert not tpu.calls("delete")
    assert len(tpu.calls("create")) == 1


def test_status(tpu):
    tpu.trains("print('step 7')\nsys.exit(3)")
    done = tpu.launch("--status", "--zone", "z")
    assert (done.returncode, done.stdout) == (0, "seva in z: there is no such TPU\n")
    tpu.launch(*TPU, *run_options(tpu))
    Path(f"{tpu.folder}/run/stages.json").write_text('{"pairs": {}, "align": {}}')
    real, package = LAUNCH.parent / "seva_jax", tpu.home() / "seva_jax/seva_jax"
    shutil.copytree(real / "runtime", package / "runtime")
    shutil.copy(real / "types.py", package)
    shutil.copy(real / "ranges.py", package)
    done = tpu.launch("--status", "--zone", "z")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:2] == [
        "seva in z: queued resource READY", "seva in z: TPU READY HEALTHY v5litepod-16",
    ]  # fmt: skip
    assert re.fullmatch(r"run      ended with status 3 at 20\S+ \S+ UTC, started at .*", lines[2])
    assert lines[3:] == [
        f"workdir  {tpu.folder}/run", "stages   pairs, align finished", "last     step 7",
    ]  # fmt: skip


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
