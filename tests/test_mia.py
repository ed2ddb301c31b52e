"""MIA-DPO: composed images, where a part of them is after preprocessing, and what is kept."""

import collections
import dataclasses
import json

import numpy as np
import pytest
from typing_extensions import override

from seva_jax.data.composed import Composed, target_of, without_noise
from seva_jax.data.files import LlavaJson
from seva_jax.data.sources import PromptSet, PromptSource
from seva_jax.images import InternvlProcessing, LlavaNextProcessing, LlavaOnevisionProcessing
from seva_jax.images.compose import (
    GRIDS,
    Box,
    draw_grid,
    draw_inset,
    grid_box,
    inset_box,
    noised,
)
from seva_jax.images.preprocess import ImageProcessing
from seva_jax.images.shown import shown_tokens
from seva_jax.pairs import AnswerStats, MiaPairs
from seva_jax.pairs.mia import edit_distance
from seva_jax.text.templates import VICUNA_V1
from seva_jax.training.optimizer import Optim
from seva_jax.types import FRAME, NEWLINE, DataError, ExampleError, Prompt, Rollout

WHITE = (255, 255, 255)


def plain(color, height=10, width=10):
    """Makes an image of one colour."""
    return np.full((height, width, 3), color, np.uint8)


# --- drawing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("num", GRIDS)
def test_every_tile_shows_its_image(num):
    """Tiles go row by row, whole, on white, with a label in the corner of each."""
    colors = [(20 * i + 10, 100, 200 - 20 * i) for i in range(num)]
    images = [plain(color, *((10, 20) if i % 2 else (20, 10))) for i, color in enumerate(colors)]
    bare, labelled = draw_grid(images, 64, ""), draw_grid(images, 64, "Image{number}")
    rows, columns = GRIDS[num]
    assert bare.shape == labelled.shape == (64 * rows, 64 * columns, 3)
    expected = np.full_like(bare, 255)
    corners = set()
    for i, color in enumerate(colors):
        box = grid_box(num, i, 64)
        assert (box.width, box.height) == (64 * columns, 64 * rows)
        half = (slice(16, 48), slice(0, 64)) if i % 2 else (slice(0, 64), slice(16, 48))
        expected[box.top : box.bottom, box.left : box.right][half] = color
        tile = labelled[box.top : box.bottom, box.left : box.right]
        changed = (tile != bare[box.top : box.bottom, box.left : box.right]).any(-1)
        assert changed.any()
        assert not changed[20:].any()
        corners.add(tile[:20].tobytes())
    np.testing.assert_array_equal(bare, expected)
    assert len(corners) == num  # every number looks different


def test_a_picture_in_a_picture():
    """The inner one is centred, with 70 % of the side; white fills the room that either leaves."""
    found = draw_inset(plain((255, 0, 0), 10, 20), plain((0, 0, 255), 10, 10), 0.7, 100)
    expected = plain(WHITE, 100, 100)
    expected[25:75] = (255, 0, 0)
    expected[15:85, 15:85] = (0, 0, 255)
    np.testing.assert_array_equal(found, expected)


PROCESSINGS = {
    "padded": ImageProcessing(size=32),
    "cropped": ImageProcessing(size=32, pad_to_square=False),
    "cropped from a larger one": ImageProcessing(size=32, pad_to_square=False, shortest_edge=40),
    "padded, then cropped": ImageProcessing(size=32, shortest_edge=40),
    "stretched": ImageProcessing(size=32, pad_to_square=False, keep_aspect=False),
}
BOXES = [
    *(grid_box(num, number, 48) for num in GRIDS for number in range(num)),
    Box(15, 15, 85, 85, 100, 100),
    Box(10, 0, 40, 90, 60, 90),
]


