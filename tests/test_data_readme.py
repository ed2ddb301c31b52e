"""The page about data is true: its config lines, commands and code all work."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from pathlib import Path

from PIL import Image

from seva_jax.data import __main__ as commands
from seva_jax.data import json_records
from seva_jax.data.regions import MapFolder
from seva_jax.data.sources import PreferenceSource, PromptSource
from seva_jax.run.rollouts import write_rollouts
from seva_jax.types import Prompt, Rollout

PAGE = (Path(commands.__file__).parent / "README.md").read_text(encoding="utf-8")
LINES = re.findall(r"^\| (?P<what>[^|]+) \| `(?P<line>[^|]+)` \| `(?P<module>\w+)` \|$", PAGE, re.M)
MODULES = (
    *("files", "embedded", "records", "preferences", "messages", "mixed"),
    *("changed", "composed", "marked", "trajectories", "regions", "scores"),
    *("captions", "answered", "columns", "llamafactory", "videos"),
)
CLASSES = {
    name: (module, value)
    for module in MODULES
    for name, value in vars(importlib.import_module(f"seva_jax.data.{module}")).items()
    if isinstance(value, type) and issubclass(value, PromptSource)
    and value.__module__ == f"seva_jax.data.{module}"
}  # fmt: skip


def test_every_line_is_a_source_of_the_module_named():
    names: dict = {name: kind for name, (_, kind) in CLASSES.items()} | {"MapFolder": MapFolder}
    used = set()
    for _, line, module in LINES:
        source = eval(line, names)
        assert CLASSES[type(source).__name__][0] == module, line
        used.add(type(source).__name__)
    assert used == set(CLASSES) - {"PairsFile"}
    pairs = PAGE[PAGE.index("## Pairs") : PAGE.index("## Clips")]
    for _, line, _ in LINES:
        assert (
            isinstance(eval(line, names), PreferenceSource)
            == (line in pairs or line.startswith("AnsweredPrompts"))
            or "((" in line
            or line.startswith("Columns")
        )


def test_every_command_parses(monkeypatch):
    seen = []
    for name in ("_check", "_show", "_convert", "_build"):
        monkeypatch.setattr(commands, name, lambda command, rest: seen.append(rest))
    lines = re.findall(r"^seva-jax data (.*?)(?:\s+#.*)?$", PAGE, re.M)
    assert len(lines) == 8
    for line in lines:
        commands.main(shlex.split(line))
    assert seen == [[]] * 8


def test_reading_rollouts(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    (code,) = (block for block in blocks if "read_rollouts" in block)
    record = json_records.rollout_record(Rollout(Prompt("a", "What?", ()), "red", ("blue",)))
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    write_rollouts(tmp_path / "runs" / "tiny", [record], ["noise"])
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert capsys.readouterr().out == "What? red ['blue']\n"


def test_links():
    """The sources with `link_roots` can be made; tests/test_links.py reads such folders."""
    (code,) = (x for x in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "link_roots" in x)
    exec(code, {})


def test_a_format_of_your_own(tmp_path):
    code = re.findall(r"```python\n(.*?)```", PAGE, re.S)[-1]
    names: dict = {"__name__": "__main__"}
    exec(code, names)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    record = {"file": "a.png", "ask": "What?", "good": "A cat.", "bad": "A dog."}
    records = [record, record | {"bad": ""}, {}]
    (tmp_path / "x.json").write_text(json.dumps(records))
    found = names["MyPairs"](str(tmp_path / "x.json"), str(tmp_path)).open()
    assert found.comparisons[0].answers == ("A cat.", "A dog.")
    assert found.drops == {"empty rejected answer": 1, "no image": 1}
