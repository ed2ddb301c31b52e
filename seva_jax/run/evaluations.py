"""Puts suites of questions to a model, and keeps answers, scores and files for other scorers.

Answers are appended to a file as they come, so that a killed run goes on where it was. What a
suite is and how answers are scored is in `seva_jax/evals`; the command is `seva_jax/evaluate.py`.
"""

from __future__ import annotations

import collections
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seva_jax.config.source import fingerprint, flatten
from seva_jax.evals import (
    Answer,
    EvalResult,
    Questions,
    Suite,
    read_result,
    write_records,
    write_summary,
)
from seva_jax.evals.suite import open_suite
from seva_jax.inference.rollouts import RolloutEngine
from seva_jax.run.workdir import Workdir
from seva_jax.runtime.files import append_lines, read_lines, write_lines
from seva_jax.runtime.paths import hide_home
from seva_jax.runtime.processes import barrier, gather, say
from seva_jax.text.sampling import Sampling
from seva_jax.training.checkpoint import checksum
from seva_jax.types import DataError


def evaluate_all(
    engine: RolloutEngine,
    suites: Sequence[Suite],
    who: str,
    workdir: Workdir,
    same: Path | None = None,
) -> str:
    """Asks every question of every suite and writes what came of it.

    Each suite leaves evals/WHO/NAME.json (numbers), evals/WHO/NAME.jsonl (one record a question)
    and the folder evals/WHO/NAME with the answers, ours and for other scorers.

    Args:
        engine: the model.
        suites: what to ask.
        who: name of the model, and of the folder under evals/.
        workdir: where all this goes.
        same: evals/WHO of another run whose model is this one and was asked in the same way; what
            it answered to the same questions is taken.

    Returns:
        A one-line summary.

    Raises:
        DataError: as `Suite.open`; or the answers that are there belong to other questions or
            another model.
    """
    model = fingerprint(
        checksum(engine.variables), engine.encoder.template, engine.encoder.max_length,
        engine.encoder.tokenizer.get_vocab(), engine.processing, engine.cache,
    )  # fmt: skip
    num = 0
    for suite in suites:
        questions = open_suite(suite)
        for prompt in questions.prompts:
            questions.evaluator.truth(prompt)  # what cannot be scored need not be asked
        path = workdir.path / "evals" / who / suite.name / "asked.jsonl"
        taken = same / suite.name / path.name if same else None
        _ask(engine, suite, questions, who, workdir, path, model, taken)
        num += len(questions.prompts)
        if workdir.writes:
            _score(suite, questions, who, workdir, path)
        barrier(f"evals {who} {suite.name}")
    return f"{num:,} questions"


def _ask(
    engine: RolloutEngine,
    suite: Suite,
    questions: Questions,
    who: str,
    workdir: Workdir,
    path: Path,
    model: str,
    taken: Path | None,
) -> None:
    """Asks what has not been asked yet."""
    asked = [[p.id, p.question, list(p.images)] for p in questions.prompts]
    header = {
        "model": model,
        "questions": hashlib.sha256(json.dumps(asked).encode()).hexdigest(),
        "max_new_tokens": suite.max_new_tokens,
        "files": {hide_home(path): digest for path, digest in questions.files.items()},
    }
    if taken and workdir.writes:
        _take(taken, path, header)
    problem, start = gather(_resume(path, header) if workdir.writes else ("", 0))[0]
    if problem:
        raise DataError(problem)
    sampling = Sampling(max_new_tokens=suite.max_new_tokens)
    with workdir.bar(f"{who}: {suite.name}", len(questions.prompts), "prompt", start) as bar:
        if start == len(questions.prompts):
            return
        batches = engine.answer(questions.prompts, questions.load_image, sampling, start=start)
        for batch in batches:
            if workdir.writes:
                append_lines(
                    path,
                    (
                        {"id": a.prompt.id}
                        | ({"dropped": a.dropped} if a.dropped else {"answer": a.answers[0]})
                        for a in batch
                    ),
                )
            bar.update(len(batch))


def _take(taken: Path, path: Path, header: dict[str, Any]) -> None:
    """Copies answers to the same questions from another run, if there are any."""
    lines = read_lines(taken)
    if not path.exists() and lines and lines[0] | {"model": header["model"]} == header:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_lines(path, [header, *lines[1:]])
        say(f"  {path.parent.name}: {len(lines) - 1:,} answers taken from {taken.parent}")


def _resume(path: Path, header: dict[str, Any]) -> tuple[str, int]:
    """What stands in the way of going on, if anything, and how many questions are answered."""
    lines = read_lines(path)
    if not lines:
        path.parent.mkdir(parents=True, exist_ok=True)
        append_lines(path, [header])
        return "", 0
    found = lines[0]
    if found == header:
        return "", len(lines) - 1
    words = {
        "model": "the model or how it is asked",
        "questions": "the questions",
        "max_new_tokens": "max_new_tokens",
    }
    changed = [text for name, text in words.items() if found.get(name) != header[name]]
    before = found.get("files", {})
    for name in sorted(before.keys() | header["files"].keys()):
        then, now = before.get(name, "absent"), header["files"].get(name, "absent")
        if then != now:
            changed.append(f"{name} (SHA-256 {then[:12]} then, {now[:12]} now)")
    return (
        f"{path} has answers from before a change of {', '.join(changed)}; delete the folder "
        f"{path.parent} to ask again, or keep it and choose another output folder",
        0,
    )


def _score(suite: Suite, questions: Questions, who: str, workdir: Workdir, path: Path) -> None:
    """Scores the answers in a file and writes everything; on process 0."""
    lines = read_lines(path)[1:]
    texts = {line["id"]: line["answer"] for line in lines if "answer" in line}
    drops = questions.drops + collections.Counter(x["dropped"] for x in lines if "dropped" in x)
    name = f"{who}: {suite.name}"
    for note in questions.notes:
        say(f"  {name}: {note}")
    if drops:
        say(f"  {name}: {sum(drops.values())} prompts left out: {dict(drops)}")
    if not texts:
        raise DataError(
            f"{name}: none of {len(lines)} questions could be asked ({dict(drops)}); if images are "
            f"missing, check the image folder; then delete {path.parent}"
        )
    answers = [Answer(p, texts.get(p.id, "").strip()) for p in questions.prompts]
    suite.write_answers(path.parent, f"{workdir.path.resolve().name}-{who}", answers)
    kept = [p for p in questions.prompts if p.id in texts]
    result = questions.evaluator(lambda prompts: [texts[p.id] for p in prompts], kept)
    write_records(path.parent.with_name(f"{suite.name}.jsonl"), result.records)
    about = {
        "files": {hide_home(path): digest for path, digest in questions.files.items()},
        "notes": list(questions.notes),
        "left_out": dict(drops),
        "suite": flatten(suite),
    }
    write_summary(path.parent.with_name(f"{suite.name}.json"), result, about)


def read_results(path: Path, who: str, suites: Sequence[Suite]) -> list[EvalResult]:
    """What `evaluate_all` wrote.

    Args:
        path: the work directory.
        who: name of the model.
        suites: which.
    """
    folder = path / "evals" / who
    return [read_result(folder / f"{s.name}.json", folder / f"{s.name}.jsonl") for s in suites]
