"""A disk that is full or read-only: one line says so, and the previous checkpoint is intact.

The disks are real: a small tmpfs where root may mount one, else a limit on file sizes.
"""

import contextlib
import errno
import gc
import os
import re
import resource
import signal
import subprocess
import sys
import time

import pytest
from helpers_checkpoints import FACTS, restored, save, state
from helpers_run import environment

from seva_jax import train
from seva_jax.training.checkpoint import Checkpoints
from seva_jax.training.digests import newest
from seva_jax.types import DataError

# What tensorstore drops where a write fails complains later that its event loop is closed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def dropped():
    """Collects garbage in the test that caused it, not in a later one."""
    yield
    gc.collect()


def mount(*arguments):
    done = subprocess.run(
        ["mount", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a disk of 4 MB."""
    if os.geteuid():
        pytest.skip("only root may mount a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount("-t", "tmpfs", "-o", "size=4m", "tmpfs", disk)
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(directory, left):
    """Fills a disk until `left` bytes are free."""
    free = os.statvfs(directory).f_bavail * os.statvfs(directory).f_frsize
    (directory / "filler").write_bytes(bytes(free - left))


def failing(directory):
    """Saves until a log line finds that it failed; returns what the user reads."""
    checkpoints = Checkpoints(directory, FACTS)
    checkpoints.save(state(3, width=4000), {"next": 3})
    with pytest.raises(DataError) as caught:  # noqa: PT012
        for _ in range(200):  # log lines
            time.sleep(0.1)
            checkpoints.check()
    checkpoints._worker.shutdown()
    text = str(caught.value)
    assert f"checkpoint {directory}/3 cannot be saved: " in text
    assert "\n" not in text
    return text


def test_a_full_disk(small_disk):
    """It is noticed without another save, the previous step is used, and a later save works."""
    directory = small_disk / "align"
    save(directory, 1, 2)
    fill(small_disk, 100_000)
    assert "space" in failing(directory)
    assert newest(directory) == (2, [])
    assert restored(directory) == 2
    (small_disk / "filler").unlink()
    save(directory, 3)
    assert restored(directory) == 3


def test_no_room_for_the_digests(small_disk, monkeypatch):
    """A step whose data fit but whose digests do not is not published."""
    from seva_jax.training import checkpoint

    directory = small_disk / "align"
    save(directory, 1, 2)

    def full(step):
        fill(small_disk, 0)
        write(step)

    write = checkpoint.write_digests
    monkeypatch.setattr(checkpoint, "write_digests", full)
    failing_step = Checkpoints(directory, FACTS)
    failing_step.save(state(3), {"next": 3})
    with pytest.raises(DataError, match=r"align/3 cannot be saved: .*No space left"):
        failing_step.wait()
    failing_step._worker.shutdown()
    assert newest(directory) == (2, [])


def test_a_directory_that_cannot_be_written(small_disk):
    """A disk that is remounted read-only after two steps is noticed."""
    directory = small_disk / "align"
    save(directory, 1, 2)
    mount("-o", "remount,ro", small_disk)
    checkpoints = Checkpoints(directory, FACTS)
    with pytest.raises(DataError, match=r"align/3 cannot be saved: .*Read-only"):
        checkpoints.save(state(3), {"next": 3})
    assert newest(directory) == (2, [])


def test_files_that_may_not_grow(tmp_path):
    """A limit on file sizes stands in for a full disk, for users who are not root."""
    directory = tmp_path / "align"
    save(directory, 1, 2)
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        assert "File too large" in failing(directory)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert restored(directory) == 2


def test_other_files_on_a_full_disk(tmp_path, monkeypatch):
    """Rollouts or metrics end in one line as well; errors of other kinds are not hidden."""
    monkeypatch.setattr(train, "joined", lambda options: contextlib.nullcontext())
    for number, expected in ((errno.ENOSPC, SystemExit), (errno.EIO, OSError)):

        def stages(*_, number=number):
            raise OSError(number, os.strerror(number), "rollouts.jsonl")

        monkeypatch.setattr(train, "run_all", stages)
        with pytest.raises(expected, match=r"rollouts\.jsonl") as caught:
            train.main(["--workdir", str(tmp_path / str(number))])
        assert ("make room" in str(caught.value)) == (expected is SystemExit)


@pytest.mark.slow
def test_the_command_on_a_small_disk(small_disk):
    """`python -m seva_jax.train` ends with status 1 and one line when its disk fills up."""
    from helpers_fit import ARGS

    size = ["--base.model.text.mlp-size", "2560", "--base.steps", "40", "--base.optim.lr", "1e-3"]
    command = [sys.executable, "-m", "seva_jax.train", *ARGS.split(), *size, "--workdir", "run"]
    done = subprocess.run(
        command, cwd=small_disk, capture_output=True, text=True, timeout=500, check=False,
        env=environment(),
    )  # fmt: skip
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-2000:]
    # tensorstore's threads may complain on the same line that their event loop is closed.
    errors = re.findall(r"error: checkpoint .* cannot be saved", done.stderr)
    assert len(errors) == 1, done.stderr
    assert newest(small_disk / "run" / "checkpoints" / "base")[0]
