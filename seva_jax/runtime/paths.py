"""The user's home directory, which names the user: written as `~`, and read back.

What lives here: both directions, for single paths and for texts that hold some; and what others get
to see of paths elsewhere. Read next: `cli.py`, which writes configs so.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any


def _home() -> str:
    home = str(Path("~").expanduser())
    return "" if home in ("~", "/") else home  # a user without one has nothing to hide


def hide_home(text: str) -> str:
    """A text with the home directory as `~`, wherever it stands as a path of its own.

    >>> hide_home(str(Path("~/runs/a").expanduser()) + " done")
    '~/runs/a done'
    """
    home = _home()
    return re.sub(rf"(?<![\w./~-]){re.escape(home)}(?![\w.-])", "~", text) if home else text


def short_path(text: str) -> str:
    """For pages and services that others see: of an absolute path outside of home, its last name.

    >>> short_path("/mnt/disks/of-alice/images"), short_path("runs/a"), short_path("a word")
    ('…/images', 'runs/a', 'a word')
    """
    hidden = hide_home(text)
    return f"…/{Path(text).name}" if hidden.startswith("/") else hidden


def expand_home(config: Any) -> Any:
    """A config with every text that begins with `~/` as the path it stands for.

    Args:
        config: a dataclass, or what one holds.

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
