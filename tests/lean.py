"""`python lean.py MODULE ...` is `python -m MODULE ...`, without what only costs time in tests.

transformers imports torch if it is installed, which takes longer than all other imports. And jax
keeps only programs that a run's first process compiled, though on CPUs those of the others differ
and would be compiled at every start.
"""

import runpy
import sys
import types
from importlib.machinery import PathFinder

from jax._src import compiler
from typing_extensions import override


class WithoutTorch(PathFinder):
    """Finds every module but torch."""

    @classmethod
    @override
    def find_spec(cls, fullname, path=None, target=None):
        return None if fullname == "torch" else super().find_spec(fullname, path, target)


def keep_programs_of_all_processes() -> None:
    """Makes jax keep the programs of every process, not only of the first."""
    first = types.SimpleNamespace(global_state=types.SimpleNamespace(process_id=0))
    names = vars(compiler) | {"distributed": first}
    compiler._cache_write = types.FunctionType(compiler._cache_write.__code__, names)


if __name__ == "__main__":
    sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutTorch
    keep_programs_of_all_processes()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
