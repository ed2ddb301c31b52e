"""Paths in the user's home directory, which contains the user's name: written as `~`, read back.

What lives here: both directions, for single paths and for text that contains some, and shortening
other paths for pages that others see. Read next: `seva_jax/config/source.py`, which writes configs.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path, PurePath
from typing import Any


def _home() -> str:
    home = str(Path("~").expanduser())
    return "" if home in ("~", "/") else home  # a user without a home has nothing to hide


def hide_home(text: str) -> str:
    """Replaces the home directory by `~` wherever a path in a text begins with it.

    >>> hide_home(str(Path("~/runs/a").expanduser()) + " done")
    '~/runs/a done'
    """
    home = _home()
    return re.sub(rf"(?<![\w./~-]){re.escape(home)}(?![\w.-])", "~", text) if home else text


def short_path(text: str) -> str:
    """Shortens a path for pages and services that others see.

    Outside of the home directory, only the last name of an absolute path is kept.

    >>> short_path("/mnt/disks/of-alice/images"), short_path("runs/a"), short_path("a word")
    ('…/images', 'runs/a', 'a word')
    >>> short_path("gs://bucket/runs/a")
    'gs://bucket/runs/a'
    """
    hidden = hide_home(text)
    return f"…/{PurePath(text).name}" if hidden.startswith("/") else hidden


def expand_home(config: Any) -> Any:
    """Replaces `~` by the home directory in every path of a config.

    Args:
        config: a dataclass, or the value of a field of one.

    >>> expand_home(("~/runs", 3)) == (str(Path("~/runs").expanduser()), 3)
    True
    """
    if isinstance(config, str):
        return _home() + config[1:] if config == "~" or config.startswith("~/") else config
    if isinstance(config, tuple):
        return tuple(map(expand_home, config))
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        return config
    changed = {}
    for field in dataclasses.fields(config):
        before = getattr(config, field.name)
        after = expand_home(before)
        if field.init and after != before:
            changed[field.name] = after
    return dataclasses.replace(config, **changed) if changed else config
