"""One picture under every corruption: what is shown, the lines for a config, page and sheet."""

import inspect

import numpy as np
import pytest
import skimage.data
from browser import CHROMIUM, browser
from PIL import Image

from seva_jax import corrupt
from seva_jax.config.config_files import config_directory
from seva_jax.corrupt import DiffusionNoise, GaussianBlur, Grayscale, Shuffle, previews
from seva_jax.corrupt.base import RandomlyApplied
from seva_jax.data.__main__ import main
from seva_jax.images import ImageProcessing
from seva_jax.report.corruptions import corruptions_page
from seva_jax.types import DataError

SMALL = ImageProcessing(size=64)
GREY = np.full((64, 64, 3), 128, np.uint8)
FEW = (
    ("Noise <b>", "two & steps", (DiffusionNoise(100), DiffusionNoise(500))),
    ("Others", "", (Grayscale(), Shuffle(6))),
)


@pytest.fixture
def few(monkeypatch):
    """Shows a few corruptions only, because each takes a compilation."""
    monkeypatch.setattr(previews, "SECTIONS", FEW)


def subclasses(cls):
    found = set(cls.__subclasses__())
    return found.union(*map(subclasses, found))


def test_every_corruption_of_the_package_is_shown():
    """All classes of the package that change an image, a region or a sequence."""
    bases = {RandomlyApplied, corrupt.SequenceCorruption}
    ours = {
        cls
        for cls in subclasses(corrupt.Corruption) - bases
        if cls.__module__.startswith("seva_jax.") and not cls.__name__.startswith("_")
    }
    assert len(ours) > 25
    assert ours | {corrupt.RegionNoise} == previews.corruption_classes()
    steps = {c.step for c in previews.SECTIONS[0][2]}
    assert steps == {*range(100, 1000, 100), 999}
    recipes = [corrupt.moco(), corrupt.byol(), corrupt.simclr()]
    assert all(any(recipe in some for _, _, some in previews.SECTIONS) for recipe in recipes)


@pytest.mark.parametrize("corruption", [x for _, _, some in previews.SECTIONS for x in some])
def test_a_line_makes_the_corruption(corruption):
    """Pasted into a config that imports the names, the line is an equal value."""
    line = previews.config_line(corruption)
    assert eval(line, dict(vars(corrupt))) == corruption


def test_noise_has_the_strength_of_its_step(few):
    """The deviations are those of the paper's schedule: .05841 at t = 100, .50517 at t = 500."""
    shown = corrupt.preview(GREY, processing=SMALL)
    weak, strong = (picture.image_HWC for picture in shown.sections[0][2])
    assert shown.original.image_HWC.std() < 1
    for image, sigma in ((weak, 0.05841), (strong, 0.50517)):
        levels = sigma * 255 * np.array(SMALL.std)
        np.testing.assert_allclose(image.std((0, 1)), levels, rtol=0.05)


def test_a_picture_is_read_from_a_file_or_pillow_and_own_corruptions_come_first(few, tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(GREY).save(path)
    own = (GaussianBlur((1.0, 1.0)),)
    shown = corrupt.preview(str(path), own, processing=SMALL)
    title, _, (picture,) = shown.sections[0]
    assert (title, picture.line) == ("Yours", "GaussianBlur(sigma=(1.0, 1.0))")
    with Image.open(path) as opened:
        again = corrupt.preview(opened, own, processing=SMALL)
    for (_, _, some), (_, _, others) in zip(shown.sections, again.sections, strict=True):
        for one, other in zip(some, others, strict=True):
            np.testing.assert_array_equal(one.image_HWC, other.image_HWC)
    frames = shown.sections[-1][2][-1].image_HWC
    assert frames.shape == (2 * 64, 3 * 64, 3)  # six frames, three in a row
    with pytest.raises(DataError, match=r"nothing\.png: cannot be read"):
        corrupt.preview(tmp_path / "nothing.png")


def test_notebooks_and_pages_show_text_as_text(few):
    shown = corrupt.preview(GREY, processing=SMALL)
    for html in (shown._repr_html_(), corruptions_page(shown, "<i>.png")):
        assert html.count("data:image/") >= 5
        assert "Noise &lt;b&gt;" in html
        assert "two &amp; steps" in html
        assert "<b>" not in html
        assert "<i>" not in html
    assert "DiffusionNoise(step=500)" in shown._repr_html_()


def test_the_command_writes_a_page_or_a_sheet(few, tmp_path, monkeypatch, capsys):
    """A config's own corruptions come first, at the image size of its model."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(GREY).save("photo.png")
    tiny = str(config_directory() / "tiny.py")
    main(["corruptions", "photo.png", "--config", tiny, "--corrupt.0.step", "650"])
    page = (tmp_path / "corruptions.html").read_text("utf-8")
    assert page.index("DiffusionNoise(<wbr>step=<wbr>650)") < page.index("two &amp; steps")
    assert "as the model sees it: 32 x 32 pixels" in page
    assert "corruptions.html: 5 pictures" in capsys.readouterr().out
    main(["corruptions", "photo.png", "--out", "sheet.jpg"])
    with Image.open("sheet.jpg") as sheet:
        assert sheet.format == "JPEG"
    with pytest.raises(SystemExit, match=r"^error: nothing\.png: cannot be read"):
        main(["corruptions", "nothing.png"])


@pytest.fixture(scope="module")
def everything():
    """Shows the photograph of the document under every corruption."""
    return corrupt.preview(skimage.data.chelsea())


@pytest.mark.slow
def test_the_picture_of_the_document_is_what_the_command_makes(everything, tmp_path):
    """The pictures are the same up to rounding, which differs between processors."""
    shipped = inspect.getfile(corrupt).replace("__init__.py", "corruptions.jpg")
    everything.save_sheet(tmp_path / "now.jpg")
    then, now = (np.asarray(Image.open(x), np.float32) for x in (shipped, tmp_path / "now.jpg"))
    assert then.shape == now.shape
    assert np.abs(then - now).mean() < 2
    assert (tmp_path / "now.jpg").stat().st_size < 250_000


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_the_page_in_a_browser(everything, tmp_path):
    """It fits wide and narrow screens, and every picture is there and not shrunk when wide."""
    page = tmp_path / "page.html"
    page.write_text(corruptions_page(everything, "Chelsea"), "utf-8")
    assert page.stat().st_size < 4_000_000
    with browser(tmp_path / "profile") as tab:
        for width, columns in ((1400, 3), (390, 1)):
            tab.open(page, width)
            assert tab.run("document.documentElement.scrollWidth") == width
            lefts = "new Set([...document.querySelectorAll('.card')].map(x => x.offsetLeft)).size"
            assert tab.run(lefts) == columns
            assert tab.run("[...document.images].every(x => x.complete && x.naturalWidth > 0)")
            assert tab.run("document.images.length") == 1 + previews.num_pictures()
            assert not tab.errors
