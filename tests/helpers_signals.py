"""Processes that wait for a signal, and moments of a run at which to send one."""

import subprocess
import sys

from helpers_run import environment

SCRIPT = """
import sys, time
from seva_jax.runtime import processes, shutdown

print("ready", flush=True)
with processes.joined(processes.ProcessOptions(grace_s=float(sys.argv[1]))):
    print("joined", flush=True)
    for _ in range({"gathers": 1, "waits": 2}.get(sys.argv[2], 0)):
        processes.gather(None)  # returns once every process has called it
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if sys.argv[2] == "asks" and shutdown.stop_agreed():
            shutdown.raise_if_stopping()  # as the stage after a last step does
        time.sleep(0.02)  # a handler does not end this, as it does not end a compilation
"""


def started(stack, grace_s, asks, **variables):
    """Starts a process of `SCRIPT`, which lives as long as the stack."""
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(grace_s), asks]
    process = subprocess.Popen(
        command, env=environment(**variables), stdout=subprocess.PIPE, text=True
    )
    stack.enter_context(process)
    stack.callback(process.kill)
    return process


def compiling(run, workdir):
    """Returns whether the first step is being compiled, before any is logged."""
    return "base: at most" in run.output
