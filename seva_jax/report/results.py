"""The evaluations in a work directory: those of the config, and those that were made later.

What lives here: `Results`, which pairs what both models were asked. What does not: computing
results (`seva_jax/evals`), the words about them (`verdict.py`), their table (`results_table.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seva_jax.config import Experiment
from seva_jax.evals import EvalResult, Row, comparison_rows, read_result
from seva_jax.runtime.files import read_json
from seva_jax.types import DataError

BASE, ALIGNED = "base", "aligned"


@dataclasses.dataclass(frozen=True)
class Results:
    """Results of the base and of the aligned model.

    Attributes:
        rows: the comparison, of what both were asked; see `without_repeats`.
        both: the results of both, in the same order.
        alone: name of the model and result, of what only one of them was asked.
        problems: one sentence for each evaluation whose two results cannot be compared.
    """

    rows: tuple[Row, ...] = ()
    both: tuple[tuple[EvalResult, EvalResult], ...] = ()
    alone: tuple[tuple[str, EvalResult], ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def questions(self) -> int:
        """Number of questions that both models answered."""
        return sum(len(base.records) for base, _ in self.both)


def read_results(path: Path, config: Experiment) -> Results:
    """Reads all evaluations in a work directory: the config's first, then the others by name.

    Args:
        path: the work directory.
        config: the run's config.

    Raises:
        DataError: a file is damaged.
    """
    names = {who: _names(path, who) for who in (BASE, ALIGNED)}
    own = [suite.name for suite in config.evals]
    every = [*own, *sorted(set(names[BASE] + names[ALIGNED]) - set(own))]
    rows, both, alone, problems = [], [], [], []
    for name in every:
        results = {who: _read(path, who, name) for who in names if name in names[who]}
        if len(results) < 2:
            alone += results.items()
            continue
        pair = (results[BASE], results[ALIGNED])
        try:
            rows += comparison_rows([pair[0]], [pair[1]])
            both.append(pair)
        except DataError as error:
            problems.append(f"The results of {name} cannot be compared: {error}")
            alone += results.items()
    return Results(tuple(rows), tuple(both), tuple(alone), tuple(problems))


def read_about(path: Path, who: str, name: str) -> Mapping[str, Any]:
    """Returns what a summary says about its questions; {} if there is no such summary."""
    file = path / "evals" / who / f"{name}.json"
    if not file.is_file():
        return {}
    return read_json(file).get("about", {})


def without_repeats(rows: Sequence[Row]) -> list[tuple[Row, tuple[str, ...]]]:
    """Returns rows, each with the names of other metrics that only repeat its numbers.

    Two parsers that read all answers alike give every metric twice, and so does a single category:
    "words: random/f1" then repeats "f1".
    """
    kept: dict[tuple[str, ...], tuple[Row, list[str]]] = {}
    for row in rows:
        measure = row.metric.rpartition(": ")[2].rpartition("/")[2]
        # As text, because NaN is not equal to itself.
        numbers = repr((row.base, row.aligned, row.difference))
        key = (row.evaluation, measure, numbers)
        if key in kept:
            kept[key][1].append(row.metric)
        else:
            kept[key] = (row, [])
    return [(row, tuple(others)) for row, others in kept.values()]


def _names(path: Path, who: str) -> list[str]:
    return [file.stem for file in sorted((path / "evals" / who).glob("*.json"))]


def _read(path: Path, who: str, name: str) -> EvalResult:
    folder = path / "evals" / who
    return read_result(folder / f"{name}.json", folder / f"{name}.jsonl")
