"""`python -m seva_jax.chat`: asks a model about an image, or two of them side by side.

    python -m seva_jax.chat runs/mine --image cat.jpg

Each question is asked alone: models of this kind are aligned on single questions, and earlier ones
are not repeated to them. Opening a model is in `seva_jax/run/opened.py`, asking it in
`seva_jax/notebook.py`, columns and colours in `seva_jax/report/terminal.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from seva_jax.config.command_line import parse_options
from seva_jax.runtime.processes import one_line_errors, use_compile_cache
from seva_jax.runtime.store_client import StoreError
from seva_jax.types import DataError

if TYPE_CHECKING:
    import numpy as np

    from seva_jax.notebook import Model
    from seva_jax.text import Template

DESCRIPTION = """Asks a model about an image, in the terminal: the base and the aligned model of a
run side by side, one model, or any two. Each question is asked alone. At the prompt, /image PATH
changes the image (without PATH: no image), and /quit or Ctrl-D ends."""

HELP = "/image PATH changes the image, /image alone asks without one, /quit or Ctrl-D ends"


@dataclasses.dataclass(frozen=True)
class Chat:
    """Options of the command.

    Attributes:
        models: work directory of a run, whose base and aligned model are asked; directory of a
            LLaVA-1.5 model; directory of a LoRA adapter; or any two of these. Of two, a run stands
            for its aligned model.
        image: path of the image; empty asks without an image.
        question: asks this and ends, for scripts; may be given several times.
        step: training step of the aligned model of a run, of those that are kept; "best" is the one
            with the lowest held-out loss; None takes what train.keep of the run says.
        max_new_tokens: maximum length of an answer in tokens.
        temperature: 0 always takes the likeliest token.
        seed: of the sampling, at a temperature above 0.
        base: of an adapter, the directory of the model that it was trained on; empty takes the one
            that its adapter_config.json names.
        vision_tower: CLIP directory of a model in the original LLaVA's layout.
        template: words around questions; own takes those of the run, or of the checkpoint's chat
            template.
        dtype: precision of a model that is not a run.
        devices: devices that share the weights of a model; 0 takes all of them.
    """

    models: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    image: str = ""
    question: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    step: int | Literal["best", "last"] | None = None
    max_new_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0
    base: str = ""
    vision_tower: str = ""
    template: Literal[
        "own", "vicuna_v1", "llava_v1", "llava_v0", "plain",
        "mistral", "llama_3", "chatml", "onevision", "internvl3",
    ] = "own"  # fmt: skip
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    devices: int = 1


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Raises:
        SystemExit: with status 1 if a --question could not be asked, 130 after Ctrl-C.
    """
    chat = parse_options(Chat, "chat", argv, DESCRIPTION)
    if not 1 <= len(chat.models) <= 2:
        raise DataError(f"give one model or two, not {len(chat.models)}: seva-jax chat runs/mine")
    use_compile_cache()
    try:
        image, models = _read(chat.image), _opened(chat)
        ask = functools.partial(_ask, chat, models)
        if chat.question:
            problems = [_asked(ask, question, image) for question in chat.question]
            if any(problems):
                sys.exit(1)
        else:
            _loop(ask, models, image)
    except KeyboardInterrupt:
        print()
        sys.exit(130)


def _opened(chat: Chat) -> list[tuple[str, Model]]:
    """Returns the models to ask, with a name for each, and loads their weights."""
    opened = [_open(chat, path) for path in chat.models]
    models = [(model.label, model) for model in opened]
    if len(opened) == 1 and opened[0].found.is_run:
        models = [("base", opened[0].base), ("aligned", opened[0].aligned)]
        try:
            opened[0].found.require_finished()
        except DataError as error:
            print(f"{error}. Only the base answers.", file=sys.stderr)
            del models[1]
    elif len(models) == 2 and models[0][0] == models[1][0]:
        models = [(f"{number}: {label}", model) for number, (label, model) in enumerate(models, 1)]
    for _, model in models:
        _ = model.opened
    return models


