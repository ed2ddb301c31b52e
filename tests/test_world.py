"""The procedural world: reproducible, as skewed as it says, and true to its own ground truth."""

import collections
import dataclasses
import hashlib
import itertools
import math

import numpy as np
import pytest
from helpers_tokenizer import one_layout

from seva_jax.text.encode import Encoder
from seva_jax.text.templates import PLAIN
from seva_jax.text.tokenizer import word_tokenizer
from seva_jax.types import DataError, View
from seva_jax.worlds import ShapeWorld, WorldPairs, WorldPrompts, world_vocabulary
from seva_jax.worlds.shapes import COLORS, SHAPES, prior_color

WORLD = ShapeWorld(skew=0.9, color_noise=40.0)  # its own numbers; defaults may be tuned
KINDS = ("color", "presence", "describe")
CELL = 16


def digest(world=WORLD, num=8):
    """Returns a hash of scenes, images and prompts."""
    state = hashlib.sha256()
    for split, index, skewed in itertools.product(("train", "x/y"), range(num), (False, True)):
        state.update(repr(world.scene(split, index, skewed)).encode())
        state.update(world.draw(split, index, skewed).tobytes())
        for kind in KINDS:
            prompt = world.prompt(split, index, skewed, kind)
            state.update(repr((prompt.id, prompt.question, prompt.images)).encode())
            state.update(repr(sorted(prompt.meta.items())).encode())
    return state.hexdigest()[:16]


def within(count, total, probability, sigmas=4.5):
    """Returns whether a count is plausible: 4.5 sigmas miss once in 100,000."""
    spread = math.sqrt(total * probability * (1 - probability))
    return abs(count - total * probability) <= sigmas * spread + 1


def scenes(skewed, num=3000, world=WORLD, split="statistics"):
    """Returns many scenes of one split."""
    return [world.scene(split, i, skewed) for i in range(num)]


# --- determinism ----------------------------------------------------------------------------------


def test_the_world_is_the_same_in_every_process():
    """`digest` printed these goldens; the default run's numbers rest on these very images."""
    assert digest() == "79652346d98d9a47"
    assert digest(ShapeWorld(1, 0.5, 20.0, 0.0, 4)) == "78cb9647a4c58ac3"


def test_an_image_depends_on_seed_split_and_index():
    """It does not depend on what was drawn before."""
    first = WORLD.draw("a", 3, True)
    np.testing.assert_array_equal(WORLD.draw("a", 3, True), first)
    for other in (
        WORLD.draw("a", 4, True),
        WORLD.draw("b", 3, True),
        dataclasses.replace(WORLD, seed=1).draw("a", 3, True),
    ):
        assert (other != first).any()


def test_splits_share_no_images():
    """Held-out images are held out."""
    names = ("train", "unlabelled", "eval-balanced", "eval-skewed")
    images = {n: {WORLD.draw(n, i, False).tobytes() for i in range(200)} for n in names}
    for one, other in itertools.combinations(names, 2):
        assert not images[one] & images[other]
    assert all(len(found) == 200 for found in images.values())
    # Scenes are so few that they repeat between splits, but not in the same order.
    assert scenes(False, 50, split="train") != scenes(False, 50, split="unlabelled")


# --- scenes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("skewed", [False, True])
@pytest.mark.parametrize("max_objects", [1, 3, 4])
def test_scenes_are_well_formed(skewed, max_objects):
    """Shapes and cells are distinct, names known, all numbers of objects equally frequent."""
    found = scenes(skewed, world=ShapeWorld(max_objects=max_objects))
    numbers = collections.Counter(map(len, found))
    assert set(numbers) == set(range(1, max_objects + 1))
    for count in numbers.values():
        assert within(count, len(found), 1 / max_objects)
    for scene in found:
        colors, shapes, cells = zip(*scene, strict=True)
        assert len(set(shapes)) == len(shapes)
        assert list(cells) == sorted(set(cells))
        assert set(shapes) <= set(SHAPES)
        assert set(colors) <= set(COLORS)
        assert set(cells) <= set(range(4))


