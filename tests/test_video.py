"""Videos as one thing: layouts, prompts, rows, features, corruptions and rollouts."""

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
from seva_jax.batches.pipeline import ComparisonRows
from seva_jax.convert.families import family_of
from seva_jax.corrupt import (
    DiffusionNoise,
    Drop,
    RandomResizedCrop,
    Reverse,
    Shuffle,
    diffusion_schedule,
)
from seva_jax.data import PromptSet
from seva_jax.images import ImageLayouts, ImageProcessing
from seva_jax.images.llava_next import LlavaNextProcessing
from seva_jax.images.llava_onevision import LlavaOnevisionProcessing
from seva_jax.inference.corrupted import prompt_images
from seva_jax.inference.features import cached_features
from seva_jax.inference.rollouts import RolloutEngine
from seva_jax.models import Llava, SiglipConfig
from seva_jax.text import PLAIN, Encoder, Sampling
from seva_jax.training.step import StepOptions, make_logps
from seva_jax.types import FRAME, NEWLINE, Comparison, ExampleError, Frame, Prompt

SIZE = 8
GRIDS = ((8, 16), (16, 8), (16, 16))
ONEVISION = LlavaOnevisionProcessing(size=SIZE, resolutions=GRIDS, anyres_max=1)
NEXT = LlavaNextProcessing(size=SIZE, resolutions=GRIDS)
CONFIG = dataclasses.replace(
    TINY,
    image_token_id=IMAGE,
    newline=True,
    text=dataclasses.replace(TINY.text, vocab_size=len(TOKENIZER)),
)
MODEL = Llava(CONFIG)
SIDE = 2  # features in a row of a tile


def load_image(name):
    """Returns noise, other for every name, of one of some sizes."""
    if name == "broken":
        raise ExampleError("truncated file", "unreadable image")
    number = int(name)
    shape = ((7, 9), (9, 30), (20, 21))[number % 3]
    return np.random.default_rng(number).integers(0, 256, (*shape, 3), np.uint8)


def image_size(name):
    return load_image(name).shape[:2]


def encoder(processing=ONEVISION):
    layouts = ImageLayouts(processing, CONFIG.tile_features)
    return Encoder(TOKENIZER, PLAIN, IMAGE, layouts, 256, image_size)


