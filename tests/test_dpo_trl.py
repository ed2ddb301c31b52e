"""DPO against TRL's own numbers; `goldens/make_trl_dpo.py` wrote them."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seva_jax.objectives import DPO
from seva_jax.types import BranchLogps

GOLDEN = json.loads((Path(__file__).parent / "goldens" / "trl_dpo.json").read_text())


def branches(rows):
    """TRL's rows, all chosen then all rejected, as [N, 2, T]."""
    return jnp.asarray(np.stack(np.split(np.array(rows, np.float32), 2), axis=1))


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: f"beta={case['beta']}")
def test_loss_metrics_and_gradient(case):
    mask = branches(GOLDEN["mask"])
    reference = BranchLogps(branches(GOLDEN["reference"]), mask)

    def mean_loss(logps_NKT):
        loss_N, metrics = DPO(beta=case["beta"])(BranchLogps(logps_NKT, mask), reference)
        return loss_N.mean(), metrics

    logps = branches(GOLDEN["logps"])
    (loss, metrics), gradient = jax.value_and_grad(mean_loss, has_aux=True)(logps)
    np.testing.assert_allclose(loss, case["loss"], rtol=1e-5)
    for name, value in case["metrics"].items():
        np.testing.assert_allclose(metrics[name].mean(), value, rtol=1e-5, err_msg=name)
    # TRL sums padding too, whose log-probs are 0; only answer tokens are comparable.
    theirs = branches(case["gradient"]) * mask
    np.testing.assert_allclose(gradient, theirs, atol=1e-5)
    assert np.abs(theirs).max() > 1e-3
