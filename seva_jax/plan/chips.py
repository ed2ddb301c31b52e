"""TPU chips: their memory and speed, and descriptions of slices to compile for.

The figures are those of the Cloud TPU documentation (the system architecture page of each version),
per chip: bfloat16 peak, HBM, and the sum of its inter-chip links (ICI) in one direction.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

from seva_jax.types import DataError


@dataclasses.dataclass(frozen=True)
class Chip:
    """One TPU chip.

    Attributes:
        hbm_gib: memory that a program may use, GiB.
        flops: bfloat16 operations per second; a multiply-add counts as two.
        hbm: bytes per second to and from memory.
        ici: bytes per second over all links to other chips, one direction.
    """

    hbm_gib: float
    flops: float
    hbm: float
    ici: float


CHIPS = {
    "v4": Chip(30.75, 275e12, 1228e9, 300e9),
    "v5e": Chip(15.75, 197e12, 819e9, 200e9),
    "v5p": Chip(94.75, 459e12, 2765e9, 600e9),
    "v6e": Chip(31.25, 918e12, 1640e9, 448e9),
}

# Shapes of slices, for chips whose network has two dimensions, and three.
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("1x1x1", "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16")


@dataclasses.dataclass(frozen=True)
class Topology:
    """One slice, or several equal ones.

    Attributes:
        num_slices: number of slices; the network between them is slower than that within one.
        kind: name of the chip, a key of `CHIPS`.
        shape: chips along each side, "8x8".
    """

    num_slices: int
    kind: str
    shape: str

    @classmethod
    def parse(cls, name: str) -> Topology:
        """Reads a name like "v5e:8x8", or "2xv5e:8x8" for two slices.

        Raises:
            DataError: the name has another form, or its chip is not in `CHIPS`.
        """
        match = re.fullmatch(r"(?:([1-9]\d*)x)?([a-z]\w*):(\d+x\d+(?:x\d+)?)", name)
        if not match or match[2] not in CHIPS:
            raise DataError(
                f"topology {name!r}: expected CHIP:SHAPE with a chip of {', '.join(CHIPS)}, for "
                "example v5e:4x4 (16 chips), v5p:2x2x2 (8 chips), v6e:16x16 (256 chips), "
                "2xv5e:16x16 (two slices)"
            )
        return cls(int(match[1] or 1), match[2], match[3])

    @property
    def chip(self) -> Chip:
        """One of its chips."""
        return CHIPS[self.kind]

    def devices(self) -> list[Any]:
        """Returns descriptions of the devices, to compile for.

        Raises:
            DataError: libtpu is missing, or does not know the slice.
        """
        if importlib.util.find_spec("libtpu") is None:
            raise DataError("planning for TPUs compiles with libtpu: pip install 'seva_jax[tpu]'")
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # or it waits for a metadata server
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "true")  # no TPU is opened
        from jax.experimental import topologies

        known = _FLAT if self.kind in ("v5e", "v6e") else _CUBES
        # libtpu describes whole hosts; a single chip is the first one of the smallest slice.
        single = self.num_slices == 1 and self.shape == known[0]
        shape = known[1] if single else self.shape
        try:
            description = topologies.get_topology_desc(
                platform="tpu", topology_name=f"{self.kind}:{shape}", num_slices=self.num_slices
            )
            return list(description.devices)[: 1 if single else None]
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
        wanted = _num_chips(self.shape)
        sizes = {shape: _num_chips(shape) for shape in known}
        nearest = min(known, key=lambda x: max(sizes[x], wanted) / min(sizes[x], wanted))
        raise DataError(
            f"topology {self.kind}:{self.shape}: libtpu knows no such slice; the nearest is "
            f"{self.kind}:{nearest} ({self.kind} has {', '.join(known)}). libtpu says: {reason}"
        )


def _num_chips(shape: str) -> int:
    return math.prod(map(int, shape.split("x")))
