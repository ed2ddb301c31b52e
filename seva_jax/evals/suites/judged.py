"""MM-Vet and LLaVA-Bench (in the wild): free answers scored by a judge.

What lives here: reading their files, what our judge is told, and the answer files of their own
scorers. The instructions are ours: numbers of another judge or another wording are other numbers.
Without a judge the answers are written and nothing is scored. Read next: `described.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from seva_jax.evals.answers import Answer
from seva_jax.evals.base import Evaluator, Ratio, Record
from seva_jax.evals.exact import Unscored
from seva_jax.evals.files import read_json_lines
from seva_jax.evals.judge import Judge, Judged, Verdict
from seva_jax.evals.suite import Benchmark, Questions, read_json, require
from seva_jax.runtime.files import write_json
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
    """Stands for no judge: nothing is scored."""


@dataclasses.dataclass(frozen=True)
class MMVet(Benchmark):
    """MM-Vet: open questions that need several capabilities together.

    Metrics with a judge: `score` (0 to 1; published tables show it times 100), for every
    capability too. Answer file: `mm-vet.json`, `{"v1_0": text}`, for MM-Vet's own evaluator.

    Attributes:
        path: mm-vet.json of mm-vet.zip.
        judge: who scores.
        instructions: what the judge is told.
    """

    name: str = "mm-vet"
    path: str = ""
    judge: Judge = NoJudge()
    instructions: str = MM_VET_INSTRUCTIONS
    vlmeval_dataset: str = dataclasses.field(default="MMVet", kw_only=True)
    max_new_tokens: int = dataclasses.field(default=1024, kw_only=True)

    def open(self) -> Questions:
        """See `Suite.open`."""
        prompts = []
        for id_, record in read_json(self.path, dict).items():
            where = f"{self.path}, question {id_}"
            number = id_.removeprefix("v1_")
            if number == id_ or not number.isdecimal():
                raise DataError(f"{where}: ids have the form v1_0, v1_1, ...; check the file")
            meta = {
                "question_id": int(number),
                "answer": require(where, record, "answer"),
                "reference": require(where, record, "answer"),
                "capability": require(where, record, "capability", list),
            }
            question = require(where, record, "question") + self.suffix
            prompts.append(Prompt(id_, question, (require(where, record, "imagename"),), meta))
        evaluator = scored_if_judged(
            Judged(self.name, self.judge, self.instructions, 0.0, 1.0, ("capability",))
        )
        return self.questions(prompts, evaluator, [self.path])

    def write_answers(self, folder: Path, model_id: str, answers: Sequence[Answer]) -> None:
        """See `Suite.write_answers`."""
        super().write_answers(folder, model_id, answers)
        write_json(folder / "mm-vet.json", {f"v1_{a.question_id}": a.text for a in answers})

    def columns(self, prompt: Prompt) -> dict[str, str]:
        """VLMEvalKit calls the capabilities together a category."""
        return super().columns(prompt) | {"category": ",".join(prompt.meta["capability"])}


@dataclasses.dataclass(frozen=True)
class AgainstReference(Judged):
    """The model's score as a share of the score of a reference answer, `meta["rival"]`."""

    def ratio(self) -> Ratio:
        """Sum of the model's scores over the sum of the reference answers' scores."""
        return Ratio("higher", ("score",), ("rival_score",))

    def answers(self, prompt: Prompt, answer: str) -> tuple[str, ...]:
        """The reference answer first, as LLaVA-Bench has it."""
        return (prompt.meta["rival"], answer.strip())

    def record(self, verdict: Verdict) -> Record:
        """Both scores."""
        return {"rival_score": verdict.scores[0], "score": verdict.scores[1]}


@dataclasses.dataclass(frozen=True)
class LlavaBench(Benchmark):
    """LLaVA-Bench (in the wild): 60 questions; a judge scores GPT-4's text-only answer and ours.

    Metrics with a judge: `score`, our scores over GPT-4's (published tables show it times 100),
    also by category. Answer file: `answers.jsonl` in the order of the questions, which LLaVA's
    review script pairs line by line.

    Attributes:
        folder: of llava-bench-in-the-wild, with questions.jsonl, context.jsonl and
            answers_gpt4.jsonl.
        judge: who scores.
        instructions: what the judge is told.
    """

    name: str = "llava-bench"
    folder: str = ""
    judge: Judge = NoJudge()
    instructions: str = LLAVA_BENCH_INSTRUCTIONS
    vlmeval_dataset: str = dataclasses.field(default="LLaVABench", kw_only=True)
    max_new_tokens: int = dataclasses.field(default=1024, kw_only=True)

    def open(self) -> Questions:
        """See `Suite.open`."""
        files = [
            str(Path(self.folder) / f"{name}.jsonl")
            for name in ("questions", "context", "answers_gpt4")
        ]
        contexts = {}
        for number, line in read_json_lines(files[1]):
            where = f"{files[1]}, line {number}"
            caption = require(where, line, "caption", (str, list))
            text = caption if isinstance(caption, str) else "\n".join(map(str, caption))
            contexts[require(where, line, "image")] = text
        rivals = {
            line.get("question_id"): require(f"{files[2]}, line {number}", line, "text")
            for number, line in read_json_lines(files[2])
        }
        prompts = []
        for number, line in read_json_lines(files[0]):
            where = f"{files[0]}, line {number}"
            id_, image = (
                require(where, line, "question_id", (int, str)),
                require(where, line, "image"),
            )
            if image not in contexts or id_ not in rivals:
                raise DataError(
                    f"{where}: question {id_} on {image} has no line in context.jsonl or "
                    "answers_gpt4.jsonl; take the files of one version"
                )
            meta = {
                "question_id": id_,
                "category": require(where, line, "category"),
                "reference": contexts[image],
                "rival": rivals[id_],
            }
            prompts.append(
                Prompt(str(id_), require(where, line, "text") + self.suffix, (image,), meta)
            )
        evaluator = scored_if_judged(
            AgainstReference(self.name, self.judge, self.instructions, 1.0, 10.0, ("category",))
        )
        return self.questions(prompts, evaluator, files)

    def columns(self, prompt: Prompt) -> dict[str, str]:
        """VLMEvalKit's judge reads the description of the image and GPT-4's answer here."""
        more = {"caption": prompt.meta["reference"], "gpt4_ans": prompt.meta["rival"]}
        return super().columns(prompt) | more


def scored_if_judged(judged: Judged) -> Evaluator:
    """The evaluator, or one that scores nothing where there is no judge."""
    return Unscored(judged.name) if isinstance(judged.judge, NoJudge) else judged
