"""The config that a work directory has recorded, compared with that of a run that wants to use it.

What lives here: which fields differ, and what this means for answers that are there already. What
does not: refusing the directory or taking it over (`workdir.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seva_jax.config import (
    Experiment,
    differing_fields,
    is_within,
    with_defaults,
    without_effect,
)
from seva_jax.run.stage import FORMAT
from seva_jax.runtime.run_records import read_stages
from seva_jax.types import DataError

ANSWERS = "rollouts.jsonl"  # the first work of most runs, and often hours of it
# Fields and sections of a config that they depend on, as the stage in `seva_jax/train.py` does.
_OF_ANSWERS = ("seed", "base", "prompts", "corrupt", "rollout", "text.generate", "compute")


def changed_fields(
    path: Path, there: dict[str, Any], wanted: dict[str, Any], experiment: Experiment
) -> list[str]:
    """Returns the fields of the config in a work directory that differ from the wanted one.

    Args:
        path: the work directory.
        there: its config.json.
        wanted: the flat config of this run.
        experiment: the config of this run; fields of it that have no effect may differ.

    Returns:
        For each field its name, a colon, and both values.

    Raises:
        DataError: it is the directory of another version.
    """
    if there.pop("format", 1) != FORMAT:
        raise DataError(
            f"{path} was written by another version of seva_jax, whose work directories this "
            "version can neither continue nor evaluate; finish it with that version, or choose "
            "another --workdir. If it is finished, `python -m seva_jax.convert to-hf` may still "
            "export its model, and base.path of a new run or of an evaluation can name the export"
        )
    there, free = with_defaults(there, wanted, experiment), without_effect(experiment)
    differing = differing_fields(there, wanted)
    return [line for name, line in differing.items() if not is_within(name, free)]


def answers_fit(changed: Sequence[str]) -> bool:
    """Returns whether answers to prompts do not depend on any of the fields that have changed.

    Args:
        changed: what `changed_fields` returned.
    """
    return not any(is_within(line.partition(":")[0], _OF_ANSWERS) for line in changed)


def instead_of_changing(
    path: Path, there: dict[str, Any], wanted: dict[str, Any], changed: Sequence[str]
) -> str:
    """Returns what to do instead of giving a directory another config.

    Args:
        path: the work directory.
        there: its config.json.
        wanted: the flat config of this run.
        changed: what `changed_fields` returned.
    """
    length = {f"train.{name}" for name in ("epochs", "max_steps")}
    longer = {k: v for k in length if (v := wanted.get(k)) != there.get(k)}
    if len(longer) < len(changed) or "align" not in read_stages(path):
        return (
            f"choose another --workdir (--take-from {path} copies the stages that this does not "
            "change), or delete that one"
        )
    options = " ".join(f"--{k.replace('_', '-')} {v}" for k, v in sorted(longer.items()))
    return (
        "to train its model further, choose another --workdir, which continues it:\n"
        f"  seva-jax train --config {path}/config.py --workdir {path}-longer --take-from {path} "
        f"{options}"
    )
