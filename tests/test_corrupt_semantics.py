"""What each operation does, against PIL, which torchvision calls for PIL images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from seva_jax import corrupt
from seva_jax.corrupt import auto, colour, geometry, sharpness

HEIGHT, WIDTH = 80, 64
BLUR = jax.jit(sharpness.gaussian_blur, static_argnums=2)


@pytest.fixture(scope="module")
def picture():
    """Makes a PIL image with gradients, edges, noise, and all 256 levels in every channel."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    image = np.stack([x * 255 / WIDTH, y * 255 / HEIGHT, (x + y) * 1.8], -1)
    image[10:30, 5:20] = (220, 30, 40)
    image[45:70, 25:60] = (20, 60, 200)
    image = np.clip(image + rng.normal(0, 9, image.shape), 0, 255)
    image[-4:] = np.arange(256).reshape(4, 64, 1)
    return Image.fromarray(image.astype(np.uint8))


@pytest.fixture(scope="module")
def image_HWC(picture):
    return jnp.asarray(np.asarray(picture), jnp.float32) / 255


def error(image_HWC, expected):
    """Returns the absolute difference in levels, [H, W, C]."""
    expected_HWC = np.asarray(expected, np.float32)
    assert image_HWC.shape == expected_HWC.shape
    return np.abs(np.asarray(image_HWC) * 255 - expected_HWC)


# Colour: exact where PIL looks levels up.


@pytest.mark.parametrize("bits", range(1, 9))
def test_posterize_is_exact(image_HWC, picture, bits):
    assert (
        error(jax.jit(colour.posterize)(image_HWC, bits), ImageOps.posterize(picture, bits)).max()
        < 1e-3
    )


@pytest.mark.parametrize("threshold", [0, 1, 85, 127.5, 128, 178.5, 255, 256])
def test_solarize_is_exact(image_HWC, picture, threshold):
    expected = ImageOps.solarize(picture, threshold)
    assert error(colour.solarize(image_HWC, threshold), expected).max() < 1e-3
    jitted = jax.jit(colour.solarize)(image_HWC, threshold)
    assert error(jitted, expected).max() < 1e-3


def test_invert_is_exact(image_HWC, picture):
    assert error(colour.invert(image_HWC), ImageOps.invert(picture)).max() < 1e-3


def test_grayscale_is_exact(image_HWC, picture):
    expected = np.repeat(np.asarray(picture.convert("L"))[..., None], 3, -1)
    assert error(colour.grayscale(image_HWC), expected).max() < 1e-3
    assert float(colour.grayscale(jnp.ones((2, 2, 3))).min()) == 1


def test_equalize_is_exact(image_HWC, picture):
    assert error(jax.jit(colour.equalize)(image_HWC), ImageOps.equalize(picture)).max() < 1e-3


def test_equalize_is_exact_on_odd_histograms():
    """Few pixels or levels, or one dominant level, make the step small or zero."""
    equalize = jax.jit(colour.equalize)
    for seed, num_levels in enumerate((2, 9, 256, 256, 256, 256)):
        rng = np.random.default_rng(seed)
        image_HWC = rng.integers(0, num_levels, (26, 30, 3)).astype(np.uint8)
        image_HWC[..., 0] = 77
        image_HWC[: 3 * seed, :, 1] = 255
        image_HWC[4 * seed :, :, 2] = 0
        expected = ImageOps.equalize(Image.fromarray(image_HWC))
        out_HWC = equalize(image_HWC.astype(np.float32) / 255)
        assert error(out_HWC, expected).max() < 1e-3


