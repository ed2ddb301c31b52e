"""Which rematerialisation a step can afford: the one that recomputes least and fits the devices.

What lives here: `cheapest`, for the trainer and the planner, which compile the same step. What does
not: what each kind recomputes (`seva_jax/models/layers.py`), what the memory of a device is
(`memory.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

from seva_jax.models import Remat
from seva_jax.training.memory import gib

REMATS: tuple[Remat, ...] = ("none", "matmuls", "layers")  # from least to most recomputation
ROOM = 0.05  # of a device, left free by all but the last: for fragments and the next batch

_Program = TypeVar("_Program")


class Choice(NamedTuple, Generic[_Program]):
    """A kind of rematerialisation, and the program of a step with it.

    Attributes:
        remat: the kind.
        program: the program.
        needed: bytes that it needs on a device.
        limit: bytes that a device has; None if that is unknown.
        why: why no kind that recomputes less was chosen; "" if there is none.
    """

    remat: Remat
    program: _Program
    needed: float
    limit: float | None
    why: str

    @property
    def fits(self) -> bool:
        """Whether a device has what the program needs, as far as is known."""
        return self.limit is None or self.needed <= self.limit

    @property
    def memory(self) -> str:
        """What a device needs, and of how much, in words."""
        return gib(self.needed) + (f" of {gib(self.limit)}" if self.limit is not None else "")


def cheapest(
    remats: Sequence[Remat],
    least: Callable[[Remat], float],
    compiled: Callable[[Remat], tuple[_Program, float]],
    limit: float | None,
    room: float = ROOM,
) -> Choice[_Program]:
    """Returns the first kind of rematerialisation whose program fits; the last if none does.

    The last one may need all that a device has, the others have to leave some room.

    Args:
        remats: the kinds, those that recompute least first.
        least: returns a lower bound of the bytes that a program needs; one that cannot fit is not
            compiled.
        compiled: compiles a program, and returns it with the bytes that it needs on a device.
        limit: bytes that a device has. If None, it is the last kind.
        room: share of a device that all but the last have to leave free.
    """
    reasons = list[str]()
    if limit is None and len(remats) > 1:
        reasons.append("these devices do not say how much memory they have")
        remats = remats[-1:]
    for remat in remats[:-1]:
        assert limit is not None
        bound = least(remat)
        if bound > limit:
            reasons.append(f"{remat} needs at least {gib(bound)}")
            continue
        program, needed = compiled(remat)
        if needed <= (1 - room) * limit:
            return Choice(remat, program, needed, limit, ", ".join(reasons))
        reasons.append(f"{remat} needs {gib(needed)}")
    return Choice(remats[-1], *compiled(remats[-1]), limit, ", ".join(reasons))