@pytest.mark.parametrize("skew", [0.9, 0.5])
def test_skew_is_what_it_says(skew):
    """A share `skew` of a skewed split's objects has the prior colour; a sixth if balanced."""
    world = ShapeWorld(skew=skew)
    for skewed, expected in ((True, skew), (False, 1 / len(COLORS))):
        objects = [o for scene in scenes(skewed, world=world) for o in scene]
        by_shape = collections.Counter(shape for _, shape, _ in objects)
        prior = collections.Counter(s for c, s, _ in objects if c == prior_color(s))
        assert within(prior.total(), len(objects), expected)
        others = collections.Counter((s, c) for c, s, _ in objects if c != prior_color(s))
        for shape in SHAPES:
            assert within(by_shape[shape], len(objects), 1 / len(SHAPES))
            assert within(prior[shape], by_shape[shape], expected)
            for color in COLORS:  # the rest is spread evenly over the other colours
                if color != prior_color(shape):
                    share = (1 - expected) / (len(COLORS) - 1)
                    assert within(others[shape, color], by_shape[shape], share)


def test_every_shape_has_a_prior_color_of_its_own():
    """A colour is never frequent for more than one reason."""
    assert sorted(map(prior_color, SHAPES)) == sorted(COLORS)


@pytest.mark.parametrize(
    ("field", "value"), [("max_objects", 0), ("max_objects", 5), ("skew", 1.5), ("skew", -0.1)]
)
def test_impossible_worlds_are_refused(field, value):
    """There are four cells, and a probability is at most one."""
    with pytest.raises(DataError, match=rf"ShapeWorld\.{field} is {value}"):
        ShapeWorld(**{field: value})


# --- images ---------------------------------------------------------------------------------------


def coverage(image):
    """Returns what is not background in each cell: (pixels, height, width), and the colours."""
    found = {}
    for cell in range(4):
        y, x = divmod(cell, 2)
        area = image[y * CELL : (y + 1) * CELL, x * CELL : (x + 1) * CELL]
        painted = (area != 20).any(-1)
        places = np.argwhere(painted)
        height, width = np.ptp(places, axis=0) + 1 if len(places) else (0, 0)
        colors = {tuple(p) for p in area[painted].tolist()}
        found[cell] = (len(places), int(height), int(width)), colors
    return found


def test_without_noise_an_image_shows_exactly_its_scene():
    """Each cell shows its object's colour in the shape's area, and nothing else."""
    world = ShapeWorld(color_noise=0.0, pixel_noise=0.0, max_objects=4)
    sizes = collections.defaultdict(set)
    for index in range(150):
        image = world.draw("plain", index, False)
        assert image.shape == (32, 32, 3)
        assert image.dtype == np.uint8
        objects = {o[2]: o[:2] for o in world.scene("plain", index, False)}
        for cell, (size, colors) in coverage(image).items():
            if cell not in objects:
                assert size == (0, 0, 0)
                continue
            color, shape = objects[cell]
            assert colors == {COLORS[color]}
            sizes[shape].add(size)
    # A shape never leaves its cell, where it would come back on the other side: it has one
    # size, wherever it lies, and no two shapes have the same.
    assert set(sizes) == set(SHAPES)
    assert all(len(found) == 1 for found in sizes.values())
    assert len({found.pop() for found in sizes.values()}) == len(SHAPES)


def test_pixel_noise_leaves_colours_recognisable():
    """With `color_noise` 0 the mean colour of an object is that of the palette."""
    quiet = ShapeWorld(color_noise=0.0)
    silent = ShapeWorld(color_noise=0.0, pixel_noise=0.0)
    for index in range(40):
        image, truth = quiet.draw("s", index, True), silent.draw("s", index, True)
        for color, _, cell in quiet.scene("s", index, True):
            y, x = divmod(cell, 2)
            at = np.s_[y * CELL : (y + 1) * CELL, x * CELL : (x + 1) * CELL]
            inside = (truth[at] != 20).any(-1)
            mean = image[at][inside].mean(0)
            np.testing.assert_allclose(mean, COLORS[color], atol=8)


