"""Images prepared per second on one core: ours compared with transformers' image processor.

Both decode the same JPEG files with Pillow, pad to a square, resize and normalise; the results have
to agree. The time of decoding alone is printed, too, because neither side can avoid it. Two more
sides prepare what rollouts need of an image: the clean one and a corrupted copy.
"""

from __future__ import annotations

import dataclasses
import io
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from seva_jax.bench.timing import in_turns, machine, one_core
from seva_jax.corrupt import Corruption, DiffusionNoise, moco
from seva_jax.images.load import decode_image
from seva_jax.images.preprocess import ImageProcessing
from seva_jax.inference.corrupted import prompt_images
from seva_jax.types import DataError, Prompt


@dataclasses.dataclass(frozen=True)
class InputBench:
    """Images prepared per second on one core: ours, transformers' LlavaImageProcessorPil.

    Attributes:
        height: height of the images, pixels.
        width: width of the images, pixels.
        images: number of different images in a round.
        rounds: timed rounds of each side.
    """

    height: int = 480
    width: int = 640
    images: int = 16
    rounds: int = 7


@one_core()
def run_input(bench: InputBench) -> None:
    """Measures all sides in turns and prints a table."""
    from transformers import LlavaImageProcessorPil

    if min(bench.height, bench.width, bench.images, bench.rounds) < 1:
        raise DataError("--height, --width, --images and --rounds must be at least 1")
    files = [_photo(bench, seed) for seed in range(bench.images)]
    ours = ImageProcessing()
    theirs = LlavaImageProcessorPil(
        do_pad=True,
        size={"shortest_edge": ours.size},
        crop_size={"height": ours.size, "width": ours.size},
    )

    def decoded(data: bytes) -> Image.Image:
        return Image.open(io.BytesIO(data)).convert("RGB")

    def transformers(data: bytes) -> np.ndarray:
        prepared: Any = theirs(decoded(data), return_tensors="np")
        return prepared["pixel_values"][0].transpose(1, 2, 0)

    def with_copy(corruption: Corruption) -> Callable[[bytes], np.ndarray]:
        prompt = Prompt("prompt", "", ("image",))
        return lambda data: np.concatenate(
            [
                images.tiles_IHWC
                for images in prompt_images(
                    prompt, lambda _: decode_image(data), ours, (corruption,), 0
                )
            ]
        )

    sides: dict[str, Callable[[bytes], np.ndarray]] = {
        "ours": lambda data: ours(decode_image(data)),
        "transformers": transformers,
        "decoding alone": lambda data: np.asarray(decoded(data)),
        "ours, and a copy with diffusion noise": with_copy(DiffusionNoise(500)),
        "ours, and a copy augmented as MoCo's": with_copy(moco()),
    }
    for side in sides.values():
        side(files[0])  # compiles
    apart = max(float(np.abs(sides["ours"](f) - transformers(f)).max()) for f in files)
    passes = {name: lambda side=side: list(map(side, files)) for name, side in sides.items()}
    times = in_turns(passes, bench.rounds)
    print(f"JPEG files of {bench.width} x {bench.height} to 336 x 336, one core")
    print(machine(["transformers", "pillow"], bench.rounds))
    print(" " * 38 + "".join(f"{x:>12}" for x in ("ms an image", "images/s", "speed-up")))
    last = statistics.median(times["transformers"]) / len(files)
    for name, seconds in times.items():
        middle = statistics.median(seconds) / len(files)
        print(f"{name:<38}{1e3 * middle:>12.2f}{1 / middle:>12.1f}{last / middle:>11.2f}x")
    print(f"largest difference between the two: {apart:.1e}")


def _photo(bench: InputBench, seed: int) -> bytes:
    """Makes a JPEG that is as smooth as a photograph."""
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)
    image = Image.fromarray(coarse).resize((bench.width, bench.height), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()
