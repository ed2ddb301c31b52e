"""What LLaVA's scorers read from 40,000 made-up answers, next to what we read.

Installed as the first lines of `scorers.py` say, then:

    python tests/scorers_parsing.py ../theirs

`scorers.py` compares scores of likely answers. This compares single answers, most of them odd:
letters in every setting for ScienceQA; contractions, number words, punctuation and blanks for
TextVQA; dots and capitals for GQA. Each has a line; the status is 0 if nothing differs.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scorers import _llava, _without_init

from seva_jax.evals.answers import LETTERS
from seva_jax.evals.choice import ScienceParser
from seva_jax.evals.suites.short_answers import gqa_prediction
from seva_jax.evals.vqa import clean

NUM = 40_000
OPTIONS = ["cat", "dog", "ram"]
_LETTERS = """
A B C D E F a b I . , : ; ( ) [ ] (A) (B). A. B) C: answer Option cat dog
The_answer_is The_answer_is_B. The_answer_is_C A_dog Answer:_A
"""
_WORDS = """
the A an two Ten none zero couldnt couldn'tve dont it's its yall y'all'dve somebody'd Let's 'ow'sat
cat's 1,000 3.5 .5 5. ... - -- / a/b (x) 100% $5 #1 12:30 e.g. u.s.a. ? ! x!y ' '' s's 'S ` @ \\_a
[ ] {} \\ + = <b> ß
"""
_PIECES = {
    "letters": [piece.replace("_", " ") for piece in _LETTERS.split()] + ["\n"],
    "words": [*_WORDS.split(), "_a_", "\n", "\t"],
}


def made_up(kind: str, num: int = NUM) -> list[str]:
    """Returns answers put together from pieces at random."""
    rng = random.Random(kind)
    texts = []
    for _ in range(num):
        pieces = rng.choices(_PIECES[kind], k=rng.randint(0, 6))
        texts.append("".join(p + rng.choice(["", " ", " ", "  "]) for p in pieces).strip())
    return texts


def textvqa(theirs: Path, answers: Sequence[str]) -> list[str]:
    """Returns what m4c_evaluator.py makes of answers before it compares them."""
    _without_init(theirs, "llava")
    module: Any = importlib.import_module("llava.eval.m4c_evaluator")
    return list(map(module.EvalAIAnswerProcessor(), answers))


def gqa(theirs: Path, answers: Sequence[str]) -> list[str]:
    """Returns the predictions that convert_gqa_for_eval.py writes."""
    with tempfile.TemporaryDirectory() as folder:
        src, dst = Path(folder) / "answers.jsonl", Path(folder) / "gqa.json"
        _write(src, answers)
        _llava(theirs / "LLaVA/scripts/convert_gqa_for_eval.py", src=src, dst=dst)
        return [line["prediction"] for line in json.loads(dst.read_text())]


def scienceqa(theirs: Path, answers: Sequence[str]) -> list[str]:
    """Returns the letters that eval_science_qa.py reads."""
    with tempfile.TemporaryDirectory() as folder:
        path, ids = Path(folder), list(map(str, range(len(answers))))
        problems = {id_: {"choices": OPTIONS, "answer": 0} for id_ in ids}
        (path / "problems.json").write_text(json.dumps(problems))
        (path / "pid_splits.json").write_text(json.dumps({"test": ids}))
        _write(path / "answers.jsonl", answers)
        _llava(
            theirs / "llava/eval/eval_science_qa.py",
            base_dir=path,
            result_file=path / "answers.jsonl",
            output_file=path / "out",
            output_result=path / "result",
        )
        read = json.loads((path / "result").read_text())["results"]
        return [LETTERS[read[id_]] if read[id_] >= 0 else "" for id_ in ids]


PARSERS: tuple[tuple[str, str, Callable[..., list[str]], Callable[[str], str]], ...] = (
    ("TextVQA", "words", textvqa, clean),
    ("GQA", "words", gqa, gqa_prediction),
    ("ScienceQA", "letters", scienceqa, lambda text: ScienceParser()(text, OPTIONS)),
)
"""Names, made-up answers, their parser and ours."""


def _write(path: Path, answers: Sequence[str]) -> None:
    lines = ({"question_id": str(i), "prompt": "<image>", "text": t} for i, t in enumerate(answers))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("theirs", type=Path, help="the folder their packages were installed into")
    theirs, total = parser.parse_args().theirs.resolve(), 0
    for name, kind, read, ours in PARSERS:
        answers = made_up(kind)
        pairs = zip(answers, read(theirs, answers), map(ours, answers), strict=True)
        different = [(text, one, other) for text, one, other in pairs if one != other]
        total += len(different)
        print(
            f"{name}: {len(different):,} of {len(answers):,} made-up answers are read differently"
        )
        for text, one, other in different[:5]:
            print(f"  {text!r}: theirs {one!r}, ours {other!r}")
    return int(total > 0)


if __name__ == "__main__":
    sys.exit(main())
