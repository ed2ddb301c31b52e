"""Imports only go down: the layers of the package, read from its source."""

import ast
import graphlib
import itertools
from pathlib import Path

import pytest

import seva_jax

PACKAGE = Path(seva_jax.__file__).parent

# Low to high. A part (module or package of seva_jax) may import itself and the parts of the rows
# above its own, never one of its own row or below. COMMANDS is one part: what people start.
LAYERS = (
    "types ranges",  # the nouns; the bounds of numbers in configs
    "runtime",  # files, stores and processes of a run
    "sharding images text objectives",  # leaves: each can be read on its own
    "models batches corrupt",  # networks; rows of trees; what hides an image
    "data training convert",  # formats; the step and its loop; weights
    "inference pairs evals worlds",  # passes that do not train; what they are asked for
    "config",  # every setting of a run
    "run report pretrained recipes",  # one run; its page; notebooks; the shipped configs
    "commands",
)
# And `__main__` of the packages; `notebook` is what `seva_jax.open` returns.
COMMANDS = ("train", "evaluate", "plan", "bench", "chat", "completion", "notebook")
LEVEL = {part: level for level, row in enumerate(LAYERS) for part in row.split()}

# Importable from these parts only: torch reads pickles and is measured against.
FENCED = {
    "flax": ("models",),
    "torch": ("convert", "bench"),
    "torchvision": (),
    "tensorflow": (),
    "keras": (),
}


def part_of(module):
    """Returns the entry of the table that a dotted seva_jax module belongs to."""
    part = module.split(".")[1]
    return "commands" if module.endswith(".__main__") or part in COMMANDS else part


def imports(source, module, is_package=False):
    """Returns (dotted module, line) of every import, also inside functions and for types only."""
    found = []
    parent = module if is_package else module.rpartition(".")[0]

    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.extend((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = parent.split(".")[: len(parent.split(".")) - node.level + 1]
                base = ".".join((*package, *([base] if base else [])))
            # `from seva_jax import report` names a part, not an attribute.
            names = [f"{base}.{a.name}" if base == "seva_jax" else base for a in node.names]
            found.extend((name, node.lineno) for name in names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
            ("__import__", "import_module")
        ):
            name = node.args[0] if node.args else None
            assert isinstance(name, ast.Constant), f"{module}:{node.lineno} imports what?"
            found.append((name.value, node.lineno))
    return found


def problems(source, module, is_package=False):
    """Returns one line for each import of a module that its layer does not allow."""
    part = part_of(module)
    if part not in LEVEL:
        return [f"{module}: {part} has no layer; add it to LAYERS"]
    out = []
    for name, line in imports(source, module, is_package):
        root = name.split(".")[0]
        if root in FENCED and module.split(".")[1] not in FENCED[root]:
            where = " and ".join(f"seva_jax.{p}" for p in FENCED[root]) or "no module"
            out.append(f"{module}:{line}: imports {name}, which {where} may")
        if root != "seva_jax":
            continue
        if name == "seva_jax":
            out.append(f"{module}:{line}: imports the package's front door; name the module")
            continue
        other = part_of(name)
        if other not in LEVEL:
            out.append(f"{module}:{line}: {other} has no layer; add it to LAYERS")
        elif other != part and LEVEL[other] >= LEVEL[part]:
            out.append(f"{module}:{line}: {part} (layer {LEVEL[part]}) imports {name} "
                       f"(layer {LEVEL[other]})")  # fmt: skip
    return out


def modules():
    """Returns (dotted name, file) of every module but the package's own `__init__`."""
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE)
        if relative.parts[0].startswith("_"):  # __init__, and the shipped configs of a wheel
            continue
        parts = relative.with_suffix("").parts
        yield ".".join(("seva_jax", *(p for p in parts if p != "__init__"))), path


def test_imports_go_down_only():
    """It holds for every import statement of every module."""
    found = list(modules())
    assert len(found) > 40
    out = [problems(p.read_text("utf-8"), name, p.name == "__init__.py") for name, p in found]
    assert not list(itertools.chain(*out))


def test_the_table_has_no_dead_rows():
    """Every part and every exception named above exists."""
    existing = {part_of(name) for name, _ in modules()}
    assert set(LEVEL) == existing
    assert len(LAYERS) <= 9


def test_no_circles():
    """Modules import each other in one direction only, including imports for type checkers."""
    sources = {name: (p.read_text("utf-8"), p.name == "__init__.py") for name, p in modules()}
    arrows = {}
    for name, (source, is_package) in sources.items():
        targets = {found for found, _ in imports(source, name, is_package)}
        for node in ast.walk(ast.parse(source)):  # `from seva_jax.corrupt import base`
            if isinstance(node, ast.ImportFrom) and not node.level:
                targets |= {f"{node.module}.{alias.name}" for alias in node.names}
        # A package only gathers the names of its modules: it is no step of a circle.
        arrows[name] = [] if is_package else sorted(targets & set(sources) - {name})
    graphlib.TopologicalSorter(arrows).prepare()  # raises for a circle, and names it


def test_importing_the_package_loads_nothing():
    """`import seva_jax` imports only what defines its lazy attribute."""
    source = (PACKAGE / "__init__.py").read_text("utf-8")
    top = [node for node in ast.parse(source).body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert {ast.unparse(node) for node in top} <= {
        "from __future__ import annotations",
        "from typing import TYPE_CHECKING",
    }


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("text.encode", "from seva_jax.training.step import merge", "text (layer 2) imports"),
        ("text.encode", "from seva_jax import training", "text (layer 2) imports"),
        ("text.encode", "from ..models import Llava", "text (layer 2) imports"),
        ("text.encode", "import seva_jax.images.load", "text (layer 2) imports"),
        (
            "training.step",
            "def f():\n    from seva_jax.inference.sampler import decode",
            "training (layer 4) imports",
        ),
        ("training.step", "import flax.linen as nn", "which seva_jax.models may"),
        ("training.step", "def f():\n    import torchvision", "no module may"),
        ("models.llama", "import tensorflow as tf", "no module may"),
        (
            "training.step",
            "import importlib\nimportlib.import_module('torch')",
            "which seva_jax.convert and seva_jax.bench may",
        ),
        ("train", "import torch", "which seva_jax.convert and seva_jax.bench may"),
        ("training.step", "from seva_jax import from_pretrained", "from_pretrained has no layer"),
        ("report.run_report", "from seva_jax.train import STAGES", "report (layer 7) imports"),
        (
            "report.run_report",
            "if TYPE_CHECKING:\n    from seva_jax.run.context import RunContext",
            "report (layer 7) imports",
        ),
        ("newcomer", "", "newcomer has no layer"),
    ],
)
def test_what_the_check_finds(module, source, expected):
    """Each kind of violation gives one line with module and reason."""
    (problem,) = problems(source, f"seva_jax.{module}")
    assert expected in problem
    assert problem.startswith(f"seva_jax.{module}")


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("models.llama", "import flax.linen as nn\nfrom seva_jax.models import layers"),
        ("training.step", "from seva_jax.types import TreeBatch\nfrom ..models import Llava"),
        ("report.page", "from . import charts\nfrom .data import Drop"),
        ("bench.study", "from seva_jax.train import main"),
    ],
)
def test_what_the_check_allows(module, source):
    """Imports may go down, stay within a part, or lead from one command to another."""
    assert problems(source, f"seva_jax.{module}") == []
