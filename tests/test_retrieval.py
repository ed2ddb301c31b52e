"""Re-Align's pairs: the nearest other image, and what the model completes while it sees that."""

import numpy as np
import pytest
from helpers_rewrite import FakeModel, rollout

from seva_jax.data.sources import PromptSet
from seva_jax.objectives import ReAlign
from seva_jax.pairs import Reply, RetrievedPairs
from seva_jax.pairs.retrieval import nearest, nearest_other
from seva_jax.pairs.rewrite import split
from seva_jax.types import ExampleError

TEXT = "A man wears a red hat. He sits on a bench. The sky is blue! Nobody else is there."


def features(num, width=8, seed=0):
    """Draws random directions."""
    found = np.random.default_rng(seed).normal(size=(num, width)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def brute_force(features_ND, group_N):
    """Finds the nearest of another group, one by one, in float64."""
    exact = features_ND.astype(np.float64)
    out = []
    for i, row in enumerate(exact):
        best, at = -np.inf, -1
        for j, other in enumerate(exact):
            allowed = group_N[i] != group_N[j] and row.any() and other.any()
            if allowed and row @ other > best:
                best, at = row @ other, j
        out.append((at, best))
    return [at for at, _ in out], [cosine for _, cosine in out]


# --- the nearest image ----------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 2, 3, 7, 10, 36, 37, 38, 1000])
def test_nearest_in_blocks(block):
    """Blocks of any size find what comparing every pair finds."""
    found_ND = features(37)
    found_ND[[5, 36]] = 0  # unreadable
    group_N = np.arange(37)
    group_N[[3, 4, 20]] = 3
    index, cosine = brute_force(found_ND, group_N)
    found = nearest(found_ND, np.arange(37), group_N, block)
    assert found.index_N.tolist() == index
    np.testing.assert_allclose(found.cosine_N, cosine, atol=1e-6)
    assert index[5] == index[36] == -1
    rows = np.array([30, 3, 5, 12])
    some = nearest(found_ND, rows, group_N, block)
    assert some.index_N.tolist() == [index[i] for i in rows]


@pytest.mark.parametrize("rounding", [0.0, 1e-7])
@pytest.mark.parametrize("block", [1, 4, 100])
def test_of_equal_ones_the_first(block, rounding):
    """Neither blocks nor the last bits of a product choose, which differ from CPU to CPU."""
    same_ND = np.tile(features(1), (9, 1)) * (1 + rounding * np.arange(9)[:, None])
    found = nearest(same_ND.astype(np.float32), np.arange(9), np.arange(9), block)
    assert found.index_N.tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 0]


def test_no_other_image():
    """A single image, or one that cannot be read, has no neighbour."""
    assert nearest(features(1), np.arange(1), np.arange(1)).index_N.tolist() == [-1]
    found = nearest(np.zeros((3, 4), np.float32), np.arange(3), np.arange(3))
    assert found.index_N.tolist() == [-1, -1, -1]
    none, copies = nearest_other(np.zeros((0, 4), np.float32), lambda i, j: False)
    assert (len(none.index_N), len(copies)) == (0, 0)


@pytest.mark.parametrize("block", [3, 64])
@pytest.mark.parametrize("seed", range(5))
def test_planted_duplicates(block, seed):
    """A copy is never found, though nothing is nearer; look-alikes are."""
    rng = np.random.default_rng(seed)
    content_N = rng.integers(0, 12, 40)  # which picture each name is
    found_ND = features(12, seed=seed)[content_N]
    # What hardly differs but is another picture: a content of its own beside number 0.
    twin = np.flatnonzero(content_N == content_N[0])[-1]
    content_N[twin] = 99
    found_ND = found_ND + rng.normal(size=found_ND.shape).astype(np.float32) * 1e-4
    found_ND /= np.linalg.norm(found_ND, axis=1, keepdims=True)
    asked = []

    def same_image(i, j):
        asked.append((i, j))
        return content_N[i] == content_N[j]

    found, copies = nearest_other(found_ND, same_image, block)
    _, cosine = brute_force(found_ND, content_N)
    np.testing.assert_allclose(found.cosine_N, cosine, atol=1e-6)
    exact = (found_ND * found_ND[found.index_N]).sum(-1)  # copies of the nearest are as near
    np.testing.assert_allclose(exact, cosine, atol=1e-6)
    assert not np.any(content_N == content_N[found.index_N])
    # Copies that have the twin nearer than each other are not compared, so may not be counted.
    expected = np.array([np.sum(content_N == content) - 1 for content in content_N])
    near_twin = np.isin(content_N, (content_N[0], 99))
    assert np.all(copies <= expected)
    np.testing.assert_array_equal(copies[~near_twin], expected[~near_twin])
    assert all(found_ND[i] @ found_ND[j] > 0.99 for i, j in asked)


