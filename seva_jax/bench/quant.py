"""Memory of the frozen base for each storage of its weights, read from compiled programs.

Each program runs the language model's layers once; XLA reports the size of its arguments, which is
what the weights take on the device, packed or not. Nothing is allocated.
"""

from __future__ import annotations

import dataclasses
import platform
from typing import Any, Literal

import jax
import jax.numpy as jnp

from seva_jax.models import LLAVA_15, Llava, abstract_stored, abstract_variables
from seva_jax.plan.chips import Topology
from seva_jax.sharding import on_one_device, placed

_KINDS = ("float32", "bfloat16", "int8", "nf4")


@dataclasses.dataclass(frozen=True)
class QuantBench:
    """Memory of LLaVA-1.5's frozen weights in float32, bfloat16, int8 and nf4.

    Attributes:
        topology: compile for the chip of this TPU slice, for example v5p:2x2x1 (needs libtpu, but
            no TPU); empty compiles for the devices of this machine.
        size: size of LLaVA-1.5.
        layers: language layers; 0 for all of them.
    """

    topology: str = ""
    size: Literal["7b", "13b"] = "7b"
    layers: int = 0


def run_quant(bench: QuantBench) -> None:
    """Prints one line for each storage of the weights."""
    config = LLAVA_15[bench.size]
    text = dataclasses.replace(config.text, num_layers=bench.layers or config.text.num_layers)
    model = Llava(dataclasses.replace(config, text=text), dtype=jnp.dtype("bfloat16"))
    where = f"{jax.default_backend()}, {platform.machine()}"
    device = jax.devices()[0]
    if bench.topology:
        device = Topology.parse(bench.topology).devices()[0]
        where = f"{device.device_kind}, ahead of time"
    print(f"LLaVA-1.5-{bench.size}, {text.num_layers} layers; {where}; jax {jax.__version__}")
    print(f"{'stored as':<10}{'weights, GiB':>14}{'of bfloat16':>13}{'temporaries, GiB':>18}")
    measured = {kind: measure(model, kind, device) for kind in _KINDS}
    for kind, (weights, temporaries) in measured.items():
        share = weights / measured["bfloat16"][0]
        print(f"{kind:<10}{weights / 2**30:>14.2f}{share:>12.0%} {temporaries / 2**30:>17.2f}")


def measure(model: Llava, kind: str, device: Any) -> tuple[int, int]:
    """Returns the bytes of the weights and of the temporaries of a decoder pass over 64 tokens.

    Args:
        model: the architecture.
        kind: "float32", "bfloat16" (everything), or "int8", "nf4" (the rest in bfloat16).
        device: a real device, or one of a topology.
    """
    boxed = abstract_variables(model)["params"]
    dtype = jnp.float32 if kind == "float32" else jnp.bfloat16
    stored = abstract_stored(boxed, kind if kind in ("int8", "nf4") else "float", dtype)
    sharding = jax.sharding.SingleDeviceSharding(device)
    params = placed(stored, on_one_device(stored, device))
    ids = jax.ShapeDtypeStruct((1, 64), jnp.int32, sharding=sharding)
    mask = jax.ShapeDtypeStruct((1, 64, 64), jnp.bool_, sharding=sharding)
    side = model.config.vision.image_size
    pixels = jax.ShapeDtypeStruct((1, 1, side, side, 3), jnp.float32, sharding=sharding)

    def run(params: Any, ids: Any, mask: Any, pixels: Any) -> Any:
        return model.apply({"params": params}, ids, ids, mask, ids, pixels)

    memory = jax.jit(run).lower(params, ids, mask, pixels).compile().memory_analysis()
    assert memory is not None
    inputs = 64 * 4 + 64 * 64 + 3 * 4 * side**2
    return memory.argument_size_in_bytes - inputs, memory.temp_size_in_bytes
