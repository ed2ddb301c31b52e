"""Videos of Qwen-VL: their size, tiles, positions, texts, features, and answers about them."""

import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest
from helpers_devices import mesh_of
from helpers_rollout import IMAGE, TOKENIZER
from helpers_tokenizer import qwen2_style_tokenizer
from tiny_models import TINY, noisy_variables

from seva_jax.batches.encoded import encode_comparisons
from seva_jax.batches.image_inputs import FeatureCache, Pixels, image_uses
from seva_jax.batches.pipeline import ComparisonRows
from seva_jax.batches.trees import trunk_positions
from seva_jax.corrupt import DiffusionNoise, Drop, RandomResizedCrop, Reverse
from seva_jax.data import PromptSet
from seva_jax.images import ImageLayouts, QwenProcessing
from seva_jax.images.qwen_layouts import video_resized
from seva_jax.inference.corrupted import prompt_images
from seva_jax.inference.features import cached_features
from seva_jax.inference.rollouts import RolloutEngine
from seva_jax.models import Llava, Qwen3VisionConfig, Qwen25VisionConfig
from seva_jax.text import PLAIN, QWEN3_VL, Encoder, Sampling
from seva_jax.training.step import StepOptions, make_logps
from seva_jax.types import Comparison, ExampleError, Prompt, frames_of

TOWER = {
    "image_size": 4, "patch_size": 2, "hidden_size": 16, "num_layers": 2, "num_heads": 2,
    "mlp_size": 24,
}  # fmt: skip
TOWERS = {
    "seconds": Qwen25VisionConfig(**TOWER, full_layers=(1,)),
    "timestamps": Qwen3VisionConfig(**TOWER, position_grid=3, deep=(0,)),
}
BOUNDS = {"min_pixels": 64, "max_pixels": 400, "min_video_pixels": 64}
PROCESSING = {
    "seconds": QwenProcessing(
        size=4, **BOUNDS, max_video_pixels=200, positions_per_second=2
    ),
    "timestamps": QwenProcessing(size=4, **BOUNDS, max_video_pixels=600, timestamps=True),
}  # fmt: skip


def model_of(kind):
    text = dataclasses.replace(
        TINY.text, vocab_size=len(TOKENIZER), head_dim=8, rope_sections=(2, 1, 1),
        rope_interleaved=kind == "timestamps",
    )  # fmt: skip
    config = dataclasses.replace(
        TINY, vision=TOWERS[kind], text=text, image_token_id=IMAGE, feature_layer=-1,
        feature_select="full",
    )  # fmt: skip
    return Llava(config)


def load_image(name):
    """Returns noise, other for every name; frames of a video begin with its letter."""
    if name == "broken":
        raise ExampleError("truncated file", "unreadable image")
    shape = {"a": (14, 18), "b": (30, 9)}.get(name[0], (20, 21))
    seed = int.from_bytes(name.encode(), "little")
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def image_size(name):
    return load_image(name).shape[:2]


VIDEO = Prompt("v", "<video> what is it", ("a0", "a1", "a2", "a3"), {"seconds_per_frame": 0.8})
PROMPTS = [
    VIDEO,
    Prompt("odd", "what is it <video>", ("b0", "b1", "b2")),
    Prompt("one", "<video>\nwhat is it", ("a0",)),
    Prompt("image", "what is it", ("c0",)),
    Prompt("images", "what is it", ("c0", "a0")),
    Prompt("none", "what is it", ()),
    Prompt("long", "<video> what is it", tuple(f"a{i}" for i in range(9))),
]


def encoder(kind):
    return Encoder(TOKENIZER, PLAIN, IMAGE, ImageLayouts(PROCESSING[kind], 1), 256, image_size)


def test_frames_share_tiles_in_pairs():
    """Two frames are one under the other; the last of an odd number, and an image, come twice."""
    processing = PROCESSING["seconds"].of_prompts(PROMPTS)
    assert processing.tile_shape == (8, 4, 3)
    pixels = Pixels(load_image, processing)
    (use,) = image_uses(PROMPTS[1])
    tiles = pixels(use)
    frames = [processing.frame(load_image(x), f) for x, f in zip(
        use.names, frames_of((30, 9), 3, 0.5), strict=True)]  # fmt: skip
    num = len(frames[0])
    (layout,) = processing.layouts(frames_of((30, 9), 3, 0.5), 1)
    assert len(tiles) == 2 * num == layout.tiles
    np.testing.assert_array_equal(tiles[:num, :4], frames[0])
    np.testing.assert_array_equal(tiles[:num, 4:], frames[1])
    np.testing.assert_array_equal(tiles[num:, :4], frames[2])
    np.testing.assert_array_equal(tiles[num:, 4:], frames[2])
    (use,) = image_uses(PROMPTS[3])
    alone = PROCESSING["seconds"].of_prompts(PROMPTS[3:6])
    assert alone.tile_shape == (4, 4, 3)
    image = Pixels(load_image, alone)(use)
    np.testing.assert_array_equal(pixels(use), np.concatenate([image, image], axis=1))


