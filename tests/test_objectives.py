"""Objectives against formulas written out in NumPy, and what they promise about a batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seva_jax import objectives as ours
from seva_jax.config.experiment import Experiment, check
from seva_jax.types import BranchLogps, Comparison, DataError, Prompt, View

LENGTHS = np.array([[3, 5, 0], [4, 2, 6], [1, 1, 2], [6, 6, 0], [2, 4, 4]])  # 0: no such answer


def logps(seed, **more):
    """Draws log-probs of five comparisons of two or three answers."""
    rng = np.random.default_rng(seed)
    mask = (np.arange(6) < LENGTHS[..., None]).astype(np.float32)
    tokens = (-rng.exponential(1.0, mask.shape) * mask).astype(np.float32)
    return BranchLogps(jnp.asarray(tokens), jnp.asarray(mask), **more)


def softplus(x):
    return np.logaddexp(0, x)


def ratios(policy, reference):
    """Returns the log-ratios of answers, in float64."""
    return np.asarray(policy.sums_NK, float) - np.asarray(reference.sums_NK, float)


def loss_and_gradient(objective, policy, reference):
    """Returns losses, and the gradient of their sum by the policy's log-probs."""

    def total(logp_NKT):
        loss_N, _ = objective(policy._replace(logp_NKT=logp_NKT), reference)
        return loss_N.sum(), loss_N

    (_, loss_N), gradient = jax.value_and_grad(total, has_aux=True)(policy.logp_NKT)
    assert np.isfinite(gradient).all()
    return np.asarray(loss_N), np.asarray(gradient)


SCORES = jnp.array(
    [[90.0, 20, 0], [50, 50, 10], [70, 69, 70], [100, 0, 0], [30, 30, 30]], jnp.float32
)
GAPS = {
    "2^w - 2^l": (ours.ScoreGap(), lambda w, r: 2**w - 2**r),
    "3^w - 3^l": (ours.ScoreGap(base=3.0), lambda w, r: 3**w - 3**r),
    "1 - 2^l/2^w": (ours.ScoreGap(relative=True), lambda w, r: 1 - 2**r / 2**w),
}


@pytest.mark.parametrize("form", GAPS)
@pytest.mark.parametrize("pairwise", [False, True])
def test_score_gap(form, pairwise):
    """Each pair has a weight of its own; gap 0 gives no gradient (GAPO)."""
    weighting, formula = GAPS[form]
    policy, reference = logps(0, scores_NK=SCORES), logps(1)
    make = ours.BCOPair if pairwise else ours.DPO
    loss, gradient = loss_and_gradient(make(0.2, weighting=weighting), policy, reference)
    reward = 0.2 * ratios(policy, reference)
    for n, (length, score) in enumerate(zip(LENGTHS, np.asarray(SCORES, float) / 100, strict=True)):
        rejected = [k for k in (1, 2) if length[k]]
        weights = [formula(score[0], score[k]) for k in rejected]
        if pairwise:
            losses = [softplus(-reward[n, 0]) + softplus(reward[n, k]) for k in rejected]
            expected = np.dot(weights, losses) / len(rejected)
        else:
            total = np.exp(reward[n, [0, *rejected]]).sum()
            expected = np.mean(weights) * -np.log(np.exp(reward[n, 0]) / total)
        np.testing.assert_allclose(loss[n], expected, atol=1e-5)
    assert not gradient[4].any()
    assert np.abs(gradient[:4]).max(axis=(1, 2)).all()


