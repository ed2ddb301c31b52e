"""The shipped configs as modules: `from seva_jax.recipes import llava15_7b_seva`.

Each module is a file of configs/, which a wheel has inside the package; `configs/README.md` lists
them. A config of one's own varies `llava15_7b_seva.get_config()` without a copy of the file.
"""

from typing import TYPE_CHECKING

from seva_jax.config.config_files import config_directory

if TYPE_CHECKING:
    from types import ModuleType

    def __getattr__(name: str) -> ModuleType: ...


__path__ = [str(config_directory())]
