"""All data that a run reads: its prompts or pairs, the base model's examples, the evaluations.

What lives here: the list, and the ground truth of evaluations. What does not: what is checked of
each example (`seva_jax/data/check.py`). `--strict` and `python -m seva_jax.data check` go through
the list.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

from seva_jax.config import Experiment, TrainedBase
from seva_jax.data import AnsweredPrompts, PromptSet
from seva_jax.evals import Questions, Suite
from seva_jax.evals.suite import open_suite
from seva_jax.text import Template
from seva_jax.types import DataError


class UsedData(NamedTuple):
    """One set of examples that a run reads.

    Attributes:
        name: "prompts", "base" (supervised training of the base model), or an evaluation's name.
        open: reads it.
        template: the template around its texts.
    """

    name: str
    open: Callable[[], PromptSet]
    template: Template

    @property
    def prefix(self) -> str:
        """What messages about its examples begin with; nothing for the run's own prompts."""
        return "" if self.name == "prompts" else f"{self.name}: "


def used_data(config: Experiment) -> Iterator[UsedData]:
    """Yields all data of a run; nothing is read before `UsedData.open` is called."""
    yield UsedData("prompts", config.prompts.open, config.prompt_template)
    if isinstance(config.base, TrainedBase):
        yield UsedData("base", AnsweredPrompts(config.base.prompts).open, config.text.train)
    for suite in config.evals:
        yield UsedData(suite.name, functools.partial(open_suite, suite), config.text.generate)


def open_scorable(suite: Suite) -> Questions:
    """Opens a suite, and reads the ground truth of every question.

    Raises:
        DataError: see `Suite.open`; or a question has no truth, and so could not be scored.
    """
    questions = open_suite(suite)
    if errors := truth_errors(questions):
        more = f" ({len(errors) - 1:,} more questions have such faults)" * (len(errors) > 1)
        raise DataError(f"{errors[0]}{more}")
    return questions


def truth_errors(questions: Questions) -> list[str]:
    """Returns why questions cannot be scored: a message for each, or one about all of them."""
    errors = list[str]()
    for prompt in questions.prompts:
        try:
            questions.evaluator.truth(prompt)
        except DataError as error:
            errors.append(str(error))
    if not errors:
        try:
            questions.evaluator.definitions(questions.prompts)
        except DataError as error:
            errors.append(str(error))
    return errors
