"""Answer files that other people's scorers read.

What lives here: the layouts of LLaVA's scripts, VLMEvalKit and lmms-eval. What does not: layouts
of a single benchmark, which stand beside it in `suites/`. Read next: `suite.py`, which calls them.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from seva_jax.runtime.files import write_json
from seva_jax.types import Prompt

LETTERS = "ABCDEFGHIJ"


class Answer(NamedTuple):
    """One answer.

    Attributes:
        prompt: the question. Writers know these fields of its `meta`: `question_id`; `asked`, the
            question in the words that scorers expect to find beside the answer, where they differ
            from those the model saw; `options`, the texts of options A, B, ...; `index` and
            `plain_question`, what tables show instead of the running number and the whole prompt.
        text: what the model said, without blanks around it.
    """

    prompt: Prompt
    text: str

    @property
    def question_id(self) -> Any:
        """The benchmark's own id of the question."""
        return self.prompt.meta.get("question_id", self.prompt.id)

    @property
    def asked(self) -> str:
        """The question as scorers expect it."""
        return self.prompt.meta.get("asked", self.prompt.question)


def llava_line(answer: Answer, model_id: str, **more: Any) -> dict[str, Any]:
    """One line of LLaVA's answers files.

    Args:
        answer: the answer.
        model_id: the model.
        more: fields that come after `prompt` and `text`.

    Returns:
        `question_id, prompt, text, answer_id, model_id, metadata`. `answer_id` is a hash of the
        model and the question, so that the same run writes the same file.
    """
    unique = json.dumps([model_id, answer.prompt.id]).encode()
    return {
        "question_id": answer.question_id,
        "prompt": answer.asked,
        "text": answer.text,
        **more,
        "answer_id": hashlib.sha256(unique).hexdigest()[:22],
        "model_id": model_id,
        "metadata": {},
    }


def write_llava(path: Path, model_id: str, answers: Sequence[Answer]) -> None:
    """Writes LLaVA's answers file, in the order of the answers: some scorers align by order."""
    write_lines(path, (llava_line(answer, model_id) for answer in answers))


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Writes JSON lines."""
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")


def write_lmms_log(path: Path, task: str, model_id: str, answers: Sequence[Answer]) -> None:
    """Writes what lmms-eval's model `from_log` takes its answers from.

    `doc_id` is the place of the question among those asked, from 0. lmms-eval takes it as the
    place in its own data set: the two must have one order.
    """
    logs = [{"doc_id": i, "resps": [[answer.text]]} for i, answer in enumerate(answers)]
    # A limit other than null makes from_log skip the file.
    args = {"model": model_id, "model_args": "", "limit": None}
    write_json(path, {"args": args, "model_configs": {"task": task}, "logs": logs})


def write_tsv(
    path: Path, answers: Sequence[Answer], columns: Callable[[Prompt], Mapping[str, str]]
) -> None:
    """Writes a table as VLMEvalKit reads it with PRED_FORMAT=tsv, and pandas' `read_table`.

    Args:
        path: the file.
        answers: its lines.
        columns: what a question's line holds besides `index, question`, one column for each
            letter that occurs as an option, and `prediction`.
    """
    letters = LETTERS[: max((len(a.prompt.meta.get("options", ())) for a in answers), default=0)]
    known = [columns(answer.prompt) for answer in answers]
    optional = list(dict.fromkeys(name for cells in known for name in cells))
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, dialect="excel-tab", lineterminator="\n")
        table.writerow(["index", "question", *letters, *optional, "prediction"])
        for number, (answer, cells) in enumerate(zip(answers, known, strict=True)):
            meta = answer.prompt.meta
            options = meta.get("options", [])
            table.writerow(
                [
                    meta.get("index", number),
                    meta.get("plain_question", answer.prompt.question),
                    *(options[i] if i < len(options) else "" for i in range(len(letters))),
                    *(cells.get(name, "") for name in optional),
                    answer.text,
                ]
            )
