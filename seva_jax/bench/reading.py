"""Images read per second from a folder, in an object store or on a disk: one by one, and ahead."""

from __future__ import annotations

import dataclasses

from seva_jax.bench.timing import in_turns, machine, table
from seva_jax.data import ImageFolder
from seva_jax.runtime.read_ahead import READERS, read_ahead
from seva_jax.types import DataError


@dataclasses.dataclass(frozen=True)
class ReadingBench:
    """Images read and decoded per second: one by one, and with reading ahead.

    Attributes:
        root: the folder, such as gs://BUCKET/images.
        images: number of images in a round.
        rounds: timed rounds of each side.
    """

    root: str = ""
    images: int = 128
    rounds: int = 3


def run_reading(bench: ReadingBench) -> None:
    """Measures both sides in turns and prints a table."""
    if min(bench.images, bench.rounds) < 1:
        raise DataError("--images and --rounds must be at least 1")
    data = ImageFolder(bench.root, limit=bench.images).open()
    names = [prompt.images[0] for prompt in data.prompts]
    sides = {
        "one by one": lambda: [data.load_image(name).shape for name in names],
        "read ahead": lambda: [x.shape for x in ahead()],
    }

    def ahead():
        return read_ahead(data.load_image, names, READERS, 2 * READERS)

    if sides["one by one"]() != sides["read ahead"]():
        raise DataError(f"{bench.root}: images changed while they were read; run it again")
    print(f"{len(names)} images of {bench.root}, {READERS} at a time when read ahead")
    print(machine(["pillow"], bench.rounds))
    print(table(in_turns(sides, bench.rounds), 14, "images", len(names), "one by one"))
