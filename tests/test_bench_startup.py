"""`seva_jax.bench startup` times commands that answer and end."""

import re

from seva_jax.bench import startup


def test_every_answer_gets_a_line(monkeypatch, capsys):
    monkeypatch.setattr(startup, "_ANSWERS", {"nothing": ["-c", ""], "an error": ["-c", "1 / 0"]})
    startup.run_startup(startup.StartupBench(rounds=3))
    out = capsys.readouterr().out
    assert "3 rounds in turns" in out
    for name in ("nothing", "an error"):
        numbers = re.search(rf"^{name} +([\d.]+) +([\d.]+) +([\d.]+)$", out, re.MULTILINE)
        middle, fastest, slowest = map(float, numbers.groups())
        assert fastest <= middle <= slowest
