"""Loads a checkpoint from a store in one of several processes, for `test_bucket_bases.py`.

Prints one line: the bytes that this process asked the store for (headers of files, and tensors),
and a checksum of every parameter. Arguments: URL, data, fsdp, tensor, dtype.
"""

import json
import sys

import jax

from seva_jax.convert import load_params, read_llava_config
from seva_jax.models import Llava, abstract_variables
from seva_jax.runtime.processes import ProcessOptions, joined
from seva_jax.runtime.stores import StorePath
from seva_jax.sharding import MeshShape, variable_shardings
from seva_jax.training.checkpoint import checksum

if __name__ == "__main__":
    url, data, fsdp, tensor, dtype = sys.argv[1:]
    asked, read_range = [], StorePath.read_range

    def counting(self, start, stop):
        """Notes what is asked for."""
        asked.append((start, stop))
        return read_range(self, start, stop)

    StorePath.read_range = counting
    with joined(ProcessOptions()):
        config = read_llava_config(url)
        mesh = MeshShape(int(data), int(fsdp), int(tensor)).make()
        shardings = variable_shardings(mesh, abstract_variables(Llava(config))["params"])
        params = load_params(url, config, dtype, shardings)
        sums = jax.tree.map(checksum, params)
        placed = jax.tree.map(lambda x, s: x.sharding == s, params, shardings)
    result = {
        "asked": sum(stop - start for start, stop in asked),
        "requests": len(asked),
        "sums": jax.tree.leaves(sums),
        "placed": all(jax.tree.leaves(placed)),
    }
    print("RESULT", json.dumps(result), flush=True)