def test_color_noise_casts_whole_objects():
    """Each object has one cast of the given size, clipped to what can be shown."""
    noisy = ShapeWorld(color_noise=40.0, pixel_noise=0.0)
    plain = ShapeWorld(color_noise=0.0, pixel_noise=0.0)
    casts = []
    for index in range(400):
        image = noisy.draw("s", index, False)
        clean = plain.draw("s", index, False)
        for color, _, cell in noisy.scene("s", index, False):
            y, x = divmod(cell, 2)
            at = np.s_[y * CELL : (y + 1) * CELL, x * CELL : (x + 1) * CELL]
            inside = (clean[at] != 20).any(-1)
            paint = np.unique(image[at][inside], axis=0)
            assert len(paint) == 1
            # Levels that are two standard deviations from the ends are seldom clipped.
            shown = zip(paint[0].tolist(), COLORS[color], strict=True)
            casts += [level - true for level, true in shown if 90 <= true <= 165]
    assert len(casts) > 150
    assert abs(np.mean(casts)) < 4 * noisy.color_noise / math.sqrt(len(casts))
    assert 0.85 < np.std(casts) / noisy.color_noise < 1.1


# --- questions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("skewed", [False, True])
def test_answers_are_true(skewed):
    """The question's words are read back and compared with the scene."""
    for index, kind in itertools.product(range(400), KINDS):
        prompt = WORLD.prompt("truth", index, skewed, kind)
        scene = WORLD.scene("truth", index, skewed)
        color_of = {shape: color for color, shape, _ in scene}
        meta, words = prompt.meta, prompt.question.split()
        assert meta["kind"] == kind
        assert meta["objects"] == [[color, shape] for color, shape, _ in scene]
        assert prompt.images == (f"truth/{index:06d}",)
        assert prompt.id == f"truth/{index:06d}/{kind}"
        assert bool(meta["category"]) == (kind == "presence")
        if kind == "color":
            assert words[:4] == ["What", "color", "is", "the"]
            assert meta["answer"] == color_of[words[4]]
            assert meta["prior"] == prior_color(words[4])
        elif kind == "presence":
            assert words[:3] == ["Is", "there", "a"]
            *color, shape, _ = words[3:]
            assert meta["category"] == ("adversarial" if color else "random")
            truly = shape in color_of and (not color or color_of[shape] == color[0])
            assert meta["answer"] == ("yes" if truly else "no")
            assert not color or shape in color_of  # only the colour may be wrong
            assert meta["prior"] == ""
        else:
            described = [x.split()[:0:-2] for x in meta["answer"].split(" and ")]
            assert described == meta["objects"]
            assert meta["prior"] == ""


@pytest.mark.parametrize("skewed", [False, True])
def test_half_of_the_presence_questions_are_true(skewed):
    """This holds in both categories; a model that always says yes scores 1/2."""
    prompts = [WORLD.prompt("half", i, skewed, "presence") for i in range(3000)]
    counts = collections.Counter((p.meta["category"], p.meta["answer"]) for p in prompts)
    assert len(counts) == 4
    for count in counts.values():
        assert within(count, len(prompts), 1 / 4)


def test_adversarial_questions_name_the_prior_where_it_is_wrong():
    """A false one tempts with the prior's colour, unless that is the true one."""
    num_tempting = num_others = 0
    for index in range(2000):
        prompt = WORLD.prompt("tempting", index, False, "presence")
        if prompt.meta["category"] == "adversarial" and prompt.meta["answer"] == "no":
            color, shape = prompt.question.split()[3:5]
            (true,) = (c for c, s in prompt.meta["objects"] if s == shape)
            if true == prior_color(shape):
                num_others += 1
            else:
                assert color == prior_color(shape)
                num_tempting += 1
    assert within(num_tempting, num_tempting + num_others, 5 / 6)


def test_every_object_is_asked_about():
    """Questions are not only about the first object of a scene."""
    places = collections.Counter()
    total = 0
    for index in range(1500):
        scene = WORLD.scene("ask", index, False)
        if len(scene) == 3:
            shape = WORLD.prompt("ask", index, False, "color").question.split()[4]
            places[[s for _, s, _ in scene].index(shape)] += 1
            total += 1
    assert all(within(places[i], total, 1 / 3) for i in range(3))


