"""LLaVA-NeXT, OneVision and LLaVA-Video in the layout of LLaVA's own code, against transformers.

The layout of videos, which transformers does not have, is computed here with torch from the
formulas of that code.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")

from helpers_families import GRID, SIDE, batch, batch_with_videos, random_model  # noqa: E402
from helpers_llava import IMAGE_TOKEN, VOCAB  # noqa: E402
from helpers_original import VIDEO_TOKEN, original_tensors, write_original_of  # noqa: E402
from safetensors.numpy import save_file  # noqa: E402
from test_family_parity import tokenizer_of  # noqa: E402

import seva_jax  # noqa: E402
from seva_jax.convert.__main__ import open_source  # noqa: E402
from seva_jax.convert.rewrite import to_hf  # noqa: E402

WIDE, TALL, SMALL, LARGE = (61, 200), (333, 47), (13, 9), (150, 131)
MODELS = {
    "next": ("llava_next", {}, {}),
    "next mistral": (
        "llava_next",
        {"kind": "mistral", "text": {"sliding_window": None}},
        {"model_type": "llava_mistral", "rope_scaling": {"type": "linear", "factor": 2.0}},
    ),
    "next qwen": ("llava_next", {"kind": "qwen2"}, {"model_type": "llava_qwen"}),
    "onevision": ("llava_onevision", {}, {}),
    "onevision smaller": (
        "llava_onevision",
        {"vision_aspect_ratio": "anyres_max_1"},
        {"image_aspect_ratio": "anyres_max_1"},
    ),
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Returns a function from a name in `MODELS` to (transformers' model, ours), made once."""
    made = {}

    def get(name):
        if name not in made:
            family, options, fields = MODELS[name]
            model = random_model(family, **options)
            directory = tmp_path_factory.mktemp("original") / "llava"
            write_original_of(family, model.state_dict(), directory, **fields)
            made[name] = model, seva_jax.from_pretrained(directory)
        return made[name]

    return get