@pytest.mark.parametrize(("low", "high"), [(0, 255), (13, 240), (100, 131), (77, 77)])
def test_autocontrast_is_exact_to_pils_truncation(picture, low, high):
    image = (low + np.asarray(picture, int) * (high - low) // 255).astype(np.uint8)
    expected = ImageOps.autocontrast(Image.fromarray(image))
    difference = error(
        jax.jit(colour.autocontrast)(jnp.asarray(image, jnp.float32) / 255), expected
    )
    # PIL is one level lower where its float64 lookup falls just below a whole number.
    assert difference.max() < 1 + 1e-3
    assert np.mean(difference > 0.5) < 0.05


# Colour: within one level where PIL blends.


@pytest.mark.parametrize("factor", [0.0, 0.3, 0.6, 1.0, 1.4, 1.9])
@pytest.mark.parametrize(
    ("adjust", "enhance"),
    [
        (colour.adjust_brightness, ImageEnhance.Brightness),
        (colour.adjust_contrast, ImageEnhance.Contrast),
        (colour.adjust_saturation, ImageEnhance.Color),
        (sharpness.adjust_sharpness, ImageEnhance.Sharpness),
    ],
)
def test_enhancements_are_within_a_level(image_HWC, picture, adjust, enhance, factor):
    difference = error(jax.jit(adjust)(image_HWC, factor), enhance(picture).enhance(factor))
    assert difference.max() < 1 + 1e-3
    assert error(image_HWC, enhance(picture).enhance(0.0)).mean() > 2


@pytest.mark.parametrize("shift", [-0.5, -0.1, 0.0, 0.05, 0.1, 0.4])
def test_hue_agrees_with_pil(image_HWC, picture, shift):
    hsv_HWC = np.array(picture.convert("HSV"))
    hsv_HWC[..., 0] += np.uint8(int(shift * 255) % 256)
    expected = Image.fromarray(hsv_HWC, mode=None)
    expected = Image.merge("HSV", expected.split()).convert("RGB")
    assert error(jax.jit(colour.adjust_hue)(image_HWC, shift), expected).mean() < 2
    if abs(shift) >= 0.1:
        assert error(image_HWC, expected).mean() > 6


def test_color_jitter_applies_its_draw(image_HWC):
    jitter = corrupt.ColorJitter(1.5, 0.3, 0.2, 0.1)
    keys_B = jax.random.split(jax.random.key(0), 4000)
    factors_B4, order_B4 = jax.jit(jax.vmap(jitter.draw))(keys_B)
    np.testing.assert_allclose(factors_B4.min(0), [0.0, 0.7, 0.8, -0.1], atol=2e-3)
    np.testing.assert_allclose(factors_B4.max(0), [2.5, 1.3, 1.2, 0.1], atol=2e-3)
    orders, counts = np.unique(np.asarray(order_B4), axis=0, return_counts=True)
    assert len(orders) == 24
    assert counts.min() > 100  # 167 expected.

    adjust = (
        colour.adjust_brightness,
        colour.adjust_contrast,
        colour.adjust_saturation,
        colour.adjust_hue,
    )
    expected_HWC = image_HWC
    for index in order_B4[7]:
        expected_HWC = jax.jit(adjust[index])(expected_HWC, factors_B4[7, index])
    out_HWC = jax.jit(jitter)(keys_B[7], image_HWC)
    np.testing.assert_allclose(out_HWC, expected_HWC, atol=1e-5)


# Blur.


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 2.0])
def test_gaussian_blur_is_near_pil(image_HWC, picture, sigma):
    expected = picture.filter(ImageFilter.GaussianBlur(sigma))
    difference = error(BLUR(image_HWC, sigma, 2.0), expected)
    assert difference.mean() < 1.5
    assert difference[:2].mean() < 2.5  # The border is not darkened.
    if sigma >= 1:
        assert error(image_HWC, expected).mean() > 5


# Geometry.


def test_center_crop_pads_what_is_missing(image_HWC, picture):
    out_HWC = corrupt.CenterCrop(71)(jax.random.key(0), image_HWC)
    # torchvision: (71 - 64) // 2 = 3 columns on the left, 4 on the right, then round(9 / 2) = 4.
    expected = ImageOps.expand(picture, (3, 0, 4, 0)).crop((0, 4, 71, 75))
    assert error(out_HWC, expected).max() < 1e-3


@pytest.mark.parametrize(("size", "top", "left"), [(31, 24, 16), (33, 24, 16), (64, 8, 0)])
def test_center_crop_rounds_as_torchvision(image_HWC, picture, size, top, left):
    # torchvision: int(round((side - size) / 2)), so 24.5 -> 24 and 16.5 -> 16, 23.5 -> 24.
    expected = picture.crop((left, top, left + size, top + size))
    assert error(corrupt.CenterCrop(size)(jax.random.key(0), image_HWC), expected).max() < 1e-3


