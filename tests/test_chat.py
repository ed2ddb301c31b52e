"""The command that asks models in the terminal: columns, colours, the loop, one-line problems."""

import builtins
import io
import json
import re
import shutil
import sys

import helpers_run
import pytest
from PIL import Image

from seva_jax import chat
from seva_jax.notebook import Model
from seva_jax.report.terminal import cells, cut, has_colour, printable, side_by_side

QUESTION = "What color is the circle ?"


@pytest.fixture(scope="module")
def finished(whole_run, tmp_path_factory):
    """Returns a copy of the finished tiny run, with two pictures beside it."""
    run = shutil.copytree(whole_run / "run", tmp_path_factory.mktemp("chat") / "run")
    from seva_jax.config import read_config

    asked = read_config(run / "config.py").evals[0].open()
    for number in (0, 1):
        prompt = asked.prompts[number]
        Image.fromarray(asked.load_image(prompt.images[0])).save(run.parent / f"{number}.png")
    return run


@pytest.fixture
def run(finished, monkeypatch):
    """Returns a function that runs the command in a terminal of 100 columns, given typed lines."""
    monkeypatch.chdir(finished.parent)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(chat, "use_compile_cache", lambda: None)

    def start(*argv, typed=()):
        lines = iter(typed)

        def read(prompt):
            assert prompt == "> "
            line = next(lines, None)
            if line is None:
                raise EOFError
            if isinstance(line, BaseException):
                raise line
            return line

        monkeypatch.setattr(builtins, "input", read)
        chat.main([*map(str, argv)])
        assert next(lines, "end") == "end"

    return start


def answered(finished, who, number):
    """Returns what the run itself answered to a question of its first evaluation."""
    return helpers_run.answers(finished, who)[1 + number]["answer"].strip() or "(no answer)"


def question(finished, number):
    from seva_jax.config import read_config

    return read_config(finished / "config.py").evals[0].open().prompts[number].question


def test_one_question_for_scripts(run, finished, capsys):
    """The two columns have the answers that the run itself gave."""
    asked = [question(finished, 0), question(finished, 0)]
    run("run", "--image", "0.png", "--max-new-tokens", "6", "--question", asked[0],
        "--question", asked[1])  # fmt: skip
    out = capsys.readouterr().out
    before, after = (answered(finished, who, 0) for who in ("base", "aligned"))
    assert before != after
    width = (100 - 3) // 2
    block = f"{'base':<{width}} │ aligned\n{before:<{width}} │ {after}\n\n"
    assert out == block * 2


def test_the_loop(run, finished, capsys):
    run(
        "run", "--image", "0.png", "--max-new-tokens", "6",
        typed=[
            question(finished, 0), "", "   ", "/image nowhere.png", "/image '1.png'",
            question(finished, 1), "/image", "What " * 200, "/what", question(finished, 1), "/quit",
        ],
    )  # fmt: skip
    out, err = capsys.readouterr()
    assert "Each question is asked alone" in out
    assert out.startswith("base: run (base)\naligned: run\nImage: 32 × 32 pixels.")
    for number in (0, 1):
        for who in ("base", "aligned"):
            assert answered(finished, who, number) in out
    assert "Image: 32 × 32 pixels.\n" in out
    assert "\nNo image.\n" in out
    assert out.count(chat.HELP) == 2
    problems = err.splitlines()
    assert len(problems) == 2
    assert problems[0] == "error: nowhere.png: no such image; check the path"
    assert problems[1].startswith("error: images and question take 2")


def test_the_ends_of_the_loop(run, capsys):
    run("run", typed=[])  # Ctrl-D
    assert capsys.readouterr().out.endswith("ends.\n\n")
    with pytest.raises(SystemExit) as end:
        run("run", typed=[KeyboardInterrupt()])
    assert end.value.code == 130
    bad = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
    run("run", typed=[bad, "/quit"])
    assert "error: what was typed is not utf-8" in capsys.readouterr().err


def test_problems_of_a_script_are_one_line(run, finished, capsys):
    with pytest.raises(SystemExit) as end:
        run("run", "--question", "", "--question", QUESTION, "--max-new-tokens", "2")
    assert end.value.code == 1
    out, err = capsys.readouterr()
    assert out  # the second one was answered
    assert re.fullmatch(r"error: empty question: .*\n", err)
    for argv, message in (
        (["none"], "error: none does not exist; give the work directory of a run"),
        (["run", "--image", "none.png"], "error: none.png: no such image"),
        (["run", "run", "run"], "error: give one model or two, not 3"),
        ([], "error: give one model or two, not 0"),
        (["run", "--devices", "99"], "error: 99 devices are wanted"),
    ):
        with pytest.raises(SystemExit) as end:
            run(*argv)
        assert str(end.value.code).startswith(message)
        assert "\n" not in str(end.value.code)