def test_all_the_same():
    """A picture under many names has no neighbours, which takes few rounds to find."""
    calls = []

    def same_image(i, j):
        calls.append((i, j))
        return True

    found, copies = nearest_other(np.tile(features(1), (50, 1)), same_image)
    assert set(found.index_N.tolist()) == {-1}
    assert set(copies.tolist()) == {49}
    assert len(calls) < 100


# --- pairs ----------------------------------------------------------------------------------------


class Pictures:
    """Images by name, with features; some look alike.

    Args:
        num: of them: "0.png", "1.png", ...
        copies: name to the one whose picture it is.
        broken: what cannot be read.
    """

    def __init__(self, num=6, copies=None, broken=()):
        self.names = [f"{i}.png" for i in range(num)]
        self.copies, self.broken = copies or {}, broken
        rows = dict(zip(self.names, features(num), strict=True))
        for name in self.names:
            rows[name] = rows[self.copies.get(name, name)]
        self.features = rows | {name: np.zeros(8) for name in broken}

    @property
    def data(self):
        """Returns the pictures as a prompt source gives them."""

        def load_image(name):
            if name in self.broken:
                raise ExampleError("no", "unreadable image")
            number = self.names.index(self.copies.get(name, name))
            return np.full((2, 2, 3), number, np.uint8)

        return PromptSet([], load_image)

    def nearest(self, name):
        """Returns the name of the nearest other picture."""
        mine = self.copies.get(name, name)
        others = [n for n in self.names if self.copies.get(n, n) != mine and n not in self.broken]
        return max(others, key=lambda n: float(self.features[name] @ self.features[n]))


def built(rollouts, pictures=None, say=lambda p: " NEW. More.", seed=0, **options):
    """Returns comparisons by id, drops, and the model that was asked."""
    pictures = pictures or Pictures()
    model = FakeModel(say, pictures.features, seed)
    comparisons, drops = RetrievedPairs(**options).build(rollouts, pictures.data, model)
    assert len(comparisons) + drops.total() == len(rollouts)
    ReAlign().check(comparisons)
    return {c.prompt.id: c for c in comparisons}, dict(drops), model


def rollouts(num=6, text=TEXT):
    """Makes a rollout for each picture."""
    return [rollout(f"p{i}", text, (f"{i}.png",)) for i in range(num)]


def test_pairs_have_what_the_objective_needs():
    """They are chosen and rejected on the image, and chosen on the nearest other one."""
    pictures = Pictures()
    comparisons, drops, model = built(rollouts(), pictures)
    assert drops == {}
    for i, (id_, comparison) in enumerate(comparisons.items()):
        assert comparison.prompt.images == (f"{i}.png",)
        (view,) = comparison.more
        assert view.answers == (TEXT,) == comparison.answers[:1]
        assert view.prompt.images == (pictures.nearest(f"{i}.png"),)
        assert view.prompt.question == comparison.prompt.question
        assert set(view.prompt.meta) == {"cosine", "copies"}
        assert view.prompt.start == "" == comparison.prompt.start
        asked = [p for _, prompts, _ in model.calls for p in prompts if p.id == id_]
        assert {p.images for p in asked} == {view.prompt.images}
        assert len(asked) == 2  # half of four sentences
    with pytest.raises(ValueError, match="more view"):
        ReAlign().check([c.__class__(c.prompt, c.answers) for c in comparisons.values()])


