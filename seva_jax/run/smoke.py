"""The work directory of a smoke run, and what is said before and after it.

What lives here: `begin`, which removes the directory of the last smoke run, and `end`. What does
not: how a run is made small (`seva_jax/config/smoke.py`).
"""

from __future__ import annotations

import textwrap

from seva_jax.config import Experiment, public_name
from seva_jax.config.smoke import NUM_PROMPTS, SUFFIX, SmokePrompts, checked, not_shown
from seva_jax.runtime import lock
from seva_jax.runtime.files import read_json
from seva_jax.runtime.processes import on_first_process, say
from seva_jax.runtime.stores import as_path, remove
from seva_jax.types import DataError


def begin(real: Experiment, small: Experiment) -> None:
    """Removes the directory of an earlier smoke run, and says what is checked of the base.

    Args:
        real: the run.
        small: what `smoke` made of it.

    Raises:
        DataError: something else is in that directory, or a smoke run is writing there; or files
            of the base do not fit together.
    """
    on_first_process(lambda: _clear(small.workdir))
    say(f"smoke run in {small.workdir}; {real.workdir} is not touched")
    say(f"  checked: {checked(real.base)}")


def _clear(workdir: str) -> None:
    path = as_path(workdir)
    if not path.is_dir() or not any(path.iterdir()):
        return
    config = path / "config.json"
    made_here = ".".join(public_name(SmokePrompts))
    if not config.is_file() or read_json(config).get("prompts") != made_here:
        raise DataError(
            f"{path} is where the smoke run would be, but holds something else; move it away, or "
            f"choose another --workdir, to which {SUFFIX} is added"
        )
    lock.claim(path)  # raises if a smoke run is going on
    lock.release(path)
    remove(path)


def end(real: Experiment, small: Experiment, num_runs: int = 1) -> None:
    """Says that everything ran, and what this does not show.

    Args:
        real: the run.
        small: what `smoke` made of it.
        num_runs: the number of runs that the config stands for.
    """
    lines = [
        textwrap.fill(line, 96, initial_indent="  - ", subsequent_indent="    ")
        for line in not_shown(real, small, num_runs)
    ]
    say(
        f"\nsmoke run finished: every stage ran on at most {NUM_PROMPTS} examples. It did not "
        "show:\n" + "\n".join(lines) + f"\nThe same command without --smoke starts the run; "
        f"{small.workdir} can be deleted."
    )
