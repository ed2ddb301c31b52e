"""Videos of Qwen2-VL, Qwen2.5-VL and Qwen3-VL against transformers in float32."""

import itertools

import numpy as np
import pytest

pytest.importorskip("torch")

from helpers_qwen import QWEN, batch_with_videos, opened_pair, torch_batch

from seva_jax.types import DataError

WIDE, TALL, SMALL = (91, 260), (300, 71), (56, 60)


@pytest.fixture(scope="module", params=QWEN)
def pair(request, tmp_path_factory):
    """Returns the family, its model in transformers, and the same one opened by us."""
    return opened_pair(request.param, tmp_path_factory)


def positions_of(family, theirs, arrays):
    """Returns positions [3, B, S] in which what follows a video comes after all of it.

    The released models were trained with these; in transformers 5 what follows overlaps with a
    video whose positions in time are larger than those of its rows and columns.
    """
    grids = {1: iter(arrays.get("image_grid_thw", ())), 2: iter(arrays.get("video_grid_thw", ()))}
    out = np.zeros((3, *arrays["input_ids"].shape), np.int64)
    seconds = iter(arrays.get("second_per_grid_ts", ()))
    for row, kinds in enumerate(arrays["mm_token_type_ids"]):
        places, following, pairs_left, last = [], 0, 0, None
        real = arrays["attention_mask"][row] == 1
        for kind, tokens in itertools.groupby(kinds[real]):
            num = len(list(tokens))
            if not kind:
                places.append(np.tile(following + np.arange(num), (3, 1)))
            else:
                pairs, rows, columns = last if pairs_left else next(grids[kind])
                if family == "qwen3_vl":
                    last, pairs_left = (pairs, rows, columns), (pairs_left or pairs) - 1
                    pairs = 1
                speed = 1.0
                if family == "qwen2_5_vl" and kind == 2:
                    speed = theirs.config.vision_config.tokens_per_second * next(seconds)
                grid = np.stack(
                    np.meshgrid(
                        (np.arange(pairs) * speed).astype(int), np.arange(rows // 2),
                        np.arange(columns // 2), indexing="ij",
                    )
                ).reshape(3, -1)  # fmt: skip
                places.append(following + grid)
            following = places[-1].max() + 1
        out[:, row, real] = np.concatenate(places, axis=1)
    return out


def compare(pair, arrays, own_positions=True):
    import torch

    family, theirs, ours = pair
    given = torch_batch(arrays)
    if own_positions:
        given["position_ids"] = torch.from_numpy(positions_of(family, theirs, arrays))
    with torch.no_grad():
        expected = theirs(**given).logits.numpy()
    real = arrays["attention_mask"] == 1
    assert expected[real].std() > 0.5
    np.testing.assert_allclose(ours.logits(**arrays)[real], expected[real], atol=1e-4, rtol=1e-4)


def test_logits_of_a_short_video(pair):
    """Its positions in time are smaller than its grid, so transformers' own positions are right."""
    compare(pair, batch_with_videos(pair[0], [[4, {4: WIDE}, 5]], 0.5), own_positions=False)


@pytest.mark.parametrize("seconds", [1.0, 0.7])
@pytest.mark.parametrize("padding", ["left", "right"])
def test_logits_of_videos_and_images(pair, seconds, padding):
    rows = [[4, {9: SMALL}, 3, TALL, 5], [6, WIDE, 2, {2: TALL}, 3, {4: SMALL}, 4], [12]]
    compare(pair, batch_with_videos(pair[0], rows, seconds, padding))


def test_greedy_answers(pair):
    import torch

    family, theirs, ours = pair
    arrays = batch_with_videos(family, [[4, {4: WIDE}, 5], [8, TALL, 4]], 0.5)
    with torch.no_grad():
        expected = theirs.generate(**torch_batch(arrays), max_new_tokens=8, do_sample=False)
    np.testing.assert_array_equal(ours.generate(**arrays, max_new_tokens=8), expected.numpy())


def test_wrong_arrays(pair):
    family, _, ours = pair
    arrays = batch_with_videos(family, [[4, {4: WIDE}, 5]])
    short = arrays | {"pixel_values_videos": arrays["pixel_values_videos"][:-4]}
    with pytest.raises(DataError, match=r"pixel_values_videos has .* the videos of video_grid_thw"):
        ours.logits(**short)
    with pytest.raises(DataError, match="video_grid_thw is missing"):
        ours.logits(**{name: x for name, x in arrays.items() if name != "video_grid_thw"})
    with pytest.raises(DataError, match=r"input_ids has .* video tokens"):
        ours.logits(**arrays | {"input_ids": np.full_like(arrays["input_ids"], 4)})
    with pytest.raises(DataError, match=r"second_per_grid_ts is \[1.0, 2.0\], expected a positive"):
        ours.logits(**arrays | {"second_per_grid_ts": [1.0, 2.0]})
