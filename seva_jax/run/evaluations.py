"""Asks a model the questions of suites, and keeps answers, scores and files for other scorers.

Answers are appended to a journal as they arrive, so a killed run continues where it stopped. What a
suite is and how answers are scored is in `seva_jax/evals`; the command is `seva_jax/evaluate.py`.
"""

from __future__ import annotations

import collections
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from seva_jax.config import fingerprint, flatten, suite_source
from seva_jax.evals import (
    Answer,
    EvalResult,
    Questions,
    Suite,
    read_result,
    write_records,
    write_summary,
)
from seva_jax.evals.stored import SUITE_FILE, TRAINED
from seva_jax.inference.rollouts import RolloutEngine
from seva_jax.run.used_data import open_scorable
from seva_jax.run.workdir import Workdir
from seva_jax.runtime.files import read_lines, write_text
from seva_jax.runtime.journal import Journal, Record
from seva_jax.runtime.paths import hide_home
from seva_jax.runtime.processes import barrier, say
from seva_jax.runtime.run_records import read_stages
from seva_jax.text import Sampling
from seva_jax.text.tokenizer import tokenizer_facts
from seva_jax.training.checkpoint import checksum
from seva_jax.types import DataError, ExampleError


def evaluate_all(
    engine: RolloutEngine,
    suites: Sequence[Suite],
    who: str,
    workdir: Workdir,
    earlier: Path | None = None,
    source: str = "",
    run: Path | None = None,
) -> str:
    """Asks every question of every suite and writes the answers and their scores.

    Each suite leaves evals/WHO/NAME.json (numbers), evals/WHO/NAME.jsonl (one record a question)
    and the folder evals/WHO/NAME with the answers, in our format and for other scorers, and with
    the suite itself, so that `stored_evaluations` needs no suite file.

    Args:
        engine: answers with the model.
        suites: what to ask.
        who: name of the model, and of the folder under evals/.
        workdir: where all this is written.
        earlier: evals/WHO of another run whose model is this one and was asked in the same way;
            its answers to the same questions are taken.
        source: what the model was read from, for readers of the results; empty if it is one of the
            run's own.
        run: work directory of the run whose model it is; None is where all this is written.

    Returns:
        A one-line summary.

    Raises:
        DataError: see `Suite.open`; or the answers in the folder belong to other questions or
            another model.
    """
    model = fingerprint(
        checksum(engine.variables), engine.encoder.template, engine.encoder.max_length,
        *tokenizer_facts(engine.encoder.tokenizer), engine.processing, engine.cache,
    )  # fmt: skip
    trained = ""
    if workdir.writes and who == "aligned":
        trained = read_stages(run or workdir.path).get("align", {}).get("fingerprint", "")
    num = 0
    for order, suite in enumerate(suites):
        questions = open_scorable(suite)
        header = {"model": model} | _asked(suite, questions)
        journal = Journal(_answers_to(suite, who, workdir.path), header)
        if earlier:
            _take(earlier / suite.name / journal.path.name, journal)
        _ask(engine, suite, questions, who, workdir, journal)
        num += len(questions.prompts)
        if workdir.writes:
            about = {"model": model, "order": order}
            about |= {TRAINED: trained} if trained else {}
            about |= {"source": hide_home(source)} if source else {}
            _score(suite, questions, who, workdir, journal, about)
        barrier(f"evals {who} {suite.name}")
    return f"{num:,} questions"


def require_askable(suites: Sequence[Suite], labels: Sequence[str], path: Path) -> None:
    """Checks what can be known before a model is loaded: files, truths, images, earlier answers.

    On process 0 only; the folder must be claimed.

    Args:
        suites: what will be asked.
        labels: labels of the models.
        path: holds the folder evals/.

    Raises:
        DataError: see `Suite.open`; a question has no truth; no image of the questions can be read,
            and some are not answered yet; or there are answers to other questions.
    """
    for suite in suites:
        questions = open_scorable(suite)
        missing = False
        for label in labels:
            journal = Journal(_answers_to(suite, label, path), _asked(suite, questions))
            lines = read_lines(journal.path)
            if lines and {k: lines[0].get(k) for k in journal.header or {}} != journal.header:
                raise DataError(_refusal(journal, lines[0]))
            missing |= len(lines) <= len(questions.prompts)
        if missing:
            _require_images(suite, questions)


def _require_images(suite: Suite, questions: Questions) -> None:
    first = None
    for prompt in questions.prompts:
        try:
            for name in prompt.images:
                questions.load_image(name)
            return
        except ExampleError as error:
            first = first or error
    raise DataError(
        f"{suite.name}: no image of its {len(questions.prompts):,} questions can be read (the "
        f"first: {first}); give the folder of the images: the suite's image_root, or --image-root "
        "with --questions"
    )


