"""MM-Vet and LLaVA-Bench (in the wild): free answers scored by a judge.

What lives here: reading their files, the instructions for the judge, and writing answer files for
their own scorers. What does not: judges (`seva_jax/evals/judge.py`). The instructions are ours, and
scores are comparable only under the same judge and the same wording. Without a judge the answers
are written but not scored. Read next: `described.py`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from typing_extensions import override

from seva_jax.evals.answers import Answer
from seva_jax.evals.base import Evaluator, Ratio, Record
from seva_jax.evals.exact import Unscored
from seva_jax.evals.files import read_json, read_objects
from seva_jax.evals.judge import Judge, Judged, Verdict
from seva_jax.evals.suite import Benchmark, Questions, require
from seva_jax.ranges import FROM_1
from seva_jax.runtime.files import write_json
from seva_jax.runtime.stores import as_path
from seva_jax.types import DataError, Prompt

MM_VET_INSTRUCTIONS = """\
Somebody was asked a question about an image that you cannot see. The reference is a correct answer.
Where it says <AND>, every part is needed; where it says <OR>, any one part will do. Score how much
of what the reference requires is in the answer and right: 1 for all of it, 0 for nothing or a wrong
answer, tenths between. Ignore style, length and true details beyond the reference."""

LLAVA_BENCH_INSTRUCTIONS = """\
Two assistants answered the same question about an image that you cannot see. The reference says
what is in the image. Score each answer by how helpful, relevant, correct and detailed it is, 10
being best. Statements that contradict the reference weigh heavily. Do not favour an answer for its
position or its length."""


@dataclasses.dataclass(frozen=True)
class NoJudge(Judge):
    """No judge: answers are written but not scored."""


@dataclasses.dataclass(frozen=True)
class MMVet(Benchmark):
    """MM-Vet: open questions that need several capabilities together.

    Metric with a judge: `score` (0 to 1; published tables show it times 100), over all questions
    and within every capability. Answer file: `mm-vet.json`, `{"v1_0": text}`, for MM-Vet's own
    evaluator.

    Attributes:
        path: mm-vet.json of mm-vet.zip.
        judge: scores the answers; by default they are only written.
        instructions: tells the judge how to score.
    """

    name: str = "mm-vet"
    path: str = ""
    judge: Judge = NoJudge()
    instructions: str = MM_VET_INSTRUCTIONS
    vlmeval_dataset: str = dataclasses.field(default="MMVet", kw_only=True)
    max_new_tokens: Annotated[int, FROM_1] = dataclasses.field(default=1024, kw_only=True)

    @override
    def open(self) -> Questions:
        prompts = []
        for id_, record in read_json(self.path, dict).items():
            where = f"{self.path}, question {id_}"
            number = id_.removeprefix("v1_")
            if number == id_ or not number.isdecimal():
                raise DataError(f"{where}: ids have the form v1_0, v1_1, ...; check the file")
            field = functools.partial(require, where, record)
            answer = field("answer")
            meta = {"question_id": int(number), "answer": answer, "reference": answer}
            meta["capability"] = field("capability", list)
            question, image = field("question") + self.suffix, field("imagename")
            prompts.append(Prompt(id_, question, (image,), meta))
        judged = Judged(self.name, self.judge, self.instructions, by=("capability",))
        return self.questions(prompts, scored_if_judged(judged), [self.path])

    @override
    def write_answers(self, folder: Path, model_id: str, answers: Sequence[Answer]) -> None:
        super().write_answers(folder, model_id, answers)
        write_json(folder / "mm-vet.json", {f"v1_{a.question_id}": a.text for a in answers})

    @override
    def columns(self, prompt: Prompt) -> dict[str, str]:
        """Adds the capabilities, which VLMEvalKit calls a category."""
        return super().columns(prompt) | {"category": ",".join(prompt.meta["capability"])}


@dataclasses.dataclass(frozen=True)
class AgainstReference(Judged):
    """The model's score relative to that of a reference answer, `meta["rival"]`."""

    @override
    def ratio(self) -> Ratio:
        """Returns the sum of the model's scores over the sum of the reference answers' scores."""
        return Ratio("higher", ("score",), ("rival_score",))

    @override
    def answers(self, prompt: Prompt, answer: str) -> tuple[str, ...]:
        """Returns the reference answer first, as in LLaVA-Bench, then the model's."""
        return (prompt.meta["rival"], answer.strip())

    @override
    def record(self, verdict: Verdict) -> Record:
        return {"rival_score": verdict.scores[0], "score": verdict.scores[1]}


@dataclasses.dataclass(frozen=True)
class LlavaBench(Benchmark):
    """LLaVA-Bench (in the wild): 60 questions; a judge compares answers with those of GPT-4.

    Metric with a judge: `score`, the sum of the model's scores over that of text-only GPT-4's
    (published tables show it times 100), over all questions and by category. Answer file:
    `answers.jsonl` in the order of the questions, because LLaVA's review script pairs lines.

    Attributes:
        folder: the folder llava-bench-in-the-wild, with questions.jsonl, context.jsonl and
            answers_gpt4.jsonl.
        judge: scores the answers; by default they are only written.
        instructions: tells the judge how to score.
    """

    name: str = "llava-bench"
    folder: str = ""
    judge: Judge = NoJudge()
    instructions: str = LLAVA_BENCH_INSTRUCTIONS
    vlmeval_dataset: str = dataclasses.field(default="LLaVABench", kw_only=True)
    max_new_tokens: Annotated[int, FROM_1] = dataclasses.field(default=1024, kw_only=True)

    @override
    def open(self) -> Questions:
        names = ("questions", "context", "answers_gpt4")
        files = [str(as_path(self.folder) / f"{name}.jsonl") for name in names]
        asked, described, answered = files
        contexts = {}
        for where, line in read_objects(described):
            caption = require(where, line, "caption", (str, list))
            text = caption if isinstance(caption, str) else "\n".join(map(str, caption))
            contexts[require(where, line, "image")] = text
        rivals = {
            line.get("question_id"): require(where, line, "text")
            for where, line in read_objects(answered)
        }
        prompts = []
        for where, line in read_objects(asked):
            id_ = require(where, line, "question_id", (int, str))
            image = require(where, line, "image")
            if image not in contexts or id_ not in rivals:
                raise DataError(
                    f"{where}: question {id_} on {image} has no line in context.jsonl or "
                    "answers_gpt4.jsonl; use files of the same version"
                )
            meta = {
                "question_id": id_,
                "category": require(where, line, "category"),
                "reference": contexts[image],
                "rival": rivals[id_],
            }
            question = require(where, line, "text") + self.suffix
            prompts.append(Prompt(str(id_), question, (image,), meta))
        judged = AgainstReference(
            self.name, self.judge, self.instructions, low=1.0, high=10.0, by=("category",)
        )
        return self.questions(prompts, scored_if_judged(judged), files)

    @override
    def columns(self, prompt: Prompt) -> dict[str, str]:
        """Adds what VLMEvalKit's judge reads: the description of the image and GPT-4's answer."""
        more = {"caption": prompt.meta["reference"], "gpt4_ans": prompt.meta["rival"]}
        return super().columns(prompt) | more


def scored_if_judged(judged: Judged) -> Evaluator:
    """Returns the evaluator, or one that scores nothing if there is no judge."""
    return Unscored(judged.name) if isinstance(judged.judge, NoJudge) else judged
