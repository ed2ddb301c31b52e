"""`seva_jax.from_pretrained` without torch: the arrays and options that it takes and refuses."""

import subprocess
import sys

import numpy as np
import pytest
from helpers_llava import write_llava
from tiny_models import TINY_HF

import seva_jax
from seva_jax.inference.qwen_arrays import ImageArrays
from seva_jax.pretrained import to_rows
from seva_jax.types import DataError


def test_images_of_a_batch_become_images_of_rows():
    image, pixels = [39] * 4, np.random.default_rng(0).standard_normal((3, 3, 28, 28))
    ids = np.array([[1] * 10, [1, *image, 2, *image], [0, 0, 1, *image, 2, 3, 4]])
    rows = to_rows(TINY_HF, ids, None, ImageArrays(pixels.astype(np.float32)))
    assert rows.pixels_BIHWC.shape == (3, 2, 28, 28, 3)
    expected = pixels.transpose(0, 2, 3, 1).astype(np.float32)
    np.testing.assert_array_equal(rows.pixels_BIHWC[1], expected[:2])
    np.testing.assert_array_equal(rows.pixels_BIHWC[2, 0], expected[2])
    assert not rows.pixels_BIHWC[0].any()
    assert not rows.pixels_BIHWC[2, 1].any()
    np.testing.assert_array_equal(
        rows.patch_BS,
        [[-1] * 10, [-1, 0, 1, 2, 3, -1, 4, 5, 6, 7], [-1, -1, -1, 0, 1, 2, 3, -1, -1, -1]],
    )
    assert rows.mask_BS.all()
    assert to_rows(TINY_HF, ids[:1], None, ImageArrays()).pixels_BIHWC.shape == (1, 0, 28, 28, 3)


PIXELS = np.zeros((1, 3, 28, 28), np.float32)


@pytest.mark.parametrize(
    ("input_ids", "pixels", "mask", "message"),
    [
        ([1, 2], None, None, r"input_ids is int64\[2\]"),
        ([[1.5]], None, None, "input_ids is float64"),
        (np.zeros((1, 0), int), None, None, "not empty"),
        ([[1, 2]], None, [[1]], r"attention_mask is \[1, 1\]"),
        ([[1, 40]], None, None, "input_ids holds 40, but the vocabulary has 40"),
        ([[1, -100]], None, None, "input_ids holds -100"),
        ([[39] * 3], PIXELS, None, "3 image tokens, but pixel_values has 1 images of 4 .*, 4 in"),
        ([[39] * 4], None, None, "4 image tokens, but pixel_values has 0 images"),
        ([[1]], PIXELS, None, "0 image tokens, but pixel_values has 1 images"),
        ([[39], [39]] * 2, PIXELS, None, "row 0 has 1 image tokens, not a multiple of 4"),
        ([[39] * 4], PIXELS[:, :, :14], None, r"pixel_values is \[1, 3, 14, 28\]"),
        ([[39] * 4], PIXELS.transpose(0, 2, 3, 1), None, r"expected \[images, 3, 28, 28\]"),
    ],
)
def test_arrays_that_do_not_fit(input_ids, pixels, mask, message):
    with pytest.raises(DataError, match=message):
        to_rows(TINY_HF, np.asarray(input_ids), mask, ImageArrays(pixels))


def test_options_out_of_range(tmp_path):
    directory = write_llava(tmp_path)
    with pytest.raises(DataError, match="dtype is 'int8'"):
        seva_jax.from_pretrained(directory, dtype="int8")
    llava = seva_jax.from_pretrained(directory)
    ids = np.array([[1, 2]])
    with pytest.raises(DataError, match="max_new_tokens is 0"):
        llava.generate(ids, max_new_tokens=0)
    with pytest.raises(DataError, match=r"temperature is -1\.0"):
        llava.generate(ids, temperature=-1.0)
    with pytest.raises(DataError, match=r"top_p is 0\.0"):
        llava.generate(ids, top_p=0.0)
    with pytest.raises(DataError, match="all tokens of row 1 are masked"):
        llava.generate(np.array([[1], [2]]), attention_mask=np.array([[1], [0]]))
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        _ = llava.tokenizer
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(DataError, match=r"preprocessor_config\.json"):
        _ = llava.processing


def test_importing_the_package_imports_nothing_else():
    code = (
        "import sys, seva_jax; seva_jax.__version__;"
        "assert not {'jax', 'flax', 'transformers', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = seva_jax.nothing


NO_TORCH = """
import importlib.machinery, sys
find = importlib.machinery.PathFinder.find_spec

def find_no_torch(name, path=None, target=None):
    hidden = name.split(".")[0] in ("torch", "torchvision", "tensorflow")
    return None if hidden else find(name, path, target)

importlib.machinery.PathFinder.find_spec = staticmethod(find_no_torch)
import numpy, seva_jax
llava = seva_jax.from_pretrained(sys.argv[1])
ids, pixels = numpy.array([[1, 39, 39, 39, 39, 2]]), numpy.zeros((1, 3, 28, 28))
assert llava.logits(ids, pixels).shape == (1, 6, 40)
answer = llava.generate(ids, pixels, max_new_tokens=3)
assert 7 <= answer.shape[1] <= 9 and (answer[:, :6] == ids).all()
assert not {"torch", "torchvision", "tensorflow"} & set(sys.modules)
"""


@pytest.mark.slow
def test_neither_torch_nor_tensorflow_is_needed(tmp_path):
    subprocess.run([sys.executable, "-c", NO_TORCH, write_llava(tmp_path)], check=True)