@pytest.mark.parametrize("name", PROCESSINGS)
def test_patches_of_a_box_are_those_that_show_it(name):
    """A white box on black is processed the same way; its patches are white at their centre."""
    processing, seen = PROCESSINGS[name], collections.Counter()
    for box in BOXES:
        image = plain((0, 0, 0), box.height, box.width)
        image[box.top : box.bottom, box.left : box.right] = 255
        shown = processing.denormalise(processing(image))[..., 0]
        size = box.height, box.width
        patches = shown_tokens(processing, 64, [size], 0, box).reshape(8, 8)
        for y, x in np.ndindex(8, 8):
            middle = shown[4 * y + 1 : 4 * y + 3, 4 * x + 1 : 4 * x + 3].mean()
            if abs(middle - 128) > 100:  # an edge of the box is elsewhere
                assert patches[y, x] == (middle > 128), (box, y, x)
                seen[bool(patches[y, x])] += 1
    assert min(seen.values()) > 100


GRIDS_OF_TILES = ((32, 64), (64, 32), (64, 64), (32, 96), (96, 96))
CUT = {
    "next": LlavaNextProcessing(size=32, resolutions=GRIDS_OF_TILES),
    "onevision": LlavaOnevisionProcessing(size=32, resolutions=GRIDS_OF_TILES),
    "onevision, made smaller": LlavaOnevisionProcessing(
        size=32, resolutions=GRIDS_OF_TILES, anyres_max=1
    ),
    "internvl": InternvlProcessing(size=32, max_tiles=9),
    "internvl, one tile": InternvlProcessing(size=32, max_tiles=1),
}


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("name", CUT)
def test_tokens_of_a_box_in_tiles(name, several):
    """Of every tile, those that are white at their centre; newlines and other images never."""
    processing, side, seen = CUT[name], 8, collections.Counter()
    for box in BOXES:
        image = plain((0, 0, 0), box.height, box.width)
        image[box.top : box.bottom, box.left : box.right] = 255
        sizes = [(40, 50), (box.height, box.width), (90, 20)] if several else [image.shape[:2]]
        at = int(several)
        tiles = processing.denormalise(processing.tiles(image, not several))[..., 0]
        middles = tiles.reshape(-1, side, 4, side, 4)[:, :, 1:3, :, 1:3].mean((2, 4)).ravel()
        layouts = processing.layouts(sizes, side * side)
        layout = layouts[at]
        shown = middles[layout.patch_N]
        if layout.blend is not None:
            shown = (middles[layout.blend.index_BSM] * layout.blend.weight_BSM).sum(1)
        found = np.split(
            shown_tokens(processing, side * side, sizes, at, box),
            np.cumsum([x.num_tokens for x in layouts])[:-1],
        )
        assert not any(tokens.any() for i, tokens in enumerate(found) if i != at)
        assert not found[at][layout.patch_N == NEWLINE].any()
        sure = (layout.patch_N >= 0) & (np.abs(shown - 128) > 100)
        np.testing.assert_array_equal(found[at][sure], shown[sure] > 128)
        seen += collections.Counter((found[at][sure] > 0).tolist())
        whole = shown_tokens(processing, side * side, sizes, at)
        assert whole.sum() == layout.num_tokens
    assert min(seen.values()) > 100


def test_no_part_of_a_video_is_a_target():
    with pytest.raises(DataError, match="not of videos"):
        shown_tokens(CUT["onevision"], 64, [FRAME] * 3, 1)


# --- prompts --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class AnsweredPrompt(PromptSource):
    """Questions about plain images of different shapes, some of which cannot be used."""

    num: int = 30

    @override
    def open(self):
        prompts = [
            Prompt(f"p{i}", f"what is {i} ?", (f"{i}.png",), {"answer": f"a{i}", "kind": "x"})
            for i in range(self.num)
        ]
        prompts += [
            Prompt("none", "what ?", ("0.png",)),
            Prompt("blank", "what ?", ("0.png",), {"answer": " "}),
            Prompt("two", "what ?", ("0.png", "1.png"), {"answer": "a"}),
            Prompt("marked", "what <image> ?", ("0.png",), {"answer": "a"}),
        ]

        def load_image(name):
            number = int(name.removesuffix(".png"))
            if number == 29:
                raise ExampleError("broken", "unreadable image")
            return plain((number, 0, 0), 10 + number, 20)

        return PromptSet(prompts, load_image)


