"""The step benchmark on a small model: all sides compute the same losses."""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seva_jax.bench import limits, step
from seva_jax.bench.examples import SIZES
from seva_jax.bench.options import StepBench
from seva_jax.bench.weights import random_adapters, random_variables
from seva_jax.convert.load import leaves_by_path
from seva_jax.convert.table import TABLE, canonical
from seva_jax.models import Llava, LoraConfig
from seva_jax.types import DataError

BENCH = StepBench(size="tiny", pairs=4, question=6, answer=5, rank=4, rounds=1, trl=False)
NAMES = [
    "ours, both cached",
    "ours, cached reference",
    "ours, reference in the step",
    "ours, two rows",
]


def measured(capsys, **options):
    """Runs the benchmark, and returns the losses of each side and what it printed."""
    step.run_step(dataclasses.replace(BENCH, **options))
    shown = capsys.readouterr().out
    rows = [line for line in shown.splitlines() if "x   " in line]
    losses = {x[:28].strip(): x.split("x   ")[1].split(", ") for x in rows}
    return {name: [float(x) for x in both] for name, both in losses.items()}, shown


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # TRL's and what it imports
def test_sides_agree(capsys):
    """All sides have the same losses over two steps; TRL takes part where it is installed."""
    has_trl = importlib.util.find_spec("trl") is not None
    losses, shown = measured(capsys, trl=has_trl)
    assert list(losses) == NAMES + (["TRL"] if has_trl else []), shown
    limited = [line for line in shown.splitlines() if "of it reached" in line]
    best = [float(line[28:].split()[0]) for line in limited]
    assert len(best) == 3
    assert 0 <= best[0] <= best[1] <= best[2], shown
    values = np.array(list(losses.values()))
    assert np.ptp(values[0]) > 1e-3  # an update makes a difference
    np.testing.assert_allclose(values, np.broadcast_to(values[0], values.shape), atol=2e-5)
    # Micro-batches change nothing but rounding, on both sides.
    parts, shown = measured(capsys, trl=has_trl, micro_batches=2, remat="auto")
    assert "remat auto: layers" in shown  # the memory of a CPU is unknown
    assert list(parts) == NAMES[:3] + (["TRL"] if has_trl else [])
    for both in parts.values():
        np.testing.assert_allclose(both, values[0], atol=2e-5)


def test_bad_numbers():
    with pytest.raises(DataError, match="must be at least 1"):
        step.run_step(dataclasses.replace(BENCH, pairs=0))
    with pytest.raises(DataError, match="4 cannot be divided into 3 equal --micro-batches"):
        step.run_step(dataclasses.replace(BENCH, micro_batches=3))
    with pytest.raises(DataError, match="give --sides or --trl"):
        step.run_step(dataclasses.replace(BENCH, sides=()))


def test_products_are_in_the_dtype_that_is_asked_for():
    """A step in bfloat16 is compared with products of bfloat16, not of float32."""
    for limit in limits.products(SIZES["tiny"], 8, "bfloat16").values():
        assert limit.run().dtype == jnp.bfloat16


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")  # transformers'
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_torch_makes_the_same_weights(tmp_path, dtype):
    """Bit for bit, so that neither side has to read the other's."""
    pytest.importorskip("torch")
    from seva_jax.bench.weights import torch_model

    model = Llava(SIZES["tiny"], dtype=jnp.dtype(dtype))
    ours = leaves_by_path(random_variables(model)["params"])
    theirs = {
        canonical(name): values.detach().float().numpy()
        for name, values in torch_model(
            tmp_path / "model", SIZES["tiny"], dtype, "cpu"
        ).named_parameters()
    }
    assert {leaf.dtype for leaf in ours.values()} == {jnp.dtype(dtype)}
    for row in [row for row in TABLE if row.ours in ours]:
        leaf = np.asarray(ours[row.ours]).astype(np.float32)
        names = row.names(leaf.shape)
        for name, part in zip(names, leaf if row.stacked else [leaf], strict=True):
            np.testing.assert_array_equal(row.transform.write(part), theirs[name])


def test_weights_are_of_the_usual_size():
    """Products keep the size of what goes in, and adapters change something."""
    model = Llava(SIZES["tiny"], LoraConfig(rank=4, alpha=8.0))
    params = leaves_by_path(random_variables(model)["params"])
    for path, kernel in params.items():
        if path.endswith("kernel"):
            assert abs(float(kernel.std()) * kernel.shape[-2] ** 0.5 - 1) < 0.05, path
    assert float(params["language/norm/scale"].min()) == 1
    adapters = random_adapters(model)
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(adapters))


def test_trl_takes_the_largest_batch_that_fits():
    """Its micro-batches are halved until memory suffices, from the same start each time."""
    torch = pytest.importorskip("torch")
    from seva_jax.bench.trl_step import TrlStep

    class Small(TrlStep):
        def __init__(self, pairs, fitting):
            self._trees, self.pairs, self.fitting, self.tried = range(pairs), pairs, fitting, []

        def _start(self):
            self.tried.append(self.pairs)

        def __call__(self):
            if self.pairs > self.fitting:
                raise torch.cuda.OutOfMemoryError
            return 0.5

    side = Small(8, fitting=2)
    assert side.warm_up() == [0.5, 0.5]
    assert (side.pairs, side.tried) == (2, [4, 2])
    with pytest.raises(DataError, match="with 1 pair at a time"):
        Small(8, fitting=0).warm_up()
