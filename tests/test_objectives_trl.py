"""Preference objectives against TRL's own numbers, written by `goldens/make_trl_objectives.py`."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seva_jax import objectives as ours
from seva_jax.types import BranchLogps

GOLDEN = json.loads((Path(__file__).parent / "goldens" / "trl_objectives.json").read_text())
CLASSES = {
    "sigmoid": ours.DPO,
    "hinge": ours.Hinge,
    "ipo": ours.IPO,
    "exo_pair": ours.ExoPair,
    "nca_pair": ours.NCAPair,
    "robust": ours.Robust,
    "bco_pair": ours.BCOPair,
    "sppo_hard": ours.SPPOHard,
    "aot": ours.AOT,
    "aot_unpaired": ours.AOTUnpaired,
    "apo_zero": ours.APOZero,
    "apo_down": ours.APODown,
    "discopop": ours.DiscoPOP,
    "sigmoid_norm": ours.SigmoidNorm,
}


def objective_of(options):
    """Returns our objective for TRL's options."""
    options = GOLDEN["defaults"] | options
    divergence = {
        "reverse_kl": ours.Divergence(),
        "forward_kl": ours.ForwardKL(),
        "js_divergence": ours.JensenShannon(),
        "alpha_divergence": ours.AlphaDivergence(options["f_alpha_divergence_coef"]),
    }[options["f_divergence_type"]]
    parts = []
    for name, weight in zip(options["loss_types"], options["loss_weights"], strict=True):
        if name == "sft":
            parts.append(ours.Part(ours.Supervised(mean="tokens"), weight))
            continue
        given = {"beta": options["beta"]}
        if options["ld_alpha"] is not None:
            given["ld_alpha"] = options["ld_alpha"]
        if options["label_smoothing"]:
            given["label_smoothing"] = options["label_smoothing"]
        if divergence != ours.Divergence():
            given["divergence"] = divergence
        if options["use_weighting"]:
            given["weighting"] = ours.OnPolicy()
        parts.append(ours.Part(CLASSES[name](**given), weight))
    return parts[0].objective if len(parts) == 1 else ours.Mixed(tuple(parts))


def branches(rows):
    """Returns TRL's rows, all chosen then all rejected, as [N, 2, T]."""
    return jnp.asarray(np.stack(np.split(np.array(rows, np.float32), 2), axis=1))


def name_of(case):
    return "-".join(str(x) for x in case["options"].values())


def test_every_loss_of_trl_is_there():
    names = {name for case in GOLDEN["cases"] for name in case["options"].get("loss_types", ())}
    assert names == {*CLASSES, "sft"}


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=name_of)
def test_loss_metrics_and_gradient(case):
    """All agree; a comparison of weight 0 among TRL's has no influence."""
    order = [0, 1, 1, 2, 3]  # the second of the two number 1 has weight 0

    def padded(rows, filler):
        return branches(rows)[jnp.array(order)].at[2].set(filler)

    mask, weight_N = padded(GOLDEN["mask"], 1.0), jnp.array([1.0, 1, 0, 1, 1])
    reference = BranchLogps(padded(GOLDEN["reference"], -50.0), mask)
    squares = padded(GOLDEN["squares"], -30.0)
    objective = objective_of(case["options"])

    def mean_loss(logps_NKT):
        policy = BranchLogps(logps_NKT, mask, weight_N, log_sum_sq_NKT=squares)
        loss_N, metrics = objective(policy, reference)
        metrics = {name: (weight_N * value).sum() / 4 for name, value in metrics.items()}
        return (weight_N * loss_N).sum() / 4, metrics

    logps = padded(GOLDEN["logps"], -40.0)
    (loss, metrics), gradient = jax.value_and_grad(mean_loss, has_aux=True)(logps)
    np.testing.assert_allclose(loss, case["loss"], rtol=1e-5)
    if objective.needs_reference:
        for name, value in case["metrics"].items():
            np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
    # TRL sums padding too, whose log-probs are 0; only answer tokens are comparable.
    theirs = branches(case["gradient"]) * branches(GOLDEN["mask"])
    np.testing.assert_allclose(gradient[jnp.array([0, 1, 3, 4])], theirs, atol=1e-5, rtol=1e-5)
    assert not gradient[2].any()
    assert np.abs(theirs).max() > 1e-3