def test_random_crop_is_a_window_and_pads_both_sides(image_HWC):
    crop = jax.jit(jax.vmap(corrupt.RandomCrop(70), (0, None)))
    out_BHWC = np.asarray(crop(jax.random.split(jax.random.key(0), 60), image_HWC))
    padded = np.pad(np.asarray(image_HWC), ((0, 0), (6, 6), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (70, 70), (0, 1))
    windows = np.moveaxis(windows, 2, -1)
    found = set()
    for out_HWC in out_BHWC:
        match = np.argwhere(np.abs(windows - out_HWC).max((2, 3, 4)) < 1e-6)
        assert len(match) == 1
        found.add(tuple(match[0]))
    assert len(found) > 30
    assert {row for row, _ in found} >= {0, 10}
    assert {column for _, column in found} >= {0, 6}


@pytest.mark.parametrize("box", [(0, 0, 80, 64), (5, 7, 60, 50), (20, 30, 13, 9), (79, 0, 1, 64)])
@pytest.mark.parametrize("size", [24, 96])
def test_resized_crop_is_crop_then_resize(image_HWC, picture, box, size):
    top, left, height, width = box
    expected = picture.crop((left, top, left + width, top + height))
    expected = expected.resize((size, size), Image.Resampling.BILINEAR)
    out_HWC = jax.jit(geometry.resized_crop, static_argnums=5)(image_HWC, *box, size)
    difference = error(out_HWC, expected)
    assert difference.max() < 1.01  # PIL rounds to levels after each of its two passes.


def test_resized_crop_boxes_follow_the_rules():
    crop = corrupt.RandomResizedCrop(scale=(0.2, 1.0))
    draw = jax.jit(jax.vmap(lambda key: crop.box(key, 240, 320)))
    top, left, height, width = (
        np.asarray(x) for x in draw(jax.random.split(jax.random.key(0), 4000))
    )
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 240).all()
    assert (left + width <= 320).all()
    share, ratio = height * width / (240 * 320), width / height
    assert 0.195 < share.min() < 0.22
    assert 0.97 < share.max() <= 1.0
    assert 0.74 < ratio.min() < 0.77
    assert 1.29 < ratio.max() < 1.35
    # Large boxes fit more rarely, so the area is uniform only where all shapes fit, up to .56.
    low, high = np.mean((share > 0.2) & (share < 0.38)), np.mean((share > 0.38) & (share < 0.56))
    assert low == pytest.approx(high, rel=0.15)
    # The corner is uniform over the places that fit, and the two sides are independent.
    room = (height < 200) & (width < 280)
    places = np.stack([(top / (240 - height + 1))[room], (left / (320 - width + 1))[room]])
    np.testing.assert_allclose(places.mean(1), 0.5, atol=0.03)
    np.testing.assert_allclose(places.std(1), 1 / np.sqrt(12), atol=0.02)
    assert abs(np.corrcoef(places)[0, 1]) < 0.06
    assert ((left == 320 - width) & (width < 300)).any()


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((30, 400), (0, 180, 30, 40)),
        ((400, 30), (180, 0, 40, 30)),
        ((44, 50), (0, 0, 44, 50)),
    ],
)
def test_resized_crop_central_box(size, expected):
    assert corrupt.RandomResizedCrop().central_box(*size) == expected


def test_resized_crop_falls_back_to_the_central_box():
    crop = corrupt.RandomResizedCrop(scale=(1.0, 1.0))
    box = jax.jit(lambda key: crop.box(key, 30, 400))(jax.random.key(0))
    assert tuple(int(x) for x in box) == crop.central_box(30, 400)


@pytest.mark.parametrize("degrees", [-30.0, 5.0, 45.0, 90.0, 135.0, 180.0])
def test_rotate_turns_as_pil(image_HWC, picture, degrees):
    difference = error(jax.jit(geometry.rotate)(image_HWC, degrees), picture.rotate(degrees))
    # At 45 and 135 degrees a diagonal of centres falls exactly between pixels.
    assert np.mean(difference.max(-1) > 0.5) < 1.5e-2
    if degrees != 180.0:
        assert (
            error(jax.jit(geometry.rotate)(image_HWC, -degrees), picture.rotate(degrees)).mean()
            > 10
        )


