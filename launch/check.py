#!/usr/bin/env python3
"""Proves that the machines of a run are set up: start it on all of them at once, before training.

    .venv/bin/python launch/check.py --workdir gs://my-bucket/runs/seva --expect-devices 16

The processes join each other as those of seva_jax.train do, count their devices, add up numbers
over all devices and compare the sum, and write and read small files in the work directory, which
are removed again. Each process prints one line: on success what it has seen, with status 0, and
otherwise the reason, with status 1. A process that fails makes all of them fail.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from local import die_with_launcher

_INSIDE = "SEVA_JAX_CHECK_INSIDE"  # set in the process that does the work
_PEER_TIMEOUT_S = 30  # after which a process that was killed is noticed by the others


def parse() -> argparse.Namespace:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--workdir", metavar="DIR_OR_URL", help="work directory of the run; omitted: not tried"
    )
    parser.add_argument(
        "--expect-devices", type=int, metavar="N", help="fail if all hosts together have not N"
    )
    parser.add_argument(
        "--timeout-s", type=float, default=240.0, metavar="S",
        help="give up after S seconds, for example because a host never starts (default 240; "
        "JAX itself waits 300 for all hosts to join)",
    )  # fmt: skip
    return parser.parse_args()


def supervise() -> int:
    """Does the work in a process of its own, and returns its status.

    JAX ends a process that loses another one with a stack trace, from C++, so only another process
    can turn that into a line.
    """
    with tempfile.TemporaryFile("w+") as log:
        child = subprocess.Popen(
            [sys.executable, *sys.argv],
            env=os.environ | {_INSIDE: "1"},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            errors="replace",
            preexec_fn=die_with_launcher,
        )
        output, _ = child.communicate()
        lines = output.splitlines()
        if child.returncode == 0 or (child.returncode == 1 and lines):
            print(lines[-1], flush=True)
            return child.returncode
        log.seek(0)
        messages = log.read().splitlines()
    # JAX aborts with a line like: F1127 00:37:47.663485 19225 client.h:80] ... absl::Status: REASON
    fatal = [line.split("absl::Status: ")[-1] for line in messages if re.match(r"F\d{4} ", line)]
    reason = (fatal or messages or ["it printed nothing"])[-1]
    code = child.returncode
    ended = f"JAX ended it ({reason[:300]})" if fatal else f"ended with status {code}: {reason}"
    print(f"{socket.gethostname()}: {ended}; if another worker failed before, see its line")
    return 1


class Check:
    """The check of one process: what it is doing, and how it ends.

    Attributes:
        step: what is being tried, for the line of a process that gives up.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.step = "starting"
        self._options = options
        timer = threading.Timer(options.timeout_s, self._give_up)
        timer.daemon = True
        timer.start()

    def name(self) -> str:
        """Returns this worker's number, or the host's name until the number is known."""
        from jax._src import distributed  # the number while the processes still join

        state = distributed.global_state
        if state.num_processes is None:
            return socket.gethostname() if self.step == "joining" else "worker 0 of 1"
        return f"worker {state.process_id} of {state.num_processes}"

    def fail(self, reason: str) -> NoReturn:
        """Prints the reason and ends the process at once."""
        print(f"{self.name()}: {' '.join(reason.split())}", flush=True)
        os._exit(1)

    def _give_up(self) -> None:
        waited = f"gave up after {self._options.timeout_s:g} s while {self.step}"
        self.fail(f"{waited}: {self._who_joined()}" if self.step == "joining" else waited)

    def _who_joined(self) -> str:
        """Returns which processes have joined, as far as this one can know."""
        import psutil
        from jax._src import distributed

        state = distributed.global_state
        if state.num_processes is None:
            return "the cluster does not tell which hosts belong to the run"
        address = str(state.coordinator_address)
        if state.process_id != 0:
            return (
                f"not all of the {state.num_processes} workers have reached worker 0 at {address}; "
                "those that print no such line did not start"
            )
        # Each worker, this one too, holds one connection to the service in this process.
        port = int(address.rsplit(":", 1)[1])
        peers = sorted(
            connection.raddr.ip.removeprefix("::ffff:")
            for connection in psutil.Process().net_connections("tcp")
            if connection.raddr and connection.laddr.port == port
        )
        return (
            f"only {len(peers)} of {state.num_processes} workers have joined at {address}, from "
            f"{', '.join(peers) or 'nowhere'}"
        )

    def agree(self, call: Callable[[], None]) -> None:
        """Calls a function on every process, and ends all of them if it failed on one.

        Args:
            call: raises any exception to fail.
        """
        import jax

        from seva_jax.runtime import processes

        problem = ""
        try:
            call()
        except Exception as error:
            problem = str(error) or type(error).__name__
        problems = processes.gather(problem)
        failed = [number for number, text in enumerate(problems) if text]
        if failed:
            own = jax.process_index() in failed
            number = jax.process_index() if own else failed[0]
            text = problems[number] if own else f"worker {number} failed: {problems[number]}"
            print(f"{self.name()}: {' '.join(text.split())}", flush=True)
            sys.exit(1)


