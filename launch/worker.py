"""Runs seva_jax.train on one machine of a run, and keeps what it prints.

    python launch/worker.py -- OPTIONS OF seva_jax.train

The trainer's lines go to ~/seva_jax_run/log, to WORKDIR/logs/worker-N.log, and on the machine of
process 0 to the terminal. In an object store, which cannot append, worker-N.log is a folder of
numbered parts of about 1 MiB. Another machine prints its last lines if its trainer fails. SIGTERM
and SIGINT are passed to the trainer, and its exit status becomes that of this command (128 + n
after signal n). A log that cannot be written does not stop the run.

`launch/tpu_vm.sh` starts the run apart from the connection, so that it survives a lost one:
--start returns as soon as the trainer runs, --follow shows its lines until it ends, --stop asks it
to save and end, --status says how it is doing. A start with the number of an earlier start, which
gcloud repeats after a lost connection, changes nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

from stage import copy_of
from worker_log import KeptLog, is_first, worker_name

CHECKOUT = Path(__file__).resolve().parent.parent
PYTHON = (sys.executable, "-m", "seva_jax.train")
LAST_LINES = 10
MARK = b"==[seva_jax]"  # begins the lines that are not the trainer's
UNSEEN = 2**16  # bytes shown at most of what was printed while no terminal was connected


def main() -> int:
    """Reads the command line and returns an exit status."""
    ours, options = sys.argv[1:], []
    if "--" in ours:
        at = ours.index("--")
        ours, options = ours[:at], ours[at + 1 :]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--start", metavar="NUMBER", help="start the run and return")
    parser.add_argument("--number", default="", help=argparse.SUPPRESS)  # of --start, in the child
    parser.add_argument("--adopt", action="store_true",
                        help="check that this run is in progress here")  # fmt: skip
    parser.add_argument("--staged", metavar="URL", action="append", default=[],
                        help="options that begin with URL mean its copy, see stage.py")  # fmt: skip
    parser.add_argument("--follow", action="store_true", help="show the run until it ends")
    parser.add_argument("--stop", action="store_true", help="ask the run to save and end")
    parser.add_argument("--status", action="store_true", help="say how the run is doing")
    given = parser.parse_args(ours)
    run = Run(Path.home() / "seva_jax_run")
    if given.follow:
        return run.follow()
    if given.stop:
        return run.stop()
    if given.status:
        return run.describe()
    if not options:
        parser.error("give options of seva_jax.train after --")
    if given.start:
        return run.start(given.start, given.staged, options)
    options = local_options(options, given.staged)
    if given.adopt:
        return run.adopt(options)
    if not _is_writable(run.folder):
        run = Run(Path(tempfile.mkdtemp(prefix="seva_jax_run")))
    return run.supervise(given.number, options)


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def local_options(options: list[str], staged: list[str]) -> list[str]:
    """Returns options in which staged URLs are replaced by the paths of their copies."""

    def local(word: str) -> str:
        name, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        for url in staged:
            if value == url or value.startswith(url.rstrip("/") + "/"):
                return name + equals + str(copy_of(url)) + value[len(url.rstrip("/")) :].rstrip("/")
        return word

    return [local(word) for word in options]


def value_of(options: list[str], name: str) -> str:
    """Returns the value of the last option of this name, or ""."""
    value = ""
    for word, following in zip(options, [*options[1:], ""], strict=True):
        if word == name:
            value = following
        elif word.startswith(name + "="):
            value = word[len(name) + 1 :]
    return value


class Run:
    """The run on this machine, as its folder describes it.

    The folder holds `lock` (locked while the trainer or its supervisor lives), `log`, `shown` (how
    many bytes of the log a terminal has seen) and `state.json`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"

    def state(self) -> dict[str, Any]:
        """Returns what is known of the last start; empty if there was none."""
        try:
            return json.loads((self.folder / "state.json").read_text())
        except (OSError, ValueError):
            return {}

    def _write_state(self, **changed: Any) -> None:
        aside = self.folder / "state.tmp"
        aside.write_text(json.dumps(self.state() | changed))
        aside.replace(self.folder / "state.json")

    def _lock(self) -> IO[str] | None:
        """Returns the locked file, or None if another process has locked it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = (self.folder / "lock").open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        return file

    def in_progress(self) -> bool:
        """Returns whether a trainer or its supervisor lives on this machine."""
        lock = self._lock()
        if lock:
            lock.close()
        return lock is None

    def start(self, number: str, staged: list[str], options: list[str]) -> int:
        """Starts the run apart from this process, unless it is in progress already."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "starting").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the same start, repeated, waits for the first one
            if self.state().get("number") == number:
                return 0
            if self.in_progress():
                return self._refuse()
            return self._start(number, staged, options)

    def _start(self, number: str, staged: list[str], options: list[str]) -> int:
        urls = [word for url in staged for word in ("--staged", url)]
        command = [sys.executable, __file__, "--number", number, *urls, "--", *options]
        with (self.folder / "start.log").open("w") as errors:
            child = subprocess.Popen(
                command, cwd=CHECKOUT, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors,
                start_new_session=True,
            )  # fmt: skip
        while self.state().get("number") != number:
            if child.poll() is not None:
                print("error: the run did not start:", file=sys.stderr)
                print((self.folder / "start.log").read_text(), file=sys.stderr)
                return child.returncode or 1
            time.sleep(0.05)
        return 0

    def adopt(self, options: list[str]) -> int:
        """Returns 0 if a run with these options is in progress on this machine."""
        if not self.in_progress():
            print("error: the run is in progress on other machines, but not on this one",
                  file=sys.stderr)  # fmt: skip
            return 2
        return 0 if self.state().get("options") == options else self._refuse()

    def _refuse(self) -> int:
        what = "error: another run is in progress on this machine; wait until it has ended, or run"
        print(what, "launch/worker.py --stop:", *self.state().get("options", ()), file=sys.stderr)
        return 2

    def supervise(self, number: str, options: list[str]) -> int:
        """Runs the trainer until it ends, keeps its lines, and returns its status.

        Args:
            number: of --start, "" for a run that shows its lines here.
            options: of seva_jax.train.
        """
        lock = self._lock()
        for _ in range(50):  # who asks whether a run is in progress locks the file for a moment
            if lock:
                break
            time.sleep(0.1)
            lock = self._lock()
        if lock is None:
            print("error: another run is in progress on this machine", file=sys.stderr)
            return 2
        name = worker_name()
        # A session of its own: Ctrl-C in a terminal must reach the trainer once, not twice.
        trainer = subprocess.Popen(
            [*PYTHON, *options], cwd=CHECKOUT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, start_new_session=True, pass_fds=(lock.fileno(),),
            preexec_fn=_end_with_parent,
        )  # fmt: skip
        for handled in (signal.SIGTERM, signal.SIGINT):
            signal.signal(handled, lambda received, _: trainer.send_signal(received))
        with self.log.open("wb"):
            pass
        (self.folder / "shown").unlink(missing_ok=True)
        self._write_state(
            number=number, options=options, supervisor=os.getpid(), started=time.time(),
            status=None, worker=name, workdir=value_of(options, "--workdir"),
        )  # fmt: skip
        kept = KeptLog(self.log, value_of(options, "--workdir"), name)
        shows = not number and is_first(name)
        with self.log.open("ab", buffering=0) as log:
            head = f" worker {name} on {socket.gethostname()}, {_clock(time.time())}\n"
            log.write(MARK + head.encode())
            assert trainer.stdout
            for line in trainer.stdout:
                with contextlib.suppress(OSError):  # a full disk
                    log.write(line)
                if shows:
                    with contextlib.suppress(OSError):  # the reader has left
                        sys.stdout.buffer.write(line)
                        sys.stdout.flush()
        status = trainer.wait()
        status = 128 - status if status < 0 else status
        with contextlib.suppress(OSError), self.log.open("ab") as log:
            log.write(MARK + f" ended with status {status}\n".encode())
        kept.close()
        with contextlib.suppress(OSError):
            self._write_state(status=status, ended=time.time())
        if not number and not is_first(name):
            self._show_failure()
        return status

    def follow(self) -> int:
        """Shows the run on this machine until it ends, and returns its status."""
        if not self.state():
            print("error: no run was started on this machine", file=sys.stderr)
            return 2
        first = is_first(self.state()["worker"])
        while True:
            over = self.state()["status"] is not None or not self.in_progress()
            if first:
                self._show_unseen()
            if over:
                break
            time.sleep(0.2)
        if self.state()["status"] is None:
            where = f"worker {self.state()['worker']}"
            print(f"{where}: the run was killed, or the machine restarted", file=sys.stderr)
            return 1
        if not first:
            self._show_failure()
        return self.state()["status"]

    def _show_unseen(self) -> None:
        """Shows what was printed since the last call, also that of an earlier connection."""
        shown = self.folder / "shown"
        at = int(shown.read_text() or 0) if shown.exists() else 0
        with self.log.open("rb") as log:
            log.seek(at)
            new = log.read()
        new = new[: new.rfind(b"\n") + 1]
        if not new:
            return
        left_out = max(len(new) - UNSEEN, 0)
        if left_out:
            left_out = new.find(b"\n", left_out) + 1
            num = new[:left_out].count(b"\n")
            print(f"({num} lines that were printed meanwhile are in {self.log})", flush=True)
        lines = new[left_out:].splitlines(keepends=True)
        sys.stdout.buffer.write(b"".join(line for line in lines if not line.startswith(MARK)))
        sys.stdout.flush()
        shown.write_text(str(at + len(new)))

    def _show_failure(self) -> None:
        state = self.state()
        if state["status"] in (0, 75):
            return
        lines = self.log.read_bytes().decode(errors="replace").splitlines()[-LAST_LINES - 1 : -1]
        print(*(f"worker {state['worker']} | {line}" for line in lines), sep="\n")
        workdir, name = state["workdir"], state["worker"]
        where = f"{workdir}/logs/worker-{name}.log" if workdir else self.log
        print(f"worker {name} ended with status {state['status']}; all its lines are in {where}")

    def stop(self) -> int:
        """Passes SIGTERM to the trainer: it saves at its next safe point and ends."""
        if self.in_progress():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.state()["supervisor"], signal.SIGTERM)
        return 0

    def describe(self) -> int:
        """Says in a few lines how the run is doing."""
        state = self.state()
        if not state:
            print("run      none was started on this machine")
            return 0
        if state["status"] is not None:
            what = f"ended with status {state['status']} at {_clock(state['ended'])}"
        elif self.in_progress():
            what = f"in progress for {(time.time() - state['started']) / 3600:.1f} h"
        else:
            what = "was killed, or the machine restarted"
        print(f"run      {what}, started at {_clock(state['started'])}")
        print(f"workdir  {state['workdir']}")
        sys.path.insert(0, str(CHECKOUT))
        os.chdir(CHECKOUT)  # to which a relative work directory refers
        try:
            from seva_jax.runtime.stores import as_path

            stages = json.loads((as_path(state["workdir"]) / "stages.json").read_text())
            print("stages  ", ", ".join(stages), "finished")
        except FileNotFoundError:
            print("stages   none has finished")
        except Exception as error:
            print(f"stages   unknown: {error}")
        lines = self.log.read_bytes().decode(errors="replace").splitlines()
        said = [line for line in lines if line.strip() and not line.startswith(MARK.decode())]
        print("last    ", said[-1] if said else "nothing printed")
        return 0


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def _end_with_parent() -> None:
    """Has Linux send SIGTERM to this process when its parent is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
