"""`seva-jax completion bash`: a script with which the shell completes commands and options.

The words are those of the `--help` of every command, so options are those of the default config.
tyro makes such scripts too, but for a single command, not for one that has others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import tyro

from seva_jax.__main__ import COMMANDS
from seva_jax.__main__ import main as run
from seva_jax.config.command_line import parse_options

_SCRIPT = """# Completes seva-jax in bash; written by: seva-jax completion bash
_seva_jax() {{
  local words
  case "${{COMP_WORDS[*]:1:COMP_CWORD-1}} " in
{cases}  esac
  COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _seva_jax seva-jax
"""


@dataclasses.dataclass(frozen=True)
class CompletionOptions:
    """Prints a script with which the shell completes commands and options after TAB.

    For good: seva-jax completion bash > ~/.local/share/bash-completion/completions/seva-jax
    In this shell only: source <(seva-jax completion bash)

    Attributes:
        shell: the shell.
    """

    shell: Annotated[Literal["bash"], tyro.conf.Positional]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parse_options(CompletionOptions, "completion", argv)
    cases = [
        f'    "{" ".join((*typed, ""))}"*) words="{" ".join(words)}" ;;\n'
        for name in COMMANDS
        for typed, words in _completions((name,))
    ]
    cases.append(f'    *) words="{" ".join(COMMANDS)} --help --version" ;;\n')
    print(_SCRIPT.format(cases="".join(cases)), end="")


def _completions(typed: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """Yields what may follow a command, and before that what may follow each of its commands."""
    text = _help(typed)
    inner = re.search(r"^usage: .* \{([\w,-]+)\}\s*$", text, re.MULTILINE)
    commands = inner[1].split(",") if inner and len(typed) == 1 else []
    for name in commands:
        yield from _completions((*typed, name))
    options = re.findall(r"(?<![\w-])--[a-z][\w.-]*\b", text)
    yield typed, [*commands, *dict.fromkeys(options)]


def _help(typed: Sequence[str]) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        run([*typed, "--help"])
    return printed.getvalue()


if __name__ == "__main__":
    main()
