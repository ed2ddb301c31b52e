"""Short answers scored by exact match, with the wrong ones split by cause.

What lives here: `ExactAnswer`, the normalisation it applies before comparing, and `Unscored`. What
does not: yes/no questions (`pope.py`), free descriptions (`chair.py`). Read next: `chair.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from typing_extensions import override

from seva_jax.evals.base import Evaluator, Ratio, Record
from seva_jax.types import DataError, Prompt


def normalise(text: str) -> str:
    """Returns the text in lower case without surrounding whitespace and one final dot.

    >>> normalise(" Red. ")
    'red'
    """
    return text.strip().lower().removesuffix(".").rstrip()


@dataclasses.dataclass(frozen=True)
class ExactAnswer(Evaluator):
    """Exact match of short answers; `meta["answer"]` holds the truth.

    Metrics: `accuracy` over all prompts. A prompt is *conflicting* if its `meta["prior"]` (the
    answer that a skewed prior suggests) is neither empty nor the truth. Over conflicting prompts:
    `prior_errors`, the share answered with the prior's answer, and `other_errors`, the share wrong
    in another way; the rest is right. Both are left out if no prompt is conflicting.
    """

    name: str = "exact"

    @override
    def truth(self, prompt: Prompt) -> str:
        answer = prompt.meta.get("answer")
        if not isinstance(answer, str) or not normalise(answer):
            raise DataError(
                f"{self.name}: prompt {prompt.id!r} has no text in meta['answer']; "
                "give the true answer, or leave the prompt out"
            )
        return answer

    @override
    def definitions(self, prompts: Sequence[Prompt]) -> dict[str, Ratio]:
        metrics = {"accuracy": Ratio("higher", ("correct",), ("count",))}
        if any(self._conflicting_prior(prompt) for prompt in prompts):
            metrics["prior_errors"] = Ratio("lower", ("prior_error",), ("conflict",))
            metrics["other_errors"] = Ratio("lower", ("other_error",), ("conflict",))
        return metrics

    @override
    def score(self, prompt: Prompt, answer: str) -> Record:
        """Returns `prior` and the 0/1 fields `correct, conflict, prior_error, other_error`."""
        given = normalise(answer)
        prior = self._conflicting_prior(prompt)
        correct = given == normalise(self.truth(prompt))
        return {
            "prior": prior,
            "correct": int(correct),
            "conflict": int(bool(prior)),
            "prior_error": int(bool(prior) and given == prior),
            "other_error": int(bool(prior) and not correct and given != prior),
        }

    def _conflicting_prior(self, prompt: Prompt) -> str:
        """Returns the prior's answer, normalised; empty if there is none or it is the truth."""
        prior = normalise(str(prompt.meta.get("prior") or ""))
        return "" if prior == normalise(self.truth(prompt)) else prior


@dataclasses.dataclass(frozen=True)
class Unscored(Evaluator):
    """Keeps answers that cannot be scored here. Metric: `length`, words per answer."""

    @override
    def truth(self, prompt: Prompt) -> str:
        """Returns an empty string, because the truth is unknown."""
        return ""

    @override
    def definitions(self, prompts: Sequence[Prompt]) -> dict[str, Ratio]:
        return {"length": Ratio("neither", ("words",), ("count",))}

    @override
    def score(self, prompt: Prompt, answer: str) -> Record:
        return {"words": len(answer.split())}
