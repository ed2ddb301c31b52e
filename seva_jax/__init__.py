"""Preference alignment of vision-language models in JAX, after SeVa.

`import seva_jax` imports neither JAX nor transformers; the first use of `seva_jax.from_pretrained`
does. Read next: README.md, then `seva_jax/training/step.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from seva_jax.pretrained import from_pretrained

__version__ = "0.4.0"
__all__ = ["__version__", "from_pretrained"]


def __getattr__(name: str) -> object:
    if name == "from_pretrained":
        from seva_jax.pretrained import from_pretrained

        return from_pretrained
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
