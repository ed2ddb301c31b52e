"""The launcher of Cloud TPU VMs: what travels, what runs on the workers, and what ends a run.

The workers are real shells in empty homes (`helpers_cloud.py`); only the trainer and the set-up
scripts are stand-ins.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers_cloud import TPU, cloud

AS_IN_A_TERMINAL = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])
"""
LAUNCH = Path(__file__).parent.parent / "launch"


@pytest.fixture(name="tpu")
def _tpu(tmp_path):
    with cloud(tmp_path) as made:
        yield made


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
    done = tpu.launch(*TPU, *tpu.options("--name", "it's $HOME; 'a' \\"))
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
    assert tpu.launch(*TPU, *tpu.options()).returncode == 0
    (tpu.home() / "seva_jax" / "results").write_text("kept")
    (tpu.checkout / "seva_jax" / "__init__.py").write_text("# changed")
    (tpu.checkout / "old.py").unlink()
    (tpu.checkout / "new file.py").write_text("")
    tpu.git("add", "new file.py")
    before = subprocess.check_output(["git", "status", "--short"], cwd=tpu.checkout)
    done = tpu.launch(*TPU, *tpu.options())
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
    command = tpu.command(*TPU, *options, *tpu.options())
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
    done = tpu.launch(*TPU, *tpu.options())
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
    done = tpu.launch(*TPU, *tpu.options())
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


@contextlib.contextmanager
def launched(tpu, *words, **files):
    """Starts the launcher in a group of its own, as a terminal does, and waits for its end.

    Tests that run in the background ignore SIGINT, and with nohup SIGHUP; so would bash and its
    traps.
    """
    files = files or {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    command = [sys.executable, "-c", AS_IN_A_TERMINAL, *tpu.command(*words)]
    with subprocess.Popen(
        command, env=tpu.env, text=True, start_new_session=True, **files
    ) as process:
        try:
            yield process
            process.wait(60)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # or a failed test would wait for ever
            raise


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
    with launched(tpu, *TPU, "--delete-when-done", *tpu.options()) as process:
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
    with launched(tpu, *TPU, "--delete-when-done", *tpu.options()) as process:
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


def test_a_closed_terminal_leaves_the_run(tpu):
    tpu.trains(SAVES)
    with launched(tpu, *TPU, "--delete-when-done", *tpu.options()) as process:
        trains(tpu)
        wait_until(lambda: tpu.calls("ssh", "--command", f"{WORKER} --follow"))
        process.send_signal(signal.SIGHUP)
        process.wait(60)
        tpu.end_all()  # so that what shows the run ends, too
        process.stdout.close()
    assert process.returncode == 129
    assert (tpu.folder / "state").exists()


def test_workers_that_cannot_be_reached_are_left_alone(tpu):
    """A run may be in progress there, whose code must not be replaced."""
    tpu.put("state", "READY")
    tpu.put("ssh-errors", "lost\n")
    done = tpu.launch(*TPU, "--delete-when-done", *tpu.options())
    assert done.returncode == 2
    assert "seva cannot be reached, and a run may be in progress there" in done.stderr
    assert not tpu.calls("scp")
    assert not tpu.calls("delete")


def test_an_interrupted_creation_leaves_nothing(tpu):
    tpu.put("slow", "")
    with launched(tpu, *TPU, "--delete-when-done", *tpu.options()) as process:
        wait_until((tpu.folder / "state").exists)
        os.killpg(process.pid, signal.SIGINT)
        text = process.stdout.read()
    assert process.returncode == 130, text
    assert not (tpu.folder / "state").exists()


WORKER = "seva_jax/.venv/bin/python seva_jax/launch/worker.py"


def test_a_run_outlives_its_launcher(tpu):
    """The same command finds it again, and another one does not disturb it."""
    tpu.trains("print('one')\n(cloud / f'trains-{worker}').touch()\nwait_for('go')\nprint('two')")
    with launched(tpu, *TPU, *tpu.options("--seed", "1")) as process:
        trains(tpu)
        wait_until(lambda: tpu.calls("ssh", "--command", f"{WORKER} --follow"))
        process.kill()
        process.stdout.close()
    other = tpu.launch(*TPU, "--delete-when-done", *tpu.options("--seed", "2"))
    assert other.returncode == 2
    assert "another run is in progress on this machine" in other.stderr
    assert "--seed 1" in other.stderr
    assert (tpu.folder / "state").exists()
    with launched(tpu, *TPU, *tpu.options("--seed", "1")) as process:
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
    with launched(tpu, *TPU, *tpu.options()) as process:
        text = ""
        for line in process.stdout:
            text += line
            if "connection to seva was lost" in line:
                tpu.put("go", "")
    assert process.returncode == 0, text
    assert [line for line in text.splitlines() if line in ("one", "two")] == ["one", "two"]
    assert len(tpu.starts()) == 1


def test_a_run_that_ends_while_the_connection_is_lost(tpu):
    """Its status counts, not that of the connection."""
    tpu.trains("print('trained')")
    tpu.put("cut", "3\n")
    done = tpu.launch(*TPU, *tpu.options())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "connection to seva was lost" in done.stdout
    assert done.stdout.count("trained\n") == 1


def test_a_closed_terminal_does_not_prevent_the_deletion(tpu):
    """Nothing runs yet. The launcher cannot even say that it deletes the TPU."""
    tpu.put("slow", "")
    master, terminal = os.openpty()
    with launched(
        tpu, *TPU, "--delete-when-done", *tpu.options(),
        stdin=terminal, stdout=terminal, stderr=terminal,
    ) as process:  # fmt: skip
        os.close(terminal)
        wait_until((tpu.folder / "state").exists)
        os.close(master)
        os.killpg(process.pid, signal.SIGHUP)
        process.wait(60)
    assert process.returncode == 129
    assert tpu.calls("delete")
    assert not (tpu.folder / "state").exists()


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


def test_status(tpu):
    tpu.brings_runtime()
    tpu.trains("print('step 7')\nsys.exit(3)")
    done = tpu.launch("--status", "--zone", "z")
    assert (done.returncode, done.stdout) == (0, "seva in z: there is no such TPU\n")
    tpu.launch("--type", "v6e-8", "--zone", "z", "--", "--workdir", "runs/x")
    (tpu.home() / "seva_jax/runs/x/stages.json").write_text('{"pairs": {}, "align": {}}')
    done = tpu.launch("--status", "--zone", "z")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:2] == [
        "seva in z: queued resource READY", "seva in z: TPU READY HEALTHY v5litepod-16",
    ]  # fmt: skip
    assert re.fullmatch(r"run      ended with status 3 at 20\S+ \S+ UTC, started at .*", lines[2])
    assert lines[3:] == [
        "workdir  runs/x", "stages   pairs, align finished", "last     step 7",
    ]  # fmt: skip
    (tpu.home() / "seva_jax/.venv").rename(tpu.home() / "elsewhere")
    done = tpu.launch("--status", "--zone", "z")
    assert done.stdout.splitlines()[2:] == ["nothing is set up there yet"]
