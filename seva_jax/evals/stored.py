"""The evaluations in a work directory, read without the suites that made them.

What lives here: `stored_evaluations`, for reports, and `safe_label`, the rule for names of models.
What does not: the files of one result (`files.py`), and making them
(`seva_jax/run/evaluations.py`). Results are in PATH/evals/LABEL, where LABEL names the model: base
and aligned in a run's work directory, or what `--labels` says.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seva_jax.evals.base import EvalResult
from seva_jax.evals.files import read_result
from seva_jax.runtime.files import read_bytes
from seva_jax.runtime.run_records import read_stages
from seva_jax.types import DataError

EVALS, SUITE_FILE = "evals", "suite.py"
TRAINED = "trained"  # what a result of a run's aligned model records of its alignment


@dataclasses.dataclass(frozen=True)
class StoredEvaluation:
    """One evaluation of one or more models.

    Attributes:
        name: name of the evaluation.
        results: the results by the label of their model. A result knows its metrics, the direction
            wanted of each, and one record for every question.
        about: what was recorded with each result, by label: "notes", "left_out" (questions by
            reason), "files", "suite", "model" (a fingerprint of the model and of how it was asked),
            "order" (the evaluation's place among those of its command), for the aligned model of a
            run "trained" (the fingerprint of its alignment), and for a model that is not a run's
            own "source" (what it was read from). Results of version 0.4 lack the last four.
        suite_file: defines the suite, for example to load its images with
            `seva_jax.config.read_suites`; None for results of version 0.4.
    """

    name: str
    results: Mapping[str, EvalResult]
    about: Mapping[str, dict[str, Any]]
    suite_file: Path | None


def stored_labels(path: Path) -> list[str]:
    """Returns the labels of the models that have results below PATH/evals, sorted."""
    return sorted({file.parent.name for file in (path / EVALS).glob("*/*.json")})


def stored_evaluations(
    path: Path,
    labels: Sequence[str] = ("base", "aligned"),
    first: Sequence[str] = (),
    only: Sequence[str] | None = None,
) -> list[StoredEvaluation]:
    """Reads every evaluation that at least one of some models has finished.

    Args:
        path: the work directory, or another folder that evaluations were written to.
        labels: labels of the models.
        first: names of evaluations that come first, in this order, for example those of the run's
            config. The others follow in the order in which they were asked.
        only: names of the evaluations that are read; None reads all.

    Raises:
        DataError: a file cannot be read, or a summary and its records do not belong together.
    """
    summaries: dict[str, dict[str, Path]] = {}
    for label in labels:
        for file in sorted((path / EVALS / label).glob("*.json")):
            if only is None or file.stem in only:
                summaries.setdefault(file.stem, {})[label] = file
    evaluations = [_read(name, files) for name, files in summaries.items()]
    places = {name: number for number, name in enumerate(first)}

    def place(evaluation: StoredEvaluation) -> tuple[int, int, str]:
        asked = min(int(about.get("order", 0)) for about in evaluation.about.values())
        return places.get(evaluation.name, len(places)), asked, evaluation.name

    return sorted(evaluations, key=place)


def _read(name: str, files: Mapping[str, Path]) -> StoredEvaluation:
    results = {x: read_result(f, f.with_name(f"{name}.jsonl")) for x, f in files.items()}
    about = {x: json.loads(read_bytes(f)).get("about", {}) for x, f in files.items()}
    recorded = (file.with_name(name) / SUITE_FILE for file in files.values())
    return StoredEvaluation(name, results, about, next((x for x in recorded if x.is_file()), None))


def outdated(path: Path, evaluation: StoredEvaluation) -> bool:
    """Returns whether a run's aligned model has been trained again since it was asked.

    Args:
        path: the work directory; in a folder without a run nothing is outdated.
        evaluation: what is stored there.
    """
    trained = evaluation.about.get("aligned", {}).get(TRAINED)
    if trained is None or not (path / "stages.json").is_file():
        return False
    return trained != read_stages(path).get("align", {}).get("fingerprint")


def safe_label(label: str) -> str:
    """Returns the label of a model, which names a folder.

    Raises:
        DataError: it has other characters than letters, digits, ".", "_", "+" and "-", is longer
            than 100 characters, or begins with "." or "-".
    """
    if not re.fullmatch(r"[A-Za-z0-9_+][A-Za-z0-9._+-]{0,99}", label):
        raise DataError(
            f"{label!r} cannot be the label of a model, which names a folder: use letters, digits, "
            "'.', '_', '+' and '-', at most 100, and begin with a letter or digit"
        )
    return label