def test_scores_as_weights():
    """MMedPO's weights are raw or normalised scores."""
    policy, reference = logps(0, scores_NK=SCORES / 100), logps(1)
    policy = jax.tree.map(lambda x: x[:, :2], policy)
    reference = jax.tree.map(lambda x: x[:, :2], reference)
    plain, _ = loss_and_gradient(ours.DPO(), policy, reference)
    score = np.asarray(SCORES[:, 1]) / 100
    raw, _ = loss_and_gradient(ours.DPO(weighting=ours.RawScore()), policy, reference)
    np.testing.assert_allclose(raw, score * plain, rtol=1e-5)
    clipped = ours.ClippedZScore(mean=0.3, std=0.2, low=0.25, high=1.5)
    loss, _ = loss_and_gradient(ours.DPO(weighting=clipped), policy, reference)
    expected = np.clip((score - 0.3) / 0.2, 0.25, 1.5)
    np.testing.assert_allclose(loss, expected * plain, rtol=1e-5)
    assert {0.25, 1.5} < set(expected)


def test_parts_of_one_kind_are_told_apart():
    """The sum is that of all parts, and each has its own loss among the metrics."""
    policy, reference = logps(0), logps(1)
    objectives = ours.DPO(0.1), ours.Hinge(), ours.DPO(0.5), ours.DPO(2.0)
    mixed = ours.Mixed(tuple(ours.Part(x, 0.5 + i) for i, x in enumerate(objectives)))
    loss_N, metrics = mixed(policy, reference)
    each = [x(policy, reference)[0] for x in objectives]
    names = "losses/DPO", "losses/Hinge", "losses/DPO 2", "losses/DPO 3"
    for name, expected in zip(names, each, strict=True):
        np.testing.assert_array_equal(metrics[name], expected)
    total = sum((0.5 + i) * np.asarray(x) for i, x in enumerate(each))
    np.testing.assert_allclose(loss_N, total, rtol=1e-6)
    assert metrics["rewards/margins"] is not None


def test_data_without_scores_is_refused():
    prompt = Prompt("p7", "what?", ())
    objective = ours.Mixed((ours.Part(ours.DPO(weighting=ours.ScoreGap())),))
    objective.check([Comparison(prompt, ("a", "b"), scores=(2.0, 1.0))])
    with pytest.raises(DataError, match="'p7' has 0 scores for 2 answers"):
        objective.check([Comparison(prompt, ("a", "b"))])
    with pytest.raises(DataError, match="put the better answer first"):
        objective.check([Comparison(prompt, ("a", "b"), scores=(1.0, 2.0))])


@pytest.mark.parametrize(
    "objective",
    [
        ours.DPO(ld_alpha=0.3, divergence=ours.JensenShannon()),
        ours.IPO(),
        ours.SPPOHard(ld_alpha=0.3),
        ours.AOT(0.3),
        ours.AOTUnpaired(0.3, label_smoothing=0.1),
        ours.mpo(),
    ],
    ids=lambda objective: type(objective).__name__,
)
def test_several_rejected_answers(objective):
    """Equal rejected answers count as one; their order does not change the loss."""
    policy, reference = logps(0), logps(1)
    pair, ref_pair = (jax.tree.map(lambda x: x[:, :2], x) for x in (policy, reference))
    twice, ref_twice = (
        jax.tree.map(lambda x: x[:, jnp.array([0, 1, 1])], x) for x in (policy, reference)
    )
    loss, _ = loss_and_gradient(objective, pair, ref_pair)
    if not isinstance(objective, ours.DPO | ours.Mixed):  # InfoNCE of two negatives is larger
        again, _ = loss_and_gradient(objective, twice, ref_twice)
        np.testing.assert_allclose(again.sum(), loss.sum(), rtol=1e-5)
    order = jnp.array([3, 0, 4, 2, 1])
    moved = [jax.tree.map(lambda x: x[order], x) for x in (policy, reference)]
    whole, gradient = loss_and_gradient(objective, policy, reference)
    shuffled, moved_gradient = loss_and_gradient(objective, *moved)
    np.testing.assert_allclose(shuffled.sum(), whole.sum(), rtol=1e-5)
    np.testing.assert_allclose(moved_gradient, gradient[order], atol=1e-5)


