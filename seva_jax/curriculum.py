"""Which runs a config stands for, one after another.

What lives here: the contract, and `Once`. What does not: curricula of several runs
(`seva_jax/stages.py`), which need to know how a run goes on from another one (`prior.py`).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from seva_jax.experiment import Experiment


@dataclasses.dataclass(frozen=True)
class Curriculum:
    """Base class: the runs that a config stands for."""

    def __call__(self, experiment: Experiment) -> tuple[Experiment, ...]:
        """The runs in order, each with a work directory of its own and without a curriculum.

        A run that goes on from the one before has a `PriorRun` as its base.

        Args:
            experiment: the config.
        """
        raise NotImplementedError(f"{type(self).__name__} must define __call__")


@dataclasses.dataclass(frozen=True)
class Once(Curriculum):
    """The run itself."""

    def __call__(self, experiment: Experiment) -> tuple[Experiment, ...]:
        """See `Curriculum.__call__`."""
        return (experiment,)
