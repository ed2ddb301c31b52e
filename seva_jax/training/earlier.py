"""A training that another one continues: its last state, and how far it had come.

What lives here: `Earlier`, which the loop restores from. What does not: which runs are continued,
and copying their checkpoints (`seva_jax/run/further.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from seva_jax.training.checkpoint import Checkpoints
from seva_jax.training.step import TrainState
from seva_jax.types import DataError


class Earlier(NamedTuple):
    """A training that another one continues.

    Attributes:
        folder: holds a copy of its last checkpoint.
        facts: in what the facts of that checkpoint differ from this training's; None for a fact
            that it lacks.
        own: facts about it in the checkpoints of this training.
        ends: see `Schedule`; the last one is where it ended.
        step: its last step.
    """

    folder: Path
    facts: Mapping[str, Any]
    own: Mapping[str, Any]
    ends: tuple[int, ...]
    step: int

    def restore(self, facts: Mapping[str, Any], like: TrainState) -> tuple[TrainState, Any]:
        """Returns its state and position, see `Checkpoints.restore`.

        Args:
            facts: those of this training.
            like: see `Checkpoints.restore`.

        Raises:
            DataError: the checkpoint is missing, damaged, or of another training.
        """
        wanted = {k: v for k, v in {**facts, **self.facts}.items() if v is not None}
        checkpoints = Checkpoints(self.folder, wanted)
        restored = checkpoints.restore(like)
        checkpoints.close()
        if restored is None:
            raise DataError(
                f"{self.folder} holds no checkpoint, from which training continues; put it back, "
                "or choose another --workdir"
            )
        return restored
