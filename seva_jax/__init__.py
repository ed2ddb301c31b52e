"""Preference alignment of vision-language models in JAX, after SeVa.

`import seva_jax` imports neither JAX nor transformers; the first use of `seva_jax.open`,
`seva_jax.show` or `seva_jax.from_pretrained` does. Read next: README.md, then
`seva_jax/training/step.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from seva_jax.notebook import open_model as open
    from seva_jax.pretrained import from_pretrained
    from seva_jax.report.pair_view import show

__version__ = "0.4.0"
# Without `open`: `from seva_jax import *` leaves Python's own in place.
__all__ = ["__version__", "from_pretrained", "show"]


def __getattr__(name: str) -> object:
    match name:
        case "from_pretrained":
            from seva_jax.pretrained import from_pretrained

            return from_pretrained
        case "open":
            from seva_jax.notebook import open_model

            return open_model
        case "show":
            from seva_jax.report.pair_view import show

            return show
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
