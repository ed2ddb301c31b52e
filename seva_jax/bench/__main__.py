"""`python -m seva_jax.bench NAME`: the measurements by name."""

from __future__ import annotations

import tyro

from seva_jax.bench.evidence import EvidenceStudy, run_study
from seva_jax.bench.input import InputBench, run_input
from seva_jax.bench.load import LoadBench, run_load
from seva_jax.bench.methods import MethodsStudy, run_methods
from seva_jax.bench.packing import PackingBench, run_packing
from seva_jax.bench.quant import QuantBench, run_quant
from seva_jax.bench.refill import RefillBench, run_refill
from seva_jax.bench.sample import SampleBench, run_sample
from seva_jax.bench.scaling import ScalingBench, run_scaling
from seva_jax.bench.step import StepBench, run_step
from seva_jax.runtime.processes import one_line_errors, use_compile_cache


@one_line_errors()
def main() -> None:
    """The command line."""
    chosen = tyro.extras.subcommand_cli_from_dict(
        {
            "evidence": EvidenceStudy,
            "input": InputBench,
            "load": LoadBench,
            "methods": MethodsStudy,
            "packing": PackingBench,
            "quant": QuantBench,
            "refill": RefillBench,
            "sample": SampleBench,
            "scaling": ScalingBench,
            "step": StepBench,
        }
    )
    match chosen:
        case InputBench():
            run_input(chosen)
        case LoadBench():
            run_load(chosen)
        case PackingBench():
            run_packing(chosen)
        case QuantBench():
            run_quant(chosen)
        case RefillBench():
            run_refill(chosen)
        case SampleBench():
            run_sample(chosen)
        case ScalingBench():
            run_scaling(chosen)
        case StepBench():
            run_step(chosen)
        case EvidenceStudy():
            use_compile_cache()
            run_study(chosen)
        case MethodsStudy():
            use_compile_cache()
            run_methods(chosen)


if __name__ == "__main__":
    main()