def prompts(num):
    """Makes prompts about a video of one frame to four, and others about up to two images."""
    names = map(str, itertools.count())
    made = []
    for i in range(num):
        frames = tuple(itertools.islice(names, 1 + i % 4 if i % 3 else (1, 2, 0)[i // 3 % 3]))
        question = ("what is it", "<video>\nwhat is it", "what is it <video>")[i % 3]
        made.append(Prompt(f"p{i}", question, frames))
    return made


def comparisons(num):
    return [Comparison(p, ("a b c"[: 1 + 2 * (i % 3)], "d e")) for i, p in enumerate(prompts(num))]


@pytest.fixture(scope="module")
def variables():
    return jax.tree.map(np.asarray, noisy_variables(MODEL))


def rows_of(num, images=None):
    encoded = encode_comparisons(comparisons(num), encoder())
    assert len(encoded.comparisons) == num
    return ComparisonRows(encoded, images or Pixels(load_image, ONEVISION))


@pytest.mark.parametrize("side", [4, 6])
def test_tokens_of_a_video(side):
    """Of an even side, each token of a frame is the mean of 2 x 2 features; a newline is last."""
    features = np.random.default_rng(0).standard_normal((3, side, side, 5))
    (layout,) = ONEVISION.layouts([FRAME] * 3, side * side)
    index, weight = layout.blend
    tokens = (features.reshape(-1, 5)[index] * weight[..., None]).sum(1)
    means = features.reshape(3, side // 2, 2, side // 2, 2, 5).mean((2, 4))
    np.testing.assert_allclose(tokens[:-1], means.reshape(-1, 5), atol=1e-6)
    assert layout.tiles == 3
    assert layout.num_tokens == 3 * (side // 2) ** 2 + 1
    assert layout.patch_N[-1] == NEWLINE
    assert not weight[-1].any()
    assert (layout.patch_N[:-1] >= 0).all()


def test_tokens_of_an_odd_side():
    """LLaVA-OneVision's 27 x 27 features become 14 x 14, as many as its processor counts."""
    (layout,) = ONEVISION.layouts([FRAME] * 2, 27 * 27)
    assert layout.num_tokens == 2 * 14 * 14 + 1
    np.testing.assert_allclose(layout.blend.weight_BSM[:-1].sum(-1), 1, atol=1e-6)


def test_a_video_is_written_as_one_image():
    """It goes in front of the question, wherever its marker is."""
    for question in ("<video>\nwhat is it", "what is it <video>", "<video> what is it"):
        trunk = encoder().trunk(Prompt("p", question, ("0", "1", "2")))
        one = encoder().trunk(Prompt("p", "what is it", ("0",)))
        assert (trunk == IMAGE).sum() == 3 + 1
        np.testing.assert_array_equal(trunk[trunk != IMAGE], one[one != IMAGE])
        assert (np.diff(np.flatnonzero(trunk == IMAGE)) == 1).all()
        assert np.flatnonzero(trunk == IMAGE)[0] == np.flatnonzero(one == IMAGE)[0]


@pytest.mark.parametrize(
    ("processing", "question", "reason", "message"),
    [
        (ONEVISION, "<video> what <video>", "image markers", "other markers beside one <video>"),
        (ONEVISION, "<image> <video> what", "image markers", "other markers beside one <video>"),
        (ONEVISION, "<video>", "empty question", "has no words"),
        (NEXT, "<video> what", "no videos", "takes no videos, only images"),
        (ImageProcessing(size=SIZE), "<video> what", "no videos", "each frame is an image"),
    ],
)
def test_prompts_that_are_refused(processing, question, reason, message):
    with pytest.raises(ExampleError, match=message) as caught:
        encoder(processing).trunk(Prompt("p", question, ("0", "1")))
    assert caught.value.reason == reason


def test_without_images_the_marker_is_a_word():
    prompt = Prompt("p", "what is <video>", ())
    assert not prompt.about_video
    assert not (encoder(NEXT).trunk(prompt) == IMAGE).any()


def test_rows_hold_frames():
    """A frame is one tile, stretched; each token's features are those of its layout."""
    rows = rows_of(12)
    member = 5  # two frames
    prompt = rows.comparisons[member].prompt
    assert prompt.about_video
    assert len(prompt.images) == 2
    shape = dataclasses.replace(rows.shape, length=200, comparisons=2, tiles=9, targets=40)
    row = rows.row([4, member], shape)
    first = len(rows.comparisons[4].prompt.images)
    for at, name in enumerate(prompt.images, first):
        np.testing.assert_array_equal(row.images_BIX[at], ONEVISION(load_image(name)))
    (layout,) = ONEVISION.layouts([FRAME] * 2, CONFIG.tile_features)
    place = np.flatnonzero(row.tokens_BS == IMAGE)[-layout.num_tokens :]
    np.testing.assert_array_equal(row.blend.weight_BSM[place], layout.blend.weight_BSM)
    index = row.blend.index_BSM[place][:-1] - first * CONFIG.tile_features
    np.testing.assert_array_equal(index, layout.blend.index_BSM[:-1])
    assert row.patch_BS[place[-1]] == NEWLINE


def test_log_probs_depend_on_no_neighbour(variables):
    """They are the same in a row alone and packed with images and other videos."""
    rows = rows_of(9)
    compute = jax.jit(make_logps(MODEL, StepOptions(head_chunk=7)))

    def logps(members, shape):
        batch = jax.tree.map(lambda x: x[None], rows.row(members, shape))
        return np.asarray(compute(variables, batch))

    wide = dataclasses.replace(rows.shape, length=700, comparisons=9, tiles=40, targets=90)
    packed = logps(range(9), wide)
    for i in range(9):
        np.testing.assert_allclose(logps([i], rows.shape)[0, 0], packed[0, i], atol=2e-5)


def test_features_of_frames_are_cached(variables, tmp_path):
    """A video is one entry, other than those of its frames as images."""
    pixels = Pixels(load_image, ONEVISION)
    uses = sorted({use for prompt in prompts(8) for use in image_uses(prompt)})
    videos = [use for use in uses if use.seconds]
    assert videos
    assert not any(use.alone for use in videos)
    uses += [ImageUse(use.names[:1], alone) for use in videos[:2] for alone in (True, False)]
    cache = FeatureCache(tmp_path, *MODEL.feature_kind)
    known = cached_features(
        cache, MODEL, variables, uses, pixels, mesh_of(2, 2, 1), 5, lambda num: None
    )
    assert len({*known.keys.values()}) == len(uses)
    for use in videos:
        assert known(use).shape[0] == len(use.names)
    rows, cached = rows_of(8), rows_of(8, known)
    compute = jax.jit(make_logps(MODEL, StepOptions()))
    for i in range(8):
        one, other = (
            compute(variables, jax.tree.map(lambda x: x[None], r.row([i], r.shape)))
            for r in (rows, cached)
        )
        np.testing.assert_allclose(one, other, atol=1e-4)


VIDEO = Prompt("v", "<video> what is it", ("0", "1", "2", "3"))


@pytest.mark.parametrize(
    ("corruption", "kept"),
    [(Reverse(), "2301"), (Shuffle(groups=4), None), (Drop(), None), (Drop(groups=4), None)],
    ids=str,
)
def test_sequences_of_frames(corruption, kept):
    """The frames are reordered or fewer, and stay those of a video, also one alone."""
    _, changed = prompt_images(VIDEO, load_image, ONEVISION, (corruption,), 0)
    tiles = {name: ONEVISION(load_image(name)) for name in VIDEO.images}
    names = "".join(
        name for x in changed.tiles_IHWC for name, tile in tiles.items() if np.array_equal(x, tile)
    )
    assert len(names) == len(changed.tiles_IHWC) == len({*names})
    if kept:
        assert names == kept
    if isinstance(corruption, Drop):
        assert len(names) == 4 // corruption.groups
    assert [size.total for size in changed.sizes] == [len(names)] * len(names)


def test_noise_and_crops_of_frames():
    """Every frame has noise of its own, and a crop is of the picture before it is stretched."""
    root_abar, sigma = (x[500] for x in diffusion_schedule())
    corruptions = (DiffusionNoise(500), RandomResizedCrop(size=24))
    clean, noisy, cropped = prompt_images(VIDEO, load_image, ONEVISION, corruptions, 0)
    noise = (noisy.tiles_IHWC - root_abar * clean.tiles_IHWC) / sigma
    assert len(noise) == len(cropped.tiles_IHWC) == 4
    for one, other in itertools.combinations(noise, 2):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.4
    np.testing.assert_allclose(noise.std(), 1, atol=0.1)
    assert noisy.sizes == cropped.sizes == clean.sizes
    assert clean.sizes[1] == Frame(7, 9, 0.5, 4)


def test_prompts_about_videos_are_answered_alike(variables):
    """Answers depend on neither neighbours, nor shapes of prefill, nor devices."""
    asked = [*prompts(12), dataclasses.replace(VIDEO, images=("0", "broken"))]
    data = PromptSet(asked, load_image)
    corrupt = (DiffusionNoise(400), RandomResizedCrop(size=24))
    sampling = Sampling(6, temperature=1.5)

    def answers(batch_size=8, mesh=(1, 1, 1), corrupt=corrupt, data=data, **options):
        engine = RolloutEngine(
            MODEL, variables, encoder(), ONEVISION, mesh_of(*mesh), batch_size, 1, **options
        )
        return list(itertools.chain(*engine.answer(data, sampling, corrupt)))

    expected = answers()
    assert [a.dropped for a in expected] == [""] * 12 + ["unreadable image"]
    assert len({a.answers for a in expected}) > 8
    assert answers(batch_size=16, refill=4, mesh=(2, 2, 1)) == expected
    videos = PromptSet([VIDEO, dataclasses.replace(VIDEO, id="w")], load_image)
    changed = answers(corrupt=(Drop(), Shuffle(), Reverse()), data=videos)
    assert [len(a.answers) for a in changed] == [4, 4]


def test_config_json_keeps_the_video_token():
    tower = SiglipConfig(image_size=SIZE, patch_size=4, hidden_size=16, num_layers=1, num_heads=2)
    config = dataclasses.replace(
        CONFIG, vision=tower, feature_select="full", image_token_id=7, video_token_id=9
    )
    family = family_of(config)
    fields = family.fields(config, ONEVISION, None)
    assert fields["video_token_index"] == 9
    assert family.config(family.hf_config(fields), False).video_token_id == 9
