"""Imports go down only: the layers of the package, read from its source."""

import ast
import itertools
import textwrap
from pathlib import Path

import pytest

import seva_jax

PACKAGE = Path(seva_jax.__file__).parent

# Low to high. A part (module or sub-package of seva_jax) may import itself and the parts of the
# rows above its own, never one of its own row or below.
LAYERS = (
    "types stopping ranges home",  # the nouns; when to end; what configs hold; paths as written
    "corrupt objectives text images sharding processes report loggers terminal lock",  # leaves
    "models data optim digests",  # networks; rows and files; updates; which files are intact
    "statistics",  # of the answers in a batch: log-probs and what objectives ask for beside
    "step convert worlds evals health saving",  # the maths; weights; prompts with truth; saves
    "rollout",  # answers to prompts
    "pairs checkpoint memory flops base_model curriculum",  # what a stage of a run is made of
    "experiment logps loop features measure pretrained",  # root config; passes over data; notebooks
    "cli",  # config files and the command line
    "workdir",  # stages and their records
    "prior",  # what an earlier run made
    "parts calls results compare examine stages",  # what stages share; what runs left; curricula
    "train",  # the main command
    "plan evaluate",  # what a run needs; benchmarks of a model
    "bench",  # measurements, and studies of many runs
    "commands",  # `__main__` of packages
)
LEVEL = {part: level for level, row in enumerate(LAYERS) for part in row.split()}

# Importable from these parts only: torch reads pickles and is measured against.
FENCED = {
    "flax": ("models",),
    "torch": ("convert", "bench"),
    "torchvision": (),
    "tensorflow": (),
    "keras": (),
}

# Upward imports that only type checkers see, and the package's own lazy attribute.
TYPE_ONLY = {("results", "train"), ("calls", "parts"), ("curriculum", "experiment")}


def part_of(module):
    """The row entry a dotted seva_jax module belongs to."""
    return "commands" if module.endswith(".__main__") else module.split(".")[1]


def imports(source, module, is_package=False):
    """(dotted module, line, seen by type checkers only) of every import, also inside functions."""
    found = []
    parent = module if is_package else module.rpartition(".")[0]

    def visit(node, type_only):
        if isinstance(node, ast.Import):
            found.extend((alias.name, node.lineno, type_only) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = parent.split(".")[: len(parent.split(".")) - node.level + 1]
                base = ".".join((*package, *([base] if base else [])))
            # `from seva_jax import report` names a part, not an attribute.
            names = [f"{base}.{a.name}" if base == "seva_jax" else base for a in node.names]
            found.extend((name, node.lineno, type_only) for name in names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
            ("__import__", "import_module")
        ):
            name = node.args[0] if node.args else None
            assert isinstance(name, ast.Constant), f"{module}:{node.lineno} imports what?"
            found.append((name.value, node.lineno, type_only))
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for child in node.body:
                visit(child, True)
            for child in node.orelse:
                visit(child, type_only)
        else:
            for child in ast.iter_child_nodes(node):
                visit(child, type_only)

    visit(ast.parse(source), False)
    return found


def problems(source, module, is_package=False):
    """What a module's imports do that its layer does not allow, one line each."""
    part = part_of(module)
    if part not in LEVEL:
        return [f"{module}: {part} has no layer; add it to LAYERS"]
    out = []
    for name, line, type_only in imports(source, module, is_package):
        root = name.split(".")[0]
        if root in FENCED and part not in FENCED[root]:
            where = " and ".join(f"seva_jax.{p}" for p in FENCED[root]) or "nobody"
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
            if type_only and (part, other) in TYPE_ONLY:
                continue
            out.append(f"{module}:{line}: {part} (layer {LEVEL[part]}) imports {name} "
                       f"(layer {LEVEL[other]})")  # fmt: skip
    return out


def modules():
    """(dotted name, file) of every module but the package's own front door."""
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE)
        if relative.parts[0].startswith("_"):  # __init__, and the shipped configs of a wheel
            continue
        parts = relative.with_suffix("").parts
        yield ".".join(("seva_jax", *(p for p in parts if p != "__init__"))), path


def test_imports_go_down_only():
    """Every module of the package, every import statement."""
    found = list(modules())
    assert len(found) > 40
    out = [problems(p.read_text("utf-8"), name, p.name == "__init__.py") for name, p in found]
    assert not list(itertools.chain(*out))


def test_the_table_has_no_dead_rows():
    """Every part and every exception named above exists."""
    existing = {part_of(name) for name, _ in modules()}
    assert set(LEVEL) == existing
    for part, other in TYPE_ONLY:
        source = (PACKAGE / f"{part}.py").read_text("utf-8")
        assert (f"seva_jax.{other}", True) in {(n, t) for n, _, t in imports(source, part)}


def test_importing_the_package_loads_nothing():
    """`import seva_jax` runs no import of its own but for what defines its lazy attribute."""
    source = (PACKAGE / "__init__.py").read_text("utf-8")
    top = [node for node in ast.parse(source).body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert {ast.unparse(node) for node in top} <= {
        "from __future__ import annotations",
        "from typing import TYPE_CHECKING",
    }


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("seva_jax.text.encode", "from seva_jax.step import merge", "text (layer 1) imports"),
        ("seva_jax.text.encode", "from seva_jax import step", "text (layer 1) imports"),
        ("seva_jax.text.encode", "from ..models import Llava", "text (layer 1) imports"),
        ("seva_jax.text.encode", "import seva_jax.images.load", "text (layer 1) imports"),
        ("seva_jax.step", "def f():\n    from seva_jax.loop import fit", "step (layer 4) imports"),
        ("seva_jax.step", "import flax.linen as nn", "which seva_jax.models may"),
        ("seva_jax.step", "def f():\n    import torchvision", "nobody may"),
        ("seva_jax.models.llama", "import tensorflow as tf", "nobody may"),
        (
            "seva_jax.step",
            "import importlib\nimportlib.import_module('torch')",
            "which seva_jax.convert and seva_jax.bench may",
        ),
        ("seva_jax.step", "from seva_jax import from_pretrained", "from_pretrained has no layer"),
        ("seva_jax.results", "from seva_jax.train import Run", "results (layer 11) imports"),
        ("seva_jax.newcomer", "", "newcomer has no layer"),
    ],
)
def test_what_the_check_finds(module, source, expected):
    """One line with module and reason for each kind of offence."""
    (problem,) = problems(source, module)
    assert expected in problem
    assert problem.startswith(module)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("seva_jax.models.llama", "import flax.linen as nn\nfrom seva_jax.models import layers"),
        ("seva_jax.step", "from seva_jax.types import TreeBatch\nfrom .models import Llava"),
        ("seva_jax.report.page", "from . import charts\nfrom .data import Drop"),
        (
            "seva_jax.results",
            textwrap.dedent("""
                from typing import TYPE_CHECKING
                if TYPE_CHECKING:
                    from seva_jax.train import Run
            """),
        ),
    ],
)
def test_what_the_check_allows(module, source):
    """Downward, within a part, and the listed type-only import."""
    assert problems(source, module) == []
