"""Rows of trees for Qwen-VL: a branch continues at the largest position of its trunk."""

import dataclasses

import jax
import numpy as np
import pytest

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")

from helpers_devices import mesh_of  # noqa: E402
from helpers_llava import IMAGE_TOKEN, PAD, save  # noqa: E402
from helpers_qwen import (  # noqa: E402
    MOST,
    QWEN,
    batch_with_videos,
    image_processor,
    patch_of,
    random_qwen,
    torch_batch,
)

from seva_jax.batches.trees import RowShape, TreeExample, pack_row, stack_rows  # noqa: E402
from seva_jax.convert import load_params  # noqa: E402
from seva_jax.convert.hf_config import read_llava_config  # noqa: E402
from seva_jax.images import QwenProcessing  # noqa: E402
from seva_jax.inference.qwen_arrays import ImageArrays, qwen_pictures  # noqa: E402
from seva_jax.models import Llava, abstract_variables  # noqa: E402
from seva_jax.sharding import batch_sharding, variable_shardings  # noqa: E402
from seva_jax.training.step import StepOptions, make_logps  # noqa: E402

PICTURES = [[(91, 260), (56, 60)], [(300, 71)], [], [(130, 130)]]


@pytest.fixture(scope="module", params=QWEN)
def pair(request, tmp_path_factory):
    """Returns the family, its model in transformers, its directory and our module."""
    theirs = random_qwen(request.param)
    folder = save(theirs, tmp_path_factory.mktemp(request.param) / "model")
    return request.param, theirs, folder, Llava(read_llava_config(folder))


def video_example(family):
    """Returns a comparison about a video of three frames and an image, and transformers' arrays."""
    arrays = batch_with_videos(family, [[3, {3: (91, 120)}, 2, (56, 60), 4]], 0.5)
    given = ImageArrays(**{name: x for name, x in arrays.items() if name in ImageArrays._fields})
    side = 2 * patch_of(family)
    processing = QwenProcessing(
        size=side, positions_per_second=4 if family == "qwen2_5_vl" else 0,
        timestamps=family == "qwen3_vl",
    )  # fmt: skip
    images, videos = qwen_pictures(processing, given)
    laid_out = [*videos, *images]  # as in the row
    tiles = np.concatenate([tiles for _, tiles in laid_out]).transpose(0, 2, 3, 1)
    trunk = arrays["input_ids"][0].astype(np.int32)
    trunk[arrays["mm_token_type_ids"][0] > 0] = IMAGE_TOKEN
    rng = np.random.default_rng(3)
    branches = tuple(rng.integers(5, IMAGE_TOKEN, num).astype(np.int32) for num in (4, 2))
    layouts = tuple(layout for layout, _ in laid_out)
    return TreeExample(trunk, branches, tiles, index=0, layouts=layouts), arrays