def _open(chat: Chat, path: str) -> Model:
    """Returns the model at a path; of two, options apply to the one that they are for."""
    from seva_jax.notebook import open_model
    from seva_jax.run.opened import is_run
    from seva_jax.runtime.stores import as_path

    run = len(chat.models) > 1 and is_run(as_path(path).expanduser())
    other = len(chat.models) > 1 and not run
    return open_model(
        path,
        step=None if other else chat.step,
        base="" if run else chat.base,
        vision_tower="" if run else chat.vision_tower,
        template=_template(chat.template),
        dtype=chat.dtype,
        devices=chat.devices or None,
    )


def _template(name: str) -> Template | None:
    from seva_jax.text import templates

    return None if name == "own" else getattr(templates, name.upper())


def _read(path: str) -> np.ndarray | None:
    """Returns the image at a path, None for an empty one."""
    from seva_jax.images.load import as_rgb

    return as_rgb(path) if path else None


def _ask(
    chat: Chat, models: Sequence[tuple[str, Model]], question: str, image: np.ndarray | None
) -> str:
    """Returns what the terminal shows of the answers to a question."""
    from seva_jax.report.terminal import has_colour, one_answer, side_by_side

    answers = [
        model.answer(image, question, chat.max_new_tokens, chat.temperature, seed=chat.seed)
        for _, model in models
    ]
    labels, width = [label for label, _ in models], shutil.get_terminal_size().columns
    if len(models) == 1:
        return one_answer(labels[0], answers[0], width)
    return side_by_side(
        (labels[0], labels[1]), (answers[0], answers[1]), width, has_colour(sys.stdout)
    )


def _asked(
    ask: Callable[[str, np.ndarray | None], str], question: str, image: np.ndarray | None
) -> bool:
    """Prints the answers to a question; returns whether it could not be asked, and says why."""
    try:
        print(f"{ask(question, image)}\n", flush=True)
    except (DataError, StoreError) as error:
        _say_problem(error)
        return True
    return False


def _say_problem(error: Exception) -> None:
    from seva_jax.report.terminal import printable

    print(f"error: {printable(' '.join(str(error).split()))}", file=sys.stderr, flush=True)


def _loop(
    ask: Callable[[str, np.ndarray | None], str],
    models: Sequence[tuple[str, Model]],
    image: np.ndarray | None,
) -> None:
    """Answers what is typed until the end of input."""
    with contextlib.suppress(ImportError):  # not on Windows
        import readline  # noqa: F401  editing and history of `input`
    for label, model in models:
        print(f"{label}: {model.label}" if label != model.label else label)
    print(f"{_size(image)} Each question is asked alone. {HELP}.")
    for line in _typed():
        command, _, rest = line.partition(" ")
        if command == "/quit":
            return
        if command == "/image":
            try:
                image = _read(_unquoted(rest))
                print(_size(image))
            except (DataError, StoreError) as error:
                _say_problem(error)
        elif line.startswith("/"):
            print(HELP)
        else:
            _asked(ask, line, image)


def _typed() -> Iterator[str]:
    """Yields the lines that are typed, without empty ones."""
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return
        except UnicodeDecodeError as error:
            _say_problem(DataError(f"what was typed is not {error.encoding} ({error.reason})"))
            continue
        if line:
            yield line


def _unquoted(path: str) -> str:
    """Returns a path as it was dragged into a terminal or typed, without quotes around it."""
    path = path.strip()
    quoted = len(path) > 1 and path[0] == path[-1] and path[0] in "'\""
    return path[1:-1] if quoted else path


def _size(image: np.ndarray | None) -> str:
    return "No image." if image is None else f"Image: {image.shape[1]} × {image.shape[0]} pixels."


if __name__ == "__main__":
    main()
