"""The evaluations in a work directory: those of the config, and those that were made later.

What lives here: `Results`, which pairs what both models were asked. What does not: computing
results (`seva_jax/evals`), the words about them (`verdict.py`), their table (`results_table.py`).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from seva_jax.config import Experiment
from seva_jax.evals import (
    EvalResult,
    Row,
    StoredEvaluation,
    comparison_rows,
    stored_evaluations,
)
from seva_jax.evals.stored import EVALS, outdated
from seva_jax.types import DataError

BASE, ALIGNED = "base", "aligned"


@dataclasses.dataclass(frozen=True)
class Results:
    """Results of the base and of the aligned model.

    Attributes:
        rows: the comparison, of what both were asked; see `evals.without_repeats`.
        both: what both were asked.
        alone: name of the model and result, of what only one of them was asked, or of what cannot
            be compared.
        problems: one sentence for each evaluation whose results are not compared, because they
            differ in their questions or belong to other models.
    """

    rows: tuple[Row, ...] = ()
    both: tuple[StoredEvaluation, ...] = ()
    alone: tuple[tuple[str, EvalResult], ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def questions(self) -> int:
        """Number of questions that both models answered."""
        return sum(len(one.results[BASE].records) for one in self.both)


def read_results(path: Path, config: Experiment) -> Results:
    """Reads all evaluations in a work directory: the config's first, then those made later.

    Args:
        path: the work directory.
        config: the run's config.

    Raises:
        DataError: a file is damaged.
    """
    rows, both, alone, problems = [], [], [], []
    models: dict[str, object] = {}  # fingerprints of the models of the first evaluation
    for stored in stored_evaluations(path, first=[suite.name for suite in config.evals]):
        if outdated(path, stored):
            problems.append(
                f"{stored.name} was asked of an earlier aligned model: the run has been trained "
                f"again since; delete {path / EVALS / ALIGNED / stored.name} to ask it again."
            )
            alone += [(who, result) for who, result in stored.results.items() if who == BASE]
            continue
        now = {who: about["model"] for who, about in stored.about.items() if "model" in about}
        models = now | models
        changed = [who for who in now if now[who] != models[who]]
        if changed:
            problems.append(
                f"{stored.name} was asked of another {' and '.join(changed)} model than the "
                "evaluations before it."
            )
        if changed or len(stored.results) < 2:
            alone += stored.results.items()
            continue
        try:
            rows += comparison_rows([stored.results[BASE]], [stored.results[ALIGNED]])
            both.append(stored)
        except DataError as error:
            problems.append(f"The two results of {stored.name} cannot be compared: {error}.")
            alone += stored.results.items()
    return Results(tuple(rows), tuple(both), tuple(alone), tuple(problems))