def test_prompts_about_one_of_several_images():
    """Every arrangement and size occurs, and the target is where the prompt says."""
    source = Composed(AnsweredPrompt(), tile=40, label="", seed=3, tile_noise=0.0, inset_noise=0.0)
    data = source.open()
    assert len(data.prompts) == 30
    assert data.drops == {"no answer": 2, "not one image": 2}
    assert any(line.startswith("prompt 'two': not one image: ") for line in data.left_out)
    seen, places = collections.Counter(), collections.Counter()
    for i, prompt in enumerate(data.prompts):
        arrangement, num, target, box = target_of(prompt)
        seen[arrangement, num] += 1
        assert (prompt.id, prompt.meta["answer"], prompt.meta["kind"]) == (f"p{i}", f"a{i}", "x")
        json.dumps(prompt.meta)
        if arrangement == "sequence":
            listed = "".join(f"Image{n}:<image>\n" for n in range(1, num + 1))
            assert prompt.question == f"{listed}In Image{target + 1}, what is {i} ?"
            assert VICUNA_V1.prompt(prompt.question, num).count("<image>") == num
            assert len(set(prompt.images)) == len(prompt.images) == num
            assert prompt.images[target] == f"{i}.png"
            assert box is None
            places[target] += 1
            continue
        assert len(prompt.images) == 1
        own = f"{i}.png"
        assert without_noise(prompt) is prompt
        parts = json.loads(prompt.images[0].removeprefix("composed:"))[4:]
        assert len(set(parts)) == len(parts) == num
        assert parts[target] == own
        if "29.png" in parts:
            with pytest.raises(ExampleError, match="broken"):
                data.load_image(prompt.images[0])
            continue
        image = data.load_image(prompt.images[0])
        assert image.shape == (box.height, box.width, 3)
        region = image[box.top : box.bottom, box.left : box.right]
        middle = region[len(region) // 2, len(region) // 2]
        np.testing.assert_array_equal(middle, (i, 0, 0))
        if arrangement == "inset":
            assert prompt.question == f"For the image in the center, what is {i} ?"
            assert target == 1
            assert (box.width, box.left, box.right) == (40, 6, 34)
        else:
            assert prompt.question == f"In Image{target + 1}, what is {i} ?"
    assert {a for a, _ in seen} == {"sequence", "grid", "inset"}
    assert {n for a, n in seen if a == "sequence"} == {2, 3, 4, 5}
    assert {n for a, n in seen if a == "grid"} == set(GRIDS)
    assert len(places) > 2
    again = source.open()
    assert again.prompts == data.prompts
    assert dataclasses.replace(source, seed=4).open().prompts != data.prompts


# By rule: sums are cut (tiles) or wrap modulo 256 (whole images), and digits behind the point are
# dropped. The release's functions `add_gaussian_noise_to_region` and `add_gaussian_noise`, given
# the same noise, return the same.
NOISE = [-300.0, -0.5, 0.7, 27.9, 155.5, 400.0]


@pytest.mark.parametrize(
    ("wrap", "expected"),
    [(False, [0, 99, 100, 127, 255, 255]), (True, [56, 100, 100, 127, 255, 244])],
)
def test_noise_on_levels_of_100(wrap, expected):
    image, noise = np.full((1, 6, 1), 100, np.uint8), np.reshape(NOISE, (1, 6, 1))
    assert noised(image, noise, wrap).ravel().tolist() == expected


def test_the_model_is_asked_about_images_with_noise():
    """A grid has it on the target's tile, an inset everywhere, a sequence nowhere."""
    source, arrangements = Composed(AnsweredPrompt(), tile=40, seed=3), collections.Counter()
    assert (Composed().tile_noise, Composed().inset_noise) == (225.0, 49.0)
    for prompt in source.open().prompts:
        arrangement, _, _, box = target_of(prompt)
        arrangements[arrangement] += 1
        bare = without_noise(prompt)
        if arrangement == "sequence":
            assert bare is prompt
            continue
        assert bare.meta == {k: v for k, v in prompt.meta.items() if k != "plain"}
        assert bare.question == prompt.question
        if "29.png" in bare.images[0]:
            continue
        data = source.open()
        noisy, plain = (data.load_image(p.images[0]) for p in (prompt, bare))
        np.testing.assert_array_equal(noisy, data.load_image(prompt.images[0]))
        changed = (noisy != plain).any(-1)
        if arrangement == "inset":
            assert changed.mean() > 0.9
            # Levels wrap around: white, and black in two channels, become anything near.
            difference = (noisy.astype(int) - plain + 128) % 256 - 128
            assert 45 < difference.std() < 52  # 49, less what is further than 128
        else:
            inside = np.zeros(changed.shape, bool)
            inside[box.top : box.bottom, box.left : box.right] = True
            assert changed[inside].mean() > 0.8
            assert not changed[~inside].any()
            assert ((noisy == 0) | (noisy == 255))[inside].mean() > 0.5
    assert set(arrangements) == {"sequence", "grid", "inset"}


def test_too_few_images_are_refused():
    """A grid of nine needs nine images."""
    with pytest.raises(DataError, match="8 images with an answered question"):
        Composed(AnsweredPrompt(8)).open()
    assert (
        len(Composed(AnsweredPrompt(8), grid_sizes=(2, 3), sequence_sizes=(2,)).open().prompts) == 8
    )
    with pytest.raises(DataError, match="a grid has 2, 3, 4, 6, 9 tiles, not 5"):
        Composed(AnsweredPrompt(), grid_sizes=(5,)).open()
    for sizes in ((), (1, 2)):
        with pytest.raises(DataError, match="numbers of 2 or more"):
            Composed(AnsweredPrompt(), sequence_sizes=sizes).open()
    with pytest.raises(DataError, match="arrangements is empty"):
        Composed(AnsweredPrompt(), arrangements=()).open()


@pytest.mark.parametrize(
    "options",
    [
        {"numbered": "In Image{number}"},  # asks nothing
        {"numbered": "{question}"},  # about no image
        {"centred": "In the centre"},
        {"numbered": "In {image}, {question} {number}"},
        {"centred": "{question} {"},
        {"centred": "In Image{number}, {question}"},
        {"label": "{}"},
        {"label": "{letter}"},
        {"listed": "Image{number}: "},
    ],
)
def test_words_that_cannot_be_filled_in(options):
    """They are refused by the name of their field before any prompt is made."""
    with pytest.raises(DataError, match=rf"Composed\.{next(iter(options))} "):
        Composed(AnsweredPrompt(), **options).open()


def test_llava_files_keep_their_answers_where_asked(tmp_path):
    """The answer is the model's turn after the question."""
    (tmp_path / "a.jpg").write_bytes(b"")
    said = [("human", "<image>\nWhat?"), ("gpt", " A cat. "), ("human", "Why?"), ("human", "Who?")]
    said += [("gpt", "Bob.")]
    record = {
        "id": "1",
        "image": "a.jpg",
        "conversations": [{"from": who, "value": text} for who, text in said],
    }
    (tmp_path / "x.json").write_text(json.dumps([record]))
    source = LlavaJson(str(tmp_path / "x.json"), str(tmp_path), questions_per_image=0)
    assert [p.meta for p in source.open().prompts] == [{}, {}, {}]
    found = dataclasses.replace(source, answers=True).open().prompts
    assert [p.meta for p in found] == [{"answer": "A cat."}, {}, {"answer": "Bob."}]


# --- pairs ----------------------------------------------------------------------------------------


class Planted:
    """A model with given log-probs and shares of attention, which checks what it is asked."""

    def __init__(self, share, best=-1.0, missing=False):
        self.share, self.best, self.missing = share, best, missing
        self.calls = []

    def image_tokens(self, prompt, image, box=None):
        """Returns six tokens an image; a box covers as many of the first as its left edge says."""
        shown = np.zeros((len(prompt.images), 6), bool)
        shown[image, : None if box is None else box.left] = True
        return shown.ravel()

    def measure(self, name, views, layer=None, targets=()):
        """Returns the same for every view."""
        self.calls.append((name, views, layer, targets))
        best = np.full(3, self.best, np.float32)
        return [None if self.missing else AnswerStats(best - 1, best, self.share) for _ in views]


def rollout(answer="blue", truth="red", arrangement="sequence", num=2, target=1, box=None):
    """Makes an answer to a composed prompt."""
    meta = {"answer": truth, "arrangement": arrangement, "num_images": num, "target": target}
    meta |= {"box": list(box)} if box else {}
    images = tuple(map(str, range(num if arrangement == "sequence" else 1)))
    return Rollout(Prompt("p", "what ?", images, meta), answer, ())


def build(one, model, **options):
    """Returns the answers that are kept, and the drops."""
    kept, drops = MiaPairs(**options).build([one], PromptSet([], lambda name: None), model)
    return [c.answers for c in kept], dict(drops)


KEPT = ([("red", "blue")], {})
PUBLISHED = [
    *(("sequence", n, limit, True) for n, limit in ((2, 0.8), (3, 0.7), (4, 0.6), (5, 0.6))),
    *(("grid", n, x, False) for n, x in ((2, 0.7), (3, 0.6), (4, 0.5), (6, 0.4), (9, 0.3))),
    ("inset", 2, 0.8, False),
]


@pytest.mark.parametrize(("arrangement", "num", "limit", "inclusive"), PUBLISHED)
def test_every_limit_of_attention_on_both_sides(arrangement, num, limit, inclusive):
    """A share may equal the limit for sequences, but must be below that for composed images."""
    box = None if arrangement == "sequence" else Box(2, 0, 4, 4, 4, 4)
    one = rollout(arrangement=arrangement, num=num, box=box)
    looked = ([], {"attention on the target": 1})
    assert build(one, Planted(limit - 1e-6)) == KEPT
    assert build(one, Planted(limit + 1e-6)) == looked
    assert build(one, Planted(limit)) == (KEPT if inclusive else looked)
    assert build(one, Planted(float("nan"))) == looked


# A map of 24 x 24 patches and a processor that pads, as for LLaVA-1.5: the rows and columns of the
# blocks that the release's `split_and_calculate_ratio` sums, and of `calculate_center_ratio`.
BLOCKS = [
    (grid_box(2, 1, 448), (0, 24), (12, 24)),  # padding above and below the tiles included
    (grid_box(3, 1, 448), (0, 24), (8, 16)),
    (grid_box(4, 2, 448), (12, 24), (0, 12)),
    (grid_box(6, 4, 448), (12, 24), (8, 16)),
    (grid_box(9, 5, 448), (8, 16), (16, 24)),
    (inset_box(0.7, 448), (4, 20), (4, 20)),
]


@pytest.mark.parametrize(("box", "rows", "columns"), BLOCKS)
def test_targets_of_the_release(box, rows, columns):
    """A tile's part of the map is its part of the square that the grid is padded to."""

    class Patches(Planted):
        def image_tokens(self, prompt, image, box=None):
            return shown_tokens(ImageProcessing(size=336), 576, [box[:3:-1]], image, box)

    model = Patches(0.1)
    arrangement = "inset" if box == inset_box(0.7, 448) else "grid"
    build(rollout(arrangement=arrangement, num=4, box=box), model)
    (target,) = model.calls[0][3]
    expected = np.zeros((24, 24), bool)
    expected[slice(*rows), slice(*columns)] = True
    np.testing.assert_array_equal(target.reshape(24, 24), expected)


def test_pairs_are_about_the_image_without_noise():
    """What is measured is the answer to the image with noise."""
    one, model = rollout(arrangement="grid", num=4, box=Box(2, 0, 4, 4, 4, 4)), Planted(0.1)
    noisy = dataclasses.replace(one.prompt, meta=one.prompt.meta | {"plain": "p.png"})
    (pair,), _ = MiaPairs().build(
        [dataclasses.replace(one, prompt=noisy)], PromptSet([], lambda name: None), model
    )
    assert model.calls[0][1][0].prompt.images == ("0",)
    assert pair.prompt == dataclasses.replace(one.prompt, images=("p.png",))


def test_what_the_model_is_asked():
    """It is asked for the wrong answer alone, at the layer, with the target's tokens."""
    model = Planted(0.1)
    build(rollout(num=3, target=1), model, layer=5)
    build(rollout(arrangement="grid", num=4, box=Box(2, 0, 4, 4, 4, 4)), model)
    (name, (view,), layer, (target,)), (_, _, default, (part,)) = model.calls
    assert (name, layer, default) == ("attention", 5, 16)
    assert view.answers == ("blue",)
    assert target.tolist() == [False] * 6 + [True] * 6 + [False] * 6
    assert part.tolist() == [True] * 2 + [False] * 4
    assert MiaPairs().uses_corruptions is False


@pytest.mark.parametrize(
    ("one", "reason"),
    [
        (rollout(" red\n"), "right answer"),
        (rollout(" \n"), "empty answer"),
        (rollout(truth="x" * 512), "long ground truth"),
    ],
)
def test_what_is_dropped_before_anything_is_measured(one, reason):
    """Each drop is counted by its reason."""
    model = Planted(0.1)
    assert build(one, model) == ([], {reason: 1})
    assert model.calls[0][1] == []
    assert build(rollout(truth="x" * 511), model)[1] == {}


def test_perplexity_on_both_sides():
    """Above 1.1 an answer is unsure enough; the likeliest tokens' log-probs count, not its own."""
    bound = -np.log(1.1)
    assert build(rollout(), Planted(0.1, bound - 1e-4)) == KEPT
    assert build(rollout(), Planted(0.1, bound + 1e-4)) == ([], {"low perplexity": 1})
    assert build(rollout(), Planted(0.1, -0.02)) == ([], {"low perplexity": 1})
    missing = Planted(0.1, missing=True)
    assert build(rollout(), missing) == ([], {"unreadable answer or image": 1})


def test_the_papers_filters_are_options():
    """They are off by default, because the release has none of them."""
    one = rollout("blue and green", "red")  # 14 and 3 characters, distance 12
    assert build(one, Planted(0.1))[1] == {}
    assert build(one, Planted(0.1), max_length_ratio=4.6)[1] == {"lengths differ": 1}
    assert build(one, Planted(0.1), max_length_ratio=4.7)[1] == {}
    distance = edit_distance("blue and green", "red")
    assert build(one, Planted(0.1), min_edit_distance=distance)[1] == {}
    assert build(one, Planted(0.1), min_edit_distance=distance + 1)[1] == {"similar answers": 1}
    assert edit_distance("", "abc") == edit_distance("abc", "") == 3
    assert edit_distance("flaw", "lawn") == 2


def test_prompts_of_other_kinds_are_refused():
    """The message says what to wrap."""
    one = Rollout(Prompt("p", "what ?", ("0",), {"answer": "red"}), "blue", ())
    with pytest.raises(DataError, match="Composed"):
        build(one, Planted(0.1))
    with pytest.raises(DataError, match=r"MiaPairs\.sequence has no limit for 7 images"):
        build(rollout(num=7), Planted(0.1))


def test_a_linear_schedule():
    """The rate falls from its peak to 0 after the warm-up."""
    rate = Optim(lr=5e-5, schedule="linear", warmup_ratio=0.0).learning_rate(10)
    np.testing.assert_allclose([rate(i) for i in (0, 5, 10)], [5e-5, 2.5e-5, 0], atol=1e-12)
    rate = Optim(lr=1.0, schedule="linear", warmup_ratio=0.2).learning_rate(10)
    np.testing.assert_allclose([rate(i) for i in (0, 1, 2, 6, 10)], [0, 0.5, 1, 0.5, 0], atol=1e-6)
