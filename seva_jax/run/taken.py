"""What a run takes of other runs: finished stages that fit, and rollouts that were interrupted.

A stage fits if its fingerprint, a hash of everything it depends on, is the same. Files are copied.
The other runs are those that `take_from` names, of which a line says why a stage was not taken,
and siblings, the runs of one sweep. Continuing another run's training is in `further.py`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seva_jax.config import (
    Experiment,
    differing_fields,
    is_within,
    with_defaults,
    without_effect,
)
from seva_jax.run.leaves import Leaves
from seva_jax.run.stage import FORMAT, Stage, instead_of
from seva_jax.runtime.copies import copy_whole
from seva_jax.runtime.files import append_lines, read_json, read_lines, replace_lines
from seva_jax.runtime.run_records import read_stages
from seva_jax.runtime.stores import as_path, remove
from seva_jax.training.health import NOTES
from seva_jax.types import DataError

_METRICS = "metrics.jsonl"
_SHOWN = 3  # differing fields in a line

# The fields and sections of the config that the fingerprint of each stage covers.
_BASE = ("base", "seed", "compute")
_ROLLOUTS = (*_BASE, "prompts", "corrupt", "rollout", "text.generate")
_GIVEN = (*_BASE, "prompts", "text")
_ALIGN = ("objective", "lora", "optim", "train")
_ASKED = ("evals", "text.generate", "text.max_length", "rollout.cache")


def covered(stage: str, experiment: Experiment) -> tuple[str, ...]:
    """Returns the names of the fields and sections that a stage depends on."""
    pairs = _GIVEN if experiment.prompts.has_answers else (*_ROLLOUTS, "pairs", "text")
    return {
        "base": _BASE,
        "rollouts": _ROLLOUTS,
        "pairs": pairs,
        "reference": pairs,
        "align": (*pairs, *_ALIGN),
        "evaluate base": (*_BASE, *_ASKED),
        "evaluate aligned": (*pairs, *_ALIGN, "evals"),
    }.get(stage, ())


@dataclasses.dataclass(frozen=True)
class Taken:
    """What was found for a stage.

    Attributes:
        source: the run that it is taken from; "" if it is taken from none.
        record: what the source's stages.json says of it.
        missing: its files that are missing there; they are not needed if later stages are taken.
        lines: for people: why other runs did not serve.
    """

    source: str = ""
    record: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    missing: str = ""
    lines: tuple[str, ...] = ()


def named_runs(experiment: Experiment) -> list[Path]:
    """Returns the work directories that `take_from` names.

    Raises:
        DataError: one is this run's own, or is not the work directory of a run of this version. A
            run that has begun no longer needs the others.
    """
    own, paths = as_path(experiment.workdir), []
    for name in experiment.take_from:
        path = as_path(name)
        if path.resolve() == own.resolve():
            raise DataError(
                f"take_from names {name}, which is this run's own directory; choose another "
                "--workdir"
            )
        if not (path / "config.json").is_file():
            if (own / "config.json").is_file():
                continue
            raise DataError(
                f"take_from names {name}, which is not the work directory of a run (it has no "
                f"config.json){instead_of(path)}"
            )
        if read_json(path / "config.json").get("format", 1) != FORMAT:
            raise DataError(
                f"take_from names {name}, which was written by another version of seva_jax; "
                "nothing can be taken from it"
            )
        paths.append(path)
    return paths


def differences(path: Path, wanted: dict[str, Any], experiment: Experiment) -> dict[str, str]:
    """Returns how the config of another run differs, by the names of fields that have an effect.

    Where a part is of another class, or a list has another length, the fields inside are left out.

    Args:
        path: work directory of the other run.
        wanted: this run's config, flat, with plain values.
        experiment: this run's config.
    """
    there = read_json(path / "config.json")
    there.pop("format", None)
    there, free = with_defaults(there, wanted, experiment), without_effect(experiment)
    names = {k for k in differing_fields(there, wanted) if not is_within(k, free)}
    return {
        k: f"{k} is {there.get(k, 'absent')!r} there and {wanted.get(k, 'absent')!r} here"
        for k in sorted(names)
        if not any(is_within(k, [other]) for other in names - {k})
    }


def covered_differences(
    path: Path, stage: str, wanted: dict[str, Any], experiment: Experiment
) -> dict[str, str]:
    """Returns those of the `differences` that a stage depends on.

    Args:
        path: work directory of the other run.
        stage: name of the stage.
        wanted: this run's config, flat, with plain values.
        experiment: this run's config.
    """
    fields = covered(stage, experiment)
    return {
        name: line
        for name, line in differences(path, wanted, experiment).items()
        if is_within(name, fields) or any(is_within(x, [name]) for x in fields)
    }


class OtherRuns:
    """Other runs, and which of their stages fit; for process 0 alone.

    Args:
        experiment: this run's config.
        wanted: the same, flat, with plain values.
        named: work directories that `take_from` names.
        siblings: those of runs of the same sweep, which may not have begun.
    """

    def __init__(
        self,
        experiment: Experiment,
        wanted: dict[str, Any],
        named: Sequence[Path],
        siblings: Sequence[Path],
    ) -> None:
        self._experiment, self._wanted = experiment, wanted
        self.named, self._siblings = list(named), list(siblings)
        self._said: set[tuple[Path, str]] = set()

    def find(self, stage: Stage, own: Mapping[str, Any]) -> Taken:
        """Returns where a stage can be taken from.

        Args:
            stage: the stage.
            own: this run's finished stages.
        """
        lines: list[str] = []
        without_files: Taken | None = None
        for path in [*self.named, *self._siblings]:
            record = read_stages(path).get(stage.name, {})
            why, missing = "", ""
            if record.get("fingerprint") == stage.depends_on:
                leaves = Leaves(path)
                missing = leaves.missing(stage.leaves, record.get("step"))
                why = missing and f"{missing} is missing there"
                why = why or leaves.damage(stage.leaves, record.get("step"))
                if not why:
                    return Taken(str(path), record, lines=tuple(lines))
            if missing and not stage.trains and stage.if_missing != "require":
                without_files = without_files or Taken(str(path), record, missing)
            if path in self.named:
                why = why or self._why(path, stage, own)
                lines.append(f"  {stage.name}: not taken from {path}: {why}")
        return without_files or Taken(lines=tuple(lines))

    def _why(self, path: Path, stage: Stage, own: Mapping[str, Any]) -> str:
        """Returns why a stage of another run does not fit."""
        differing = self._differences(path, stage)
        if differing:
            more = f" (and {len(differing) - _SHOWN} more)" * (len(differing) > _SHOWN)
            why = "; ".join(differing[:_SHOWN]) + more
            if (path, why) in self._said:
                return "for the same reason"
            self._said.add((path, why))
            return why
        if stage.name not in read_stages(path):
            return f"{path} has not finished this stage"
        if others := self._other_inputs(path, stage, own):
            return f"its {others[0]} had another result"
        return "it was made from other files or results"

    def _differences(self, path: Path, stage: Stage) -> list[str]:
        return list(covered_differences(path, stage.name, self._wanted, self._experiment).values())

    @staticmethod
    def _other_inputs(path: Path, stage: Stage, own: Mapping[str, Any]) -> list[str]:
        there = read_stages(path)
        return [
            name
            for name in stage.needs
            if name in own and own[name]["fingerprint"] != there.get(name, {}).get("fingerprint")
        ]

    def take_journal(self, stage: Stage, target: Path, own: Mapping[str, Any]) -> str:
        """Copies what a run has done of a stage that it has not finished, if it fits.

        Args:
            stage: the stage.
            target: this run's work directory.
            own: this run's finished stages.

        Returns:
            A line for people; "" if there is nothing.
        """
        if not stage.journal or (target / stage.journal).exists():
            return ""
        for path in self.named:
            if stage.name in read_stages(path) or not (path / stage.journal).exists():
                continue
            if [*self._differences(path, stage), *self._other_inputs(path, stage, own)]:
                continue
            copy_whole(path / stage.journal, target / stage.journal)
            num = len(read_lines(target / stage.journal))
            return (
                f"  {stage.name}: {num:,} lines of {stage.journal} are taken from {path}, which "
                "has not finished this stage, and it is continued"
            )
        return ""


def copy_stage(source: Path, target: Path, stage: Stage) -> None:
    """Copies the files of a stage, and its rows of metrics if it trains.

    Args:
        source: work directory that has them.
        target: this run's work directory, which has none of them.
        stage: the stage.
    """
    for file in stage.leaves:
        copy_whole(source / file, target / file)
    for file in stage.beside:
        if (source / file).exists():
            copy_whole(source / file, target / file)
    copy_rows(source, target, stage.trains)


def copy_rows(source: Path, target: Path, stages: Sequence[str]) -> None:
    """Copies the rows of metrics of training stages, in place of those that are there.

    The parts of their time are left out: this run did not spend it.

    Args:
        source: work directory that has them.
        target: this run's work directory.
        stages: names of the stages.
    """
    for name in (_METRICS, *NOTES):
        rows = [row for row in _lines_of(source / name) if row["stage"] in stages]
        if name == _METRICS:
            rows = list({(row["stage"], row["step"]): row for row in rows}.values())
        kept = [
            {k: v for k, v in row.items() if not k.startswith("time/") and k != "goodput"}
            for row in rows
        ]
        before = read_lines(target / name)
        others = [row for row in before if row["stage"] not in stages]
        if len(others) < len(before):
            replace_lines(target / name, [*others, *kept])
        elif kept:
            append_lines(target / name, kept)


def _lines_of(path: Path) -> list[dict[str, Any]]:
    """Reads JSON lines of another run, without cutting off what it may be writing."""
    if not path.is_file():
        return read_lines(path)
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def remove_files(target: Path, stage: Stage) -> None:
    """Removes the files of a stage, of which only a part was copied."""
    for file in (*stage.leaves, *stage.beside):
        remove(target / file)
