"""The contract of the model that a pair builder may question.

What lives here: `PairModel`, `Reply`, `AnswerStats`. What does not: the implementation, which
records every call (`seva_jax/run/recorded_model.py`). Read next: `builders.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from seva_jax.images.compose import Box
from seva_jax.text.sampling import Sampling
from seva_jax.types import Prompt, View


class Reply(NamedTuple):
    """The model's answer to one prompt.

    Attributes:
        text: raw decoded text; it continues `Prompt.start` if the prompt has one.
        dropped: why there is no answer, or "".
    """

    text: str
    dropped: str = ""


class AnswerStats(NamedTuple):
    """Log-probs and attention of one answer of a view, with T answer tokens.

    Attributes:
        logp_T: log-prob of each answer token, float32.
        best_logp_T: log-prob of the likeliest token at each position, float32.
        attention: share of the answer's attention to images that falls on the target, at the
            requested layer (mean over heads and over answer tokens but the end token); NaN if no
            layer was requested.
    """

    logp_T: np.ndarray
    best_logp_T: np.ndarray
    attention: float


class PairModel(Protocol):
    """The model to be aligned, as pair builders see it.

    Every call has a name, unique within a builder. Results are written to the work directory under
    that name while they are computed, so after an interruption the builder is called again and
    finished results are read back. A builder must therefore depend on nothing but its arguments and
    these calls. All processes make the same calls in the same order.
    """

    @property
    def seed(self) -> int:
        """The experiment's seed, from which every random choice of a builder must follow."""
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
        """Measures the first answer of every view; None if it cannot be encoded or read.

        Args:
            name: name of the call.
            views: each with one answer.
            layer: the layer whose attention is measured, from 0; None measures none.
            targets: for each view, which of its image tokens are the target, see `image_tokens`.
        """
        ...

    def image_tokens(self, prompt: Prompt, image: int, box: Box | None = None) -> np.ndarray:
        """Returns which image tokens of a prompt show one of its images, for `targets`.

        Args:
            prompt: the prompt.
            image: which of its images, from 0.
            box: a part of the image, as shares of the width and height that it gives; None for the
                whole image.

        Returns:
            bool [N], the tokens of all images in order.
        """
        ...

    def features(self, name: str, images: Sequence[str]) -> np.ndarray:
        """Returns features of images under the vision tower: means over patches, of length 1.

        Returns:
            float32 [len(images), width]; a row is 0 if its image cannot be read.
        """
        ...