@pytest.mark.parametrize(
    ("degrees", "translate", "scale"),
    [(0.0, (9.0, 0.0), 1.0), (0.0, (0.0, -7.0), 1.0), (40.0, (-5.0, 11.0), 0.6), (65.0, (3, 2), 2)],
)
def test_affine_agrees_with_pil(image_HWC, picture, degrees, translate, scale):
    # Forward, in x right and y down: clockwise turn and scale about the centre, then the shift.
    cosine, sine = np.cos(np.radians(degrees)) * scale, np.sin(np.radians(degrees)) * scale
    to_origin, back = np.eye(3), np.eye(3)
    to_origin[:2, 2] = -WIDTH / 2, -HEIGHT / 2
    back[:2, 2] = WIDTH / 2 + translate[0], HEIGHT / 2 + translate[1]
    forward = back @ np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]]) @ to_origin
    inverse = np.linalg.inv(forward)[:2].ravel()
    expected = picture.transform(picture.size, Image.Transform.AFFINE, tuple(inverse))
    out_HWC = jax.jit(geometry.affine)(image_HWC, degrees=degrees, translate=translate, scale=scale)
    assert np.mean(error(out_HWC, expected).max(-1) > 0.5) < 5e-3


@pytest.mark.parametrize(("horizontal", "vertical"), [(0.21, 0.0), (-0.27, 0.0), (0.0, 0.17)])
def test_shear_agrees_with_pil(image_HWC, picture, horizontal, vertical):
    matrix = (1, horizontal, 0, vertical, 1, 0)
    expected = picture.transform(picture.size, Image.Transform.AFFINE, matrix)
    difference = error(jax.jit(geometry.shear)(image_HWC, horizontal, vertical), expected)
    assert np.mean(difference.max(-1) > 0.5) < 5e-3


