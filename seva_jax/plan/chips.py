"""TPU chips: memory, speed, and descriptions of slices to compile for.

Figures are those of the Cloud TPU documentation (system architecture pages of each version), per
chip: bfloat16 peak, HBM, and the sum of its inter-chip links in one direction.
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
        hbm_gib: memory a program may use.
        flops: bfloat16 multiply-adds count twice, per second.
        hbm: bytes per second.
        ici: bytes per second over all links, one direction.
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

# Shapes of slices: chips of two dimensions, and of three.
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16")


def chip_of(topology: str) -> Chip:
    """The chip of a topology name like "v5e:8x8".

    Raises:
        DataError: not such a name, or a chip that is not in the table.
    """
    found = re.fullmatch(r"(\w+):(\d+x\d+(x\d+)?)", topology)
    if not found or found[1] not in CHIPS:
        raise DataError(
            f"topology {topology!r}: expected CHIP:SHAPE with a chip of {', '.join(CHIPS)}, for "
            "example v5e:4x4 (16 chips), v5p:2x2x2 (8 chips), v6e:16x16 (256 chips)"
        )
    return CHIPS[found[1]]


def slice_devices(topology: str) -> list[Any]:
    """Descriptions of the devices of a slice, to compile for.

    Raises:
        DataError: libtpu is missing, or it knows no such slice.
    """
    chip_of(topology)
    if importlib.util.find_spec("libtpu") is None:
        raise DataError("planning for TPUs compiles with libtpu: pip install 'seva_jax[tpu]'")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # or it waits for a metadata server
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "true")  # no TPU is opened
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except (RuntimeError, ValueError) as error:
        said = str(error).splitlines()[0]
    chip, sides = topology.split(":")
    wanted = math.prod(map(int, sides.split("x")))
    known = _FLAT if chip in ("v5e", "v6e") else _CUBES
    nearest = min(known, key=lambda s: abs(math.log(math.prod(map(int, s.split("x"))) / wanted)))
    raise DataError(
        f"topology {topology!r}: libtpu knows no such slice; the nearest is {chip}:{nearest} "
        f"({chip} has {', '.join(known)}). libtpu says: {said}"
    )
