"""Videos of LLaVA-OneVision against transformers: logits, answers, and pixels of frames."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")

from helpers_families import SIDE, batch_with_videos, random_model  # noqa: E402
from helpers_llava import PAD, VOCAB, save  # noqa: E402

import seva_jax  # noqa: E402
from seva_jax.convert import SpecialTokens  # noqa: E402
from seva_jax.images.llava_onevision import LlavaOnevisionProcessing  # noqa: E402
from seva_jax.types import DataError  # noqa: E402

WIDE, TALL = (61, 200), (333, 47)
# A side of an odd number of patches is halved upwards.
ODD = {"vision": {"image_size": 70}, "image_grid_pinpoints": [[70, 140], [140, 140]]}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Returns a function from options to (transformers' model, ours)."""
    made = {}

    def get(odd=False):
        if odd not in made:
            model = random_model("llava_onevision", **(ODD if odd else {}))
            directory = save(model, tmp_path_factory.mktemp("model"))
            made[odd] = model, seva_jax.from_pretrained(directory)
        return made[odd]

    return get


ROWS = {
    "one frame": [[3, {1}, 4]],
    "several videos": [[2, {3}, 4, {3}, 1], [5], [{3}, 7]],
    "beside images": [[2, {2}, 3, WIDE, 4], [3, TALL, 2], [WIDE, 1, {2}, TALL, 5]],
}


@pytest.mark.parametrize("rows", ROWS)
def test_logits(pair, rows):
    theirs, ours = pair()
    check_logits(theirs, ours, batch_with_videos(theirs, ROWS[rows]))


def test_logits_of_an_odd_side(pair):
    theirs, ours = pair(odd=True)
    check_logits(theirs, ours, batch_with_videos(theirs, [[3, {4}, 2], [{4}, 6]], side=70))


def check_logits(theirs, ours, arrays):
    with torch.no_grad():
        expected = theirs(**{name: torch.tensor(x) for name, x in arrays.items()}).logits.numpy()
    got = ours.logits(**arrays)
    real = arrays["attention_mask"].astype(bool)
    assert expected[real].std() > 0.5  # a mistake of any kind shows far above 1e-4
    np.testing.assert_allclose(got[real], expected[real], rtol=0, atol=1e-4)


def test_greedy_answers(pair):
    theirs, ours = pair()
    arrays = batch_with_videos(theirs, [[4, {2}, 5], [7], [3, TALL, 2, {2}, 3]], seed=3)
    with torch.no_grad():
        expected = theirs.generate(
            **{name: torch.tensor(x) for name, x in arrays.items()},
            do_sample=False, max_new_tokens=8, eos_token_id=VOCAB, pad_token_id=PAD,
        ).numpy()  # fmt: skip
    ours = dataclasses.replace(ours, special=SpecialTokens((VOCAB,), PAD))
    np.testing.assert_array_equal(ours.generate(**arrays, max_new_tokens=8), expected)


def test_videos_of_different_lengths(pair):
    """A list may hold them; each row is as if it were alone."""
    theirs, ours = pair()
    one, other = (batch_with_videos(theirs, [[2, {frames}, 3]], seed=frames) for frames in (2, 3))
    both = batch_with_videos(theirs, [[2, {2}, 3]])
    shorter, width = one["input_ids"].shape[1], other["input_ids"].shape[1]
    both = {
        name: np.concatenate([np.pad(one[name], [(0, 0), (width - shorter, 0)]), other[name]])
        for name in ("input_ids", "attention_mask")
    }
    videos = [one["pixel_values_videos"][0], other["pixel_values_videos"][0]]
    got = ours.logits(**both, pixel_values_videos=videos)
    np.testing.assert_allclose(got[0, width - shorter :], ours.logits(**one)[0], atol=1e-4)
    np.testing.assert_allclose(got[1], ours.logits(**other)[0], atol=1e-4)


def test_wrong_arrays(pair):
    theirs, ours = pair()
    arrays = batch_with_videos(theirs, [[2, {2}, 3]])
    with pytest.raises(DataError, match="input_ids has 9 video tokens, but the 0 videos"):
        ours.logits(arrays["input_ids"])
    with pytest.raises(DataError, match=r"video 0 is \[2, 3, 56, 55\], expected \[frames, 3, 56,"):
        ours.logits(
            arrays["input_ids"], pixel_values_videos=arrays["pixel_values_videos"][..., :55]
        )


def test_pixels_of_frames():
    """They are those of the video processor, whose filter is torch's, not Pillow's."""
    pytest.importorskip("torchvision")
    from transformers import LlavaOnevisionVideoProcessor

    theirs = LlavaOnevisionVideoProcessor(
        size={"height": SIDE, "width": SIDE}, image_mean=[0.5, 0.4, 0.3], image_std=[0.5, 0.6, 0.7]
    )
    ours = LlavaOnevisionProcessing(
        size=SIDE, mean=(0.5, 0.4, 0.3), std=(0.5, 0.6, 0.7), resolutions=((SIDE, SIDE),)
    )
    for height, width in ((40, 90), (150, 61), (56, 56)):
        video = np.random.default_rng(height).integers(0, 256, (3, height, width, 3), np.uint8)
        expected = theirs(list(video.transpose(0, 3, 1, 2)[None]), return_tensors="np")
        expected = np.asarray(expected["pixel_values_videos"])[0].transpose(0, 2, 3, 1)
        difference = np.abs(np.stack([ours(x) for x in video]) - expected) * np.float32(ours.std)
        assert difference.mean() <= 1 / 255
        assert difference.max() <= 12 / 255  # of noise, which filters change most
