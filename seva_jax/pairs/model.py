"""What a pair builder may ask of the model that is to be aligned.

What lives here: the contract. What does not: how it is kept (`seva_jax/run/recorded_model.py`). Read next:
`builders.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from seva_jax.images.compose import Box
from seva_jax.text.sampling import Sampling
from seva_jax.types import Prompt, View


class Reply(NamedTuple):
    """What the model said to one prompt.

    Attributes:
        text: raw decoded text, after `Prompt.start` where the prompt has one.
        dropped: why there is none, or "".
    """

    text: str
    dropped: str = ""


class AnswerStats(NamedTuple):
    """How the model reads one answer of a view. T answer tokens.

    Attributes:
        logp_T: log-prob of each answer token, float32.
        best_logp_T: log-prob of the likeliest token at each place, float32.
        attention: of the attention that the answer's tokens pay to image tokens at the layer asked
            for (mean over heads and answer tokens), the share that falls on the target; NaN where
            no layer was asked for.
    """

    logp_T: np.ndarray
    best_logp_T: np.ndarray
    attention: float


class PairModel(Protocol):
    """The model that is to be aligned, as pair builders see it.

    Every call has a name, unique within a builder. What it gave is kept in the work directory under
    that name as it comes, so a run that is interrupted goes on there, and the builder, which must
    depend on nothing but its arguments and these calls, is simply called again. All processes of a
    run make the same calls in the same order.
    """

    @property
    def seed(self) -> int:
        """Of the run; every random choice follows from it."""
        ...

    def answer(self, name: str, prompts: Sequence[Prompt], sampling: Sampling) -> list[Reply]:
        """Answers prompts; a prompt without images is answered by the language model alone."""
        ...

    def measure(
        self,
        name: str,
        views: Sequence[View],
        layer: int | None = None,
        targets: Sequence[np.ndarray] = (),
    ) -> list[AnswerStats | None]:
        """Reads the first answer of every view; None where it cannot be read.

        Args:
            name: of the call.
            views: each with one answer.
            layer: where attention is looked at, from 0; None computes none.
            targets: for each view, which of its image tokens are the target: bool [I * P], the
                images in order.
        """
        ...

    def patches(self, box: Box | None = None) -> np.ndarray:
        """Which tokens of an image show a part of it: bool [P], for `targets`.

        Args:
            box: the part; None for all of the image.
        """
        ...

    def features(self, name: str, images: Sequence[str]) -> np.ndarray:
        """Features of images under the vision tower: mean over patches, of length 1.

        Returns:
            float32 [len(images), width]; a row of zeros where an image cannot be read.
        """
        ...
