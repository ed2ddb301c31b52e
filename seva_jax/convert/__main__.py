"""`python -m seva_jax.convert COMMAND SOURCE OUT`: results out, for other tools."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import tyro

from seva_jax.convert.export import to_hf
from seva_jax.convert.peft import to_peft
from seva_jax.convert.source import open_source
from seva_jax.types import DataError


@dataclasses.dataclass(frozen=True)
class ToHF:
    """The whole model, adapters merged, in the layout of the checkpoint the run started from.

    Loads with transformers' LlavaForConditionalGeneration.from_pretrained(OUT), vLLM, lmms-eval.

    Attributes:
        source: work directory of a finished run.
        out: the new directory.
    """

    source: tyro.conf.Positional[Path]
    out: tyro.conf.Positional[Path]


@dataclasses.dataclass(frozen=True)
class ToPeft:
    """The adapters (and the projector, if it was trained) as a PEFT directory.

    Loads with PeftModel.from_pretrained(base, OUT), where base is the checkpoint the run started
    from, opened with transformers.

    Attributes:
        source: work directory of a finished run.
        out: the new directory.
    """

    source: tyro.conf.Positional[Path]
    out: tyro.conf.Positional[Path]


def main() -> None:
    """The command line."""
    command = tyro.extras.subcommand_cli_from_dict({"to-hf": ToHF, "to-peft": ToPeft})
    write = {ToHF: to_hf, ToPeft: to_peft}[type(command)]
    try:
        print(write(open_source(command.source), command.out))
    except DataError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