def test_two_models_one_model_and_a_run_that_trains(run, finished, tmp_path, capsys):
    from seva_jax.convert.__main__ import open_source
    from seva_jax.convert.rewrite import to_hf

    to_hf(open_source(finished), finished.parent / "export")
    capsys.readouterr()
    short = ("--max-new-tokens", "6", "--image", "0.png", "--question", question(finished, 0))
    after = answered(finished, "aligned", 0)
    run("export", "run", "--dtype", "float32", *short)
    assert capsys.readouterr().out == f"export and run, the same answer\n{after}\n\n"
    run("run", "run", *short)
    assert capsys.readouterr().out.startswith("1: run and 2: run, the same answer\n")
    run("export", "--dtype", "float32", *short)
    assert capsys.readouterr().out == f"export\n{after}\n\n"

    training = shutil.copytree(finished, tmp_path / "training")
    stages = json.loads((training / "stages.json").read_text())
    (training / "stages.json").write_text(json.dumps({"base": stages["base"]}))
    run(training, *short)
    out, err = capsys.readouterr()
    assert out == f"base\n{answered(finished, 'base', 0)}\n\n"
    assert "its alignment is not finished" in err
    assert "Only the base answers." in err
    run(training, "--step", "24", *short)
    assert answered(finished, "aligned", 0) in capsys.readouterr().out


def test_control_characters_do_not_reach_the_terminal(run, monkeypatch, capsys):
    hostile = "\x1b]0;title\x07 \x1b[2J\x9b31m red\r\u202e ring\x08"
    monkeypatch.setattr(Model, "answer", lambda self, *args, **options: hostile + self.label)
    run("run", typed=["What ?", "/image \x1b[31m.png"])
    out, err = capsys.readouterr()
    assert " red\ufffd\ufffd ring\ufffdrun" in out
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", out + err)


def test_colours_of_the_command(run, finished, monkeypatch, capsys):
    """Words that differ are coloured in a terminal, unless NO_COLOR is set."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    argv = ("run", "--image", "0.png", "--question", question(finished, 0))
    run(*argv)
    assert "\x1b[1;32m" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    run(*argv)
    assert "\x1b" not in capsys.readouterr().out


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_where_there_is_colour():
    assert has_colour(Terminal(), {})
    assert has_colour(Terminal(), {"NO_COLOR": ""})  # as https://no-color.org has it
    assert not has_colour(Terminal(), {"NO_COLOR": "1"})
    assert not has_colour(Terminal(), {"TERM": "dumb"})
    assert not has_colour(io.StringIO(), {})


LEFT = "A red cat sits on the mat and looks at a bird outside of the window."
RIGHT = "A cat sits on the mat. 图像很好看 " + "x" * 60 + "\n\nIt is calm."


@pytest.mark.parametrize("width", [80, 81, 120, 200])
@pytest.mark.parametrize("colour", [False, True])
def test_two_columns(width, colour):
    """Every line fits, and each column has its whole answer."""
    shown = re.sub(
        r"\x1b\[[\d;]*m", "", side_by_side(("base", "new"), (LEFT, RIGHT), width, colour)
    )
    lines = shown.split("\n")
    assert max(map(cells, lines)) <= width
    left, right = zip(*((x.partition("│")[0], x.partition("│")[2]) for x in lines), strict=True)
    assert "".join("".join(left[1:]).split()) == "".join(LEFT.split())
    assert "".join("".join(right[1:]).split()) == "".join(RIGHT.split())
    assert (left[0].strip(), right[0].strip()) == ("base", "new")


@pytest.mark.parametrize("width", [10, 40, 79])
def test_below_each_other_where_it_is_narrow(width):
    lines = side_by_side(("base", "new"), (LEFT, RIGHT), width, False).split("\n")
    assert max(map(cells, lines)) <= width
    assert lines[0] == "base"
    assert "new" in lines
    assert lines.index("new") > 1
    assert "│" not in "".join(lines)


def test_differences_are_marked():
    text = side_by_side(("a", "b"), ("a red circle", "a blue circle"), 100, True)
    assert "a \x1b[1;31mred\x1b[0m circle" in text
    assert "a \x1b[1;32mblue\x1b[0m circle" in text
    assert side_by_side(("a", "b"), ("same", " same\n"), 100, True) == (
        "a and b, the same answer\nsame"
    )
    assert "(no answer)" in side_by_side(("a", "b"), ("", "x"), 100, True)


def test_small_texts():
    assert printable("a\tb\r\nc\rd\ud800") == "a    b\nc\ufffdd\ufffd"
    assert cut("gs://bucket/runs/mine", 10) == "…runs/mine"
    assert cut("runs/mine", 10) == "runs/mine"
