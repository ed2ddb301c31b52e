"""Progress: a bar in a terminal, plain lines elsewhere, nothing on other processes."""

import contextlib
import os
import pty
import re
import sys

import pytest

from seva_jax.runtime import progress
from seva_jax.runtime.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """Returns a clock that only moves when the test says so."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_pipe_gets_plain_lines_now_and_then(capsys, clock):
    with Progress("align", 100, "step", initial=20) as progress:
        for second in range(1, 81):
            clock[0] = float(second)
            progress.update(loss=1 / second, accuracy=0.5)
    out, err = capsys.readouterr()
    assert not err
    assert "\r" not in out
    assert out.splitlines() == [
        "align: 50 of 100 steps (50%), 00:30 so far, 00:50 left, 1.0 steps/s, "
        "loss 0.033, accuracy 0.500",
        "align: 80 of 100 steps (80%), 01:00 so far, 00:20 left, 1.0 steps/s, "
        "loss 0.017, accuracy 0.500",
        "align: 100 of 100 steps (100%), 01:20 so far, 1.0 steps/s, loss 0.013, accuracy 0.500",
    ]


def test_slow_things_show_seconds_each(clock):
    progress = Progress("base", 4, "step", shown=False)
    clock[0] = 10.0
    progress.update(2)
    assert progress.line().endswith("2 of 4 steps (50%), 00:10 so far, 00:10 left, 5.0 s a step")


def test_a_terminal_gets_one_line_that_moves(monkeypatch):
    ours, theirs = pty.openpty()  # which says that it has 0 columns, as in a container
    with os.fdopen(theirs, "w") as screen, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", screen)
        patch.setenv("COLUMNS", "100")
        with Progress("align", 2, "step") as progress:
            progress.update(loss=0.25)
            progress.update(margin=1.5)
    written = b""
    with contextlib.suppress(OSError):  # raised at the end, as the other side is closed
        while part := os.read(ours, 4096):  # a read may return less than was written
            written += part
    os.close(ours)
    text = written.decode().replace("\r\n", "\n")
    assert text.count("\n") == 1
    last = text.strip().split("\r")[-1]
    assert re.search(r"align: 100%.* 2/2 .*step/s, loss=0\.250, margin=1\.500", last)
    assert len(last) < 100


def test_nothing_is_shown_for_other_processes_and_nothing_done(capsys):
    with Progress("align", 2, "step", shown=False) as progress:
        progress.update(2)
    with Progress("align", 2, "step", initial=2):
        pass
    assert capsys.readouterr() == ("", "")