def test_positions_in_time_are_seconds_or_pairs():
    """Text after a video counts on from the largest of its positions."""
    frames = frames_of((14, 18), 6, 0.8)
    timed, counted = PROCESSING["seconds"], dataclasses.replace(
        PROCESSING["seconds"], positions_per_second=0
    )  # fmt: skip
    for processing, times, advance in ((timed, [0, 3, 6], 7), (counted, [0, 1, 2], 4)):
        (layout,) = processing.layouts(frames, 1)
        rows, columns = processing.grid(frames[0])
        assert (rows, columns) == (3, 4)
        assert layout.native.position_N3[:: rows * columns, 0].tolist() == times
        assert layout.native.advance == advance
        assert {*layout.native.place_I5[:, 0].tolist()} == {1, 2, 3}
        is_image = np.array([False, *[True] * layout.num_tokens, False])
        positions, _ = trunk_positions(is_image, (layout,), True)
        assert positions[-1].tolist() == [1 + advance] * 3


def test_timestamps_are_those_of_transformers():
    """Text says when every two frames are shown, on average."""
    from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

    for num, rate, step in ((4, 24.0, 12), (5, 30.0, 15), (1, 25.0, 7), (8, 29.97, 20)):
        indices = list(range(0, num * step, step))
        expected = Qwen3VLProcessor._calculate_timestamps(None, list(indices), rate)
        got = PROCESSING["timestamps"].captions(frames_of((0, 0), num, step / rate))
        assert got == tuple(f"<{seconds:.1f} seconds>" for seconds in expected)
    assert PROCESSING["seconds"].captions(frames_of((0, 0), 4, 1.0)) == ("",)


@pytest.mark.parametrize("frames", [2, 3, 5, 8, 9])
@pytest.mark.parametrize("size", [(91, 260), (30, 31), (7, 40), (500, 400)])
def test_sizes_of_whole_videos_are_those_of_transformers(frames, size):
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize

    for bounds in ((64 * 64, 64 * 64 * 30), (128 * 32 * 32, 32 * 32 * 768), (1, 5000)):
        expected = smart_resize(frames, *size, 2, 32, *bounds)
        assert video_resized(size, frames, 32, *bounds) == expected


def test_texts_are_those_of_transformers():
    """Each two frames of Qwen3-VL are an image with text in front; a video is one image before."""
    names = [f"<|{name}|>" for name in ("vision_start", "vision_end", "image_pad", "video_pad")]
    tokenizer = qwen2_style_tokenizer(["What happens? It is 0.4 or <1.2 seconds>."], tuple(names))
    pad = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    text = "<|vision_start|><|image_pad|><|vision_end|>"
    for kind, video in (
        ("seconds", text),
        ("timestamps", f"<0.4 seconds>{text}<2.0 seconds>{text}"),
    ):
        layouts = ImageLayouts(PROCESSING[kind], 1)
        ours = Encoder(tokenizer, QWEN3_VL, pad, layouts, 600, image_size, text)
        trunk = ours.trunk(VIDEO)
        rows, columns = PROCESSING[kind].grid(frames_of((14, 18), 4, 0.8)[0])
        pads = rows * columns * (1 if kind == "timestamps" else 2)
        whole = video.replace("<|image_pad|>", "<|image_pad|>" * pads)
        asked = f"<|im_start|>user\n{whole}what is it<|im_end|>\n<|im_start|>assistant\n"
        assert trunk.tolist() == tokenizer(asked).input_ids


def test_seconds_that_are_no_number_are_refused():
    for value in ("1", 0, -1.0, True, None, float("nan")):
        prompt = dataclasses.replace(VIDEO, meta={"seconds_per_frame": value})
        with pytest.raises(ExampleError, match=r"seconds_per_frame is .*; give a positive number"):
            encoder("seconds").trunk(prompt)


