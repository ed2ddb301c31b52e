"""Noise in a region (MMedPO) and changed sequences (TEMPLE), in the tiles that the model gets."""

import dataclasses

import numpy as np
import pytest
from typing_extensions import override

from seva_jax.batches.image_inputs import Pixels, load_images
from seva_jax.corrupt import Drop, Reverse, Shuffle
from seva_jax.corrupt.region import RegionNoise
from seva_jax.data import PreferenceSet
from seva_jax.data.regions import Maps, NoisedRegions
from seva_jax.data.sources import PreferenceSource
from seva_jax.images import InternvlProcessing, LlavaNextProcessing, LlavaOnevisionProcessing
from seva_jax.images.any_resolution import best_resolution, fitted
from seva_jax.inference.corrupted import corrupted_prompt, prompt_images
from seva_jax.types import Comparison, Prompt

SIZE = 32
GRIDS = ((32, 64), (64, 32), (64, 64), (32, 96), (96, 96))
NEXT = LlavaNextProcessing(size=SIZE, resolutions=GRIDS)
ONEVISION = LlavaOnevisionProcessing(size=SIZE, resolutions=GRIDS, anyres_max=1)
INTERNVL = InternvlProcessing(size=SIZE, max_tiles=9)
SHAPES = {"wide": (60, 130), "tall": (200, 70), "square": (97, 101)}
# The rows and the columns of the region in each, as [start, end).
REGIONS = {
    "wide": ((10, 50), (4, 60)),
    "tall": ((100, 195), (20, 65)),
    "square": ((30, 90), (45, 100)),
}


@dataclasses.dataclass(frozen=True)
class OnePair(PreferenceSource):
    """One pair about some of the pictures."""

    question: str = ""
    images: tuple[str, ...] = ()

    @override
    def open(self):
        pair = Comparison(Prompt("p", self.question, self.images), ("a", "b"))
        return PreferenceSet([pair.prompt], load_image, comparisons=[pair])


@dataclasses.dataclass(frozen=True)
class Rectangles(Maps):
    """Masks that are 1 in `REGIONS`."""

    @override
    def name(self, prompt, image):
        return image

    @override
    def load(self, name):
        mask_HW = np.zeros(SHAPES[name], np.float32)
        (top, bottom), (left, right) = REGIONS[name]
        mask_HW[top:bottom, left:right] = 1
        return mask_HW


def load_image(name):
    """Returns bright grey noise, so that the dark noise of a region differs from it everywhere."""
    rng = np.random.default_rng(len(name))
    return rng.integers(180, 200, (*SHAPES[name], 3), np.uint8)


def stretched(shape, height, width):
    """Returns where the rows and columns of a resized picture lie in it, in pixels."""
    return tuple(
        (np.arange(new) + 0.5) * old / new for old, new in zip(shape, (height, width), strict=True)
    )


def cut(y, x):
    """Returns the places of the rows and columns of each tile of a grid, row by row."""
    return [
        (rows, columns)
        for rows in np.split(y, len(y) // SIZE)
        for columns in np.split(x, len(x) // SIZE)
    ]


def any_resolution(shape):
    """The whole picture, then the grid, on which the picture is centred."""
    target = best_resolution(shape, GRIDS)
    size, canvas = fitted(shape, target), []
    for old, new, full in zip(shape, size, target, strict=True):
        canvas.append((np.arange(full) - (full - new) // 2 + 0.5) * old / new)
    return [stretched(shape, SIZE, SIZE), *cut(*canvas)]


def internvl(shape):
    """The grid, over which the picture is stretched, then the whole picture."""
    rows, columns = INTERNVL.grid(shape)
    tiles = cut(*stretched(shape, rows * SIZE, columns * SIZE))
    return [*tiles, stretched(shape, SIZE, SIZE)]


def padded(shape):
    """One tile of a square with the picture in its middle."""
    side = max(shape)
    places = (np.arange(SIZE) + 0.5) * side / SIZE
    return [tuple(places - (side - length) // 2 for length in shape)]


def frame(shape):
    return [stretched(shape, SIZE, SIZE)]


NAMES = tuple(SHAPES)
CASES = {
    **{f"next, {name}": (NEXT, "what", (name,), any_resolution) for name in NAMES},
    "next, several": (NEXT, "what", NAMES, any_resolution),
    **{f"onevision, {name}": (ONEVISION, "what", (name,), any_resolution) for name in NAMES},
    "onevision, several": (ONEVISION, "what", NAMES, padded),
    "onevision, frames": (ONEVISION, "<video> what", NAMES, frame),
    "onevision, a frame": (ONEVISION, "<video> what", ("tall",), frame),
    **{f"internvl, {name}": (INTERNVL, "what", (name,), internvl) for name in NAMES},
    "internvl, several": (INTERNVL, "what", NAMES, internvl),
}


@pytest.mark.parametrize("case", CASES)
def test_noise_of_a_region_is_where_the_region_is_seen(case):
    """All pixels of tiles that show the region change, and none that shows something else."""
    processing, question, images, places_of = CASES[case]
    source = NoisedRegions(OnePair(question, images), Rectangles(), RegionNoise("mask"))
    data = source.open()
    (pair,) = data.comparisons
    pixels = Pixels(data.load_image, processing)
    clean, noised = (load_images(pixels, view.prompt) for view in pair.views)
    changed_IHW = (clean != noised).any(-1)
    tiles = [(name, *place) for name in images for place in places_of(SHAPES[name])]
    assert len(tiles) == len(changed_IHW)
    showing = 0
    for changed_HW, (name, *places) in zip(changed_IHW, tiles, strict=True):
        inside, near = [], []
        for place, (start, end) in zip(places, REGIONS[name], strict=True):
            reach = 2 * max(place[1] - place[0], 1) + 1  # of the bicubic filter, in pixels
            inside.append((place - reach >= start) & (place + reach < end))
            near.append((place + reach >= start) & (place - reach < end))
        inside_HW, near_HW = (rows[:, None] & columns for rows, columns in (inside, near))
        assert changed_HW[inside_HW].all()
        assert not changed_HW[~near_HW].any()
        showing += inside_HW.any()
    assert len(images) <= showing
    if len(tiles) > len(images):  # a grid: besides the whole picture, some tiles show the region
        assert len(images) < showing < len(tiles)


@pytest.mark.parametrize("corruption", [Reverse(groups=3), Shuffle(groups=3), Drop()], ids=str)
@pytest.mark.parametrize("processing", [NEXT, ONEVISION, INTERNVL], ids=lambda x: type(x).__name__)
def test_changed_sequences_of_pictures(processing, corruption):
    """Each picture keeps its tiles together; the only one that is left has those of one alone."""
    prompt = Prompt("p", "what", NAMES)
    asked = corrupted_prompt(prompt, corruption, 0, 0)
    assert asked.images == {Reverse: NAMES[::-1], Drop: asked.images[:1]}.get(
        type(corruption), asked.images
    )
    clean, changed = prompt_images(prompt, load_image, processing, (corruption,), 0)
    for images, names in ((clean, NAMES), (changed, asked.images)):
        alone = len(names) == 1
        expected = [processing.tiles(load_image(name), alone) for name in names]
        np.testing.assert_array_equal(images.tiles_IHWC, np.concatenate(expected))
        assert images.sizes == tuple(SHAPES[name] for name in names)
        layouts = processing.layouts(images.sizes, 16)
        assert [layout.tiles for layout in layouts] == [len(tiles) for tiles in expected]