def test_the_vocabulary_is_complete_and_has_nothing_else():
    """No question or answer has `<unk>`, and every word is used."""
    tokenizer = word_tokenizer(world_vocabulary())
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    encoder = Encoder(tokenizer, PLAIN, image_id, one_layout(2), max_length=96)
    used = set()
    for index, kind in itertools.product(range(120), KINDS):
        prompt = WORLD.prompt("words", index, False, kind)
        tree = encoder.encode(View(prompt, (prompt.meta["answer"],)))
        used |= {*tree.trunk.tolist(), *tree.branches[0].tolist()}
        decoded = encoder.decode(tree.branches[0])
        assert decoded == prompt.meta["answer"]
    assert tokenizer.unk_token_id not in used
    words = set(tokenizer.convert_tokens_to_ids(list(world_vocabulary())))
    assert words <= used
    assert len(world_vocabulary()) == len(set(world_vocabulary()))


# --- the source -----------------------------------------------------------------------------------


def test_a_source_takes_the_kinds_in_turn():
    """It gives `num` prompts with unique ids and an image each, loadable by name."""
    source = WorldPrompts(WORLD, "a/b", True, KINDS, 10)
    data = source.open()
    assert [p.meta["kind"] for p in data.prompts] == [KINDS[i % 3] for i in range(10)]
    assert len({p.id for p in data.prompts}) == 10
    assert data.drops == {}
    for index, prompt in enumerate(data.prompts):
        assert prompt == WORLD.prompt("a/b", index, True, KINDS[index % 3])
        (name,) = prompt.images
        np.testing.assert_array_equal(data.load_image(name), WORLD.draw("a/b", index, True))


def test_skewed_and_balanced_sources_load_their_own_images():
    """The name does not say which, so the source must."""
    skewed = WorldPrompts(WORLD, "s", True, num=40).open()
    balanced = WorldPrompts(WORLD, "s", False, num=40).open()
    differ = [
        (skewed.load_image(p.images[0]) != balanced.load_image(p.images[0])).any()
        for p in skewed.prompts
    ]
    assert sum(differ) > 20


# --- pairs ----------------------------------------------------------------------------------------


def share_true(answer, prompt):
    """Returns how much of what an answer names is in the image, read from the text alone."""
    objects = {f"a {shape} in {color}" for color, shape in prompt.meta["objects"]}
    named = answer.split(" and ")
    return sum(it in objects for it in named) / len(named)


def test_pairs_prefer_the_truth():
    """Chosen is the truth of `meta`, rejected is wrong, and scores are counted in the text."""
    source = WorldPairs(WORLD, "pairs", kinds=KINDS, num=300)
    data = source.open()
    asked = WorldPrompts(WORLD, "pairs", kinds=KINDS, num=300).open()
    assert data.prompts == asked.prompts == [c.prompt for c in data.comparisons]
    np.testing.assert_array_equal(data.load_image("pairs/000003"), asked.load_image("pairs/000003"))
    vocabulary = set(world_vocabulary())
    ways = collections.Counter()
    for pair in data.comparisons:
        prompt, (chosen, rejected) = pair.prompt, pair.answers
        assert chosen == prompt.meta["answer"] != rejected
        assert set(rejected.split()) <= vocabulary
        kind = prompt.meta["kind"]
        if kind == "describe":
            assert pair.scores == (share_true(chosen, prompt), share_true(rejected, prompt))
            assert pair.scores[0] == 1 > pair.scores[1]
            grown = len(rejected.split()) > len(chosen.split())
            kept = all(it in rejected for it in chosen.split(" and "))
            ways["absent" * grown + " recoloured" * (not kept)] += 1
        else:
            assert pair.scores == (1, 0)
        if kind == "color":
            assert rejected in COLORS
            assert rejected == prompt.meta["prior"] or chosen == prompt.meta["prior"]
        if kind == "presence":
            assert {chosen, rejected} == {"yes", "no"}
    assert set(ways) == {"absent", " recoloured", "absent recoloured"}
    assert source.open().comparisons == data.comparisons
    assert dataclasses.replace(source, num=100).open().comparisons == data.comparisons[:100]
    other = dataclasses.replace(source, split="other").open()
    assert [c.answers for c in other.comparisons] != [c.answers for c in data.comparisons]
