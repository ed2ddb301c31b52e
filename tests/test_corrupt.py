"""The contract of every corruption: keys, jit, vmap, ranges, composition, the host-side call.

What the operations mean is checked against PIL in `test_corrupt_semantics.py`.
"""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seva_jax import corrupt
from seva_jax.corrupt import base
from seva_jax.types import DataError

HEIGHT, WIDTH = 64, 48

# Small crops: the published sizes are checked by the recipes below.
PIXELS = (
    corrupt.Pad(),
    corrupt.CenterCrop(56),
    corrupt.RandomCrop(40),
    corrupt.RandomResizedCrop(40),
    corrupt.RandomHorizontalFlip(),
    corrupt.RandomPerspective(),
    corrupt.RandomRotation(),
    corrupt.RandomAffine(),
    corrupt.Grayscale(),
    corrupt.RandomGrayscale(),
    corrupt.ColorJitter(),
    corrupt.RandomInvert(),
    corrupt.RandomPosterize(),
    corrupt.RandomSolarize(),
    corrupt.RandomEqualize(),
    corrupt.RandomAutocontrast(),
    corrupt.RandomAdjustSharpness(),
    corrupt.GaussianBlur(),
    corrupt.RandAugment(),
    corrupt.AutoAugment(),
    corrupt.PixelNoise(),
    corrupt.PixelNoise(overflow="wrap"),
    corrupt.Compose((corrupt.RandomCrop(40), corrupt.RandomInvert())),
)
ALL = (*PIXELS, corrupt.DiffusionNoise())
SIZES = {"Pad": (164, 148), "CenterCrop": (56, 56)} | dict.fromkeys(
    ("RandomCrop", "RandomResizedCrop", "Compose"), (40, 40)
)


def name_of(corruption):
    return type(corruption).__name__


