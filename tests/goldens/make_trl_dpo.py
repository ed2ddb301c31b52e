"""Writes trl_dpo.json: what TRL's own DPO loss says of random log-probs.

    pip install torch==2.13.0 trl==1.16.0 && python tests/goldens/make_trl_dpo.py

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

BETAS = (0.1, 0.5, 5.0)
NUM_PAIRS, LENGTH = 4, 6


def trl_says(logps_2BT, mask_2BT, ref_2B, beta):
    """Loss, mean metrics and the gradient by the policy's per-token log-probs."""
    logps_2BT = torch.tensor(logps_2BT, requires_grad=True)
    zeros = torch.zeros(logps_2BT.shape)
    same = types.SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x, device="cpu")
    trainer = types.SimpleNamespace(
        model=types.SimpleNamespace(training=False),
        accelerator=same,
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=["sigmoid"],
        loss_weights=[1.0],
        label_smoothing=0.0,
        beta=beta,
        use_weighting=False,
        _total_train_tokens=0,
        _metrics={"eval": collections.defaultdict(list)},
    )

    def model(**_):
        return types.SimpleNamespace(
            log_probs=logps_2BT, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool()
        )

    # Position 0 is the prompt: TRL shifts by one.
    mask = torch.tensor(np.pad(mask_2BT, ((0, 0), (1, 0))))
    inputs = {
        "input_ids": torch.zeros(mask.shape, dtype=torch.long),
        "attention_mask": torch.ones(mask.shape),
        "completion_mask": mask,
        "ref_chosen_logps": torch.tensor(ref_2B[:NUM_PAIRS]),
        "ref_rejected_logps": torch.tensor(ref_2B[NUM_PAIRS:]),
    }
    loss = DPOTrainer._compute_loss(trainer, model, inputs, False)
    loss.backward()
    names = ("chosen", "rejected", "margins", "accuracies")
    metrics = {f"rewards/{n}": trainer._metrics["eval"][f"rewards/{n}"][0] for n in names}
    for side in ("chosen", "rejected"):
        metrics[f"logps/{side}"] = trainer._metrics["eval"][f"logps/{side}"][0]
    return {"loss": loss.item(), "metrics": metrics, "gradient": logps_2BT.grad.tolist()}


def main():
    """Everything the test needs, as JSON."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, LENGTH + 1, 2 * NUM_PAIRS)
    mask = (np.arange(LENGTH) < lengths[:, None]).astype(np.int64)
    logps = (-rng.exponential(2.0, mask.shape) * mask).astype(np.float32)
    reference = (-rng.exponential(2.0, mask.shape) * mask).astype(np.float32)
    cases = [{"beta": b, **trl_says(logps, mask, reference.sum(1), b)} for b in BETAS]
    golden = {
        "trl": trl.__version__,
        "layout": "rows are all chosen answers, then all rejected ones",
        "mask": mask.tolist(),
        "logps": logps.tolist(),
        "reference": reference.tolist(),
        "cases": cases,
    }
    path = Path(__file__).with_name("trl_dpo.json")
    path.write_text(json.dumps(golden) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
