"""`seva-jax COMMAND`: all commands under one name. `python -m seva_jax COMMAND` does the same.

Each is also a module that can be run, as in `python -m seva_jax.train`. The module of a command is
imported when the command is chosen, so that the list of commands appears at once.
"""

from __future__ import annotations

import difflib
import gc
import importlib
import sys
from collections.abc import Sequence

from seva_jax import __version__

COMMANDS = {  # name -> module with main(argv), and what it does
    "train": ("seva_jax.train", "aligns a model: answers, pairs, training, evaluations, report"),
    "data": ("seva_jax.data.__main__", "checks, shows, converts and copies data"),
    "evaluate": ("seva_jax.evaluate", "asks benchmarks of a base model or of an aligned one"),
    "convert": ("seva_jax.convert.__main__", "exports a result for transformers, PEFT or LLaVA"),
    "plan": ("seva_jax.plan.__main__", "estimates memory and time on TPUs and GPUs, without them"),
    "report": (
        "seva_jax.report.__main__",
        "writes the page of a run, or of several",
    ),
    "chat": ("seva_jax.chat", "asks base and aligned model about an image, in the terminal"),
    "bench": ("seva_jax.bench.__main__", "runs a measurement or a study"),
    "completion": ("seva_jax.completion", "prints a script that completes options in bash"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Raises:
        SystemExit: with status 2 for an unknown command, or with that of the command.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    name, *rest = argv or ["--help"]
    if name in ("-h", "--help", "help"):
        print(_overview())
    elif name == "--version":
        print(f"seva-jax {__version__}")
    elif name in COMMANDS:
        gc.disable()  # imports leave no garbage, and looking for it takes a tenth of their time
        module = importlib.import_module(COMMANDS[name][0])
        gc.enable()
        module.main(rest)
    else:
        print(f"error: {_instead(name, argv)}", file=sys.stderr)
        sys.exit(2)


def _overview() -> str:
    lines = "".join(f"  {name:<11}{about}\n" for name, (_, about) in COMMANDS.items())
    return (
        f"usage: seva-jax COMMAND ...\n\n{lines}\n"
        "seva-jax COMMAND --help explains a command. seva-jax --version prints the version."
    )


def _instead(name: str, argv: Sequence[str]) -> str:
    """Returns what to type in place of a command that does not exist."""
    if name.startswith("-"):
        return f"the command comes first, for example: seva-jax train {' '.join(argv)}"
    near = difflib.get_close_matches(name, COMMANDS, 1, 0.5)
    meant = f"did you mean seva-jax {near[0]}? " if near else ""
    return f"there is no command {name}; {meant}The commands are {', '.join(COMMANDS)}"


if __name__ == "__main__":
    main()
