"""Moves a model to the layout in which it answers, and asks it, in one of several processes.

For `test_answering.py`. Every process checks what it holds; process 0 writes the answers to the
file that is the only argument.
"""

import json
import sys
from pathlib import Path
from unittest import mock

import jax
import numpy as np
from test_answering import EIGHT, answers, eight_variables, engine, in_another_order, never

from seva_jax.inference import answering
from seva_jax.inference.answering import answering_form
from seva_jax.models import abstract_variables, unstack
from seva_jax.runtime.processes import ProcessOptions, joined
from seva_jax.sharding import MeshShape, variable_shardings


def whole(value, sharding):
    """Makes a global array from the same value in every process."""
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def check(form, values):
    """Compares the parts of every array that this process has."""
    expected = unstack(EIGHT, values)[1]
    for leaf, value in zip(*map(jax.tree.leaves, (form.variables, expected)), strict=True):
        for shard in leaf.addressable_shards:
            np.testing.assert_array_equal(np.asarray(shard.data), value[shard.index])


def main(path):
    """Does all this."""
    values, mesh = eight_variables(), MeshShape(1, 8, 1).make()
    assert jax.process_count() == 2
    assert mesh.size == 8
    there = jax.tree.map(whole, values, variable_shardings(mesh, abstract_variables(EIGHT)))
    for tensor, order in ((8, answering.answering_mesh), (2, in_another_order)):
        with (
            mock.patch("jax._src.array.ArrayImpl._value", property(never)),
            mock.patch.object(answering, "answering_mesh", order),
        ):
            form = answering_form(EIGHT, there, mesh, tensor)
            jax.block_until_ready(form.variables)
        check(form, values)
    given = [answers(engine(there, (1, 8, 1), tensor=tensor)) for tensor in (8, 4, 2)]
    if jax.process_index() == 0:
        Path(path).write_text(json.dumps(given))


if __name__ == "__main__":
    with joined(ProcessOptions()):
        main(sys.argv[1])
