"""Writes shardings.json: the sharding of all variables of the published configs on 4 x 16 x 2.

python tests/goldens/make_shardings.py
"""

import json
from pathlib import Path

import jax
from jax.sharding import AbstractMesh

from seva_jax.config.config_files import config_directory, read_config
from seva_jax.models import Llava, LlavaConfig, abstract_stored, abstract_variables
from seva_jax.sharding import AXES, is_boxed, variable_shardings

GOLDEN = Path(__file__).with_name("shardings.json")
SIZES = (4, 16, 2)


def resolved(name):
    """Returns {variable: "shape -> axes"} of one config file, for LLaVA-1.5-7B's architecture."""
    experiment = read_config(config_directory() / f"{name}.py")
    lora = experiment.lora if experiment.lora.rank else None
    boxed = dict(abstract_variables(Llava(LlavaConfig(), lora)))
    compute = experiment.compute
    boxed["params"] = abstract_stored(boxed["params"], compute.base_weights, compute.param_dtype)
    mesh = AbstractMesh(SIZES, AXES)
    flat = jax.tree_util.tree_flatten_with_path(boxed, is_leaf=is_boxed)[0]
    shardings = jax.tree.leaves(variable_shardings(mesh, boxed))
    return {
        "/".join(str(getattr(key, "key", key)) for key in path): (
            f"{list(leaf.value.shape)} -> {tuple(sharding.spec)}"
        )
        for (path, leaf), sharding in zip(flat, shardings, strict=True)
    }


def everything():
    """Returns those of SeVa's published configs; other systems' configs vary these."""
    names = sorted(path.stem for path in config_directory().glob("llava15*.py"))
    return {n: resolved(n) for n in names if not n.endswith(("_iterated", "_k"))}


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(everything(), indent=1) + "\n", encoding="utf-8")
