"""Answers to a few prompts of the run itself, before and after alignment.

What lives here: the choice of prompts, and asking both models. What does not: evaluations, which
have right answers (`evaluations.py`), and the page that shows these answers (`seva_jax/report`).
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from seva_jax.data.show import spread
from seva_jax.run.outputs import Outputs
from seva_jax.run.rollouts import RECORDS, read_rollouts
from seva_jax.training.step import Variables
from seva_jax.types import Comparison, Prompt

NEW, PICTURE, PAIR = "new", "picture", "pair"
"""What alignment has seen of a prompt: nothing, its picture with another question, or itself."""


def choose_prompts(
    prompts: Sequence[Prompt], trained: Sequence[Comparison], num: int
) -> list[tuple[Prompt, str]]:
    """Returns prompts, evenly spread, each with what alignment has seen of it.

    Those of which it has seen least come first.

    Args:
        prompts: all prompts that can be asked.
        trained: the pairs that alignment was trained on.
        num: how many prompts are wanted.
    """
    views = [view.prompt for pair in trained for view in pair.views]
    ids = {prompt.id for prompt in views}
    asked = {(prompt.question, prompt.images) for prompt in views}
    pictures = {name for prompt in views for name in prompt.images}

    def seen(prompt: Prompt) -> str:
        if prompt.id in ids or (prompt.question, prompt.images) in asked:
            return PAIR
        return PICTURE if pictures.intersection(prompt.images) else NEW

    groups: dict[str, list[Prompt]] = {NEW: [], PICTURE: [], PAIR: []}
    for prompt in prompts:
        groups[seen(prompt)].append(prompt)
    chosen: list[tuple[Prompt, str]] = []
    for kind, of_kind in groups.items():
        chosen += [(of_kind[i], kind) for i in spread(len(of_kind), num - len(chosen))]
    return chosen


def own_answers(
    out: Outputs, trained: Sequence[Comparison], num: int
) -> tuple[list[dict[str, Any]], collections.Counter[str]]:
    """Asks the base and the aligned model a few prompts of the run, greedily, on clean images.

    Both are asked in batches of the same shape: the base's answers in the rollouts come from other
    batches, and rounding alone may change a word there. All processes take part.

    Args:
        out: what the stages have made.
        trained: the pairs that alignment was trained on.
        num: how many prompts are asked; 0 asks none.

    Returns:
        JSON-ready records with `id`, `question`, `images`, `base`, `aligned` and `seen` (`NEW`,
        `PICTURE` or `PAIR`); and how many prompts could not be asked, by reason.
    """
    unanswered = _unanswered(out)
    prompts = [prompt for prompt in out.prompts.prompts if prompt.id not in unanswered]
    chosen = choose_prompts(prompts, trained, num)
    if not chosen:
        return [], collections.Counter()
    asked = [prompt for prompt, _ in chosen]
    base = _answers(out, out.start, asked, "base")
    aligned = _answers(out, out.aligned, asked, "aligned")
    dropped = collections.Counter(aligned[p.id][1] for p in asked if aligned[p.id][1])
    records = [
        {
            "id": prompt.id,
            "question": prompt.question,
            "images": list(prompt.images),
            "base": prompt.start + base[prompt.id][0],
            "aligned": prompt.start + aligned[prompt.id][0],
            "seen": seen,
        }
        for prompt, seen in chosen
        if not aligned[prompt.id][1]
    ]
    return records, dropped


def _unanswered(out: Outputs) -> set[str]:
    """Returns the ids of prompts that the rollouts could not answer, such as broken images."""
    path = out.ctx.workdir.path
    if out.ctx.config.prompts.has_answers or not (path / RECORDS).exists():
        return set()
    return {record["id"] for record in read_rollouts(path) if "dropped" in record}


def _answers(
    out: Outputs, variables: Variables, prompts: Sequence[Prompt], who: str
) -> Mapping[str, tuple[str, str]]:
    """Returns the greedy answer of a model to each prompt, and why there is none, by id."""
    ctx, data = out.ctx, dataclasses.replace(out.prompts, prompts=prompts)
    engine = ctx.engine(variables, out.reference)
    engine = dataclasses.replace(engine, batch_size=min(engine.batch_size, len(prompts)))
    sampling = dataclasses.replace(ctx.config.rollout.sampling, temperature=0.0)
    answers = {}
    with ctx.workdir.bar(f"own prompts: {who}", len(prompts), "prompt") as bar:
        for batch in engine.answer(data, sampling):
            answers |= {
                a.prompt.id: (a.answers[0].strip() if a.answers else "", a.dropped) for a in batch
            }
            bar.update(len(batch))
    return answers
