"""Images of many sizes, each with its own number of tiles and tokens: rows, features, rollouts."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from helpers_devices import mesh_of
from helpers_rollout import IMAGE, TOKENIZER
from tiny_models import TINY, noisy_variables

from seva_jax.batches.encoded import encode_comparisons
from seva_jax.batches.image_inputs import FeatureCache, ImageUse, Pixels, image_uses
from seva_jax.batches.packing import Sizes, choose
from seva_jax.batches.pipeline import ComparisonRows
from seva_jax.batches.trees import RowShape, joint_layout
from seva_jax.config import ComputeOptions
from seva_jax.corrupt import DiffusionNoise, RandomResizedCrop, Reverse, diffusion_schedule
from seva_jax.corrupt.base import apply_pixels, changed_size, corruption_key
from seva_jax.data import PromptSet
from seva_jax.images import (
    ImageLayouts,
    InternvlProcessing,
    LlavaNextProcessing,
    LlavaOnevisionProcessing,
)
from seva_jax.inference.corrupted import prompt_images
from seva_jax.inference.features import cached_features, mean_features
from seva_jax.inference.rollouts import RolloutEngine
from seva_jax.models import InternConfig, Llava
from seva_jax.text import PLAIN, Encoder, Sampling
from seva_jax.training.step import StepOptions, make_logps
from seva_jax.types import NEWLINE, TEXT, Comparison, ExampleError, Prompt

SIZE = 8
GRIDS = ((8, 16), (16, 8), (16, 16), (8, 24), (24, 8))
NEXT = LlavaNextProcessing(size=SIZE, resolutions=GRIDS)
ONEVISION = LlavaOnevisionProcessing(size=SIZE, resolutions=GRIDS, anyres_max=1)
KINDS = pytest.mark.parametrize("processing", [NEXT, ONEVISION], ids=["next", "onevision"])
CONFIG = dataclasses.replace(
    TINY,
    image_token_id=IMAGE,
    newline=True,
    text=dataclasses.replace(TINY.text, vocab_size=len(TOKENIZER)),
)
MODEL = Llava(CONFIG)
SIZES = [(7, 9), (9, 30), (40, 12), (20, 21), (8, 8), (33, 10), (16, 40), (11, 11)]


def load_image(name):
    """Returns noise, other for every name, of one of some sizes."""
    if name == "broken":
        raise ExampleError("truncated file", "unreadable image")
    number = int(name)
    shape = (*SIZES[number % len(SIZES)], 3)
    return np.random.default_rng(number).integers(0, 256, shape, np.uint8)


def image_size(name):
    return load_image(name).shape[:2]


def encoder(processing, max_length=256):
    layouts = ImageLayouts(processing, CONFIG.tile_features)
    return Encoder(TOKENIZER, PLAIN, IMAGE, layouts, max_length, image_size)


def comparisons(num):
    """Makes comparisons about no image, one and two."""
    names = itertools.count()
    made = []
    for i in range(num):
        images = tuple(str(next(names)) for _ in range((1, 2, 1, 0)[i % 4]))
        answers = ("a b c"[: 1 + 2 * (i % 3)], "d e")
        made.append(Comparison(Prompt(f"p{i}", "what is it", images), answers))
    return made


@pytest.fixture(scope="module")
def variables():
    return jax.tree.map(np.asarray, noisy_variables(MODEL))


def rows_of(processing, num=12, images=None):
    encoded = encode_comparisons(comparisons(num), encoder(processing))
    return ComparisonRows(encoded, images or Pixels(load_image, processing))


@KINDS
def test_a_row_holds_every_image_in_its_own_layout(processing):
    """Each token of an image takes the features that its layout names, also behind other images."""
    rows = rows_of(processing)
    shape = dataclasses.replace(rows.shape, length=700, comparisons=4, tiles=30, targets=60)
    members = [1, 0, 3, 2]
    row = rows.row(members, shape)
    tile, place = 0, 0
    for member in members:
        prompt = rows.comparisons[member].prompt
        trunk = encoder(processing).trunk(prompt)
        here = slice(place, place + len(trunk))
        np.testing.assert_array_equal(row.tokens_BS[here], trunk)
        image_at = place + np.flatnonzero(trunk == IMAGE)
        first = tile * CONFIG.tile_features
        for name, layout in zip(
            prompt.images,
            processing.layouts([image_size(n) for n in prompt.images], CONFIG.tile_features),
            strict=True,
        ):
            mine, image_at = np.split(image_at, [layout.num_tokens])
            tiles = processing.tiles(load_image(name), len(prompt.images) == 1)
            assert len(tiles) == layout.tiles
            np.testing.assert_array_equal(row.images_BIX[tile : tile + layout.tiles], tiles)
            first = tile * CONFIG.tile_features
            expected = np.where(layout.patch_N >= 0, layout.patch_N + first, NEWLINE)
            np.testing.assert_array_equal(row.patch_BS[mine], expected)
            if layout.blend is not None:
                weight = row.blend.weight_BSM[mine]
                np.testing.assert_array_equal(weight, layout.blend.weight_BSM)
                index = (row.blend.index_BSM[mine] - first) * (weight > 0)
                np.testing.assert_array_equal(
                    index, layout.blend.index_BSM * (layout.blend.weight_BSM > 0)
                )
            tile += layout.tiles
        assert not len(image_at)
        place += len(trunk) + sum(map(len, rows.encoded.encoded[member].trees[0][1]))
    is_image = row.tokens_BS == IMAGE
    assert (row.patch_BS[~is_image] == TEXT).all()
    assert (row.blend is not None) == (processing is ONEVISION)


@KINDS
def test_log_probs_depend_on_no_neighbour(processing, variables):
    """They are the same in a row alone, packed with others, and from cached features."""
    rows = rows_of(processing)
    compute = jax.jit(make_logps(MODEL, StepOptions(head_chunk=7)))

    def logps(rows, members, shape):
        batch = jax.tree.map(lambda x: x[None], rows.row(members, shape))
        return np.asarray(compute(variables, batch))

    wide = dataclasses.replace(rows.shape, length=900, comparisons=6, tiles=50, targets=90)
    packed = logps(rows, range(6), wide)
    for i in range(6):
        alone = logps(rows, [i], rows.shape)[0, 0]
        np.testing.assert_allclose(alone, packed[0, i], atol=2e-5)


@KINDS
def test_features_of_tiles_are_cached(processing, variables, tmp_path):
    """One image alone and among several are two entries where they are laid out differently."""
    pixels = Pixels(load_image, processing)
    uses = sorted({u for c in comparisons(8) for u in image_uses(c.prompt)})
    uses += [u._replace(alone=not u.alone) for u in uses[:2]] + [ImageUse(("broken",))]
    cache = FeatureCache(tmp_path, *MODEL.feature_kind)
    found = cached_features(
        cache, MODEL, variables, uses, pixels, mesh_of(2, 2, 1), 5, lambda num: None
    )
    assert found.keys.keys() == {*uses[:-1]}
    assert len({*found.keys.values()}) == len(uses) - 1
    for use in uses[:-1]:
        tiles = pixels(use)
        expected = MODEL.apply(variables, tiles[None], method="features")
        np.testing.assert_allclose(
            found(use).reshape(1, -1, found.shape[-1]), expected, rtol=1e-4, atol=1e-4
        )
    rows, cached = rows_of(processing, 8), rows_of(processing, 8, found)
    compute = jax.jit(make_logps(MODEL, StepOptions()))
    for i in range(8):
        one, other = (
            compute(variables, jax.tree.map(lambda x: x[None], r.row([i], r.shape)))
            for r in (rows, cached)
        )
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_mean_features_are_those_of_the_whole_picture():
    """A model that joins patches has wider features; what cannot be read has zeros."""
    vision = InternConfig(
        image_size=SIZE, patch_size=2, hidden_size=16, num_layers=2, num_heads=2, mlp_size=32
    )
    model = Llava(dataclasses.replace(CONFIG, vision=vision, newline=False, projector_norm=True))
    variables, processing = noisy_variables(model), InternvlProcessing(size=SIZE, max_tiles=4)
    pixels = Pixels(load_image, processing)
    names = ["0", "broken", "1", "0"]
    (found,) = mean_features(model, variables, names, pixels, mesh_of(1, 1, 1), 4)
    assert found.shape == (4, model.config.feature_width) == (4, 64)
    assert not found[1].any()
    np.testing.assert_array_equal(found[0], found[3])
    whole = processing(load_image("1"))[None, None]
    mean = model.apply(variables, whole, method="features")[0].mean(axis=0)
    np.testing.assert_allclose(found[2], mean / np.linalg.norm(mean), rtol=1e-4, atol=1e-5)


def test_photographs_of_mixed_sizes_have_few_shapes():
    """Shorter rows have room for fewer tiles, and every batch has a shape."""
    rng = np.random.default_rng(0)
    tiles_N = rng.choice([1, 3, 3, 4, 5], 600)
    length_N = 100 + 576 * tiles_N + rng.integers(0, 200, 600)
    sizes = Sizes(length_N, np.full(600, 200), tiles_N)
    widest = RowShape(3200, 1, 2, 128, 5, 256)
    schedule = [range(first, first + 4) for first in range(0, 600, 4)]

    def cost(shape):
        return float(shape.length + 400 * shape.tiles)

    packer = choose(sizes, widest, 4, schedule, 1, ComputeOptions().row_shapes, cost)
    assert 1 < len(packer.layouts) <= 8
    for members in schedule:
        layout, packed = packer(members)
        assert sorted(itertools.chain(*packed)) == [*members]
        for row in packed:
            assert tiles_N[row].sum() <= layout.shape.tiles


@pytest.mark.parametrize(
    "corruption", [RandomResizedCrop(size=24), DiffusionNoise(300), Reverse()], ids=str
)
def test_sizes_under_corruptions(corruption):
    """They are known before an image is decoded, and are those of the corrupted copies."""
    prompt = Prompt("p", "what is it", ("1", "2"))
    clean, changed = prompt_images(prompt, load_image, NEXT, (corruption,), 0)
    assert clean.sizes == tuple(map(image_size, prompt.images))
    expected = clean.sizes
    if corruption.space == "pixels":
        expected = tuple(changed_size(corruption, size) for size in clean.sizes)
        key = corruption_key(0, "p/0", 0)
        copy = apply_pixels(corruption, key, load_image("1"))
        assert expected[0] == copy.shape[:2] == (24, 24)
    elif corruption.space == "sequence":
        expected = clean.sizes[::-1]
    assert changed.sizes == expected
    layouts = NEXT.layouts(changed.sizes, CONFIG.tile_features)
    assert len(changed.tiles_IHWC) == sum(layout.tiles for layout in layouts)


def test_every_tile_has_noise_of_its_own():
    """The tile of the whole picture has the noise that a model with one tile sees."""
    prompt = Prompt("p", "what is it", ("1",))
    clean, noisy = prompt_images(prompt, load_image, NEXT, (DiffusionNoise(500),), 0)
    root_abar, sigma = (x[500] for x in diffusion_schedule())
    noise = (noisy.tiles_IHWC - root_abar * clean.tiles_IHWC) / sigma
    assert len(noise) > 2
    for one, other in itertools.combinations(noise, 2):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.4  # 192 numbers: 5 deviations
    whole = NEXT(load_image("1"))
    key = corruption_key(0, "p/0", 0)
    np.testing.assert_allclose(noisy.tiles_IHWC[0], DiffusionNoise(500)(key, whole), atol=1e-5)


def engine(processing, variables, batch_size=8, mesh=(1, 1, 1), **options):
    return RolloutEngine(
        MODEL, variables, encoder(processing), processing, mesh_of(*mesh), batch_size, 1, **options
    )


@KINDS
def test_prompts_of_mixed_sizes_are_answered_alike(processing, variables):
    """Answers depend on neither neighbours, nor shapes of prefill, nor devices."""
    prompts = [c.prompt for c in comparisons(20)] + [Prompt("b", "what is it", ("broken",))]
    data = PromptSet(prompts, load_image)
    corrupt = (DiffusionNoise(400), RandomResizedCrop(size=24))
    sampling = Sampling(6, temperature=1.5)

    def answers(**options):
        batches = engine(processing, variables, **options).answer(data, sampling, corrupt)
        return list(itertools.chain(*batches))

    expected = answers()
    assert [a.dropped for a in expected] == [""] * 20 + ["unreadable image"]
    assert len({a.answers for a in expected}) > 10
    assert answers(batch_size=16, refill=4, mesh=(2, 2, 1)) == expected
    chosen = engine(processing, variables).prefills(data, corrupt)
    needs = [
        joint_layout(
            processing.layouts([image_size(n) for n in p.images], CONFIG.tile_features),
            CONFIG.tile_features,
            1,
        ).tiles
        for p in prompts[:20]
    ]
    assert chosen.shapes[-1].tiles >= max(needs)


def test_an_image_with_too_many_tokens_is_dropped():
    """It is counted with its reason; the text around it is not cut."""
    found = encode_comparisons(comparisons(8), encoder(NEXT, max_length=40))
    assert found.drops["too long"] > 0
    assert len(found.comparisons) + found.drops.total() == 8