def _answers_to(suite: Suite, who: str, path: Path) -> Path:
    return path / "evals" / who / suite.name / "asked.jsonl"


def _asked(suite: Suite, questions: Questions) -> Record:
    """Returns what must be the same for answers to be used again, whoever gave them."""
    asked = [[p.id, p.question, list(p.images)] for p in questions.prompts]
    return {
        "questions": hashlib.sha256(json.dumps(asked).encode()).hexdigest(),
        "max_new_tokens": suite.max_new_tokens,
        "files": {hide_home(path): digest for path, digest in questions.files.items()},
    }


def _ask(
    engine: RolloutEngine,
    suite: Suite,
    questions: Questions,
    who: str,
    workdir: Workdir,
    journal: Journal,
) -> None:
    """Asks the questions that are not answered yet."""
    start = len(journal.resume(lambda there: _refusal(journal, there)))
    sampling = Sampling(max_new_tokens=suite.max_new_tokens)
    with workdir.bar(f"{who}: {suite.name}", len(questions.prompts), "prompt", start) as bar:
        if start == len(questions.prompts):
            return
        for batch in engine.answer(questions, sampling, start=start):
            journal.append(
                {"id": a.prompt.id}
                | ({"dropped": a.dropped} if a.dropped else {"answer": a.answers[0]})
                for a in batch
            )
            bar.update(len(batch))


def _take(taken: Path, journal: Journal) -> None:
    """Copies answers to the same questions from another run, if there are any."""
    header = journal.header
    if jax.process_index() or header is None or journal.path.exists():
        return
    lines = read_lines(taken)
    if lines and lines[0] | {"model": header["model"]} == header:
        journal.begin(lines[1:])
        name = journal.path.parent.name
        say(f"  {name}: {len(lines) - 1:,} answers taken from {taken.parent}")


def _refusal(journal: Journal, there: Record) -> str:
    """Returns why the answers behind another header are neither used nor discarded."""
    header = dict(journal.header or {})
    words = {
        "model": "the model or how it is asked",
        "questions": "the questions",
        "max_new_tokens": "max_new_tokens",
    }
    changed = [words[x] for x in words if x in header and there.get(x) != header[x]]
    before = there.get("files", {})
    for name in sorted(before.keys() | header["files"].keys()):
        then, now = before.get(name, "absent"), header["files"].get(name, "absent")
        if then != now:
            changed.append(f"{name} (SHA-256 {then[:12]} then, {now[:12]} now)")
    folder = journal.path.parent
    return (
        f"{journal.path} has answers from before a change of {', '.join(changed)}; delete the "
        f"folder {folder} to ask again, or keep it and choose another output folder"
    )


def _score(
    suite: Suite,
    questions: Questions,
    who: str,
    workdir: Workdir,
    journal: Journal,
    about: Mapping[str, Any],
) -> None:
    """Scores the answers in a journal and writes everything, on process 0."""
    lines, folder = journal.read(), journal.path.parent
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
            f"missing, check the image folder; then delete {folder}"
        )
    answers = [Answer(p, texts.get(p.id, "").strip()) for p in questions.prompts]
    suite.write_answers(folder, f"{workdir.path.resolve().name}-{who}", answers)
    write_text(folder / SUITE_FILE, suite_source(suite))
    kept = [p for p in questions.prompts if p.id in texts]
    result = questions.evaluator(lambda prompts: [texts[p.id] for p in prompts], kept)
    write_records(folder.with_name(f"{suite.name}.jsonl"), result.records)
    recorded = {
        "files": {hide_home(path): digest for path, digest in questions.files.items()},
        "notes": list(questions.notes),
        "left_out": dict(drops),
        "suite": flatten(suite),
        **about,
    }
    write_summary(folder.with_name(f"{suite.name}.json"), result, recorded)


def left_by_evaluations(who: str, suites: Sequence[Suite]) -> tuple[list[str], list[str]]:
    """Returns the files of results of suites, and the folders with their answers.

    Args:
        who: name of the model.
        suites: what it was asked.
    """
    folders = [f"evals/{who}/{suite.name}" for suite in suites]
    return [f"{folder}.{end}" for folder in folders for end in ("jsonl", "json")], folders


def read_results(path: Path, who: str, suites: Sequence[Suite]) -> list[EvalResult]:
    """Reads what `evaluate_all` wrote.

    Args:
        path: the work directory.
        who: name of the model.
        suites: the suites wanted.
    """
    folder = path / "evals" / who
    return [read_result(folder / f"{s.name}.json", folder / f"{s.name}.jsonl") for s in suites]