def test_length_control_of_each_pair():
    """In LD-DPO the shorter answer of a pair decides, not the shortest of the comparison."""
    policy, reference = logps(0), logps(1)
    objective = ours.BCOPair(1.0, ld_alpha=0.25)
    loss, _ = loss_and_gradient(objective, policy, reference)
    token = np.asarray(policy.logp_NKT - reference.logp_NKT, float)
    for n, length in enumerate(LENGTHS):
        losses = []
        for k in (1, 2):
            if length[k]:
                shared = np.where(np.arange(6) < min(length[0], length[k]), 1.0, 0.25)
                chosen, rejected = ((token[n, i] * shared).sum() for i in (0, k))
                losses.append(softplus(-chosen) + softplus(rejected))
        np.testing.assert_allclose(loss[n], np.mean(losses), rtol=1e-5)


def test_label_smoothing_is_the_mean_of_both_orders():
    """This is cDPO, for one rejected answer."""
    policy, reference = (jax.tree.map(lambda x: x[:, :2], logps(seed)) for seed in (0, 1))
    loss, _ = loss_and_gradient(ours.DPO(0.3, label_smoothing=0.1), policy, reference)
    ratio = ratios(policy, reference)
    margin = 0.3 * (ratio[:, 0] - ratio[:, 1])
    np.testing.assert_allclose(loss, 0.9 * softplus(-margin) + 0.1 * softplus(margin), rtol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ours.DPO(beta=0.0),
        lambda: ours.DPO(ld_alpha=2.0),
        lambda: ours.DPO(label_smoothing=0.5),
        lambda: ours.Robust(label_smoothing=0.5),
        lambda: ours.ExoPair(label_smoothing=0.0),
        lambda: ours.AOT(weighting=ours.OnPolicy()),
        lambda: ours.AlphaDivergence(1.0),
        lambda: ours.DPO(weighting=ours.ScoreGap(scale=0.0)),
        lambda: ours.DPO(weighting=ours.ClippedZScore(0.0, 0.0, 0.0, 1.0)),
        lambda: ours.Trajectory(window=0),
        lambda: ours.Trajectory(objective=ours.AOT()),
    ],
)
def test_settings_without_meaning_are_refused(make):
    with pytest.raises(DataError):
        check(Experiment(objective=make()))


def pairs_only(logps):
    return jax.tree.map(lambda x: x[:, :2], logps)


@pytest.mark.parametrize("window", [1, 2, 8])
def test_trajectories(window):
    """GRAPE sums over the steps of a window inside the sigmoid."""
    rng = np.random.default_rng(0)
    num_steps = (5, 2, 1)
    exists = np.array([[t < num for t in range(5)] for num in num_steps])
    mask = np.ones((3, 5, 2, 3)) * exists[..., None, None]
    mask[:, :, 1, 2] = 0  # rejected steps are shorter
    tokens = [(rng.normal(size=mask.shape) * mask).astype(np.float32) for _ in range(2)]
    policy, reference = (
        BranchLogps(jnp.asarray(x.reshape(3, 10, 3)), jnp.asarray(mask.reshape(3, 10, 3)))
        for x in tokens
    )
    objective = ours.Trajectory(window, ours.DPO(beta=0.7))
    loss, gradient = loss_and_gradient(objective, policy, reference)
    step = 0.7 * (tokens[0] - tokens[1]).astype(float).sum(-1)
    for n, num in enumerate(num_steps):
        margin = (step[n, :, 0] - step[n, :, 1])[:num]
        starts = range(0, num, window)
        expected = np.mean([softplus(-margin[i : i + window].sum()) for i in starts])
        np.testing.assert_allclose(loss[n], expected, rtol=1e-5)
    assert not gradient[2, 2:].any()
    if window == 1:  # one step is DPO, value and gradient
        plain = loss_and_gradient(ours.DPO(beta=0.7), pairs_only(policy), pairs_only(reference))
        np.testing.assert_allclose(loss[2], plain[0][2], atol=1e-6)
        np.testing.assert_allclose(gradient[2, :2], plain[1][2], rtol=1e-6)
    if window == 8:  # all steps: DPO of the answers one after another

        def joined(x):
            return x.reshape(3, 5, 2, 3).swapaxes(1, 2).reshape(3, 2, 15)

        whole = (BranchLogps(*map(joined, x[:2])) for x in (policy, reference))
        plain, slope = loss_and_gradient(ours.DPO(beta=0.7), *whole)
        np.testing.assert_allclose(loss, plain, rtol=1e-6)
        np.testing.assert_allclose(joined(gradient), slope, atol=1e-6)


