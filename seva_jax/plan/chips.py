"""TPU chips and GPUs: their memory and speed, and descriptions of slices to compile for.

The figures of TPUs are those of the Cloud TPU documentation (the system architecture page of each
version), per chip: bfloat16 peak, HBM, and the sum of its inter-chip links (ICI) in one direction.
Those of GPUs are NVIDIA's data sheets of the SXM form: bfloat16 peak without sparsity, HBM, and
NVLink in one direction. Programs are compiled for TPUs only; XLA needs the GPU itself for that.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

from seva_jax.runtime.processes import GPU_MEMORY_SHARE
from seva_jax.types import DataError


@dataclasses.dataclass(frozen=True)
class Efficiency:
    """Shares of a chip's peak rates that were measured, each for one kind of work.

    They are relative to what the planner counts, so dividing its times by them gives back the
    times that were measured.

    Attributes:
        training: of the operations per second, in a training step that recomputes layers.
        training_kept: the same of a step that recomputes less.
        forward: of the operations per second, in passes without gradients: prefill, reference.
        decoding: of the bytes per second, in a token step.
        decoding_int8: the same with the int8 cache.
        source: where the measurement is from.
    """

    training: float
    training_kept: float
    forward: float
    decoding: float
    decoding_int8: float
    source: str


@dataclasses.dataclass(frozen=True)
class Chip:
    """One TPU chip or GPU.

    Attributes:
        hbm_gib: memory that a program may use, GiB.
        flops: bfloat16 operations per second; a multiply-add counts as two.
        hbm: bytes per second to and from memory.
        ici: bytes per second over all links to other chips, one direction.
        network: name of these links.
        measured: what a run reached of these rates; None if none was measured.
    """

    hbm_gib: float
    flops: float
    hbm: float
    ici: float
    network: str = "ICI"
    measured: Efficiency | None = None


CHIPS = {
    "v4": Chip(30.75, 275e12, 1228e9, 300e9),
    "v5e": Chip(15.75, 197e12, 819e9, 200e9),
    "v5p": Chip(94.75, 459e12, 2765e9, 600e9),
    "v6e": Chip(31.25, 918e12, 1640e9, 448e9),
}

_LARGEST_MACHINE = 8  # GPUs that NVLink joins


def _gpu(gib: float, flops: float, hbm: float, measured: Efficiency | None = None) -> Chip:
    """Returns a GPU, from the memory that CUDA reports, GiB, and its data sheet.

    A run lets XLA take a share of the memory.
    """
    nvlink = 300e9 if flops < 500e12 else 450e9  # of A100 and Hopper
    return Chip(round(GPU_MEMORY_SHARE * gib, 2), flops, hbm, nvlink, "NVLink", measured)


# LLaVA-1.5-7B, bfloat16, LoRA r = 128: a step of 8 pairs in rows of 896 tokens took 0.582 s with
# remat layers and 0.506 s with matmuls (cuDNN's attention, cached reference). With 640 tokens of
# prompt and 128 new ones, prefill of 64 rows took 1.072 s and a token step 26.3 ms; of 32 rows with
# the int8 cache, 19.4 ms.
_H100_MEASURED = Efficiency(
    0.505, 0.428, 0.532, 0.442, 0.306, "measured on an H100, commit 40defb9"
)

GPUS = {
    "h100": _gpu(79.1, 989e12, 3350e9, _H100_MEASURED),
    "h200": _gpu(139.8, 989e12, 4800e9),
    "a100-80": _gpu(79.1, 312e12, 2039e9),
    "a100-40": _gpu(39.4, 312e12, 1555e9),
}

# Shapes of slices, for chips whose network has two dimensions, and three.
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("1x1x1", "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16")


@dataclasses.dataclass(frozen=True)
class _StandIn:
    """What a mesh wants to know of a device, for a chip for which nothing is compiled.

    Attributes:
        id: its number.
        device_kind: name of the chip.
    """

    id: int
    device_kind: str
    platform: str = "gpu"
    process_index: int = 0
    num_cores: int = 1


@dataclasses.dataclass(frozen=True)
class Topology:
    """One slice, or several equal ones; or the GPUs of one machine.

    Attributes:
        num_slices: number of slices; the network between them is slower than that within one.
        kind: name of the chip, a key of `CHIPS` or `GPUS`.
        shape: chips along each side, "8x8"; of GPUs their number, "8".
    """

    num_slices: int
    kind: str
    shape: str

    @classmethod
    def parse(cls, name: str) -> Topology:
        """Reads a name like "v5e:8x8", "2xv5e:8x8" for two slices, or "h100:8"; "h100" is one.

        Raises:
            DataError: the name has another form, or its chip is unknown.
        """
        gpu = re.fullmatch(rf"({'|'.join(GPUS)})(?::([1-{_LARGEST_MACHINE}]))?", name)
        if gpu:
            return cls(1, gpu[1], gpu[2] or "1")
        match = re.fullmatch(r"(?:([1-9]\d*)x)?([a-z]\w*):(\d+x\d+(?:x\d+)?)", name)
        if not match or match[2] not in CHIPS:
            raise DataError(
                f"topology {name!r}: expected CHIP:SHAPE with a chip of {', '.join(CHIPS)}, for "
                "example v5e:4x4 (16 chips), v5p:2x2x2 (8 chips), v6e:16x16 (256 chips), "
                f"2xv5e:16x16 (two slices); or GPU:NUMBER with a GPU of {', '.join(GPUS)}, up to "
                f"{_LARGEST_MACHINE} in one machine, for example h100:1"
            )
        return cls(int(match[1] or 1), match[2], match[3])

    @property
    def chip(self) -> Chip:
        """One of its chips."""
        return (CHIPS | GPUS)[self.kind]

    @property
    def is_gpu(self) -> bool:
        """Whether it is a machine with GPUs, for which nothing can be compiled here."""
        return self.kind in GPUS

    @property
    def num_chips(self) -> int:
        """Number of chips, over all slices."""
        return self.num_slices * _num_chips(self.shape)

    def stand_ins(self) -> list[Any]:
        """Returns as many devices as there are chips, to count with what each of them holds."""
        return [_StandIn(number, self.kind) for number in range(self.num_chips)]

    def devices(self) -> list[Any]:
        """Returns descriptions of the devices of TPU slices, to compile for.

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
