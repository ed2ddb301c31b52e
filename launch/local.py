#!/usr/bin/env python3
"""Starts several processes of one run on this machine, as if each were a host.

    python launch/local.py --processes 4 --devices 2 -- python -m seva_jax.train --mesh.fsdp 2

Each process gets simulated CPU devices and the environment variables that
`seva_jax/runtime/processes.py` reads. Every line of output starts with the number of its process.
When a process fails, the others are ended, and the launcher exits with the status of the first
failure. SIGTERM and Ctrl-C reach all processes, which save and exit with status 75; a second
Ctrl-C ends them at once.
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
    """Returns an unused local port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def die_with_launcher() -> None:
    """Makes the new process that calls it get SIGKILL when the launcher ends, however it ends."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def copy_lines(process: subprocess.Popen, number: int) -> None:
    """Prints the output of a process, each line with its number."""
    assert process.stdout is not None
    for line in process.stdout:
        print(f"[{number}] {line}", end="", flush=True)


def parse() -> argparse.Namespace:
    """Returns the checked options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=2, help="number of processes (default 2)")
    parser.add_argument("--devices", type=int, default=1, help="CPU devices of each (default 1)")
    parser.add_argument(
        "--grace", type=float, default=30.0,
        help="seconds the others may take to end by themselves after one failed (default 30)",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="print the commands only")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="after --, the command to run")
    options = parser.parse_args()
    if options.command[:1] == ["--"]:
        del options.command[0]
    if not options.command or options.processes < 1 or options.devices < 1:
        parser.error("give at least one process, one device, and a command after --")
    return options


def wait(processes: list[subprocess.Popen], options: argparse.Namespace) -> int:
    """Waits until all processes have ended, and ends those that outlive a failed one.

    Args:
        processes: the processes.
        options: `grace` gives the seconds between the first failure and SIGKILL to the others.

    Returns:
        The status of the first process that failed, or 0.
    """
    first_failure, failed_at = 0, 0.0
    try:
        while None in [process.poll() for process in processes]:  # a list: polls every process
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
    return first_failure or next((status for status in statuses if status), 0)


def main() -> int:
    """Starts the processes, copies their output and returns the exit status."""
    options = parse()
    flag = f"--xla_force_host_platform_device_count={options.devices}"
    shared = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip(),
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
        "JAX_NUM_PROCESSES": str(options.processes),
    }
    settings = [shared | {"JAX_PROCESS_ID": str(n)} for n in range(options.processes)]
    if options.dry_run:
        for variables in settings:
            print(" ".join(f"{k}={v!r}" for k, v in variables.items()), *options.command)
        return 0
    processes = [
        subprocess.Popen(
            options.command,
            env=os.environ | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=die_with_launcher,
        )
        for variables in settings
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
    status = wait(processes, options)
    for copier in copiers:
        copier.join()
    return status


if __name__ == "__main__":
    sys.exit(abs(main()))