def other_tokens(seed, mask):
    rng = np.random.default_rng(seed)
    return jnp.asarray((-rng.exponential(1.0, mask.shape) * mask).astype(np.float32))


@pytest.mark.parametrize("form", ["label", "top"])
def test_retrieved_images(form):
    """Re-Align is as written and as released; without the other image it is DPO."""
    policy, reference = logps(0), logps(1)
    policy, reference = (
        x._replace(best_other_NKT=other_tokens(seed, x.mask_NKT))
        for x, seed in ((policy, 5), (reference, 6))
    )
    loss, _ = loss_and_gradient(ours.ReAlign(0.4, form=form), policy, reference)
    label = 0.4 * ratios(policy, reference)
    top = 0.4 * np.asarray(policy.best_other_NKT - reference.best_other_NKT, float).sum(-1)
    below = label if form == "label" else top
    for n, length in enumerate(LENGTHS):
        expected = sum(softplus(below[n, k] - label[n, 0]) for k in (1, 2) if length[k])
        np.testing.assert_allclose(loss[n], expected, rtol=1e-5)
    if form == "label":
        plain, _ = loss_and_gradient(ours.DPO(0.4), pairs_only(policy), pairs_only(reference))
        without = LENGTHS[:, 2] == 0
        np.testing.assert_allclose(loss[without], plain[without], atol=1e-6)


def test_own_negatives():
    """POVID is the mean of DPO against the rejected answer and against the model's own tokens."""
    mask = np.repeat(LENGTHS[:, :2], [2, 1], axis=1)[:, [0, 2, 1]]
    mask = jnp.asarray((np.arange(6) < mask[..., None]).astype(np.float32))
    policy, reference = (
        BranchLogps(other_tokens(s, mask), mask, last_argmax_NT=other_tokens(9 + s, mask[:, 0]))
        for s in (0, 1)
    )
    loss, _ = loss_and_gradient(ours.Inherent(0.4), policy, reference)
    ratio = 0.4 * ratios(policy, reference)
    own = 0.4 * np.asarray(policy.last_argmax_NT - reference.last_argmax_NT, float).sum(-1)
    terms = softplus(ratio[:, 1] - ratio[:, 0]), softplus(own - ratio[:, 0])
    np.testing.assert_allclose(loss, np.mean(terms, axis=0), rtol=1e-5)


