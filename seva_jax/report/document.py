"""The parts that all pages share: head, list of sections, tables, and writing the file.

What lives here: `document`, `data_table`, `write_html`. What does not: the content of sections.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from seva_jax.report.markup import breakable, esc
from seva_jax.runtime.files import write_text
from seva_jax.runtime.stores import as_path, make_folder

CSS = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
SCRIPT = Path(__file__).with_name("script.js").read_text(encoding="utf-8")
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def document(
    title: str,
    subtitle: str,
    what: str,
    first: str,
    sections: Sequence[tuple[str, str, str]],
    script: str = "",
) -> str:
    """Returns a page as HTML; it loads nothing, and its policy allows only `script`, by its hash.

    Args:
        title: heading.
        subtitle: one line under it, may be empty.
        what: one sentence that describes the page.
        first: HTML before the sections, not listed among the links.
        sections: (id, name, HTML) in reading order.
        script: JavaScript of the page; empty for none.
    """
    policy, scripted = POLICY, ""
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode()
        policy, scripted = f"{POLICY}; script-src 'sha256-{digest}'", f"<script>{script}</script>\n"
    links = "".join(f'<li><a href="#{key}">{name}</a></li>' for key, name, _ in sections)
    body = "".join(
        f'<section id="{key}" aria-labelledby="{key}-title">'
        f'<h2 id="{key}-title">{name}</h2>{content}</section>\n'
        for key, name, content in sections
    )
    under = f'<p class="subtitle" dir="auto">{esc(subtitle)}</p>' if subtitle else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{esc(title)}</title>\n"
        # Without an icon of its own the page would make browsers ask a server for one.
        f'<link rel="icon" href="data:,">\n<style>{CSS}</style>\n</head>\n<body>\n'
        f'<header><h1 dir="auto">{esc(title)}</h1>{under}'
        f'<p class="what">{esc(what)}</p>'
        f'<nav aria-label="Sections"><ul>{links}</ul></nav></header>\n<main>\n'
        f"{first}{body}</main>\n"
        "<footer><p>Written by seva_jax. Everything is inside this file: it loads nothing.</p>"
        f"</footer>\n{scripted}</body>\n</html>\n"
    )


def data_table(
    caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[str] = ()
) -> str:
    """Returns a plain table as HTML; its first column names the rows.

    Args:
        caption: caption for screen readers.
        columns: headings.
        rows: text of the cells.
        numeric: columns whose cells are aligned right.
    """
    styles = [' class="num"' if column in numeric else "" for column in columns]

    def cell(text: str, style: str, first: bool) -> str:
        kind = 'th scope="row"' if first else "td"
        return f'<{kind}{style} dir="auto">{breakable(text)}</{kind.split()[0]}>'

    head = "".join(
        f'<th scope="col"{style}>{esc(column)}</th>'
        for column, style in zip(columns, styles, strict=True)
    )
    body = ""
    for row in rows:
        cells = [cell(*pair, i == 0) for i, pair in enumerate(zip(row, styles, strict=True))]
        body += f"<tr>{''.join(cells)}</tr>"
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{esc(caption)}">'
        f'<table class="plain"><caption class="hidden">{esc(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def write_html(page: str, path: str | os.PathLike[str]) -> Path:
    """Writes a page so that a reader sees either the old file or the whole new one.

    Args:
        page: HTML.
        path: the file; missing folders are created, an older file is replaced.

    Returns:
        The path written.

    Raises:
        OSError: the file cannot be written.
    """
    path = as_path(path)
    make_folder(path.parent)
    write_text(path, page)
    return path
