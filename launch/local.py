#!/usr/bin/env python3
"""Several processes of one run on this machine, as if each were a host.

    python launch/local.py --processes 4 --devices 2 -- python -m seva_jax.train --mesh.fsdp 2

Each process gets fake CPU devices and the variables that `seva_jax.runtime.processes` reads. Output lines
are prefixed with the process number. When one process fails the others are ended, and the status
is that of the first one that failed. SIGTERM and Ctrl-C reach all of them and they end by
themselves, saved (status 75); a second Ctrl-C ends at once.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def die_with_launcher() -> None:
    """Runs in a new process: it gets SIGKILL when this one ends, however that happens."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def copy_lines(process: subprocess.Popen, number: int) -> None:
    """Prints what a process prints."""
    assert process.stdout is not None
    for line in process.stdout:
        print(f"[{number}] {line}", end="", flush=True)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=2, help="how many (default 2)")
    parser.add_argument("--devices", type=int, default=1, help="CPU devices of each (default 1)")
    parser.add_argument(
        "--grace", type=float, default=30.0,
        help="seconds the others get to end by themselves when one has failed (default 30)",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="print the commands only")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="after --, what to run")
    options = parser.parse_args()
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command or options.processes < 1 or options.devices < 1:
        parser.error("give at least one process, one device, and a command after --")

    flag = f"--xla_force_host_platform_device_count={options.devices}"
    shared = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip(),
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
        "JAX_NUM_PROCESSES": str(options.processes),
    }
    if options.dry_run:
        for number in range(options.processes):
            settings = shared | {"JAX_PROCESS_ID": str(number)}
            print(" ".join(f"{k}={v!r}" for k, v in settings.items()), *command)
        return 0
    processes = [
        subprocess.Popen(
            command,
            env=os.environ | shared | {"JAX_PROCESS_ID": str(number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=die_with_launcher,
        )
        for number in range(options.processes)
    ]
    copiers = [
        threading.Thread(target=copy_lines, args=(process, number), daemon=True)
        for number, process in enumerate(processes)
    ]
    for copier in copiers:
        copier.start()

    def forward(number: int, frame: object) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    signal.signal(signal.SIGTERM, forward)
    signal.signal(signal.SIGINT, lambda *_: None)  # a terminal sends it to the processes itself
    first_failure, failed_at = 0, 0.0
    try:
        while None in [process.poll() for process in processes]:  # all are asked
            failed = [p.returncode for p in processes if p.returncode]
            if failed and not failed_at:
                first_failure, failed_at = failed[0], time.monotonic()
            if failed_at and time.monotonic() - failed_at > options.grace:
                break
            time.sleep(0.1)
    finally:
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
    statuses = [process.wait() for process in processes]
    for copier in copiers:
        copier.join()
    return first_failure or next((status for status in statuses if status), 0)


if __name__ == "__main__":
    sys.exit(abs(main()))