def test_metrics_of_two_images():
    """`rewards/*` are of the text, as in the releases, and the image has names of its own.

    Source: `get_batch_metrics` of POVID's dpo_trainer_inherent.py, which reports only the rewards
    of the rejected answer, and of Re-Align's rDPOtrainer.py, which also has `imageless_*`.
    """
    policy, reference = logps(0), logps(1)
    both = LENGTHS[:, 2] > 0
    assert both.any()
    own = [{"last_argmax_NT": other_tokens(7 + s, policy.mask_NKT[:, 0])} for s in (0, 1)]
    for objective in (ours.ReAlign(0.4), ours.Inherent(0.4)):
        arguments = [x._replace(**more) for x, more in zip((policy, reference), own, strict=True)]
        _, metrics = objective(*arguments)
        reward_NK = 0.4 * ratios(policy, reference)
        sums_NK = np.asarray(policy.logp_NKT * policy.mask_NKT, float).sum(-1)
        if isinstance(objective, ours.Inherent):
            sums_NK[:, 2] = np.asarray(arguments[0].last_argmax_NT, float).sum(-1)
            before_N = np.asarray(arguments[1].last_argmax_NT, float).sum(-1)
            reward_NK[:, 2] = 0.4 * (sums_NK[:, 2] - before_N)
        chosen, text, image = reward_NK.T
        expected = {
            "rewards/chosen": chosen,
            "rewards/rejected": text,
            "rewards/margins": chosen - text,
            "rewards/accuracies": chosen > text,
            "logps/chosen": sums_NK[:, 0],
            "logps/rejected": sums_NK[:, 1],
            "rewards/image_rejected": image,
            "rewards/image_margins": chosen - image,
            "rewards/image_accuracies": chosen > image,
            "logps/image_rejected": sums_NK[:, 2],
            "rewards/all_rejected": (text + image) / 2,
            "rewards/all_margins": chosen - (text + image) / 2,
            "rewards/all_accuracies": (chosen > text) & (chosen > image),
        }
        assert set(metrics) == {*expected, "nll_loss"}
        for name, values in expected.items():
            np.testing.assert_allclose(metrics[name][both], values[both], atol=1e-5, err_msg=name)


def test_phrases():
    """RRPO rewards differing tokens, and its KL is on the chosen answer alone."""
    policy, reference = pairs_only(logps(0)), pairs_only(logps(1))
    rng = np.random.default_rng(3)
    spans = rng.integers(0, 2, policy.mask_NKT.shape) * np.asarray(policy.mask_NKT)
    assert (spans.sum((1, 2)) > 0).all()
    kl = rng.random(policy.mask_NKT.shape).astype(np.float32) * policy.mask_NKT
    policy = policy._replace(spans_NKT=jnp.asarray(spans), kl_NKT=kl)
    loss, gradient = loss_and_gradient(ours.RRPO(0.4, alpha=0.05), policy, reference)
    token = np.asarray(policy.logp_NKT - reference.logp_NKT, float)
    reward = 0.4 * (token * spans).sum(-1)
    expected = softplus(reward[:, 1] - reward[:, 0]) + 0.05 * np.asarray(kl)[:, 0].sum(-1)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert not gradient[spans == 0].any()
    first = policy._replace(spans_NKT=policy.spans_NKT.at[1:].set(0))
    only, gradient = loss_and_gradient(ours.RRPO(0.4, alpha=0.05), first, reference)
    rest = np.log(2) + 0.05 * np.asarray(kl)[1:, 0].sum(-1)  # no margin, as in VideoChat2's code
    np.testing.assert_allclose(only, [loss[0], *rest], rtol=1e-5)
    assert not gradient[1:].any()
    _, metrics = ours.RRPO(0.4)(first, reference)
    assert metrics["unmarked"].tolist() == [0, *[1] * (len(loss) - 1)]
    everywhere = policy._replace(spans_NKT=policy.mask_NKT)
    plain, _ = loss_and_gradient(ours.DPO(0.4), policy, reference)
    whole, _ = loss_and_gradient(ours.RRPO(0.4, alpha=0.0), everywhere, reference)
    np.testing.assert_allclose(whole, plain, atol=1e-6)


def test_layouts_of_comparisons_are_checked():
    prompt, changed = Prompt("p7", "what?", ("a.png",)), Prompt("p7", "what?", ("b.png",))
    pair = Comparison(prompt, ("a", "b"))
    again = Comparison(prompt, ("a", "b"), more=(View(changed, ("a",)),))
    for objective, good, bad in (
        (ours.ReAlign(), again, pair),
        (ours.Inherent(), again, pair),
        (ours.RRPO(), pair, again),
        (ours.Trajectory(), pair, again),
    ):
        objective.check([good])
        with pytest.raises(DataError, match="'p7'"):
            objective.check([good, bad])
