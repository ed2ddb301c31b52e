"""`python -m seva_jax.bench NAME` runs a measurement or a study."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from tyro.conf import subcommand

from seva_jax.bench.attention import AttentionBench, run_attention
from seva_jax.bench.encoding import EncodingBench, run_encoding
from seva_jax.bench.evidence import EvidenceStudy, run_study
from seva_jax.bench.gpu import GpuBench, run_gpu
from seva_jax.bench.input import InputBench, run_input
from seva_jax.bench.load import LoadBench, run_load
from seva_jax.bench.methods import MethodsStudy, run_methods
from seva_jax.bench.options import SampleBench, StepBench
from seva_jax.bench.packing import PackingBench, run_packing
from seva_jax.bench.quant import QuantBench, run_quant
from seva_jax.bench.reading import ReadingBench, run_reading
from seva_jax.bench.refill import RefillBench, run_refill
from seva_jax.bench.sample import run_sample
from seva_jax.bench.scaling import ScalingBench, run_scaling
from seva_jax.bench.startup import StartupBench, run_startup
from seva_jax.bench.step import run_step
from seva_jax.bench.store import StoreBench, run_store
from seva_jax.config.command_line import parse_options
from seva_jax.runtime.processes import one_line_errors, use_compile_cache

_BENCHES: dict[str, tuple[type, Callable[[Any], None]]] = {
    "encoding": (EncodingBench, run_encoding),
    "attention": (AttentionBench, run_attention),
    "evidence": (EvidenceStudy, run_study),
    "gpu": (GpuBench, run_gpu),
    "input": (InputBench, run_input),
    "load": (LoadBench, run_load),
    "methods": (MethodsStudy, run_methods),
    "packing": (PackingBench, run_packing),
    "quant": (QuantBench, run_quant),
    "reading": (ReadingBench, run_reading),
    "refill": (RefillBench, run_refill),
    "sample": (SampleBench, run_sample),
    "scaling": (ScalingBench, run_scaling),
    "startup": (StartupBench, run_startup),
    "step": (StepBench, run_step),
    "store": (StoreBench, run_store),
}


DESCRIPTION = "Runs a measurement or a study; results are in seva_jax/bench/RESULTS.md."


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    kinds = [Annotated[kind, subcommand(name)] for name, (kind, _) in _BENCHES.items()]
    options = parse_options(functools.reduce(operator.or_, kinds), "bench", argv, DESCRIPTION)
    if isinstance(options, EvidenceStudy | MethodsStudy):
        use_compile_cache()
    dict(_BENCHES.values())[type(options)](options)


if __name__ == "__main__":
    main()
