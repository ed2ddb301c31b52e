"""What a pair builder asks of the model, kept in the work directory (`pairs.PairModel`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from seva_jax.pairs import Measured, Reply
from seva_jax.rollout.sampler import Sampling
from seva_jax.types import Prompt, View

if TYPE_CHECKING:
    from seva_jax.parts import Parts


@dataclasses.dataclass(frozen=True)
class Calls:
    """See `pairs.PairModel`."""

    parts: Parts

    @property
    def seed(self) -> int:
        """Of the run."""
        return self.parts.experiment.seed

    def answer(self, name: str, prompts: Sequence[Prompt], sampling: Sampling) -> list[Reply]:
        """See `PairModel.answer`."""
        raise NotImplementedError

    def measure(
        self,
        name: str,
        views: Sequence[View],
        layer: int | None = None,
        targets: Sequence[np.ndarray] = (),
    ) -> list[Measured | None]:
        """See `PairModel.measure`."""
        raise NotImplementedError

    def features(self, name: str, images: Sequence[str]) -> np.ndarray:
        """See `PairModel.features`."""
        raise NotImplementedError
