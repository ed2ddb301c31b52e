"""The table of `breaks.py` stays true: its texts and tests exist, and it covers every promise."""

import ast
from pathlib import Path

import pytest
from breaks import BREAKS, ROOT

TESTS = Path(__file__).parent


@pytest.mark.parametrize("found", BREAKS, ids=lambda x: f"{x.promise} {x.fault}: {x.without}")
def test_every_defence_is_where_the_table_says(found):
    """Its text occurs once, the replacement still parses, and its test exists."""
    whole = (ROOT / found.file).read_text(encoding="utf-8")
    assert whole.count(found.text) == 1, f"{found.file} does not hold {found.text!r} once"
    broken = whole.replace(found.text, found.instead)
    assert ast.dump(ast.parse(broken)) != ast.dump(ast.parse(whole))
    file, _, name = found.test.partition("::")
    functions = ast.walk(ast.parse((TESTS / file).read_text(encoding="utf-8")))
    assert name in {x.name for x in functions if isinstance(x, ast.FunctionDef)}


def test_every_promise_has_a_defence_to_take_away():
    """tests/README.md has a row for the promise that names the test's file."""
    numbers = {found.promise for found in BREAKS if found.promise[1:].isdigit()}
    assert numbers == {f"R{i}" for i in range(1, 19)}
    lines = (TESTS / "README.md").read_text(encoding="utf-8").splitlines()
    rows = [line.split(" | ") for line in lines if line.startswith("| ")]
    for found in BREAKS:
        own = [row for row in rows if found.promise in row[0].strip("| ").split(", ")]
        assert own, f"tests/README.md has no row {found.promise}"
        assert any(found.test.partition("::")[0] in row[-1] for row in own), found