def add_up() -> None:
    """Adds up a number of every device, by a collective over all of them.

    Raises:
        ValueError: a device has another sum.
    """
    import jax
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh = Mesh(np.asarray(jax.devices()), ("devices",))
    numbers = np.arange(1, jax.device_count() + 1, dtype=np.int32)
    split = jax.make_array_from_callback(
        numbers.shape, NamedSharding(mesh, PartitionSpec("devices")), lambda index: numbers[index]
    )
    total = jax.jit(lambda x: x.sum(), out_shardings=NamedSharding(mesh, PartitionSpec()))(split)
    for shard in total.addressable_shards:
        if int(shard.data) != numbers.sum():
            raise ValueError(
                f"{shard.device} has {int(shard.data)} as the sum over {len(numbers)} devices "
                f"instead of {numbers.sum()}"
            )


def use_workdir(check: Check, text: str) -> None:
    """Writes a file from every process in the work directory, reads it, and removes it.

    Worker 0 must see the files of all, and all must see that of worker 0.

    Args:
        check: ends the process if this fails.
        text: the work directory, a path or a URL.
    """
    import jax

    from seva_jax.runtime import processes
    from seva_jax.runtime.stores import as_path

    # A name of its own: what an earlier check left must not pass for a file of this one.
    (unique, *_) = processes.gather(uuid.uuid4().hex)
    own, count = jax.process_index(), jax.process_count()
    others = range(count) if own == 0 else [0]

    def file(number: int) -> Path:
        return as_path(text) / f"check-{unique}" / f"{number}.txt"

    def write() -> None:
        try:
            file(own).parent.mkdir(parents=True, exist_ok=True)
            file(own).write_text(f"{unique} {own}")
            if file(own).read_text() != f"{unique} {own}":
                raise ValueError("it returns other bytes than were written")
        except Exception as error:
            raise ValueError(f"the work directory {text} cannot be used: {error}") from None

    def read() -> None:
        for number in others:
            try:
                same = file(number).read_text() == f"{unique} {number}"
            except FileNotFoundError:
                same = False
            if not same:
                raise ValueError(
                    f"the work directory {text} is not shared: what worker {number} wrote there "
                    f"is not visible to worker {own}"
                )

    try:
        check.agree(write)
        check.agree(read)
    finally:
        with contextlib.suppress(Exception):  # not empty before the last one
            file(own).unlink(missing_ok=True)
            file(own).parent.rmdir()


def inside(options: argparse.Namespace) -> None:
    """Checks this process together with the others, and prints its line."""
    check = Check(options)
    try:
        check.step = "importing seva_jax"
        import jax

        from seva_jax.runtime import processes

        check.step = "joining"
        processes.join(processes.ProcessOptions(peer_timeout_s=_PEER_TIMEOUT_S))
        check.step = "looking for devices"
        devices = jax.local_devices()
        counts = processes.gather(len(devices))
        if options.expect_devices not in (None, sum(counts)):
            check.step = "ending"
            check.agree(lambda: _unexpected(options.expect_devices, counts, devices[0].device_kind))
        check.step = "adding up numbers over all devices"
        check.agree(add_up)
        line = f"ok, {len(devices)} of {jax.device_count()} {devices[0].device_kind} devices"
        if options.workdir:
            check.step = f"using the work directory {options.workdir}"
            use_workdir(check, options.workdir)
            line += f", work directory {options.workdir} written and read"
        check.step = "ending"
        print(f"{check.name()}: {line}", flush=True)
    except Exception as error:
        check.fail(f"failed while {check.step}: {error!r}")


def _unexpected(expected: int, counts: list[int], kind: str) -> None:
    raise ValueError(
        f"there are {sum(counts)} {kind} devices instead of {expected}; by worker: "
        f"{', '.join(map(str, counts))}"
    )


if __name__ == "__main__":
    if os.environ.get(_INSIDE):
        inside(parse())
    else:
        parse()
        sys.exit(supervise())