def examples(family):
    """Returns comparisons with pictures of several sizes, and their pictures."""
    theirs = image_processor(family)
    processing = QwenProcessing(
        size=2 * patch_of(family),
        mean=tuple(theirs.image_mean),
        std=tuple(theirs.image_std),
        **MOST,
    )
    rng = np.random.default_rng(0)
    out = []
    for index, sizes in enumerate(PICTURES):
        pictures = [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
        layouts = processing.layouts(sizes, 1)
        trunk = [*rng.integers(5, IMAGE_TOKEN, 3)]
        for layout in layouts:
            trunk += [IMAGE_TOKEN] * layout.num_tokens + [*rng.integers(5, IMAGE_TOKEN, 2)]
        tiles = [processing.tiles(picture) for picture in pictures]
        side = processing.size
        none = np.zeros((0, side, side, 3), np.float32)
        branches = tuple(
            rng.integers(5, IMAGE_TOKEN, rng.integers(2, 6)).astype(np.int32) for _ in range(3)
        )
        example = TreeExample(
            np.array(trunk, np.int32), branches, np.concatenate([none, *tiles]), index=index,
            layouts=layouts,
        )  # fmt: skip
        out.append((example, pictures))
    return out


def packed(family, groups, frames=1):
    """Returns a batch with a row for each list of examples."""
    side = 2 * patch_of(family)
    shape = RowShape.covering([example for group in groups for example in group])
    most = max(map(len, groups))
    shape = dataclasses.replace(
        shape, length=shape.length * most, comparisons=most, tiles=shape.tiles * most,
        targets=shape.targets * most,
    )  # fmt: skip
    rows = [
        pack_row(
            group, shape, image_shape=(frames * side, side, 3), tile_features=1,
            image_token_id=IMAGE_TOKEN, pad_id=PAD, native=True,
        )
        for group in groups
    ]  # fmt: skip
    return stack_rows(rows)


def their_log_probs(family, theirs, example, pictures):
    """Returns the log-probs of every branch, each in a row of its own."""
    arrays = {}
    if pictures:
        arrays = dict(image_processor(family)(pictures, return_tensors="pt"))
    out = []
    for branch in example.branches:
        ids = torch.tensor(np.concatenate([example.trunk, branch]))[None].long()
        kinds = {"mm_token_type_ids": (ids == IMAGE_TOKEN).long()} if pictures else {}
        with torch.no_grad():
            logits = theirs(input_ids=ids, **arrays, **kinds).logits[0]
        start = len(example.trunk)
        scores = torch.log_softmax(logits[start - 1 : -1], -1).numpy()
        out.append(scores[np.arange(len(branch)), branch])
    return out


def check(found, batch, expected):
    """Compares log-probs of all branches of a batch."""
    seen = 0
    for row, column in np.ndindex(batch.index_BC.shape):
        for k, scores in enumerate(expected.get(int(batch.index_BC[row, column]), ())):
            own = found[row, column, k, : len(scores)]
            np.testing.assert_allclose(own, scores, atol=1e-4, rtol=1e-4)
            seen += 1
    assert seen == sum(map(len, expected.values()))


def test_trees_equal_separate_rows(pair):
    family, theirs, folder, model = pair
    params = load_params(folder, model.config)
    made = examples(family)
    expected = {x.index: their_log_probs(family, theirs, x, seen) for x, seen in made}
    few = [x for x, _ in made]
    batch = packed(family, [few[:2], few[2:]])
    logps = jax.jit(make_logps(model, StepOptions(head_chunk=7)))
    found = np.asarray(logps({"params": params}, batch))
    check(found, batch, expected)


def test_trees_about_a_video_equal_separate_rows(pair):
    family, theirs, folder, model = pair
    example, arrays = video_example(family)
    expected = []
    for branch in example.branches:
        num, given = len(branch), dict(arrays)
        given["input_ids"] = np.concatenate([arrays["input_ids"], branch[None]], axis=1)
        given["attention_mask"] = np.ones_like(given["input_ids"])
        given["mm_token_type_ids"] = np.pad(arrays["mm_token_type_ids"], [(0, 0), (0, num)])
        with torch.no_grad():
            logits = theirs(**torch_batch(given)).logits[0]
        scores = torch.log_softmax(logits[-num - 1 : -1], -1).numpy()
        expected.append(scores[np.arange(num), branch])
    batch = packed(family, [[example]], frames=2)
    logps = jax.jit(make_logps(model, StepOptions(head_chunk=7)))
    params = load_params(folder, model.config)
    check(np.asarray(logps({"params": params}, batch)), batch, {0: expected})


def test_rows_on_a_mesh_are_those_of_one_device(pair):
    family, _, folder, model = pair
    params = load_params(folder, model.config)
    few = [x for x, _ in examples(family)]
    batch = packed(family, [[few[0]], [few[1]], [few[2]], [few[3]]])
    logps = make_logps(model, StepOptions(head_chunk=7))
    expected = np.asarray(jax.jit(logps)({"params": params}, batch))
    mesh = mesh_of(2, 2, 2)
    shardings = variable_shardings(mesh, abstract_variables(model)["params"])
    params = load_params(folder, model.config, shardings=shardings)
    assert not params["vision"]["layers"]["proj"]["kernel"].sharding.is_fully_replicated
    with jax.set_mesh(mesh):
        rows = jax.device_put(batch, batch_sharding(mesh))
        found = np.asarray(jax.jit(logps)({"params": params}, rows))
    np.testing.assert_allclose(found, expected, atol=1e-4)
