"""The page with one picture under every corruption.

What lives here: its markup. What does not: the pictures (`seva_jax/corrupt/previews.py`).
"""

from __future__ import annotations

import re

from seva_jax.corrupt import Preview
from seva_jax.corrupt.previews import Picture
from seva_jax.report.document import document
from seva_jax.report.markup import breakable, esc
from seva_jax.report.pictures import Album

_USE = (
    "The line under a picture goes into a config: corrupt=(LINE,), imported from seva_jax.corrupt. "
    "Each of several adds one rejected answer to every prompt. What is random is drawn again for "
    "every image."
)
# As many columns as fit without shrinking pictures, which would average noise away.
_GRID = 'class="cards" style="grid-template-columns:repeat(auto-fill,minmax(min(100%,300px),1fr))"'


def corruptions_page(preview: Preview, name: str) -> str:
    """Returns the page as HTML, with all pictures inside.

    Args:
        preview: the pictures.
        name: name of the picture, for the heading.
    """
    album = Album()
    height, width, _ = preview.original.image_HWC.shape
    sections = [
        (
            re.sub(r"\W+", "-", title.lower()),
            esc(title),
            f"<p>{esc(about)}</p><div {_GRID}>"
            + "".join(_card(picture, album) for picture in pictures)
            + "</div>",
        )
        for title, about, pictures in preview.sections
    ]
    original = Picture("not corrupted", preview.original.image_HWC)
    page = document(
        f"{name} under every corruption",
        f"as the model sees it: {width} x {height} pixels",
        _USE,
        f"<div {_GRID}>{_card(original, album)}</div>",
        sections,
    )
    return album.fill(page)


def _card(picture: Picture, album: Album) -> str:
    mark = album.add(picture.image_HWC)
    return (
        f'<figure class="card"><img alt="{esc(picture.line)}" src="{mark}">'
        f'<figcaption class="body"><code>{breakable(picture.line)}</code></figcaption></figure>'
    )
