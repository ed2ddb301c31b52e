"""Real processes that form one run: they give what one process gives, and notice a death.

`launch/local.py` starts them, with fake CPU devices and gloo between them.
"""

import base64
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers_first import command
from helpers_run import environment
from jax.experimental import multihost_utils

from seva_jax.run.rollouts import read_rollouts
from seva_jax.runtime import processes
from seva_jax.runtime.processes import ProcessOptions, gather, gather_bytes, join
from seva_jax.types import DataError

ROOT = Path(__file__).parent.parent
LEAN = Path(__file__).parent / "lean.py"


def launch(workdir, num_processes, num_devices, *options, env=None, status=0, grace=40):
    """Runs the worker in several processes; returns their output."""
    command = [
        *(sys.executable, ROOT / "launch" / "local.py", "--processes", num_processes),
        *("--devices", num_devices, "--grace", grace, "--", sys.executable, LEAN, "process_worker"),
        *("--workdir", workdir, *options),
    ]
    done = subprocess.run(
        list(map(str, command)),
        env=environment(**(env or {})),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert (done.returncode == 0) == (status == 0), done.stdout[-3000:] + done.stderr[-2000:]
    return done.stdout


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def calls_of(workdir):
    """Returns the numbers that a builder's calls of the model gave, with texts as hashes."""
    answers, measures, features = (
        lines(workdir / "calls" / f"{name}.jsonl")[1:]
        for name in ("answers", "measures", "features")
    )
    assert len(answers) == 9
    assert len(measures) == 10
    yield [zlib.crc32(json.dumps(record).encode()) for record in answers]
    yield [[*r["tokens"], *r["best"], r["attention"]] for r in measures]
    yield [np.frombuffer(base64.b64decode(r["features"]), "<f4") for r in features]


def losses(workdir):
    rows = {r["step"]: r for r in lines(workdir / "metrics.jsonl") if r["stage"] == "align"}
    return np.array([[rows[i][k] for k in ("loss", "grad_norm")] for i in range(1, 21)])


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Returns a run in one process with four devices that died early in alignment."""
    workdir = tmp_path_factory.mktemp("processes") / "begun"
    death = {"KILL_PROCESS": "0", "KILL_AT": "2"}
    launch(workdir, 1, 4, "--mesh.data", 2, "--mesh.fsdp", 2, env=death, status=1)
    (workdir / "died").unlink()  # it says when the next one dies
    return workdir


@pytest.fixture(scope="module")
def alone(begun):
    """Returns that run, resumed and finished."""
    workdir = shutil.copytree(begun, begun.with_name("alone"))
    launch(workdir, 1, 4, "--mesh.data", 2, "--mesh.fsdp", 2)
    return workdir


@pytest.mark.slow
def test_processes_equal_one(alone, tmp_path):
    """It holds for DPO, rollouts, reference and evaluation; with tensor some share their rows."""
    out = launch(
        tmp_path / "run", 4, 1,
        *("--mesh.data", 1, "--mesh.fsdp", 2, "--mesh.tensor", 2, "--rollout.tensor", 2),
    )  # fmt: skip
    assert "[0] report:" in out
    assert "[1] report:" not in out
    assert read_rollouts(tmp_path / "run") == read_rollouts(alone)
    name = "evals/aligned/color-balanced.jsonl"
    assert lines(tmp_path / "run" / name) == lines(alone / name)
    calls = [calls_of(folder) for folder in (tmp_path / "run", alone)]
    for found, expected in zip(*calls, strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
    found, expected = losses(tmp_path / "run"), losses(alone)
    assert np.ptp(expected[:, 0]) > 0.01  # something was learned
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=0)


@pytest.mark.slow
def test_a_dead_process_ends_the_others_and_fewer_resume(begun, alone, tmp_path):
    """Of four, then two processes one dies, and the others end; one process finishes the run."""
    workdir = shutil.copytree(begun, tmp_path / "run")
    for number, (num_processes, (data, fsdp), dead, at) in enumerate(
        [(4, (4, 1), "1", "8"), (2, (2, 2), "0", "14"), (1, (1, 1), "-1", "0")]
    ):
        launch(
            workdir, num_processes, data * fsdp // num_processes,
            *("--mesh.data", data, "--mesh.fsdp", fsdp, "--processes.peer-timeout-s", 10),
            env={"KILL_PROCESS": dead, "KILL_AT": at}, status=number < 2,
        )  # fmt: skip
        if number < 2:
            survived_s = time.time() - (workdir / "died").stat().st_mtime
            assert survived_s < 15, "the launcher had to end them"
            assert "align" not in json.loads((workdir / "stages.json").read_text())
    np.testing.assert_allclose(losses(workdir), losses(alone), rtol=1e-6, atol=0)


@pytest.mark.slow
def test_a_frozen_process_ends_the_other(begun, tmp_path):
    """It keeps its connections open, so only its silence tells."""
    workdir = shutil.copytree(begun, tmp_path / "run")
    frozen = {"KILL_PROCESS": "1", "KILL_AT": "8", "KILL_SIGNAL": "SIGSTOP"}
    launch(
        workdir, 2, 1, "--mesh.data", 2, "--mesh.fsdp", 1, "--processes.peer-timeout-s", 10,
        env=frozen, status=1, grace=0,
    )  # fmt: skip
    assert 5 < time.time() - (workdir / "died").stat().st_mtime < 15


@pytest.mark.slow
def test_a_straggler_is_named(begun, tmp_path):
    """Of two processes one has slow input; the other one, which prints, waits for it."""
    workdir = shutil.copytree(begun, tmp_path / "run")
    out = launch(
        workdir, 2, 1, "--mesh.data", 2, "--mesh.fsdp", 1, "--train.log-every", 6,
        env={"SLOW_PROCESS": "1", "SLOW_S": "1.0"},
    )  # fmt: skip
    named = re.findall(
        r"^\[0\] align: straggler: process (\d) \(host (.*)\) spent \d+\.\d s of \d+\.\d s waiting "
        r"for input; the others waited for it$",
        out,
        re.MULTILINE,
    )
    assert set(named) == {("1", socket.gethostname())}
    rows = [row for row in lines(workdir / "metrics.jsonl") if row["stage"] == "align"]
    # Process 0 writes, and has its batches in time: it waits for the devices, and so for the other.
    assert all(row["time/device"] > row["time/input"] for row in rows[-2:])
    assert 0 < rows[-1]["goodput"] < 1


@pytest.mark.parametrize(
    "given",
    [
        {"JAX_NUM_PROCESSES": "2"},
        {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:1", "JAX_NUM_PROCESSES": "2"},
        {
            "JAX_COORDINATOR_ADDRESS": "127.0.0.1:1",
            "JAX_NUM_PROCESSES": "two",
            "JAX_PROCESS_ID": "0",
        },
        *(
            {
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": number,
            }
            for address, number in (
                ("127.0.0.1:1", "2"),
                ("127.0.0.1:1", "-1"),
                ("127.0.0.1:99999", "1"),
                ("127.0.0.1", "1"),
                ("nonsense", "1"),
                ("nonsense:", "1"),
            )
        ),
    ],
)
def test_an_environment_that_says_half(given, monkeypatch):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DataError, match="set all of JAX_COORDINATOR_ADDRESS"):
        join(ProcessOptions())


def joining(address, number):
    """Runs a command as one of two processes, and returns what it prints as an error."""
    ran = command(
        "seva_jax.train", "--processes.join-timeout-s", 2,
        JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES="2", JAX_PROCESS_ID=str(number),
    )  # fmt: skip
    assert (ran.returncode, ran.stdout) == (1, "")
    return ran.stderr.splitlines()


def free_port():
    """Returns a port at which nothing listens."""
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def test_a_coordinator_that_cannot_be_reached():
    """JAX would wait for five minutes and then abort with a stack trace of C++."""
    remedy = "set JAX_COORDINATOR_ADDRESS of all processes to HOST:PORT of process 0"
    port = free_port()
    assert joining(f"127.0.0.1:{port}", 1) == [
        f"error: process 1 gets no answer from the coordinator 127.0.0.1:{port} (Connection "
        f"refused): start it, or {remedy}"
    ]
    assert joining(f"no.such.host.invalid:{port}", 1) == [
        f"error: process 1 cannot find the coordinator no.such.host.invalid:{port}, because no "
        f"host has that name; {remedy}"
    ]


def test_processes_that_do_not_start():
    port = free_port()
    assert joining(f"127.0.0.1:{port}", 0) == [
        f"error: process 0 has reached the coordinator 127.0.0.1:{port}, but not all of 2 "
        "processes have: start each of them once, with JAX_PROCESS_ID from 0 on"
    ]


def test_a_port_in_use():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        assert joining(f"127.0.0.1:{port}", 0) == [
            f"error: process 0 cannot listen at port {port} of this host (Address already in use): "
            "another process has it, perhaps one of an earlier start; end that one, or set another "
            "port in JAX_COORDINATOR_ADDRESS of all processes"
        ]


def test_what_a_process_waits_for_is_said_early(monkeypatch, capsys):
    """After some seconds, once, with the limit; nothing if all have joined by then."""
    monkeypatch.setattr(processes, "_PATIENCE_S", 0.05)
    monkeypatch.setattr(processes, "_unjoined", lambda: "process 1 waits")
    with processes._limited_wait(300):
        time.sleep(0.5)
    said = "process 1 waits (waiting up to 300 s, --processes.join-timeout-s)\n"
    assert capsys.readouterr() == ("", said)
    monkeypatch.setattr(processes, "_PATIENCE_S", 60.0)
    with processes._limited_wait(300):
        pass
    assert capsys.readouterr() == ("", "")


def test_one_process_has_nothing_to_join():
    assert gather({"a": [1, "ü"]}) == [{"a": [1, "ü"]}]


def test_bytes_are_exchanged_in_pieces(monkeypatch):
    """Threads stand for processes; what they have is longer than a piece, shorter, or nothing."""
    everyone = [bytes(range(11)) * 3, b"x", b""]
    slots, barrier, widths = [np.empty(0)] * 3, threading.Barrier(3, timeout=30), set()
    local = threading.local()

    def allgather(value):
        slots[local.number] = np.asarray(value)
        barrier.wait()
        together = np.stack(slots)
        barrier.wait()
        widths.add(together[0].size)
        return together

    def process(number):
        local.number = number
        return gather_bytes(everyone[number])

    monkeypatch.setattr(multihost_utils, "process_allgather", allgather)
    monkeypatch.setattr(processes.jax, "process_count", lambda: 3)
    with ThreadPoolExecutor(3) as pool:
        monkeypatch.setattr(processes, "_PIECE", 8)
        assert list(pool.map(process, range(3))) == [everyone] * 3
        assert widths == {1, 8}  # of the sizes, and of the pieces
        monkeypatch.setattr(processes, "_PIECE", 2**20)
        assert list(pool.map(process, range(3))) == [everyone] * 3
        assert widths == {1, 8, 64}
        everyone[:] = [b""] * 3
        assert list(pool.map(process, range(3))) == [everyone] * 3


@pytest.mark.parametrize("dies", [0, 1])
def test_the_launcher_notices_any_death(dies):
    """The others are ended after the grace, and the status is that of the dead one."""
    command = f"[ $JAX_PROCESS_ID = {dies} ] && exit 7; exec sleep 60"
    start = time.monotonic()
    local = [sys.executable, str(ROOT / "launch" / "local.py"), "--grace", "0.5"]
    done = subprocess.run([*local, "--", "bash", "-c", command], timeout=50, check=False)
    assert done.returncode == 7
    assert time.monotonic() - start < 30


def test_dry_run_prints_the_commands():
    command = [sys.executable, ROOT / "launch" / "local.py", "--dry-run", "--processes", "3"]
    out = subprocess.run(
        [*map(str, command), "--", "python", "x.py"], capture_output=True, text=True, check=True
    ).stdout
    assert [
        f"JAX_PROCESS_ID='{i}' python x.py" in line for i, line in enumerate(out.splitlines())
    ] == [True] * 3
