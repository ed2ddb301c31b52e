"""Features of the frozen tower, cached on disk: the same numbers, computed once, never stale."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers_devices import mesh_of
from helpers_pipeline import PATCHES as PIPELINE_PATCHES
from helpers_pipeline import comparison, rows
from helpers_trees import OPTIONS, PATCHES, example, pack, shape_of
from tiny_models import TINY, noisy_variables

from seva_jax.batches.image_inputs import FeatureCache, Features, ImageUse, Pixels, image_uses
from seva_jax.images.preprocess import ImageProcessing
from seva_jax.inference.features import cached_features
from seva_jax.models import Llava
from seva_jax.training.step import make_logps
from seva_jax.types import DataError, ExampleError

MODEL = Llava(TINY)
NAMES = [f"{i}.png" for i in range(5)]


@pytest.fixture(scope="module")
def variables():
    return {"params": noisy_variables(MODEL)["params"]}


class Images:
    """Random images by name, some of which can be changed or taken away."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.images = {n: rng.integers(0, 256, (9, 7, 3), np.uint8) for n in NAMES}

    def __call__(self, name):
        if name not in self.images:
            raise ExampleError(f"{name}: no such image", "missing image")
        return self.images[name]

    @property
    def pixels(self):
        return Pixels(self, ImageProcessing(size=8))


def fill(tmp_path, variables, images, shape=(1, 1, 1), names=NAMES, model=MODEL):
    """Returns a cache filled with the features of the images; checks the progress bar."""
    cache = FeatureCache(tmp_path, *model.feature_kind)
    progress = []
    uses = [ImageUse((name,)) for name in names]
    found = cached_features(
        cache, model, variables, uses, images.pixels, mesh_of(*shape), 2, progress.append
    )
    assert sum(progress) == len(names)
    return found


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 4, 1)], ids=str)
def test_features_are_those_of_the_tower(tmp_path, variables, shape):
    """They are on one device and on eight, whose rows the images do not fill."""
    images = Images()
    found = fill(tmp_path, variables, images, shape)
    for name in NAMES:
        pixels = images.pixels(ImageUse((name,)))[None]
        expected = MODEL.apply(variables, pixels, method="features")[0]
        np.testing.assert_allclose(found(ImageUse((name,)))[0], expected, atol=1e-5)
        again = MODEL.apply(variables, found(ImageUse((name,)))[None], method="features")[0]
        np.testing.assert_array_equal(again, found(ImageUse((name,)))[0])


def test_only_what_is_new_is_computed(tmp_path, variables, monkeypatch):
    """A second run computes nothing; a changed image is noticed; equal images share a file."""
    images = Images()
    first = fill(tmp_path, variables, images)
    written = []
    write = FeatureCache.write
    monkeypatch.setattr(
        FeatureCache, "write", lambda self, key, x: (written.append(key), write(self, key, x))
    )
    assert fill(tmp_path, variables, images).keys == first.keys
    assert not written
    images.images["1.png"] = images.images["1.png"] // 2
    images.images["copy.png"] = images.images["0.png"]
    later = fill(tmp_path, variables, images, names=[*NAMES, "copy.png"])
    assert written == [later.keys[ImageUse(("1.png",))]]
    assert (
        later.keys[ImageUse(("copy.png",))]
        == later.keys[ImageUse(("0.png",))]
        == first.keys[ImageUse(("0.png",))]
    )


def test_a_key_depends_on_content_shape_and_preprocessing():
    """It does not depend on the name."""
    images = Images()
    images.images["turned"] = images.images["0.png"].reshape(7, 9, 3)
    images.images["again"] = images.images["0.png"].copy()
    keys = {
        images.pixels.key(ImageUse((name,)))[0] for name in ("0.png", "turned", "again", "1.png")
    }
    keys.add(
        Pixels(images, ImageProcessing(size=8, pad_to_square=False)).key(ImageUse(("0.png",)))[0]
    )
    assert len(keys) == 4


def test_bfloat16_is_kept_bit_for_bit(tmp_path):
    """NumPy has no such dtype of its own, so the bits are stored."""
    cache = FeatureCache(tmp_path, (4, 16), jnp.bfloat16)
    value = np.asarray(jax.random.normal(jax.random.key(0), (2, 4, 16), jnp.bfloat16))
    cache.write("ab" * 32, value)
    found = cache.read("ab" * 32)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found.view(np.uint16), value.view(np.uint16))


def test_an_unreadable_image_is_left_out(tmp_path, variables):
    """It raises what decoding it would raise, for its example only."""
    images = Images()
    del images.images["2.png"]
    found = fill(tmp_path, variables, images)
    with pytest.raises(ExampleError, match=r"2\.png"):
        found(ImageUse(("2.png",)))
    assert found(ImageUse(("3.png",))).shape == (1, TINY.tile_features, TINY.vision.hidden_size)


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_file_is_named(tmp_path, variables, damage):
    """Checksums reveal the damage."""
    found = fill(tmp_path, variables, Images())
    path = found.cache.path(found.keys[ImageUse(("0.png",))])
    data = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data if damage == "flip" else data[:-200])
    with pytest.raises(DataError, match=str(path)):
        found(ImageUse(("0.png",)))


def test_log_probs_are_the_same(variables):
    """Rows with 0, 1 and 2 images may hold features instead of pixels."""
    rng = np.random.default_rng(0)
    examples = [example(rng, i, index=i) for i in range(3)]
    batch = pack([[e] for e in examples], shape_of(examples))
    features = jax.jit(lambda x: MODEL.apply(variables, x, method="features"))(batch.images_BIX)
    kept = features.reshape(*batch.images_BIX.shape[:2], PATCHES, -1)
    logps = jax.jit(make_logps(MODEL, OPTIONS))
    np.testing.assert_allclose(
        logps(variables, batch), logps(variables, batch._replace(images_BIX=kept)), rtol=1e-5
    )


def test_rows_hold_features(tmp_path):
    """They are in order of appearance, in the cache's dtype; rows without an image have zeros."""
    cache = FeatureCache(tmp_path, (PIPELINE_PATCHES, 2), jnp.bfloat16)
    data = rows([comparison(0, images=2), comparison(1, images=0)])
    uses = image_uses(data.comparisons[0].prompt)
    keys = {use: f"{i}" * 64 for i, use in enumerate(uses)}
    for i, key in enumerate(keys.values()):
        cache.write(key, np.full((1, PIPELINE_PATCHES, 2), 1 + i))
    data = dataclasses.replace(data, images=Features(cache, keys))
    first, second = (data.row([i], data.shape).images_BIX for i in range(2))
    assert first.dtype == jnp.bfloat16
    np.testing.assert_array_equal(first.astype(int)[:, 0, 0], [1, 2])
    assert not second.astype(int).any()