def test_refill_changes_only_masked_segments():
    """A masked sentence keeps its first words; the others are unchanged."""
    comparisons, _, model = built(rollouts(), keep=0.5, rate=0.5)
    masked = set()
    for comparison in comparisons.values():
        before, after = (split(x) for x in comparison.answers)
        assert len(before) == len(after) == 7
        changed = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
        assert len(changed) == 2
        for i in changed:
            words = before[i].split()
            assert after[i] == " ".join(words[: len(words) // 2]) + " NEW."
        masked.add(tuple(changed))
        for number, (_, prompts, _) in enumerate(model.calls):
            (prompt,) = (p for p in prompts if p.id == comparison.prompt.id)
            place = changed[number]
            assert prompt.start == "".join(after[: place + 1]).removesuffix(" NEW.")
    assert len(masked) > 1
    assert all(place % 2 == 0 for places in masked for place in places)


def test_how_much_is_masked():
    """The rate gives the share of sentences, at least one, and all of its words or a part."""
    for rate, num in ((0.01, 1), (0.25, 1), (0.26, 2), (0.75, 3), (1.0, 4)):
        comparisons, _, _ = built(rollouts(), rate=rate)
        for c in comparisons.values():
            assert c.answers[1].count("NEW") == num
    # The float products are 7.000000000000001 and 28.999999999999996.
    comparisons, _, _ = built(rollouts(text="It is red. " * 24 + "So."), rate=0.28)
    assert {c.answers[1].count("NEW") for c in comparisons.values()} == {7}
    comparisons, _, _ = built(rollouts(text="a b " * 25), rate=1.0, keep=0.58)
    assert {len(c.answers[1].split()) for c in comparisons.values()} == {29 + 1}
    comparisons, _, _ = built(rollouts(), rate=1.0, keep=0.0)
    assert {c.answers[1] for c in comparisons.values()} == {"NEW. NEW. NEW. NEW."}
    comparisons, _, _ = built(rollouts(text="a ring in red and a cross in blue"), rate=1.0,
                              separator=" and ", say=lambda p: " in green and so on")  # fmt: skip
    assert {c.answers[1] for c in comparisons.values()} == {"a ring in green and a cross in green"}
    comparisons, _, _ = built(rollouts(text="red"), say=lambda p: "blue.")
    assert {c.answers[1] for c in comparisons.values()} == {"blue"}  # no stop where there was none


def test_copies_are_never_retrieved_and_counted(capsys):
    """Copies under other names are skipped, and the view says how many there were."""
    pictures = Pictures(7, {"4.png": "1.png", "6.png": "1.png"})
    comparisons, drops, _ = built(rollouts(7), pictures)
    assert drops == {}
    assert "3 of 7 images are one picture under several names" in capsys.readouterr().out
    for i, comparison in enumerate(comparisons.values()):
        (view,) = comparison.more
        (name,) = view.prompt.images
        own = pictures.copies.get(f"{i}.png", f"{i}.png")
        assert pictures.copies.get(name, name) != own
        assert name == pictures.nearest(f"{i}.png")
        assert view.prompt.meta["copies"] == (2 if own == "1.png" else 0)
        expected = pictures.features[f"{i}.png"] @ pictures.features[name]
        assert view.prompt.meta["cosine"] == pytest.approx(expected, abs=1e-4)


def test_every_reason_for_a_drop():
    """Each is counted, and what is left is used."""
    mixed = [
        rollout("1", "", ("0.png",)),
        rollout("2", TEXT, ()),
        rollout("3", TEXT, ("0.png", "1.png")),
        rollout("4", TEXT, ("2.png",)),
        rollout("5", TEXT, ("3.png",)),
        rollout("6", TEXT, ("4.png",)),
        rollout("7", "Yes NEW.", ("4.png",)),
        rollout("8", TEXT, ("5.png",)),
    ]
    pictures = Pictures(6, broken=("3.png",))

    def say(prompt):
        return {"8": Reply("", "too long"), "6": "" if not prompt.start else " NEW."}.get(
            prompt.id, " NEW."
        )

    comparisons, drops, _ = built(mixed, pictures, say)
    assert drops == {
        "empty chosen answer": 1, "not one image": 2, "unreadable image": 1, "equal answers": 1,
        "too long": 1,
    }  # fmt: skip
    assert list(comparisons) == ["4", "6"]
    _, drops, _ = built(mixed[3:4])
    assert drops == {"no other image": 1}
    _, drops, _ = built(rollouts(), say=lambda p: "", keep=0.0)
    assert drops == {"empty completion": 6}


def test_a_true_answer_may_be_chosen():
    """If the source has one, the rollout is not used."""
    some = [rollout(f"p{i}", "rolled out", (f"{i}.png",), answer=TEXT) for i in range(2)]
    some.append(rollout("p2", "rolled out", ("2.png",)))
    comparisons, drops, _ = built(some, chosen="answer")
    assert drops == {"empty chosen answer": 1}
    assert {c.answers[0] for c in comparisons.values()} == {TEXT}


def test_every_choice_follows_from_seed_and_id():
    """The order of rollouts does not matter."""
    first, _, _ = built(rollouts())
    again, _, _ = built(rollouts()[::-1])
    assert {k: c.answers for k, c in first.items()} == {k: c.answers for k, c in again.items()}
    other = [built(rollouts(), seed=seed)[0] for seed in (1, 2)]
    assert all(o["p0"].more == first["p0"].more for o in other)
    assert any(o[k].answers != c.answers for o in other for k, c in first.items())


def test_without_corruptions():
    """The run needs none."""
    assert not RetrievedPairs().uses_corruptions
