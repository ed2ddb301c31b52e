"""The messages that the page explains are messages of the program."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "seva_jax/TROUBLESHOOTING.md"
MESSAGES = re.findall(r"^\| `([^`]+)` \|", PAGE.read_text("utf-8"), re.M)


@pytest.fixture(scope="module")
def said():
    """Returns every text in the code, with … for what is filled in."""
    texts = set()
    for path in (ROOT / "seva_jax").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
        docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if isinstance(node, ast.JoinedStr):
                parts = [getattr(part, "value", None) for part in node.values]
                texts.add("".join(p if isinstance(p, str) else "…" for p in parts))
            elif isinstance(node, ast.Constant) and id(node) not in docstrings:
                texts.add(str(node.value))
    return texts


def test_the_page_explains_messages():
    assert len(MESSAGES) > 20


@pytest.mark.parametrize("message", MESSAGES)
def test_the_program_says_it(message, said):
    assert any(message in text for text in said)
