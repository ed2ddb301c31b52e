"""Runs evaluations of a model and keeps their records in the work directory.

How answers are scored is in `seva_jax/evals`.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from pathlib import Path

from seva_jax.evals import EvalResult, read_result, write_records, write_summary
from seva_jax.experiment import Evaluation
from seva_jax.processes import say
from seva_jax.rollout.run import Asker
from seva_jax.rollout.sampler import Sampling
from seva_jax.workdir import Workdir


def evaluate_all(
    asker: Asker, evaluations: Sequence[Evaluation], who: str, workdir: Workdir
) -> str:
    """Asks every question of every evaluation and writes what came of it.

    Args:
        asker: the model.
        evaluations: what to ask.
        who: name of the model, and of the folder under evals/.
        workdir: where records go.

    Returns:
        A one-line summary.
    """
    folder = workdir.path / "evals" / who
    num = 0
    for evaluation in evaluations:
        result = _evaluate(asker, evaluation, who, workdir)
        num += len(result.records)
        if workdir.writes:
            folder.mkdir(parents=True, exist_ok=True)
            write_records(folder / f"{result.name}.jsonl", result.records)
            write_summary(folder / f"{result.name}.json", result)
    return f"{num:,} questions"


def _evaluate(asker: Asker, evaluation: Evaluation, who: str, workdir: Workdir) -> EvalResult:
    data, answers = evaluation.prompts.open(), {}
    drops = collections.Counter(data.drops)
    sampling = Sampling(max_new_tokens=evaluation.max_new_tokens)
    name = f"{who}: {evaluation.evaluator.name}"
    with workdir.bar(name, len(data.prompts), "prompt") as bar:
        for batch in asker.ask(data.prompts, data.load_image, sampling):
            answers |= {a.prompt.id: a.answers[0] for a in batch if not a.dropped}
            drops.update(a.dropped for a in batch if a.dropped)
            bar.update(len(batch))
    if drops:
        say(f"  {name}: {sum(drops.values())} prompts left out: {dict(drops)}")
    kept = [p for p in data.prompts if p.id in answers]
    return evaluation.evaluator(lambda prompts: [answers[p.id] for p in prompts], kept)


def read_results(path: Path, who: str, evaluations: Sequence[Evaluation]) -> list[EvalResult]:
    """What `evaluate_all` wrote.

    Args:
        path: the work directory.
        who: name of the model.
        evaluations: which.
    """
    folder = path / "evals" / who
    names = [x.evaluator.name for x in evaluations]
    return [read_result(folder / f"{n}.json", folder / f"{n}.jsonl") for n in names]
