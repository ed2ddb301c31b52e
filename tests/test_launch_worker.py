"""What runs on a worker: the trainer with its signals and logs, and the copies of staged data.

The store is a real emulator (`helpers_gcs.py`), the trainer a stand-in (`helpers_cloud.py`).
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers_cloud import TPU, cloud
from helpers_gcs import BUCKET, emulator, environment

ROOT = Path(__file__).parent.parent


@pytest.fixture(name="machine")
def _machine(tmp_path):
    with cloud(tmp_path, workers=1) as made:
        made.home().mkdir(parents=True)
        shutil.copytree(made.checkout, made.home() / "seva_jax")
        yield made


def start(machine, *words, **env):
    """Starts worker.py in the foreground, in a process group of its own as a terminal does."""
    env = {"HOME": str(machine.home()), "PATH": "/usr/bin:/bin", "TPU_WORKER_ID": "0"} | env
    return subprocess.Popen(
        [sys.executable, str(machine.home() / "seva_jax/launch/worker.py"), *words],
        env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def run(machine, *words, **env):
    """Runs worker.py to its end, and returns its status and what it printed."""
    with start(machine, *words, **env) as process:
        out, errors = process.communicate(timeout=60)
    return process.returncode, out, errors


@pytest.mark.parametrize(
    ("ends", "status"), [("sys.exit(65)", 65), ("os.kill(os.getpid(), signal.SIGKILL)", 137)]
)
def test_lines_and_status_pass_through(machine, ends, status):
    machine.trains(f"print('out')\nprint('err', file=sys.stderr)\n{ends}")
    assert run(machine, "--", "--seed", "1") == (status, "out\nerr\n", "")
    assert machine.starts() == [[["--seed", "1"], ""]]


def test_ctrl_c_reaches_the_trainer_once(machine):
    """A second one would end it without saving."""
    machine.trains(
        "def stop(*_):\n    os.write(1, b'saving\\n')\n    time.sleep(0.5)\n    os._exit(75)\n"
        "signal.signal(signal.SIGINT, stop)\nprint(os.getsid(0) == os.getpid())\nwait_for('never')"
    )
    with start(machine, "--", "a") as process:
        assert process.stdout.readline() == "True\n"  # a terminal does not signal its group
        os.killpg(process.pid, signal.SIGINT)
        assert process.stdout.read() == "saving\n"
    assert process.returncode == 75


@pytest.mark.parametrize("workdir", ["/proc/no/run", "gs:///"])
def test_a_log_that_cannot_be_kept_stops_nothing(machine, workdir):
    machine.trains("print('trained')")
    status, out, errors = run(machine, "--", "--workdir", workdir)
    assert (status, out) == (0, "trained\n")
    assert f"this log cannot be kept in {workdir}" in errors


def test_a_home_that_cannot_be_written_stops_nothing(machine):
    machine.trains("print('trained')")
    machine.put("train.py", "print('trained')")
    shutil.copy(machine.folder / "train.py", machine.home() / "seva_jax/seva_jax/train.py")
    assert run(machine, "--", "a", HOME="/proc/no") == (0, "trained\n", "")


@pytest.mark.parametrize(
    ("env", "name"),
    [
        ({"TPU_WORKER_ID": "3"}, "3"),
        ({"TPU_WORKER_ID": "3", "MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1"}, "1-3"),
        ({"TPU_WORKER_ID": "0", "MEGASCALE_NUM_SLICES": "1", "MEGASCALE_SLICE_ID": "0"}, "0"),
    ],
)
def test_names_of_workers(machine, env, name):
    """A worker that does not run process 0 shows its lines only if it fails."""
    machine.trains("print('trained')")
    workdir = machine.folder / "run"
    status, out, _ = run(machine, "--", f"--workdir={workdir}", **env)
    assert (status, out) == (0, "trained\n" if name == "0" else "")
    assert [path.name for path in (workdir / "logs").iterdir()] == [f"worker-{name}.log"]


def test_a_killed_supervisor_takes_the_trainer_along(machine):
    """Otherwise the next start would find the TPU in use."""
    machine.trains("(cloud / 'pid').write_text(str(os.getpid()))\nprint('on')\nwait_for('never')")
    assert run(machine, "--start", "7", "--", "a")[0] == 0
    state = machine.home() / "seva_jax_run" / "state.json"
    with start(machine, "--follow") as process:
        assert process.stdout.readline() == "on\n"
        os.kill(json.loads(state.read_text())["supervisor"], signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "the run was killed, or the machine restarted" in errors
    pid = int((machine.folder / "pid").read_text())
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists():
            break
        time.sleep(0.1)
    assert not Path(f"/proc/{pid}").exists()


def test_a_repeated_start_changes_nothing(machine):
    """The client of ssh repeats a command whose connection was lost."""
    machine.trains("print('trained')")
    with start(machine, "--start", "7", "--", "a") as first:
        assert run(machine, "--start", "7", "--", "a")[0] == 0
    assert first.returncode == 0
    assert run(machine, "--follow") == (0, "trained\n", "")
    assert run(machine, "--start", "7", "--", "a")[0] == 0
    assert len(machine.starts()) == 1


def test_staged_options_are_replaced(machine):
    machine.trains("")
    given = ["gs://b/data", "--x", "gs://b/data/images", "--y=gs://b/data/a b", "gs://b/database"]
    run(machine, "--staged", "gs://b/data", "--", *given)
    copy = f"{machine.home()}/staged/b/data"
    assert machine.starts()[0][0] == [
        copy, "--x", f"{copy}/images", f"--y={copy}/a b", "gs://b/database",
    ]  # fmt: skip


# --- against the emulator -------------------------------------------------------------------------


@pytest.fixture(name="store", scope="module")
def _store():
    with emulator() as url:
        yield url


def in_store(store, text, *words, **env):
    """Runs Python with the launcher's and the project's modules, and with the emulator."""
    env = os.environ | environment(store) | {"PYTHONPATH": f"{ROOT}:{ROOT}/launch"} | env
    return subprocess.run(
        [sys.executable, "-c", text, *words], env=env, capture_output=True, text=True, check=False
    )


def test_a_log_in_a_store_is_kept_in_parts(store, tmp_path):
    """A part that is long enough is not written again, and lines of an earlier start stay."""
    done = in_store(
        store,
        """if True:
        import sys, time, worker_log
        from pathlib import Path
        from seva_jax.runtime.stores import as_path
        worker_log.UPLOAD_S, worker_log.PART = 0.05, 100
        log = Path(sys.argv[1])
        for start in (1, 2):
            log.write_bytes(b"")
            kept = worker_log.KeptLog(log, "gs://bucket/run", "3")
            for number in range(20):
                with log.open("a") as file:
                    file.write(f"line {number} of start {start}\\n")
                time.sleep(0.03)
            kept.close()
        parts = as_path("gs://bucket/run/logs/worker-3.log")
        names = sorted(parts.below())
        assert len(names) > 2, names
        print("".join((parts / name).read_text() for name in names), end="")
        """,
        str(tmp_path / "log"),
    )
    expected = [f"line {number} of start {start}" for start in (1, 2) for number in range(20)]
    assert done.stdout.splitlines() == expected, done.stderr


def test_staging(store, tmp_path):
    """What is there already is not copied again; what has changed is."""
    url = f"gs://{BUCKET}/data"
    put = "import sys; from seva_jax.runtime.stores import as_path\n"
    put += "for name in sys.argv[2:]: (as_path(sys.argv[1]) / name).write_text(name * 3)"
    assert in_store(store, put, url, "a", "deep/b c", "deep/old").returncode == 0

    def stage(*urls):
        text = "import runpy; runpy.run_module('stage', None, '__main__')"
        return in_store(store, text, *urls, HOME=str(tmp_path))

    done = stage(url + "/", f"gs://{BUCKET}/data/deep/old")
    copy = tmp_path / "staged" / BUCKET / "data"
    assert done.returncode == 0, done.stderr
    assert f"{url} is in {copy}: " in done.stdout
    assert (copy / "deep" / "b c").read_text() == "deep/b c" * 3
    times = {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file()}

    change = put.replace("name * 3", "'changed'") + "\n(as_path(sys.argv[1]) / 'deep/old').unlink()"
    assert in_store(store, change, url, "a").returncode == 0
    done = stage(url)
    assert done.returncode == 0, done.stderr
    assert (copy / "a").read_text() == "changed"
    assert (copy / "deep" / "b c").stat().st_mtime_ns == times[copy / "deep" / "b c"]
    assert not (copy / "deep" / "old").exists()
    done = stage(url)
    assert done.stdout == f"{url} (0.00 GiB) is in {copy} already\n"

    done = stage(f"gs://{BUCKET}/nothing")
    assert done.returncode == 1
    assert "there is no object of this name or below it" in done.stderr


def test_a_run_on_a_bucket(store, tmp_path):
    """All workers read the staged copy, and their logs are in the bucket."""
    put = "import sys; from seva_jax.runtime.stores import as_path\n"
    put += "as_path('gs://bucket/llava/config.json').write_text('the model')"
    assert in_store(store, put).returncode == 0
    with cloud(tmp_path, workers=2) as tpu:
        tpu.brings_runtime()
        tpu.trains("print(worker, sys.argv[1:], pathlib.Path(sys.argv[2]).read_text())")
        words = (*TPU, "--stage", "gs://bucket/llava", "--", "--base",
                 "gs://bucket/llava/config.json", "--workdir", "gs://bucket/run2")  # fmt: skip
        variables = environment(store) | {"JAX_PLATFORMS": "cpu"}
        del variables["GCE_METADATA_HOST"]  # each worker has its own
        done = tpu.launch(*words, WORKER_ENV=json.dumps(variables))
        assert done.returncode == 0, done.stdout + done.stderr
        for worker in (0, 1):
            copy = f"{tpu.home(worker)}/staged/bucket/llava"
            assert f"gs://bucket/llava is in {copy}: 0.00 GiB copied" in done.stdout
            read = "from seva_jax.runtime.stores import as_path\n"
            read += f"p = as_path('gs://bucket/run2/logs/worker-{worker}.log')\n"
            read += "print(*(x.read_text() for x in p.iterdir()), sep='', end='')"
            options = ["--base", f"{copy}/config.json", "--workdir", "gs://bucket/run2"]
            kept = in_store(store, read).stdout.splitlines()
            assert kept[1:-1] == [f"{worker} {options} the model"]


def test_staging_needs_space(store, tmp_path):
    done = in_store(
        store,
        """if True:
        import shutil, stage
        from seva_jax.runtime.stores import as_path
        as_path("gs://bucket/big/a").write_text("x" * 1000)
        full = shutil.disk_usage("/")._replace(free=stage.SPARE + 999)
        shutil.disk_usage = lambda path: full
        stage.stage("gs://bucket/big")
        """,
        HOME=str(tmp_path),
    )
    assert done.returncode == 1
    assert "gs://bucket/big needs 0.0 GiB, and 2.0 GiB of the disk" in done.stderr
    assert not list((tmp_path / "staged" / "bucket").rglob("a"))