@pytest.fixture(scope="module")
def levels_HWC():
    """Draws a uint8 image like a photograph: gradients, two flat boxes, noise; levels 20 to 230."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    image = np.stack([x * 255 / WIDTH, y * 255 / HEIGHT, (x + y) * 2.3], -1)
    image[10:30, 5:20] = (220, 30, 40)
    image[35:60, 25:45] = (20, 60, 200)
    return np.clip(image + rng.normal(0, 12, image.shape), 20, 230).astype(np.uint8)


@pytest.fixture(scope="module")
def image_HWC(levels_HWC):
    return jnp.asarray(levels_HWC, jnp.float32) / 255


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def test_every_public_corruption_is_tested():
    """test_sequences.py tests those of sequences, test_regions.py the noise in a region."""
    public = {name for name, value in vars(corrupt).items() if isinstance(value, type)}
    sequences = {x for x in public if issubclass(getattr(corrupt, x), corrupt.SequenceCorruption)}
    assert public - sequences - {"Corruption", "Preview", "RandomlyApplied", "RegionNoise"} == {
        name_of(c) for c in ALL
    }


def assert_same(one_HWC, other_HWC):
    # Where levels or positions are rounded, the last bit of a float decides a few pixels.
    differs = np.abs(np.asarray(one_HWC) - np.asarray(other_HWC)) > 1e-5
    assert differs.mean() < 2e-3


@pytest.mark.parametrize("corruption", ALL, ids=name_of)
def test_finite_in_range_and_decided_by_the_key(corruption, image_HWC):
    outs = [np.asarray(base.apply_jitted(corruption, key, image_HWC)) for key in keys(12)]
    for out_HWC in outs:
        assert out_HWC.dtype == np.float32
        assert out_HWC.shape == (*SIZES.get(name_of(corruption), (HEIGHT, WIDTH)), 3)
        assert np.isfinite(out_HWC).all()
        if corruption.space == "pixels":
            assert out_HWC.min() >= 0
            assert out_HWC.max() <= 1
    again_HWC = base.apply_jitted(corruption, keys(12)[0], image_HWC)
    np.testing.assert_array_equal(again_HWC, outs[0])
    varies = any(np.abs(out_HWC - outs[0]).max() > 0.01 for out_HWC in outs)
    assert varies == (name_of(corruption) not in ("Pad", "CenterCrop", "Grayscale"))


# Each of these compiles once more, or operation by operation, for every corruption; the default
# run takes the ones with the most control flow and the most rounding.
FEW = ("ColorJitter", "DiffusionNoise")
SOME_SLOW = [
    pytest.param(c, id=name_of(c), marks=() if name_of(c) in FEW else pytest.mark.slow) for c in ALL
]


@pytest.mark.parametrize("corruption", SOME_SLOW)
def test_vmap_equals_single(corruption, image_HWC):
    keys_B = keys(3)
    batch_BHWC = jnp.stack([image_HWC, image_HWC[::-1], image_HWC[:, ::-1]])
    batched_BHWC = jax.jit(jax.vmap(corruption))(keys_B, batch_BHWC)
    for key, single_HWC, out_HWC in zip(keys_B, batch_BHWC, batched_BHWC, strict=True):
        assert_same(out_HWC, base.apply_jitted(corruption, key, single_HWC))


@pytest.mark.parametrize("corruption", SOME_SLOW)
def test_eager_equals_jit(corruption, image_HWC):
    key = keys(12)[3]
    assert_same(corruption(key, image_HWC), base.apply_jitted(corruption, key, image_HWC))


def test_equal_corruptions_are_equal_and_hashable():
    assert len({corrupt.moco(), corrupt.moco(), corrupt.byol(), corrupt.simclr()}) == 3
    assert corrupt.RandomInvert() != corrupt.RandomEqualize()


@pytest.mark.parametrize(
    "corruption",
    [
        corrupt.RandomInvert(),
        pytest.param(corrupt.RandomPerspective(p=0.7), marks=pytest.mark.slow),
    ],
    ids=name_of,
)
def test_probability(corruption, image_HWC):
    small_HWC = image_HWC[:16, :12]
    out_BHWC = jax.jit(jax.vmap(corruption, (0, None)))(keys(600), small_HWC)
    share = np.mean(np.abs(np.asarray(out_BHWC) - small_HWC).max((1, 2, 3)) > 0)
    assert share == pytest.approx(corruption.p, abs=0.08)  # Four standard errors.


# Diffusion noise, against the published table.

PUBLISHED = {
    100: (0.99829, 0.05841),
    200: (0.99388, 0.11048),
    300: (0.98098, 0.19409),
    400: (0.94486, 0.32748),
    500: (0.86302, 0.50517),
    600: (0.73425, 0.67888),
    700: (0.59268, 0.80544),
    800: (0.46701, 0.88425),
    900: (0.36489, 0.93105),
    999: (0.28504, 0.95851),
}


def test_diffusion_schedule_is_the_published_one():
    root_abar, sigma = corrupt.diffusion_schedule()
    assert root_abar.shape == sigma.shape == (1000,)
    assert root_abar.dtype == np.float64
    np.testing.assert_allclose(root_abar**2 + sigma**2, 1, atol=1e-12)
    for step, (expected_root, expected_sigma) in PUBLISHED.items():
        assert root_abar[step] == pytest.approx(expected_root, abs=5.1e-6)
        assert sigma[step] == pytest.approx(expected_sigma, abs=5.1e-6)


@pytest.mark.parametrize("step", [0, 500, 999])
def test_diffusion_noise_mixes_image_and_noise(step):
    image_HWC = jnp.full((HEIGHT, WIDTH, 3), 2.0)
    noisy_HWC = np.asarray(corrupt.DiffusionNoise(step)(jax.random.key(3), image_HWC))
    root_abar, sigma = (values[step] for values in corrupt.diffusion_schedule())
    assert noisy_HWC.mean() == pytest.approx(2 * root_abar, abs=0.04 * sigma + 1e-6)
    assert noisy_HWC.std() == pytest.approx(sigma, rel=0.03)
    # Three standard deviations above 2 would be cut off by any clipping.
    assert noisy_HWC.max() > 2 * root_abar + 3 * sigma


def test_noise_that_wraps():
    """As in POVID: the conversion of a tensor to an image multiplies by 255 and keeps 8 bits.

    Source: add_diffusion_noise and tensor_to_pil of its train_dpo_inherent.py, where torchvision
    calls `mul(255).byte()`. Python's `int` drops the fraction, and `& 255` keeps the lowest 8 bits,
    also of negative numbers.
    """
    key = jax.random.key(5)
    levels_HWC = np.resize(np.arange(256), (96, 64, 3)).astype(np.uint8)  # all levels alike
    wrapped_HWC, clipped_HWC = (
        base.apply_pixels(corrupt.PixelNoise(500, overflow=overflow), key, levels_HWC).astype(int)
        for overflow in ("wrap", "clip")
    )
    noised_HWC = np.asarray(corrupt.DiffusionNoise(500)(key, levels_HWC.astype(np.float32) / 255))
    expected = [int(255 * value) & 255 for value in noised_HWC.ravel().tolist()]
    differs = wrapped_HWC.ravel() != expected  # where the last bit of a float decides
    assert differs.mean() < 1e-3
    inside_HWC = (noised_HWC > 0) & (noised_HWC < 1)
    assert np.abs(wrapped_HWC - clipped_HWC)[inside_HWC].max() <= 1
    # On scikit-image's photograph of an astronaut, the mean difference is 71.0 levels.
    root_abar, sigma = (values[500] for values in corrupt.diffusion_schedule())
    noise = np.random.default_rng(0).normal(size=(4000, 256))
    values = 255 * (root_abar * np.arange(256) / 255 + sigma * noise)
    difference = np.abs(np.trunc(values) % 256 - values.clip(0, 255)).mean()
    assert difference == pytest.approx(68.5, abs=0.5)
    assert np.abs(wrapped_HWC - clipped_HWC).mean() == pytest.approx(difference, abs=2)


# Keys.


def test_corruption_key_is_stable():
    """Keys never change, so that pairs made earlier can be made again.

    Regenerate the golden with `jax.random.key_data(corruption_key(seed, id, index))`.
    """
    golden = {
        (0, "a", 0): (2482954991, 3788021582),
        (42, "coco/000000000139.jpg#3", 1): (3528437462, 1333095876),
        (42, "世界", 0): (727370123, 1597724612),
    }
    for arguments, expected in golden.items():
        key = corrupt.corruption_key(*arguments)
        assert jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        assert tuple(jax.random.key_data(key).tolist()) == expected


def test_corruption_key_depends_on_all_three_arguments():
    found = {
        tuple(jax.random.key_data(corrupt.corruption_key(seed, example, index)).tolist())
        for seed in (0, 1)
        for example in ("a", "b", "ab", "")
        for index in (0, 1, 2)
    }
    assert len(found) == 24


def test_corruption_key_ignores_the_default_generator():
    expected = jax.random.key_data(corrupt.corruption_key(0, "a", 0))
    with jax.default_prng_impl("rbg"):
        np.testing.assert_array_equal(
            jax.random.key_data(corrupt.corruption_key(0, "a", 0)), expected
        )


# Composition.


def test_compose_applies_in_the_order_named(image_HWC):
    invert, posterize = corrupt.RandomInvert(p=1.0), corrupt.RandomPosterize(p=1.0)
    key = jax.random.key(0)
    forward = corrupt.Compose((invert, posterize))(key, image_HWC)
    backward = corrupt.Compose((posterize, invert))(key, image_HWC)
    np.testing.assert_allclose(forward, posterize.apply(invert.apply(image_HWC)), atol=1e-6)
    np.testing.assert_allclose(backward, invert.apply(posterize.apply(image_HWC)), atol=1e-6)
    assert np.abs(np.asarray(forward - backward)).max() > 0.2


def test_compose_gives_each_step_its_own_key(image_HWC):
    noise = corrupt.DiffusionNoise(999)
    out = corrupt.Compose((noise, noise))(jax.random.key(0), jnp.zeros((HEIGHT, WIDTH, 3)))
    # Independent noises add in variance, equal ones in amplitude (1.23 here).
    root_abar, sigma = (values[999] for values in corrupt.diffusion_schedule())
    assert float(out.std()) == pytest.approx(sigma * np.hypot(1, root_abar), rel=0.03)


def test_compose_takes_the_space_of_its_steps():
    assert corrupt.Compose((corrupt.DiffusionNoise(),)).space == "normalised"
    assert corrupt.moco().space == "pixels"


@pytest.mark.parametrize(
    "recipe",
    [
        corrupt.moco,
        pytest.param(corrupt.byol, marks=pytest.mark.slow),
        pytest.param(corrupt.simclr, marks=pytest.mark.slow),
    ],
)
def test_recipes_yield_224(recipe, image_HWC):
    out_HWC = np.asarray(recipe()(jax.random.key(1), image_HWC))
    assert out_HWC.shape == (224, 224, 3)
    assert np.isfinite(out_HWC).all()
    assert 0 <= out_HWC.min() < out_HWC.max() <= 1


@pytest.mark.parametrize("recipe", [corrupt.moco, corrupt.byol, corrupt.simclr])
@pytest.mark.parametrize("size", [(64, 48), (500, 333)])
def test_recipes_declare_224(recipe, size):
    out = jax.eval_shape(recipe(), jax.random.key(0), jax.ShapeDtypeStruct((*size, 3), jnp.float32))
    assert (out.shape, out.dtype) == ((224, 224, 3), jnp.float32)


def test_recipes_have_the_published_parameters():
    crop, flip, jitter, gray, blur = corrupt.moco().steps
    assert crop == corrupt.RandomResizedCrop(224, (0.2, 1.0), (3 / 4, 4 / 3))
    assert flip == corrupt.RandomHorizontalFlip(p=0.5)
    assert jitter == corrupt.ColorJitter(0.4, 0.4, 0.4, 0.1)
    assert gray == corrupt.RandomGrayscale(p=0.2)
    assert blur == corrupt.GaussianBlur((0.1, 2.0))
    byol_crop = corrupt.RandomResizedCrop(224, (0.08, 1.0), (3 / 4, 4 / 3))
    assert corrupt.byol().steps == (byol_crop, flip, jitter, gray, blur)
    strong = corrupt.ColorJitter(0.4, 0.4, 0.4, 0.4)
    assert corrupt.simclr().steps == (crop, flip, strong, gray)


def test_defaults_are_the_published_parameters():
    assert corrupt.DiffusionNoise().step == 500
    sizes = corrupt.Pad().padding, corrupt.CenterCrop().size, corrupt.RandomCrop().size
    assert sizes == (50, 128, 224)
    crop = corrupt.RandomResizedCrop()
    assert (crop.size, crop.scale, crop.ratio) == (224, (0.36, 0.64), (3 / 4, 4 / 3))
    assert corrupt.RandomPerspective() == corrupt.RandomPerspective(distortion=0.6, p=1.0)
    assert corrupt.RandomRotation().degrees == (0, 180)
    affine = corrupt.RandomAffine()
    assert (affine.degrees, affine.translate, affine.scale) == ((30, 70), (0.1, 0.3), (0.5, 0.75))
    assert corrupt.ColorJitter() == corrupt.ColorJitter(0.4, 0.4, 0.4, 0.1)
    assert corrupt.RandomPosterize() == corrupt.RandomPosterize(bits=2, p=0.5)
    assert corrupt.RandomSolarize() == corrupt.RandomSolarize(threshold=128, p=0.5)
    assert corrupt.RandomAdjustSharpness() == corrupt.RandomAdjustSharpness(factor=0, p=0.5)
    assert corrupt.GaussianBlur().sigma == (0.1, 2.0)
    for random in (
        corrupt.RandomInvert,
        corrupt.RandomEqualize,
        corrupt.RandomAutocontrast,
        corrupt.RandomHorizontalFlip,
    ):
        assert random().p == 0.5


# The host-side call.


@pytest.mark.parametrize(
    ("size", "snapped"),
    [
        ((336, 336), (352, 352)),  # A tie goes up.
        ((64, 48), (64, 64)),
        ((1, 5000), (32, 1024)),
        ((3000, 4000), (768, 1024)),
        ((1025, 1025), (1024, 1024)),
        ((479, 641), (480, 640)),
    ],
)
def test_snapped_size(size, snapped):
    assert base.snapped_size(*size) == snapped


def test_apply_pixels_equals_the_direct_call_on_the_grid(levels_HWC):
    on_grid_HWC = np.ascontiguousarray(levels_HWC[:, :32])
    key = corrupt.corruption_key(0, "a", 0)
    for corruption in (corrupt.GaussianBlur(), corrupt.Compose((corrupt.GaussianBlur(),))):
        out_HWC = corrupt.apply_pixels(corruption, key, on_grid_HWC)
        run = corruption if isinstance(corruption, corrupt.Compose) else jax.jit(corruption)
        direct_HWC = np.asarray(run(key, on_grid_HWC.astype(np.float32) / 255))
        assert out_HWC.dtype == np.uint8
        assert out_HWC.shape == (64, 32, 3)
        assert np.abs(out_HWC - direct_HWC * 255).max() <= 0.5 + 1e-3
    unchanged = corrupt.RandomInvert(p=0.0)
    np.testing.assert_array_equal(corrupt.apply_pixels(unchanged, key, on_grid_HWC), on_grid_HWC)


def test_apply_pixels_compiles_once_for_nearby_sizes():
    traces = []

    class Counting(corrupt.Corruption):
        def __call__(self, key, image_HWC):
            traces.append(image_HWC.shape)
            return image_HWC

    key = corrupt.corruption_key(0, "a", 0)
    for height in range(50, 78):
        out_HWC = corrupt.apply_pixels(Counting(), key, np.zeros((height, 100, 3), np.uint8))
        assert out_HWC.shape == (64, 96, 3)
    assert traces == [(64, 96, 3)]


# Bad input.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: corrupt.Compose((corrupt.DiffusionNoise(), corrupt.Pad())), "one space"),
        (lambda: corrupt.Compose(()), "non-empty tuple"),
        (lambda: corrupt.Compose([corrupt.Pad()]), "non-empty tuple"),  # pyright: ignore
        (lambda: corrupt.DiffusionNoise(1000), r"step=1000: .* 0 to 999"),
        (lambda: corrupt.DiffusionNoise(-1), "step=-1"),
        (lambda: corrupt.DiffusionNoise(0.5), r"step=0\.5"),  # pyright: ignore
        (lambda: corrupt.RandomInvert(p=1.5), r"RandomInvert\.p=1\.5"),
        (lambda: corrupt.RandomResizedCrop(scale=(0.6, 0.3)), r"RandomResizedCrop\.scale"),
        (lambda: corrupt.CenterCrop(0), r"CenterCrop\.size=0"),
        (lambda: corrupt.ColorJitter(hue=0.6), r"ColorJitter\.hue=0\.6"),
        (lambda: corrupt.RandAugment(magnitude=31), r"magnitude=31: give 0 to 30"),
        (lambda: corrupt.GaussianBlur((0.0, 1.0)), r"GaussianBlur\.sigma"),
        (lambda: corrupt.corruption_key(0, "a", -1), "corruption_index=-1"),
    ],
)
def test_bad_parameters_are_refused(make, message):
    with pytest.raises(DataError, match=message):
        make()


@pytest.mark.parametrize(
    ("corruption", "image", "message"),
    [
        (corrupt.DiffusionNoise(), np.zeros((32, 32, 3), np.uint8), "after mean and std"),
        (corrupt.Pad(), np.zeros((32, 32, 3), np.float32), "dtype float32"),
        (corrupt.Pad(), np.zeros((32, 32, 4), np.uint8), r"shape \(32, 32, 4\)"),
        (corrupt.Pad(), np.zeros((0, 32, 3), np.uint8), r"shape \(0, 32, 3\)"),
    ],
)
def test_apply_pixels_refuses_bad_images(corruption, image, message):
    with pytest.raises(DataError, match=message):
        corrupt.apply_pixels(corruption, jax.random.key(0), image)


def test_keys_of_many_rows_are_those_of_each():
    """One call gives what folding the words in one by one gives."""
    names = [f"prompt {i}/answer" for i in range(9)]
    words = np.stack([base.key_words(name, i) for i, name in enumerate(names)])
    found = jax.random.key_data(base.corruption_keys(2**31 + 7, words))
    for i, name in enumerate(names):
        key = jax.random.key(2**31 + 7, impl="threefry2x32")
        digest = hashlib.sha256(name.encode()).digest()
        for word in (*(int.from_bytes(digest[a : a + 4], "little") for a in (0, 4)), i):
            key = jax.random.fold_in(key, np.uint32(word))
        np.testing.assert_array_equal(found[i], jax.random.key_data(key))
