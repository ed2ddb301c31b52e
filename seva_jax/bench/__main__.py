"""`python -m seva_jax.bench NAME`: the measurements by name."""

from __future__ import annotations

import sys

import tyro

from seva_jax.bench.evidence import EvidenceStudy, run_study
from seva_jax.train import use_compile_cache
from seva_jax.types import DataError


def main() -> None:
    """The command line."""
    study = tyro.extras.subcommand_cli_from_dict({"evidence": EvidenceStudy})
    use_compile_cache()
    try:
        run_study(study)
    except DataError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