@pytest.mark.parametrize("seed", range(5))
def test_perspective_agrees_with_pil(image_HWC, picture, seed):
    key = jax.random.key(seed)
    corners = np.asarray(corrupt.RandomPerspective().corners(key, HEIGHT, WIDTH))
    starts = np.array([[0, 0], [WIDTH - 1, 0], [WIDTH - 1, HEIGHT - 1], [0, HEIGHT - 1]])
    rows, values = [], []
    for (x, y), (u, v) in zip(corners.astype(float), starts.astype(float), strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    coefficients = np.linalg.solve(rows, values)
    expected = picture.transform(
        picture.size, Image.Transform.PERSPECTIVE, tuple(coefficients), Image.Resampling.BILINEAR
    )
    difference = error(jax.jit(geometry.perspective)(image_HWC, corners), expected)
    assert np.mean(difference.max(-1) > 1.01) < 5e-3
    assert error(image_HWC, expected).mean() > 10


def test_perspective_corners_stay_in_their_quarter():
    draw = jax.jit(jax.vmap(lambda key: corrupt.RandomPerspective(0.6).corners(key, 100, 60)))
    corners_B42 = np.asarray(draw(jax.random.split(jax.random.key(0), 2000)))
    # Up to int(.6 * 30) = 18 columns and int(.6 * 50) = 30 rows inwards, both included.
    np.testing.assert_array_equal(corners_B42.min(0), [[0, 0], [41, 0], [41, 69], [0, 69]])
    np.testing.assert_array_equal(corners_B42.max(0), [[18, 30], [59, 30], [59, 99], [18, 99]])


def test_random_affine_shifts_and_shrinks_within_bounds():
    """The mass of a white image is scale^2, and its centre is the shift."""
    corruption = corrupt.RandomAffine(degrees=(0.0, 0.0))
    white_HWC = jnp.ones((100, 60, 1))
    out_BHW = np.asarray(
        jax.jit(jax.vmap(corruption, (0, None)))(
            jax.random.split(jax.random.key(0), 200), white_HWC
        )
    )[..., 0]
    # Along the axis where the shrunk image never leaves the frame.
    width_B = out_BHW.max(1).sum(-1)
    assert 28 <= width_B.min() <= 33
    assert 42 <= width_B.max() <= 46
    x_B = (out_BHW.max(1) * np.arange(60)).sum(-1) / width_B - 29.5
    assert np.abs(x_B).max() <= 6.5
    assert x_B.min() < -4 < 4 < x_B.max()
    # Rows may leave it: the first lit row shows the vertical shift of up to 30.
    first_row_B = out_BHW.max(2).argmax(1)
    assert first_row_B.max() > 40


# RandAugment and AutoAugment.


def test_magnitudes_are_torchvisions():
    names = list(auto.OPERATIONS)
    rand = dict(zip(names, auto.magnitudes(31, 331, 662)[:, 9], strict=True))
    assert rand["ShearX"] == rand["ShearY"] == pytest.approx(0.09)
    assert rand["TranslateX"] == pytest.approx(90)
    assert rand["TranslateY"] == pytest.approx(45)
    assert rand["Rotate"] == pytest.approx(9)
    assert rand["Brightness"] == rand["Sharpness"] == pytest.approx(0.27)
    assert rand["Posterize"] == 7
    assert rand["Solarize"] == pytest.approx(178.5)
    assert rand["Equalize"] == rand["Identity"] == 0
    imagenet = dict(zip(names, auto.magnitudes(10, 331, 331), strict=True))
    assert imagenet["Posterize"].tolist() == [8, 8, 7, 7, 6, 6, 5, 5, 4, 4]
    assert imagenet["Solarize"][5] == pytest.approx(255 - 255 * 5 / 9)
    assert imagenet["Rotate"][9] == 30


def test_operations_do_what_their_names_say(image_HWC, picture):
    """Each equals PIL's, which also catches a wrong order of arguments or a lost `1 +`."""
    size = picture.size
    affine = Image.Transform.AFFINE
    expected = {
        "Identity": (0.0, picture),
        "ShearX": (0.21, picture.transform(size, affine, (1, 0.21, 0, 0, 1, 0))),
        "ShearY": (0.21, picture.transform(size, affine, (1, 0, 0, 0.21, 1, 0))),
        "TranslateX": (9.7, picture.transform(size, affine, (1, 0, -9, 0, 1, 0))),
        "TranslateY": (-9.7, picture.transform(size, affine, (1, 0, 0, 0, 1, 9))),
        "Rotate": (20.0, picture.rotate(20)),
        "Brightness": (0.4, ImageEnhance.Brightness(picture).enhance(1.4)),
        "Color": (-0.4, ImageEnhance.Color(picture).enhance(0.6)),
        "Contrast": (0.4, ImageEnhance.Contrast(picture).enhance(1.4)),
        "Sharpness": (0.9, ImageEnhance.Sharpness(picture).enhance(1.9)),
        "Posterize": (3.0, ImageOps.posterize(picture, 3)),
        "Solarize": (100.0, ImageOps.solarize(picture, 100)),
        "AutoContrast": (0.0, ImageOps.autocontrast(picture)),
        "Equalize": (0.0, ImageOps.equalize(picture)),
        "Invert": (0.0, ImageOps.invert(picture)),
    }
    assert list(expected) == list(auto.OPERATIONS)
    apply = jax.jit(auto.apply_operations)
    for index, (name, (magnitude, wanted)) in enumerate(expected.items()):
        out_HWC = apply(image_HWC, jnp.array([index]), jnp.array([magnitude]))
        assert np.mean(error(out_HWC, wanted).max(-1) > 1.01) < 5e-3, name


def test_rand_augment_draws_uniformly_and_never_inverts():
    draw = jax.jit(jax.vmap(lambda key: corrupt.RandAugment().draw(key, HEIGHT, WIDTH)))
    index_BN, magnitude_BN = (
        np.asarray(x) for x in draw(jax.random.split(jax.random.key(0), 4000))
    )
    assert index_BN.shape == (4000, 2)
    shares = np.bincount(index_BN.ravel(), minlength=15) / index_BN.size
    np.testing.assert_allclose(shares[:14], 1 / 14, atol=0.012)
    assert shares[14] == 0
    negative = magnitude_BN < 0
    signed = (index_BN >= 1) & (index_BN <= 9)
    assert not negative[~signed].any()
    assert negative[signed].mean() == pytest.approx(0.5, abs=0.03)


def test_auto_augment_draws_the_imagenet_policies():
    draw = jax.jit(jax.vmap(lambda key: corrupt.AutoAugment().draw(key, HEIGHT, WIDTH)))
    index_B2, magnitude_B2 = (
        np.asarray(x) for x in draw(jax.random.split(jax.random.key(0), 8000))
    )
    names = list(auto.OPERATIONS)
    assert len(auto.IMAGENET_POLICY) == 25
    for position in range(2):
        expected = np.zeros(15)
        for policy in auto.IMAGENET_POLICY:
            name, chance, _ = policy[position]
            expected[names.index(name)] += chance / 25
            expected[0] += (1 - chance) / 25
        shares = np.bincount(index_B2[:, position], minlength=15) / len(index_B2)
        np.testing.assert_allclose(shares, expected, atol=0.02)
    # Rotations come in the bins 3, 8 and 9 only, to both sides.
    angles = np.unique(magnitude_B2[index_B2 == names.index("Rotate")])
    np.testing.assert_allclose(np.unique(np.abs(angles).round(3)), [10, 26.667, 30], atol=1e-3)
    assert angles.min() < 0
