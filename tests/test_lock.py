"""Two commands on one work directory: the second is refused; a stale lock is taken over."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest
from helpers_run import running, train

from seva_jax.runtime import lock
from seva_jax.types import DataError

HOLDS = """
import pathlib, sys, time
from seva_jax.runtime import lock
print(repr(lock.claim(pathlib.Path(sys.argv[1]))), flush=True)
time.sleep(100)
"""


def holder(**changes):
    """Returns the lock's content for a process of this host; by default this process."""
    started = lock._started(os.getpid())
    held = {"host": socket.gethostname(), "pid": os.getpid(), "started": started, "since": "noon"}
    return json.dumps(held | changes)


def test_a_second_process_is_refused_and_a_killed_one_is_not_obeyed(tmp_path):
    """Of two real processes one is refused; after a SIGKILL another one takes over."""
    command = [sys.executable, "-c", HOLDS, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "''\n"
        refused = rf"is in use by process {first.pid} on {socket.gethostname()}, since 20\d\d-"
        with pytest.raises(DataError, match=refused) as caught:
            lock.claim(tmp_path)
        assert "\n" not in str(caught.value)
        first.send_signal(signal.SIGKILL)
        first.wait()
    news = lock.claim(tmp_path)
    assert f"took over from process {first.pid} on" in news
    assert lock.claim(tmp_path) == ""  # it is this process's own
    lock.release(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("without_flock", [False, True])
def test_who_is_gone(tmp_path, monkeypatch, without_flock):
    """A lock is stale if its process is dead, its number was reused, or it was never finished."""
    if without_flock:  # as on some network file systems

        def unsupported(*_):
            raise OSError("no locks here")

        monkeypatch.setattr(lock.fcntl, "flock", unsupported)
    file = tmp_path / lock.NAME
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for text in (holder(pid=gone.pid), holder(started="7")):
        file.write_text(text)
        assert "which is gone" in lock.claim(tmp_path)
        lock.release(tmp_path)
    file.write_text("")
    assert lock.claim(tmp_path) == ""
    lock.release(tmp_path)
    file.write_text(holder(pid=os.getppid(), started=lock._started(os.getppid())))
    with pytest.raises(DataError, match=f"is in use by process {os.getppid()} on"):
        lock.claim(tmp_path)
    file.write_text("{")
    with pytest.raises(DataError, match=r"lock\.json is damaged; delete it"):
        lock.claim(tmp_path)


def test_another_host_cannot_be_checked(tmp_path, monkeypatch):
    """The file to delete is named; a launcher that knows better says so."""
    file = tmp_path / lock.NAME
    there = holder(host="elsewhere", pid=2**22 + 1)  # no such process here
    file.write_text(there)
    with pytest.raises(DataError, match=r"on elsewhere, since noon.*delete lock\.json there"):
        lock.claim(tmp_path)
    assert file.read_text() == there
    monkeypatch.setenv(lock.RESTARTED, "0")
    with pytest.raises(DataError, match="elsewhere"):
        lock.claim(tmp_path)
    monkeypatch.setenv(lock.RESTARTED, "1")
    assert "took over from process" in lock.claim(tmp_path)
    lock.release(tmp_path)


@pytest.mark.slow
def test_two_trainers_and_an_evaluation(whole_run, tmp_path):
    """With the first command paused, the others refuse and touch nothing of its directory."""
    workdir, cache = tmp_path / "run", whole_run / "cache"
    with train(cache, workdir) as first:
        first.when(lambda: "base: at most" in first.output)
        first.send(signal.SIGSTOP)  # it would be done before the others have started
        config = (workdir / "config.py").read_text()
        expected = f"error: {workdir} is in use by process {first.process.pid} on "
        another = ("--model", whole_run / "run", "--labels", "another")
        with (
            train(cache, workdir, "--train.log-every", "1") as second,
            running(cache, "seva_jax.evaluate", *another, "--out", workdir) as third,
        ):
            for refused in (second, third):
                assert refused.status() == 1
                assert refused.output.splitlines()[-1].startswith(expected)
        assert (workdir / "config.py").read_text() == config
        assert json.loads((workdir / lock.NAME).read_text())["pid"] == first.process.pid
