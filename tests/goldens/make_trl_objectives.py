"""Writes trl_objectives.json: what TRL's own preference losses say of random log-probs.

    pip install torch==2.13.0 trl==1.16.0 && python tests/goldens/make_trl_objectives.py

`DPOTrainer._compute_loss` runs as it is; the trainer and the model around it are stand-ins that
hand it the log-probs.
"""

import collections
import json
import types
from pathlib import Path

import numpy as np
import torch
import trl
from trl import DPOTrainer

LENGTHS = (6, 4, 2, 1, 3, 5, 2, 4)  # of four chosen answers, then of four rejected ones
OPTIONS = {
    "beta": 0.1,
    "loss_types": ["sigmoid"],
    "loss_weights": [1.0],
    "label_smoothing": 0.0,
    "ld_alpha": None,
    "f_divergence_type": "reverse_kl",
    "f_alpha_divergence_coef": 0.5,
    "use_weighting": False,
}
SMOOTHED = ("exo_pair", "robust", "aot", "aot_unpaired")
MARGIN = ("sigmoid", "hinge", "ipo", "discopop", "sigmoid_norm")
POINTWISE = ("nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down")


def smoothed(name):
    """Returns a loss, with label smoothing if it is tried with that."""
    return {"loss_types": [name]} | ({"label_smoothing": 0.2} if name in SMOOTHED else {})


CASES = [
    *({"beta": beta} for beta in (0.1, 0.5, 5.0)),
    *({"loss_types": [name], "beta": 0.3} for name in (*MARGIN, *POINTWISE, "aot", "aot_unpaired")),
    *map(smoothed, SMOOTHED),
    *(smoothed(name) | {"ld_alpha": 0.4} for name in (*MARGIN, *POINTWISE, *SMOOTHED)),
    *(
        smoothed(name) | {"f_divergence_type": kind}
        for kind in ("forward_kl", "js_divergence", "alpha_divergence")
        for name in (*MARGIN, "exo_pair", "robust")
        # TRL's exponential overflows at these margins, and 0 times infinity is NaN.
        if name != "discopop" or kind == "js_divergence"
    ),
    {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 1.7},
    # Not hinge: TRL 1.16 multiplies in place there, which autograd refuses. Not AOT, which sorts.
    *(
        smoothed(name) | {"use_weighting": True}
        for name in (*MARGIN, *POINTWISE, "exo_pair", "robust")
        if name != "hinge"
    ),
    {"loss_types": ["sft"]},
    {"loss_types": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
]


def trl_says(logps_2BT, mask_2BT, ref_2BT, squares_2BT, options):
    """Returns loss, mean metrics and the gradient by the policy's per-token log-probs."""
    logps_2BT = torch.tensor(logps_2BT, requires_grad=True)
    zeros = torch.zeros(logps_2BT.shape)
    same = types.SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x, device="cpu")

    def model_of(logps):
        outputs = types.SimpleNamespace(
            log_probs=logps,
            log_sum_sq_probs=torch.tensor(squares_2BT),
            entropy=zeros,
            mean_logits=zeros,
            is_top1=zeros.bool(),
        )
        return lambda **_: outputs

    trainer = types.SimpleNamespace(
        model=torch.nn.Module().eval(),
        ref_model=model_of(torch.tensor(ref_2BT)),
        accelerator=same,
        args=types.SimpleNamespace(gradient_checkpointing_kwargs=None, discopop_tau=0.05),
        aux_loss_enabled=False,
        precompute_ref_logps=False,
        _total_train_tokens=0,
        _metrics={"eval": collections.defaultdict(list)},
        **OPTIONS | options,
    )
    trainer.model.is_gradient_checkpointing = False
    # Position 0 is the prompt: TRL shifts by one.
    mask = torch.tensor(np.pad(mask_2BT, ((0, 0), (1, 0))))
    inputs = {
        "input_ids": torch.zeros(mask.shape, dtype=torch.long),
        "attention_mask": torch.ones(mask.shape),
        "completion_mask": mask,
    }
    loss = DPOTrainer._compute_loss(trainer, model_of(logps_2BT), inputs, False)
    loss.backward()
    names = ("chosen", "rejected", "margins", "accuracies")
    metrics = {f"rewards/{n}": trainer._metrics["eval"][f"rewards/{n}"][0] for n in names}
    for side in ("chosen", "rejected"):
        metrics[f"logps/{side}"] = trainer._metrics["eval"][f"logps/{side}"][0]
    return {"loss": loss.item(), "metrics": metrics, "gradient": logps_2BT.grad.tolist()}


def main():
    """Writes everything that the test needs as JSON, a case a line."""
    rng = np.random.default_rng(0)
    mask = (np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]).astype(np.int64)

    def random():
        return (-rng.exponential(2.0, mask.shape) * mask).astype(np.float32)

    logps, reference, squares = random(), random(), random()
    data = {
        "trl": trl.__version__,
        "layout": "rows are all chosen answers, then all rejected ones",
        "defaults": OPTIONS,
        "mask": mask.tolist(),
        "logps": logps.tolist(),
        "reference": reference.tolist(),
        "squares": squares.tolist(),
    }
    lines = [
        json.dumps({"options": case, **trl_says(logps, mask, reference, squares, case)})
        for case in CASES
    ]
    text = json.dumps(data)[:-1] + ', "cases": [\n' + ",\n".join(lines) + "\n]}\n"
    Path(__file__).with_name("trl_objectives.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