def check(theirs, ours, arrays):
    with torch.no_grad():
        expected = theirs(**{name: torch.tensor(x) for name, x in arrays.items()}).logits.numpy()
    got = ours.logits(**arrays)
    real = arrays["attention_mask"].astype(bool)
    assert expected[real].std() > 0.5  # a mistake of any kind shows far above 1e-4
    np.testing.assert_allclose(got[real], expected[real], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_logits_of_images(pair, name):
    theirs, ours = pair(name)
    assert ours.family.model_type == theirs.config.model_type
    for rows in ([[WIDE], [SMALL], [TALL]], [[LARGE, WIDE], []]):
        check(theirs, ours, batch(theirs, rows, [5, 9, 2][: len(rows)]))


def test_logits_of_videos_with_one_newline(pair):
    theirs, ours = pair("onevision")
    check(theirs, ours, batch_with_videos(theirs, [[2, {2}, 3, WIDE, 4], [3, {2}, 2]]))


def test_a_tower_with_weights_of_its_own(pair, tmp_path):
    """It has one layer more than is used, and a head that is not."""
    theirs, ours = pair("onevision")
    directory = write_original_of("llava_onevision", theirs.state_dict(), tmp_path / "llava")
    inside = "model.vision_tower.vision_tower."
    tensors = original_tensors(theirs.state_dict())
    tower = {n.removeprefix(inside): x for n, x in tensors.items() if n.startswith(inside)}
    last = "vision_model.encoder.layers.2."
    tower |= {n.replace(".2.", ".3.", 1): x + 1 for n, x in tower.items() if n.startswith(last)}
    tower |= {"logit_scale": np.ones(1, np.float32), "logit_bias": np.ones(1, np.float32)}
    tower |= {"vision_model.head.probe": np.ones((1, 1, 32), np.float32)}
    save_file(tower, directory / "vision_tower" / "model.safetensors")
    rest = {n: x for n, x in tensors.items() if not n.startswith(inside)}
    save_file(rest, directory / "model.safetensors")
    arrays = batch(theirs, [[WIDE]], [5])
    again = seva_jax.from_pretrained(directory)
    assert again.config.vision.num_layers == 4
    np.testing.assert_array_equal(again.logits(**arrays), ours.logits(**arrays))


# --- videos ---


def their_video(features_IPD, newline_D, pool, position):
    """Returns the tokens [N, D] of a video, from the projected features [frames, P, D]."""
    frames, num, width = features_IPD.shape
    side = int(num**0.5)
    grid = features_IPD.reshape(frames, side, side, width).permute(0, 3, 1, 2)
    if pool == "average":
        grid = torch.nn.functional.avg_pool2d(grid, 2)
    else:
        half = -(-side // 2)
        grid = torch.nn.functional.interpolate(grid, size=[half, half], mode="bilinear")
    tokens = []
    for frame in grid.permute(0, 2, 3, 1):
        for row in frame:
            tokens += [*row] + [newline_D] * (position == "grid")
        tokens += [newline_D] * (position == "frame")
    return torch.stack(tokens + [newline_D] * (position == "one_token"))


@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize("pool", ["bilinear", "average"])
@pytest.mark.parametrize("position", ["grid", "frame", "no_token", "one_token"])
def test_logits_of_videos(tmp_path, odd, pool, position):
    side = 70 if odd else SIDE
    model = random_model("llava_onevision", vision={"image_size": side})
    fields = {"mm_spatial_pool_mode": pool, "mm_newline_position": position}
    if odd:
        fields["image_grid_pinpoints"] = "(1x1),...,(2x3)"
    directory = write_original_of(
        "llava_onevision", model.state_dict(), tmp_path / "llava", **fields
    )
    tower = json.loads((directory / "vision_tower" / "config.json").read_text())
    (directory / "vision_tower" / "config.json").write_text(
        json.dumps(tower | {"image_size": side})
    )
    ours = seva_jax.from_pretrained(directory)
    rng = np.random.default_rng(0)
    frames = rng.standard_normal((3, 3, side, side)).astype(np.float32)
    before, after = (torch.tensor(rng.integers(3, IMAGE_TOKEN, n)) for n in (4, 6))
    with torch.no_grad():
        inner = model.model
        tower = inner.vision_tower(torch.tensor(frames), output_hidden_states=True)
        features = inner.multi_modal_projector(tower.hidden_states[-1])
        video = their_video(features, inner.image_newline, pool, position)
        embed = inner.get_input_embeddings()
        inputs = torch.cat([embed(before), video, embed(after)])[None]
        expected = model.lm_head(inner.language_model(inputs_embeds=inputs).last_hidden_state)
    rows = 3 if odd and pool == "bilinear" else 2
    newlines = {"grid": 3 * rows, "frame": 3, "one_token": 1, "no_token": 0}[position]
    assert len(video) == 3 * rows * rows + newlines
    ids = np.concatenate([before, np.full(len(video), VIDEO_TOKEN), after])[None]
    got = ours.logits(ids, pixel_values_videos=frames[None])
    assert expected.numpy().std() > 0.5
    np.testing.assert_allclose(got, expected.numpy(), rtol=0, atol=1e-4)


# --- pixels ---


def their_tiles(image, pairs, side, mean, std):
    """Returns the tiles of an image as `process_anyres_image` makes them, with widths first."""
    width, height = image.size
    best, most, least = None, 0, float("inf")
    for w, h in pairs:
        scale = min(w / width, h / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        spare = w * h - kept
        if kept > most or (kept == most and spare < least):
            best, most, least = (w, h), kept, spare
    w, h = best
    if w / width < h / height:
        fitted = w, min(-int(-height * (w / width) // 1), h)
    else:
        fitted = min(-int(-width * (h / height) // 1), w), h
    canvas = Image.new("RGB", best)
    canvas.paste(image.resize(fitted), ((w - fitted[0]) // 2, (h - fitted[1]) // 2))
    boxes = [(x, y, x + side, y + side) for y in range(0, h, side) for x in range(0, w, side)]
    tiles = [image.resize((side, side)), *(canvas.crop(box) for box in boxes)]
    pixels = np.stack([np.asarray(tile, np.float64) for tile in tiles]) / 255
    return (pixels - mean) / std


@pytest.mark.parametrize("name", ["next", "onevision"])
def test_pixels(pair, name):
    """Unlike transformers', their files have widths first, so ties are broken the other way."""
    _, ours = pair(name)
    processing, rng = ours.processing, np.random.default_rng(0)
    mean, std = np.array(processing.mean), np.array(processing.std)
    pairs = [(w, h) for h, w in GRID]
    for size in (WIDE, TALL, SMALL, LARGE, (40, 40), (56, 112), (57, 111)):
        photo = rng.integers(0, 256, (*size, 3), np.uint8)
        expected = their_tiles(Image.fromarray(photo), pairs, SIDE, mean, std)
        np.testing.assert_allclose(processing.tiles(photo), expected, atol=1e-6)
    square = rng.integers(0, 256, (40, 40, 3), np.uint8)
    swapped = their_tiles(Image.fromarray(square), [tuple(x) for x in GRID], SIDE, mean, std)
    assert np.abs(processing.tiles(square) - swapped).max() > 0.1


# --- exports ---


@pytest.mark.parametrize("name", MODELS)
def test_in_the_layout_of_transformers(pair, name, tmp_path):
    """`to-hf` writes what transformers opens, with nothing missing."""
    theirs, ours = pair(name)
    tokenizer_of("<image>").save_pretrained(ours.directory)
    to_hf(open_source(ours.directory), tmp_path / "hf")
    again, info = type(theirs).from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not info["unexpected_keys"]
    assert all("post_layernorm" in x for x in info["missing_keys"])
    for key, values in theirs.state_dict().items():
        ours_of = again.state_dict()[key]
        assert torch.equal(values, ours_of[: len(values)]), key
    arrays = batch(theirs, [[WIDE], [LARGE]], [5, 6])
    with torch.no_grad():
        tensors = {key: torch.tensor(x) for key, x in arrays.items()}
        got, want = (m.eval()(**tensors).logits.numpy() for m in (again, theirs))
    np.testing.assert_allclose(got[..., :VOCAB], want, atol=1e-5)
