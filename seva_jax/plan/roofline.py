"""The least time that a program can take on a chip, from what it asks of it."""

from __future__ import annotations

import dataclasses
from typing import Literal

from seva_jax.plan.chips import Chip

Kind = Literal["training", "training_kept", "forward", "decoding", "decoding_int8"]


@dataclasses.dataclass(frozen=True)
class Work:
    """What a program asks of one chip.

    Attributes:
        flops: operations; a multiply-add counts as two.
        hbm: bytes to and from memory.
        sent: bytes sent to other chips.
    """

    flops: float
    hbm: float
    sent: float

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.hbm + other.hbm, self.sent + other.sent)

    def __mul__(self, times: float) -> Work:
        return Work(self.flops * times, self.hbm * times, self.sent * times)

    def limits(self, chip: Chip) -> dict[str, float]:
        """Returns the least seconds that each limit of the chip allows."""
        return {
            "compute": self.flops / chip.flops,
            "HBM": self.hbm / chip.hbm,
            chip.network: self.sent / chip.ici,
        }

    def binds(self, chip: Chip) -> str:
        """Returns the limit that allows the slowest run."""
        limits = self.limits(chip)
        return max(limits, key=lambda name: limits[name])

    def seconds(self, chip: Chip) -> float:
        """Returns a lower bound of the time: as if the other limits hid behind the longest."""
        return max(self.limits(chip).values())


def slowed(chip: Chip, kind: Kind) -> Chip | None:
    """Returns a chip with the rates that were measured for a kind of work; None without any.

    Training and passes without gradients are slower in operations, token steps in bytes; the other
    rates stay at their peak, because nothing measured was bound by them.
    """
    measured = chip.measured
    if measured is None:
        return None
    share: float = getattr(measured, kind)
    if kind in ("decoding", "decoding_int8"):
        return dataclasses.replace(chip, hbm=chip.hbm * share)
    return dataclasses.replace(chip, flops=chip.flops * share)
