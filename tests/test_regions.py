"""Noise in regions of images, the maps that say where, and weights over a whole data set."""

import dataclasses
import json
import pickle
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from seva_jax.corrupt import diffusion_schedule
from seva_jax.corrupt.region import RegionNoise
from seva_jax.data.changed import ChangedImages
from seva_jax.data.messages import TrlPairs
from seva_jax.data.mixed import Concatenated
from seva_jax.data.regions import MapFolder, NoisedRegions
from seva_jax.data.scores import ClippedZScores, ScoredPairs
from seva_jax.objectives import DPO, RawScore
from seva_jax.types import DataError, ExampleError, Prompt
from seva_jax.worlds import WorldPairs
from seva_jax.worlds.regions import AskedObject

KEY = jax.random.key(3)
IMAGE = np.random.default_rng(0).integers(60, 255, (90, 120, 3)).astype(np.uint8)
MASK = np.zeros((90, 120), np.float32)
MASK[20:70, 30:110] = 1


@pytest.mark.parametrize("noise", ["pixels", "diffusion"])
def test_noise_is_inside_only(noise):
    """No pixel outside changes, nearly all inside do, and the key decides how."""
    change = RegionNoise("mask", noise)
    found = change(KEY, IMAGE, MASK)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[MASK == 0], IMAGE[MASK == 0])
    assert (found[MASK == 1] != IMAGE[MASK == 1]).mean() > 0.98
    np.testing.assert_array_equal(found, change(KEY, IMAGE, MASK))
    assert (found != change(jax.random.key(4), IMAGE, MASK)).any()
    np.testing.assert_array_equal(change(KEY, IMAGE, 0 * MASK), IMAGE)


def test_statistics_of_the_released_noise():
    """It is normal with deviation 10, and half of it is below black."""
    levels = RegionNoise("mask", std=10.0)(KEY, IMAGE, MASK)[MASK == 1].astype(float)
    num = levels.size
    assert (levels == 0).mean() == pytest.approx(0.5 + 0.0199, abs=4 * 0.5 / num**0.5)
    # E[max(0, x)^2] = 50 for x of deviation 10; rounding adds a little.
    assert (levels**2).mean() == pytest.approx(50, abs=3)
    assert levels.max() < 60


def test_released_noise_wraps():
    """Assigned to an array of bytes, a level loses its fraction and all but its lowest 8 bits.

    So does `generate_noised_image` of MMedPO's inference_attention-map_score.py, which clips later.
    """
    clipped, wrapped = (
        RegionNoise("mask", std=10.0, overflow=overflow)(KEY, IMAGE, MASK)[MASK == 1].astype(int)
        for overflow in ("clip", "wrap")
    )
    for level, expected in ((-0.7, 0), (-1.2, 255), (-9.9, 247), (3.9, 3)):
        assert int(level) & 255 == expected  # the rule
    negative = clipped == 0
    # Levels above 0 are rounded when clipped, cut when wrapped.
    assert set(np.unique((clipped - wrapped)[~negative])) == {0, 1}
    # P(x > -1) below 0, and P(x < -1), for x of deviation 10.
    assert (wrapped >= 200).mean() == pytest.approx(0.4602, abs=4 * 0.5 / wrapped.size**0.5)
    assert not ((wrapped > 60) & (wrapped < 200)).any()


def test_statistics_of_the_papers_noise():
    """They hold for a grey image, at a step where little is clipped."""
    step, grey = 250, np.full_like(IMAGE, 128)
    root_abar, sigma = diffusion_schedule()
    found = RegionNoise("mask", "diffusion", step=step)(KEY, grey, MASK)[MASK == 1]
    levels = 128 * root_abar[step] + 255 * sigma[step] * np.random.default_rng(1).normal(size=10**6)
    expected = levels.clip(0, 255)
    assert found.mean() == pytest.approx(expected.mean(), abs=2.5)
    assert found.std() == pytest.approx(expected.std(), rel=0.05)


