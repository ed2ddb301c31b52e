"""Seconds until a command answers: its list of options, a typo, a wrong path; and JAX alone."""

from __future__ import annotations

import dataclasses
import functools
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import Annotated

from seva_jax.bench.timing import in_turns, machine
from seva_jax.ranges import FROM_1

_ANSWERS = {
    "seva-jax --help": ["-m", "seva_jax", "--help"],
    "import jax, nothing else": ["-c", "import jax"],
    "train --help": ["-m", "seva_jax", "train", "--help"],
    "train, an option that is not there": ["-m", "seva_jax", "train", "--learning_rate", "1"],
    "train, a class as an option": ["-m", "seva_jax", "train", "--objective", "ipo"],
    "train, a config that is not there": ["-m", "seva_jax", "train", "--config", "my_rum.py"],
    "train --print-config": ["-m", "seva_jax", "train", "--print-config"],
    "evaluate, a run that is not there": ["-m", "seva_jax", "evaluate", "--model", "runs/nowhere"],
    "data --help": ["-m", "seva_jax", "data", "--help"],
    "convert --help": ["-m", "seva_jax", "convert", "--help"],
}


@dataclasses.dataclass(frozen=True)
class StartupBench:
    """Seconds from the start of a process until a command has answered and ended.

    Attributes:
        rounds: times that each is started, in turns.
    """

    rounds: Annotated[int, FROM_1] = 7


def run_startup(bench: StartupBench) -> None:
    """Prints median, fastest and slowest of each answer."""
    sides = {name: functools.partial(_answer, arguments) for name, arguments in _ANSWERS.items()}
    in_turns(sides, 1)  # writes compiled modules, reads them from the disk
    print(machine(("tyro", "flax"), bench.rounds))
    print(f"{'seconds':<36}{'median':>8}{'fastest':>9}{'slowest':>9}")
    for name, seconds in in_turns(sides, bench.rounds).items():
        middle = statistics.median(seconds)
        print(f"{name:<36}{middle:>8.2f}{min(seconds):>9.2f}{max(seconds):>9.2f}")


def _answer(arguments: Sequence[str]) -> None:
    subprocess.run([sys.executable, *arguments], capture_output=True, check=False)
