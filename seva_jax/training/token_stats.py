"""Statistics of answer tokens, from hidden states: log-probs and whatever the objective needs.

What lives here: the language model's head, applied at answer positions only, a chunk of them at a
time, and reductions of its logits. What does not: hidden states and the layout of rows
(`step.py`), what the numbers are used for (`seva_jax/objectives`).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from seva_jax.models import Llava
from seva_jax.objectives import Need

Statistics = dict[str, jax.Array]


def answer_statistics(
    model: Llava,
    variables: Any,
    hidden_BSD: jax.Array,
    source_BA: jax.Array,
    target_BA: jax.Array,
    chunk: int,
    needs: frozenset[Need],
    reference: tuple[Any, jax.Array] | None = None,
) -> Statistics:
    """Returns statistics of answer tokens, each [B, A]; `BranchLogps` describes them.

    The logits of `chunk` positions of each row exist at one time; the backward pass recomputes
    them.

    Args:
        model: the module.
        variables: its variables.
        hidden_BSD: last hidden states of rows.
        source_BA: row index whose hidden state predicts each token.
        target_BA: the tokens.
        chunk: answer positions of a row whose logits exist at one time.
        needs: what to compute in addition to "logp"; "last_argmax" gives "argmax" here, the id of
            the likeliest token.
        reference: variables and hidden states of the reference, for "kl".
    """
    rows, num = source_BA.shape
    chunk = min(chunk, num)

    def chunks(x_BA: jax.Array) -> jax.Array:
        padded_BA = jnp.pad(x_BA, ((0, 0), (0, -num % chunk)))
        return padded_BA.reshape(rows, -1, chunk).swapaxes(0, 1)

    def logits(variables: Any, hidden_BSD: jax.Array, source_BA: jax.Array) -> Any:
        hidden_BAD = jnp.take_along_axis(hidden_BSD, source_BA[..., None], axis=1)
        return model.apply(variables, hidden_BAD, method="head")

    @jax.checkpoint
    def reduce(carry: None, indices: tuple[jax.Array, jax.Array]) -> tuple[None, Statistics]:
        source_BA, target_BA = indices
        logits_BAV = logits(variables, hidden_BSD, source_BA)
        target_BA1 = target_BA[..., None]
        total_BA = jax.nn.logsumexp(logits_BAV, axis=-1)
        stats = {"logp": jnp.take_along_axis(logits_BAV, target_BA1, axis=-1)[..., 0] - total_BA}
        if "log_sum_sq" in needs:
            log_sum_sq_BA = jax.nn.logsumexp(2 * logits_BAV, axis=-1) - 2 * total_BA
            stats["log_sum_sq"] = jax.lax.stop_gradient(log_sum_sq_BA)
        if "best_other" in needs:
            is_target = jnp.arange(logits_BAV.shape[-1]) == target_BA1
            stats["best_other"] = jnp.where(is_target, -jnp.inf, logits_BAV).max(-1) - total_BA
        if "last_argmax" in needs:
            stats["argmax"] = logits_BAV.argmax(-1)
        if "kl" in needs:
            assert reference is not None, "the KL needs the reference in the step"
            logps_BAV = jax.nn.log_softmax(logits_BAV)
            ref_BAV = jax.lax.stop_gradient(jax.nn.log_softmax(logits(*reference, source_BA)))
            stats["kl"] = (jnp.exp(ref_BAV) * (ref_BAV - logps_BAV)).sum(-1)
        return carry, stats

    _, stats = jax.lax.scan(reduce, None, (chunks(source_BA), chunks(target_BA)))
    return {name: x.swapaxes(0, 1).reshape(rows, -1)[:, :num] for name, x in stats.items()}