def test_corrupted_videos_keep_their_size():
    """A crop of a frame gets the size of the video; noise and order change no layout but Drop's."""
    processing = PROCESSING["seconds"].of_prompts([VIDEO])
    clean, noisy, cropped, turned, fewer = prompt_images(
        VIDEO, load_image, processing,
        (DiffusionNoise(400), RandomResizedCrop(size=12), Reverse(), Drop()), 0,
    )  # fmt: skip
    shapes = {x.tiles_IHWC.shape for x in (clean, noisy, cropped, turned)}
    assert shapes == {(24, 8, 4, 3)}
    assert fewer.tiles_IHWC.shape[0] == 12
    assert noisy.sizes == cropped.sizes == clean.sizes
    assert np.abs(noisy.tiles_IHWC - clean.tiles_IHWC).mean() > 0.2
    # Frames 2, 3, 0, 1: the pairs change places.
    np.testing.assert_array_equal(turned.tiles_IHWC[:12], clean.tiles_IHWC[12:])


@pytest.mark.parametrize("kind", PROCESSING)
def test_log_probs_depend_on_no_neighbour(kind, tmp_path):
    """They are the same alone, packed with images and other videos, and from cached features."""
    model = model_of(kind)
    variables = jax.tree.map(np.asarray, noisy_variables(model))
    comparisons = [Comparison(prompt, ("a b c", "d e")) for prompt in PROMPTS]
    encoded = encode_comparisons(comparisons, encoder(kind))
    assert len(encoded.comparisons) == len(PROMPTS)
    pixels = Pixels(load_image, PROCESSING[kind].of_prompts(PROMPTS))
    rows = ComparisonRows(encoded, pixels)
    compute = jax.jit(make_logps(model, StepOptions(head_chunk=7)))

    def logps(members, shape, rows=rows):
        batch = jax.tree.map(lambda x: x[None], rows.row(members, shape))
        return np.asarray(compute(variables, batch))

    num = len(PROMPTS)
    wide = dataclasses.replace(
        rows.shape, length=900, comparisons=num, tiles=200, targets=90
    )  # fmt: skip
    packed = logps(range(num), wide)
    uses = sorted({use for prompt in PROMPTS for use in image_uses(prompt)})
    cache = FeatureCache(tmp_path, *model.feature_kind)
    known = cached_features(
        cache, model, variables, uses, pixels, mesh_of(2, 2, 1), 5, lambda num: None
    )
    cached = ComparisonRows(encoded, known)
    for i in range(num):
        np.testing.assert_allclose(logps([i], rows.shape)[0, 0], packed[0, i], atol=3e-5)
        again = logps([i], rows.shape, cached)[0, 0]
        np.testing.assert_allclose(again, packed[0, i], atol=1e-4)


@pytest.mark.parametrize("kind", PROCESSING)
def test_prompts_about_videos_are_answered_alike(kind):
    """Answers depend on neither neighbours, nor shapes of prefill, nor devices."""
    model = model_of(kind)
    variables = jax.tree.map(np.asarray, noisy_variables(model))
    asked = [*PROMPTS, dataclasses.replace(VIDEO, id="lost", images=("a0", "broken"))]
    corrupt = (DiffusionNoise(400), RandomResizedCrop(size=12))

    def answers(batch_size=8, mesh=(1, 1, 1), **options):
        engine = RolloutEngine(
            model, variables, encoder(kind), PROCESSING[kind], mesh_of(*mesh), batch_size, 1,
            **options,
        )  # fmt: skip
        data = PromptSet(asked, load_image)
        return list(itertools.chain(*engine.answer(data, Sampling(6, temperature=1.5), corrupt)))

    expected = answers()
    assert [a.dropped for a in expected] == [""] * len(PROMPTS) + ["unreadable image"]
    assert len({a.answers for a in expected}) > 4
    assert answers(batch_size=16, refill=4, mesh=(2, 2, 1)) == expected


def test_bounds_of_videos_are_read_from_their_file(tmp_path):
    """Without one, as in the first releases, they are those of images, as in transformers."""
    images = {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 14, "merge_size": 2}
    images |= {"min_pixels": 3136, "max_pixels": 12845056}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(images))
    read = QwenProcessing.from_processor_config(tmp_path)
    assert (read.min_video_pixels, read.max_video_pixels) == (3136, 12845056)
    videos = {"size": {"shortest_edge": 4096, "longest_edge": 25165824}}
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(videos))
    read = QwenProcessing.from_processor_config(tmp_path)
    assert (read.min_video_pixels, read.max_video_pixels) == (4096, 25165824)
    assert (read.min_pixels, read.max_pixels) == (3136, 12845056)
    for name, fields in (
        ("preprocessor_config.json", read.to_processor_config()),
        ("video_preprocessor_config.json", read.to_video_config()),
    ):
        (tmp_path / name).write_text(json.dumps(fields))
    assert QwenProcessing.from_processor_config(tmp_path) == read
