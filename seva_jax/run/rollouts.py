"""The rollouts of a run: JSON lines while they arrive, then ArrayRecord with an index for people.

What lives here: the stage, and its files. What does not: answering prompts
(`seva_jax/inference/rollouts.py`), a rollout as JSON (`seva_jax/data/json_records.py`).

A process that may be killed can append to `rollouts.jsonl`. When all prompts are answered,
`rollouts.array_record` (which checks its own hashes) takes its place, and `rollouts.json` describes
what is in it.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seva_jax.data import PromptSet
from seva_jax.data.json_records import rollout_record
from seva_jax.inference.rollouts import RolloutEngine
from seva_jax.run.context import RunContext
from seva_jax.runtime import files
from seva_jax.runtime.journal import Journal
from seva_jax.runtime.processes import say
from seva_jax.types import Rollout

LINES, RECORDS, INDEX = "rollouts.jsonl", "rollouts.array_record", "rollouts.json"


def roll_out(ctx: RunContext, data: PromptSet, engine: RolloutEngine) -> None:
    """Answers every prompt on its clean image and on every corrupted copy.

    Args:
        ctx: the run.
        data: the prompts.
        engine: answers with the policy before alignment.
    """
    config, journal = ctx.config, Journal(ctx.workdir.path / LINES)
    num_done = len(journal.resume())
    prefills = engine.prefills(data, config.corrupt)
    say(f"rollouts: {prefills}")
    batches = engine.answer(data, config.rollout.sampling, config.corrupt, num_done, prefills)
    with ctx.workdir.bar("rollouts", len(data.prompts), "prompt", num_done) as bar:
        for batch in batches:
            journal.append(
                rollout_record(Rollout(a.prompt, a.answers[0], a.answers[1:]))
                if not a.dropped
                else {"id": a.prompt.id, "dropped": a.dropped}
                for a in batch
            )
            bar.update(len(batch))
    if ctx.workdir.writes:
        write_rollouts(ctx.workdir.path, journal.read(), list(map(repr, config.corrupt)))


def read_rollouts(directory: Path) -> list[dict[str, Any]]:
    """Reads all records of a finished stage, including those of dropped prompts.

    Reads the lines where a run has kept only these.

    Raises:
        DataError: the file is missing or damaged.
    """
    if not (directory / RECORDS).exists() and (directory / LINES).exists():
        return Journal(directory / LINES).read()
    return files.read_records(directory / RECORDS)


def write_rollouts(
    directory: Path, records: Sequence[dict[str, Any]], corruptions: Sequence[str]
) -> None:
    """Writes records and index of a finished stage.

    Args:
        directory: the work directory.
        records: see `rollout_record`; {"id", "dropped"} for a prompt that was not answered.
        corruptions: a description of each, in the order of the answers.
    """
    files.write_records(directory / RECORDS, records)
    answered = [r for r in records if "dropped" not in r]
    index = {
        "prompts": len(records),
        "answered": len(answered),
        "drops": dict(collections.Counter(r["dropped"] for r in records if "dropped" in r)),
        "clean": _answers([r["clean"] for r in answered]),
        "corrupted": [
            {"corruption": name}
            | _answers([r["corrupted"][i] for r in answered])
            | {"equal to clean": sum(r["corrupted"][i] == r["clean"] for r in answered)}
            for i, name in enumerate(corruptions)
        ],
    }
    files.write_json(directory / INDEX, index)


def _answers(texts: Sequence[str]) -> dict[str, Any]:
    """Returns how long answers are, in words, and how many differ."""
    words = [len(text.split()) for text in texts] or [0]
    low, middle, high = np.percentile(words, (0, 50, 100)).tolist()
    return {
        "different answers": len(set(texts)),
        "empty": sum(not text.strip() for text in texts),
        "words": {"least": low, "median": middle, "most": high},
    }