def blurred(values, taps):
    """Returns OpenCV's `GaussianBlur(values, (taps, taps), 0)`, written out in two dimensions.

    Its documentation says: sigma = 0.3 ((taps - 1) / 2 - 1) + 0.8, and edges are mirrored without
    repeating the last pixel.
    """
    sigma = 0.3 * ((taps - 1) / 2 - 1) + 0.8
    offsets = np.arange(-(taps // 2), taps // 2 + 1)
    kernel = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    padded = np.pad(values.astype(float), taps // 2, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape)
    return (windows * kernel).sum((-1, -2))


def test_threshold_as_released():
    """A region is where heat, blurred by 15 x 15 pixels, is above its mean minus its deviation."""
    heat = np.random.default_rng(5).random((40, 50)).astype(np.float32)
    heat[5:35, 5:45] += 1
    smooth = blurred(heat, 15)
    expected = smooth > smooth.mean() - smooth.std()
    assert 0.2 < expected.mean() < 0.95
    np.testing.assert_array_equal(RegionNoise().inside(heat, 40, 50), expected)
    plain = heat > heat.mean(dtype=float) - heat.std(dtype=float)
    np.testing.assert_array_equal(RegionNoise(blur=0.0).inside(heat, 40, 50), plain)
    spot = np.zeros((40, 50))
    spot[20, 20] = 1  # what the rule makes of a small spot
    assert RegionNoise().inside(spot, 40, 50).all()


def test_maps_of_another_size_are_resized():
    small = np.zeros((2, 2), np.float32)
    small[0, 0] = 1
    found = RegionNoise("mask").inside(small, 40, 60)
    assert found.shape == (40, 60)
    assert found[:10, :15].all()
    assert not found[30:].any()
    assert not found[:, 45:].any()


# --- maps in files --------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Writes images a to f, with good and bad maps for some of them."""
    (tmp_path / "images").mkdir()
    maps = tmp_path / "maps"
    maps.mkdir()
    for name in "abcdefgh":
        Image.fromarray(IMAGE).save(tmp_path / f"images/{name}.png")
    np.save(maps / "a.npy", MASK)
    Image.fromarray((255 * MASK).astype(np.uint8)).save(maps / "b.jpg", quality=95)
    np.save(maps / "d.npy", np.array([{"x": 1}], object), allow_pickle=True)
    np.save(maps / "e.npy", np.full((3, 3), np.nan))
    np.save(maps / "f.npy", MASK[None])
    (maps / "g.png").write_bytes(b"<html>")
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (90000000000, 8), }"
    (maps / "h.npy").write_bytes(
        b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little") + header + b"\n"
    )
    return tmp_path


def pairs(folder, names="abcdefgh", **fields):
    """Makes a pair for each image."""
    lines = [
        {"id": n, "images": [f"{n}.png"], "prompt": "What?", "chosen": "red", "rejected": "blue"}
        | {key: value[i] for key, value in fields.items()}
        for i, n in enumerate(names)
    ]
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return TrlPairs(str(path), str(folder / "images"))


def test_pairs_with_noised_regions(folder):
    """A pair with a map becomes one of an answer and two images; others are counted."""
    source = NoisedRegions(pairs(folder), MapFolder(str(folder / "maps")), RegionNoise("mask"))
    data = source.open()
    assert [c.prompt.id for c in data.comparisons] == ["a", "b"]
    assert data.drops == {"missing mask": 1, "unreadable mask": 4, "unreadable image": 1}
    assert any("d.png" in line or "d.npy" in line for line in data.left_out)
    pair = data.comparisons[0]
    assert pair.all_answers == ("red", "red")
    assert pair.scores == (0.0, 1.0)
    clean, noised = (data.load_image(name) for name in pair.images)
    np.testing.assert_array_equal(clean, IMAGE)
    np.testing.assert_array_equal(noised[MASK == 0], IMAGE[MASK == 0])
    assert noised[MASK == 1].mean() < 10
    again = source.open()
    np.testing.assert_array_equal(noised, again.load_image(pair.images[1]))
    other = dataclasses.replace(source, seed=1).open().load_image(pair.images[1])
    assert (other != noised).any()


def test_no_view_is_lost():
    """Pairs that already have a second view are refused, with their number."""
    with pytest.raises(DataError, match="3 several views"):
        NoisedRegions(ChangedImages(WorldPairs(num=3)), AskedObject()).open()


@pytest.mark.parametrize("name", ["../a.png", "/etc/passwd", "link.png"])
def test_no_map_outside_of_the_folder(folder, name):
    (folder / "maps/link.npy").symlink_to("/etc/passwd")
    maps = MapFolder(str(folder / "maps"))
    with pytest.raises(ExampleError) as caught:
        maps.name(Prompt("p", "q", (name,)), name)
    assert caught.value.reason == "unsafe mask path"


class Touch:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_is_not_opened(folder):
    (folder / "maps/k.npy").write_bytes(pickle.dumps(Touch(folder / "opened")))
    with pytest.raises(ExampleError, match=r"k\.npy: not a readable mask"):
        MapFolder(str(folder / "maps")).load("k.npy")
    assert not (folder / "opened").exists()


def test_a_huge_map_is_refused(folder, monkeypatch):
    """The limit of images refuses a picture, and its header an array."""
    maps = MapFolder(str(folder / "maps"))
    Image.new("1", (6000, 6000)).save(folder / "maps/i.png")
    with pytest.raises(ExampleError, match="too large"):
        maps.load("i.png")
    np.save(folder / "maps/j.npy", np.zeros((2, 2)))
    monkeypatch.setattr("seva_jax.data.regions._MAX_VALUES", 3)
    with pytest.raises(ExampleError, match="4 values, limit 3"):
        maps.load("j.npy")
    with pytest.raises(DataError, match="no such folder of masks"):
        NoisedRegions(pairs(folder), MapFolder("")).open()


def test_the_asked_object_of_the_world():
    """Nothing changes outside its cell; inside, the object is gone."""
    source = NoisedRegions(WorldPairs(num=20), AskedObject(), RegionNoise("mask"))
    data = source.open()
    assert len(data.comparisons) == 20
    for pair in data.comparisons:
        clean, noised = (data.load_image(name).astype(int) for name in pair.images)
        changed = (clean != noised).any(-1).reshape(2, 16, 2, 16).any((1, 3))
        assert changed.sum() == 1
        shape = pair.prompt.question.split()[-2]
        scene = AskedObject().world.scene("preferences", int(pair.prompt.id.split("/")[1]), False)
        assert [cell for _, named, cell in scene if named == shape] == [np.flatnonzero(changed)[0]]
    describe = WorldPairs(kinds=("describe",), num=3)
    with pytest.raises(DataError, match="3 missing mask"):
        NoisedRegions(describe, AskedObject()).open()


# --- weights --------------------------------------------------------------------------------------


def test_scores_of_a_field(folder):
    """They become weights of rejected answers; a pair without one is counted."""
    source = ScoredPairs(pairs(folder, "abc", score=[0.5, None, 0.25]))
    data = source.open()
    assert [c.scores for c in data.comparisons] == [(0.0, 0.5), (0.0, 0.25)]
    assert data.drops == {"no score": 1}
    DPO(weighting=RawScore()).check(data.comparisons)
    regions = NoisedRegions(
        pairs(folder, "abc", sure=[0.5, "high", 0.1]),
        MapFolder(str(folder / "maps")),
        confidence="sure",
    )
    (pair,) = regions.open().comparisons
    assert pair.scores == (0.0, 0.5)
    DPO(weighting=RawScore()).check([pair])


def test_scores_are_those_of_all_trees(folder):
    """A score for one side only would leave the other a weight of 0."""
    source = NoisedRegions(pairs(folder, "a"), MapFolder(str(folder / "maps")))
    pair = dataclasses.replace(source.open().comparisons[0], scores=(0.5,))
    with pytest.raises(DataError, match="1 scores for 2 answers"):
        DPO(weighting=RawScore()).check([pair])


def test_clipped_z_scores_of_the_whole_data_set(folder):
    """NumPy gives the same for both kinds of pairs together."""
    raw = [0.2, 0.9, 0.4, 0.8]
    text = ScoredPairs(pairs(folder, "abcd", score=raw))
    visual = NoisedRegions(WorldPairs(num=2), AskedObject())
    data = ClippedZScores(Concatenated((text, visual)), low=0.1, high=0.9).open()
    scores = np.array([*raw, 1.0, 1.0])
    expected = ((scores - scores.mean()) / scores.std()).clip(0.1, 0.9)
    assert expected.min() == 0.1
    assert expected.max() == 0.9
    assert ((expected > 0.1) & (expected < 0.9)).any()
    np.testing.assert_allclose([c.scores[1] for c in data.comparisons], expected)


def test_scores_that_cannot_be_normalised(folder):
    alike = ScoredPairs(pairs(folder, "ab", score=[0.1, 0.1]))
    with pytest.raises(DataError, match="all scores are alike"):
        ClippedZScores(alike).open()
    with pytest.raises(DataError, match="'a' has 0 scores for 2 answers"):
        ClippedZScores(pairs(folder, "ab")).open()
    with pytest.raises(DataError, match=r"low 1\.0 must be below high 1\.0"):
        ClippedZScores(alike, low=1.0).open()
