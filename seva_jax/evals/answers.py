"""Answer files for the scorers of other projects.

What lives here: the file formats of LLaVA's scripts, VLMEvalKit and lmms-eval. What does not:
formats of a single benchmark, which its own module in `suites/` writes. Read next: `suite.py`,
which calls these functions.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from seva_jax.evals.files import write_records
from seva_jax.runtime.files import write_json, write_text
from seva_jax.types import Prompt

LETTERS = "ABCDEFGHIJ"


class Answer(NamedTuple):
    """The answer to one question.

    Attributes:
        prompt: the question. Writers use these fields of its `meta`: `question_id`; `asked`, the
            question as scorers expect it in the answer file, if it differs from what the model
            saw; `options`, the texts of options A, B, ...; `index` and `plain_question`, which
            tables show instead of the row number and the whole prompt.
        text: the model's answer, without surrounding whitespace.
    """

    prompt: Prompt
    text: str

    @property
    def question_id(self) -> Any:
        """The question's id in the benchmark."""
        return self.prompt.meta.get("question_id", self.prompt.id)

    @property
    def asked(self) -> str:
        """The question as scorers expect it in the answer file."""
        return self.prompt.meta.get("asked", self.prompt.question)


def llava_line(answer: Answer, model_id: str, **more: Any) -> dict[str, Any]:
    """Returns one line of LLaVA's answer files.

    Args:
        answer: the answer.
        model_id: names the model.
        more: further fields, which come after `prompt` and `text`.

    Returns:
        `question_id, prompt, text, answer_id, model_id, metadata`. `answer_id` is a hash of the
        model's name and the question, so the same run always writes the same file.
    """
    key = json.dumps([model_id, answer.prompt.id]).encode()
    return {
        "question_id": answer.question_id,
        "prompt": answer.asked,
        "text": answer.text,
        **more,
        "answer_id": hashlib.sha256(key).hexdigest()[:22],
        "model_id": model_id,
        "metadata": {},
    }


def write_llava(path: Path, model_id: str, answers: Sequence[Answer]) -> None:
    """Writes LLaVA's answer file in the given order, because some scorers align by order."""
    write_records(path, (llava_line(answer, model_id) for answer in answers))


def write_lmms_log(path: Path, task: str, model_id: str, answers: Sequence[Answer]) -> None:
    """Writes a log from which lmms-eval's model `from_log` takes its answers.

    `doc_id` is the index of the question among those asked, from 0. lmms-eval looks it up in its
    own data set, so both must have the same order.
    """
    logs = [{"doc_id": i, "resps": [[answer.text]]} for i, answer in enumerate(answers)]
    # from_log skips files in which `limit` is not null.
    args = {"model": model_id, "model_args": "", "limit": None}
    write_json(path, {"args": args, "model_configs": {"task": task}, "logs": logs})


def write_tsv(
    path: Path, answers: Sequence[Answer], columns: Callable[[Prompt], Mapping[str, str]]
) -> None:
    """Writes a table for VLMEvalKit (with PRED_FORMAT=tsv) and for pandas' `read_table`.

    Its columns are `index, question`, one for each letter that occurs as an option, those that
    `columns` adds, and `prediction`.

    Args:
        path: the file.
        answers: one row each.
        columns: returns the additional cells of a question's row, by column.
    """
    letters = LETTERS[: max((len(a.prompt.meta.get("options", ())) for a in answers), default=0)]
    known = [columns(answer.prompt) for answer in answers]
    optional = dict.fromkeys(name for cells in known for name in cells)
    header = ["index", "question", *letters, *optional, "prediction"]
    file = io.StringIO(newline="")
    table = csv.DictWriter(file, header, dialect="excel-tab", lineterminator="\n")
    table.writeheader()
    for number, (answer, cells) in enumerate(zip(answers, known, strict=True)):
        meta = answer.prompt.meta
        question = meta.get("plain_question", answer.prompt.question)
        options = zip(letters, meta.get("options", ()), strict=False)
        row = {"index": meta.get("index", number), "question": question, "prediction": answer.text}
        table.writerow({**row, **dict(options), **cells})
    write_text(path, file.getvalue())
