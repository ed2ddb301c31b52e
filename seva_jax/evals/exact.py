"""Short answers scored by exact match, with the wrong ones split by cause.

What lives here: `ExactAnswer`, the light normalisation it compares under, and `Unscored`. What does
not:
yes/no questions (`pope.py`), free descriptions (`chair.py`). Read next: `chair.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from seva_jax.evals.base import Evaluator, Ratio, Record
from seva_jax.types import DataError, Prompt


def normalise(text: str) -> str:
    """Strips blanks and one final dot, and lowers the case.

    >>> normalise(" Red. ")
    'red'
    """
    return text.strip().lower().removesuffix(".").rstrip()


@dataclasses.dataclass(frozen=True)
class ExactAnswer(Evaluator):
    """Exact match of short answers; `meta["answer"]` holds the truth.

    Metrics: `accuracy` over all prompts. Over *conflicting* prompts, those whose `meta["prior"]`
    (what a skewed prior suggests) is not empty and is not the truth: `prior_errors`, the share
    answered with the prior's answer, and `other_errors`, the share wrong in another way; what
    remains is right. Both are left out where no prompt conflicts.
    """

    name: str = "exact"

    def truth(self, prompt: Prompt) -> str:
        """`meta["answer"]`, which must be a text that is not empty."""
        answer = prompt.meta.get("answer")
        if not isinstance(answer, str) or not normalise(answer):
            raise DataError(
                f"{self.name}: prompt {prompt.id!r} has no text in meta['answer']; "
                "give the true answer, or leave the prompt out"
            )
        return answer

    def definitions(self, prompts: Sequence[Prompt]) -> dict[str, Ratio]:
        """`accuracy`, and how wrong answers divide where the prior conflicts with the truth."""
        metrics = {"accuracy": Ratio("higher", ("correct",), ("count",))}
        if any(self._conflicting_prior(prompt) for prompt in prompts):
            metrics["prior_errors"] = Ratio("lower", ("prior_error",), ("conflict",))
            metrics["other_errors"] = Ratio("lower", ("other_error",), ("conflict",))
        return metrics

    def score(self, prompt: Prompt, answer: str) -> Record:
        """The 0/1 fields `correct`, `conflict`, `prior_error` and `other_error`."""
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
        """The prior's answer, normalised; empty where there is none or it is the truth."""
        prior = normalise(str(prompt.meta.get("prior") or ""))
        return "" if prior == normalise(self.truth(prompt)) else prior


@dataclasses.dataclass(frozen=True)
class Unscored(Evaluator):
    """Keeps answers nobody here can score. Metric: `length`, words per answer."""

    def truth(self, prompt: Prompt) -> str:
        """Unknown."""
        return ""

    def definitions(self, prompts: Sequence[Prompt]) -> dict[str, Ratio]:
        """`length`."""
        return {"length": Ratio("neither", ("words",), ("count",))}

    def score(self, prompt: Prompt, answer: str) -> Record:
        """`words`."""
        return {"words": len(answer.split())}
