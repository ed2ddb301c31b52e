"""APASI's pairs: which sentences are replaced, with which objects, and what is kept."""

import collections
import itertools
import json

import numpy as np
import pytest
from helpers_rewrite import FakeModel, rollout

from seva_jax.data.sources import PromptSet, generator
from seva_jax.evals import Chair
from seva_jax.pairs import Cooccurrence, InjectedPairs, Reply
from seva_jax.pairs.cooccurrence import read_objects, read_texts
from seva_jax.pairs.injection import TEMPLATES, choose, position_weights, with_article
from seva_jax.pairs.rewrite import Draft, rewrite, split
from seva_jax.text.sampling import Sampling
from seva_jax.types import DataError, Prompt

OBJECTS = ("dog, puppy", "cat", "bench", "tree", "umbrella", "car")
NOTHING = PromptSet([], lambda name: np.zeros((1, 1, 3), np.uint8))
LONG = "A dog sits. It is brown. The bench is old! Who knows? A tree is near."
OTHERS = ("A dog and a cat. Fine.", "A dog and a cat. Fine.", "A bench, a car, a tree. Fine.")


def built(texts, *, model=None, **options):
    """Returns comparisons by prompt id, drops, the model that was asked, and texts by id."""
    model = model or FakeModel()
    rollouts = [rollout(id_, text) for id_, text in texts.items()]
    builder = InjectedPairs(**{"objects": OBJECTS} | options)
    comparisons, drops = builder.build(rollouts, NOTHING, model)
    assert len(comparisons) + drops.total() == len(rollouts)
    return {c.prompt.id: c.answers for c in comparisons}, dict(drops), model


def with_others(text):
    """Adds descriptions that give the graph its counts and are too short to be used."""
    return {"p": text} | {f"o{i}": other for i, other in enumerate(OTHERS)}


# --- which sentences ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "separator", "parts"),
    [
        ("", "", [""]),
        ("One", "", ["One"]),
        ("One. Two!  Three?", "", ["One.", " ", "Two!", "  ", "Three?"]),
        ("It is 3.5 m. So", "", ["It is 3.5 m.", " ", "So"]),
        ("One... Two", "", ["One...", " ", "Two"]),
        ("a. b and c", " and ", ["a. b", " and ", "c"]),
        ("a|b", "|", ["a", "|", "b"]),
    ],
)
def test_split(text, separator, parts):
    """Joined again, the parts are the text."""
    assert split(text, separator) == parts
    assert "".join(parts) == text


def test_weights_rise_from_one_to_two():
    """They are `a sqrt(i) + b` over the sentences that can be chosen, all but the first."""
    for num in range(2, 40):
        weights = position_weights(num)
        assert weights[0] == 0
        assert weights[1] == pytest.approx(1)
        assert num == 2 or weights[-1] == pytest.approx(2)
        assert np.all(np.diff(weights) > 0)
        places = np.arange(1, num)
        a, b = np.polyfit(np.sqrt(places), weights[1:], 1) if num > 2 else (0, 1)
        np.testing.assert_allclose(weights[1:], a * np.sqrt(places) + b, atol=1e-9)
    assert position_weights(1).tolist() == [0]


def inclusion(weights, num):
    """Returns the probability of every set of `num` places drawn one by one, by enumeration."""
    sets = collections.Counter()
    for order in itertools.permutations(np.flatnonzero(weights).tolist(), num):
        left, probability = sum(weights), 1.0
        for place in order:
            probability *= weights[place] / left
            left -= weights[place]
        sets[tuple(sorted(order))] += probability
    return sets


@pytest.mark.parametrize(("num", "num_chosen"), [(3, 1), (6, 1), (6, 2), (7, 3)])
def test_sentences_are_drawn_by_their_weights(num, num_chosen):
    """A chi-square test compares the sets drawn for many prompts with exact probabilities."""
    weights, draws = position_weights(num), 6000
    roots = np.sqrt(np.arange(1, num))  # the weights once more, written out
    slope = 1 / (roots[-1] - roots[0])
    expected = inclusion([0.0, *(1 + slope * (roots - roots[0]))], num_chosen)
    found = collections.Counter(
        tuple(choose(weights, num_chosen, generator(0, "injection", f"prompt {i}")))
        for i in range(draws)
    )
    assert set(found) <= set(expected)
    statistic = sum((found[s] - draws * p) ** 2 / (draws * p) for s, p in expected.items())
    degrees = len(expected) - 1
    # Wilson and Hilferty's normal approximation; 3.3 is p = 0.0005.
    z = ((statistic / degrees) ** (1 / 3) - 1 + 2 / (9 * degrees)) / (2 / (9 * degrees)) ** 0.5
    assert z < 3.3
    uniform = draws / len(expected)
    assert sum((found[s] - uniform) ** 2 / uniform for s in expected) > 3 * statistic


def test_the_number_of_sentences_is_the_rate():
    """It is `round(rate n)`, without the first sentence, whatever the rate."""
    everything = "A dog, a cat, a bench, a tree, an umbrella and a car."
    for num in range(3, 30):
        text = "A dog. " + " ".join(f"Sentence {i}." for i in range(1, num))
        for rate in (0.2, 0.5, 1.0):
            answers, _, _ = built({"p": text, "o": everything}, rate=rate)
            chosen, rejected = (split(x)[::2] for x in answers["p"])
            changed = [i for i, (a, b) in enumerate(zip(chosen, rejected, strict=True)) if a != b]
            assert 0 not in changed
            assert len(changed) == min(round(rate * num), num - 1)


# --- which objects --------------------------------------------------------------------------------


def test_graph_of_a_toy_corpus():
    """The counts are those counted by hand."""
    chair = Chair(synonyms=read_objects("", OBJECTS))
    corpus = [
        "A dog and a cat. The dog sleeps.",  # dog cat, once
        "Two puppies near a bench",  # dog bench
        "a cat, a dog, a bench",  # cat dog, cat bench, dog bench
        "a tree",
        "nothing at all",
        "A cat! Umbrellas.",  # cat umbrella
    ]
    graph = Cooccurrence.count([chair.mentions(text) for text in corpus])
    assert {name: dict(counts) for name, counts in graph.counts.items()} == {
        "dog": {"cat": 2, "bench": 2},
        "cat": {"dog": 2, "bench": 1, "umbrella": 1},
        "bench": {"dog": 2, "cat": 1},
        "umbrella": {"cat": 1},
    }
    assert graph.absent("dog", {"dog"}, 10) == ["bench", "cat"]  # 2 and 2: by alphabet
    assert graph.absent("cat", {"cat"}, 10) == ["dog", "bench", "umbrella"]
    assert graph.absent("cat", {"cat"}, 2) == ["dog", "bench"]
    assert graph.absent("bench", {"dog", "bench"}, 10) == ["cat"]
    assert graph.absent("cat", {"cat", "dog"}, 1) == ["bench"]  # the first that is absent
    # Nothing absent occurs with it: all that is absent.
    assert graph.absent("dog", {"dog", "cat", "bench"}, 10) == ["umbrella"]
    assert graph.absent("tree", {"tree", "cat"}, 1) == ["bench", "dog", "umbrella"]
    assert graph.absent("dog", {"dog", "cat", "bench", "umbrella"}, 10) == []


def test_only_absent_objects_are_put_in():
    """The object is a frequent companion that the description does not mention."""
    rng = np.random.default_rng(0)
    names = [line.split(",")[0] for line in OBJECTS]
    texts = {}
    for i in range(200):
        there = rng.permutation(names)[: rng.integers(1, 4)]
        texts[str(i)] = "Here it is. " + " ".join(f"I see a {name}." for name in there) + " End."
    answers, _, model = built(texts, rate=0.5)
    chair = Chair(synonyms=read_objects("", OBJECTS))
    seen = set()
    for _, prompts, _ in model.calls:
        for prompt in prompts:
            (new,) = chair.mentions(split(prompt.start)[-1])
            assert new not in chair.mentions(answers[prompt.id][0])
            seen.add(new)
    assert seen == set(names)


def test_objects_follow_from_what_stays():
    """The release's `get_obj_guide`: a mention that stays, then one of its ten companions.

    Cars occur with dogs, and cats with benches. So a description whose bench is replaced gets a
    car, one whose dog is replaced gets a cat, and one that keeps both gets either.
    """
    short = ["A dog, a car. F.", "A bench, a cat. F."] * 3
    corpus = {f"o{i}": text for i, text in enumerate(short)}
    texts = {f"p{i}": "Here. A dog. A bench." for i in range(60)}
    texts |= {f"q{i}": "A dog, a dog and a bench. It is. So." for i in range(300)}
    _, _, model = built(texts | corpus, rate=0.4)
    got = collections.Counter()
    for _, prompts, _ in model.calls:
        for prompt in prompts:
            *kept, new = split(prompt.start)[::2]
            lost = ("bench" if "dog" in "".join(kept) else "dog") if prompt.id[0] == "p" else ""
            got[lost, "car" if "car" in new else "cat"] += 1
    assert set(got) == {("bench", "car"), ("dog", "cat"), ("", "car"), ("", "cat")}
    # Two mentions of the dog and one of the bench: cars in two thirds of 300 draws, +- 4 sigma.
    assert 167 < got["", "car"] < 233
    _, drops, _ = built({"p": "Here it is. So. A dog."} | corpus, rate=0.6)
    assert drops["no known object"] == 1  # two of three sentences are replaced


def test_the_most_frequent_companion_only():
    text = LONG + " Five. Six. Seven. Eight. Nine."
    answers, _, model = built(with_others(text), most_objects=1)
    assert list(answers) == ["p"]
    for _, prompts, _ in model.calls:
        assert all("a cat" in p.start or "a car" in p.start for p in prompts)


def test_captions_of_a_file_are_counted_instead(tmp_path):
    """They are one a line, or a JSON list; the run's own descriptions then do not count."""
    captions = ["a dog under an umbrella", "an umbrella and a dog"]
    for path, text in (("c.txt", "\n".join(captions)), ("c.json", json.dumps(captions))):
        (tmp_path / path).write_text(text, "utf-8")
        _, _, model = built(with_others(LONG), captions_file=str(tmp_path / path))
        assert "an umbrella" in model.calls[0][1][0].start


def test_vocabulary_from_file_or_config(tmp_path):
    """Both give the same, with plurals; anything else is an error that says so."""
    expected = read_objects("", OBJECTS)
    assert ("puppies", "dog") in expected
    nested = json.dumps([line.split(",") for line in OBJECTS])
    for text in ("\n".join(OBJECTS), json.dumps(OBJECTS), nested):
        (tmp_path / "objects").write_text(text, "utf-8")
        assert read_objects(str(tmp_path / "objects")) == expected
    for path, objects in (("", ()), ("x", ("dog",))):
        with pytest.raises(DataError, match="set objects_file"):
            read_objects(path, objects)
    with pytest.raises(DataError, match=r"objects: 'dog' stands for 'cat' and for 'dog'"):
        read_objects("", ("cat, dog", "dog"))
    for text, message in (("[1]", "record 1 is neither"), ('["a"', "fix it")):
        (tmp_path / "objects").write_text(text, "utf-8")
        with pytest.raises(DataError, match=message):
            read_texts(str(tmp_path / "objects"))
    with pytest.raises(DataError, match="missing"):
        read_texts(str(tmp_path / "missing"))


@pytest.mark.parametrize(
    ("name", "article"),
    [
        ("apple", "an"), ("dog", "a"), ("hourglass", "an"), ("horse", "a"), ("unicorn", "a"),
        ("uninhabited island", "an"), ("umbrella", "an"), ("utensil", "a"), ("urn", "an"),
        ("urinal", "a"), ("ukulele", "a"), ("ewer", "a"), ("euphonium", "a"), ("eel", "an"),
        ("one-way sign", "a"), ("onesie", "an"), ("onion", "an"), ("x-ray", "an"),
        ("xylophone", "a"),
    ],
)  # fmt: skip
def test_articles(name, article):
    """They follow the sound, as far as spelling tells. A onesie is the known exception."""
    assert with_article(name) == f"{article} {name}"


def test_templates():
    """There are twenty different ones, each a beginning without an end."""
    assert len(set(TEMPLATES)) == 20
    assert all(t.endswith(" {object}") and t[0].isupper() for t in TEMPLATES)
    for templates in ((), ("There is",)):
        with pytest.raises(DataError, match=r"InjectedPairs\.templates"):
            InjectedPairs(templates=templates)


# --- the new text ---------------------------------------------------------------------------------


def test_only_chosen_sentences_change():
    """The language model alone completes a template; everything else is unchanged."""
    model = FakeModel(lambda prompt: " standing there. Another. One")
    answers, drops, _ = built(with_others(LONG), model=model)
    ((name, (prompt,), sampling),) = model.calls
    chosen, rejected = answers["p"]
    assert chosen == LONG
    assert drops == {"too few sentences": 3}
    assert (name, prompt.images, prompt.question) == ("injection 1", (), "Describe it.")
    assert sampling == Sampling(max_new_tokens=64, repetition_penalty=1.1)
    before, after = split(chosen), split(rejected)
    assert len(before) == len(after)
    (place,) = (i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b)
    assert place % 2 == 0
    assert place > 0
    new = after[place]
    assert new.endswith(" standing there.")
    lead = new.removesuffix(" standing there.")
    assert prompt.start == "".join([*before[:place], lead])
    assert any(lead == t.format(object=o) for t in TEMPLATES for o in ("a cat", "a car"))


def test_a_question_with_markers_is_asked_without_image():
    """The template would refuse a marker without an image."""
    model = FakeModel()
    rollouts = [rollout("p", LONG, question="<image>\nWhat is this?")]
    rollouts += [rollout(str(i), text) for i, text in enumerate(OTHERS)]
    (comparison,), _ = InjectedPairs(objects=OBJECTS).build(rollouts, NOTHING, model)
    assert model.calls[0][1][0].question == "What is this?"
    assert comparison.prompt is rollouts[0].prompt


@pytest.mark.parametrize(
    ("said", "separator", "last", "written"),
    [
        (" in the park. A man", "", "End.", "A cat in the park."),
        (" in the park", "", "End.", "A cat in the park."),  # cut by its length
        (" in the park. A man", "", "End", "A cat in the park"),  # as what it replaces
        (".", "", "End.", "A cat."),
        ("", "", "End.", "A cat."),
        (" of 3.5 kg. B", "", "End!", "A cat of 3.5 kg."),
        ("\nand\n\nmore.", "", "End.", "A cat and more."),
        ("s sleep.</s>", "", "End.", "A cats sleep."),
        (" in red and a dog", " and ", "End", "A cat in red"),
        (" in red and", " and ", "End", "A cat in red"),
        (" in red", " and ", "End.", "A cat in red"),
    ],
)
def test_where_a_completion_ends(said, separator, last, written):
    """It ends at its first full stop or separator, with the end mark of what it replaces."""
    start = ["First.", separator or " "]
    draft = Draft(Prompt("p", "?", ()), [*start, last], {1: "A cat"})
    (reply,) = rewrite("x", [draft], FakeModel(lambda p: said), Sampling(), separator)
    assert reply == Reply("".join(start) + written)


def test_later_sentences_continue_from_new_ones():
    """Each call completes one sentence of all texts, in order; dropped texts are left out."""
    told = {"a": " ONE.", "b": Reply("", "too long"), "c": ""}
    model = FakeModel(lambda p: told[p.id])
    parts = split("A. B. C. D.")
    drafts = [
        Draft(Prompt("a", "?", ()), parts, {3: "Y", 1: "X"}),
        Draft(Prompt("b", "?", ()), parts, {0: "X", 2: "Y"}),
        Draft(Prompt("c", "?", ()), parts, {2: ""}),
    ]
    replies = rewrite("x", drafts, model, Sampling())
    assert replies == [
        Reply("A. X ONE. C. Y ONE."), Reply("", "too long"), Reply("", "empty completion"),
    ]  # fmt: skip
    asked = [(name, [(p.id, p.start) for p in prompts]) for name, prompts, _ in model.calls]
    assert asked == [
        ("x 1", [("a", "A. X"), ("b", "X"), ("c", "A. B.")]),
        ("x 2", [("a", "A. X ONE. C. Y")]),
    ]
    assert rewrite("x", [], FakeModel(), Sampling()) == []


def test_every_choice_follows_from_seed_and_id():
    """With the same graph, order and number of other rollouts do not matter."""
    texts = {f"p{i}": LONG for i in range(30)} | {f"o{i}": o for i, o in enumerate(OTHERS)}
    first, _, _ = built(texts)
    again, _, _ = built(dict(reversed(texts.items())))
    assert first == again
    assert list(again) == list(reversed(first))
    assert len(set(first.values())) > 10  # not the same for every prompt
    other, _, _ = built(texts, model=FakeModel(seed=1))
    assert sum(first[id_] != other[id_] for id_ in first) > 20


def test_a_greater_rate_replaces_the_same_sentences_and_more():
    """A schedule of rates therefore goes from easy to hard in the same places."""
    text = "A dog. " + " ".join(f"Sentence {i}." for i in range(1, 20))
    others = {f"o{i}": "A dog, a cat, a bench, a tree, an umbrella, a car." for i in range(3)}
    before = set()
    for rate in (0.1, 0.15, 0.2, 0.25):
        answers, _, _ = built({"p": text} | others, rate=rate)
        pairs = zip(*(split(x)[::2] for x in answers["p"]), strict=True)
        changed = {i for i, (a, b) in enumerate(pairs) if a != b}
        assert len(changed) == round(rate * 20)
        assert before <= changed
        before = changed


def test_every_reason_for_a_drop():
    """Each description that makes no pair is counted under its reason."""
    answers, drops, _ = built(
        {
            "1": "",
            "2": "</s>",
            "3": "A dog.",
            "4": "A dog. Two sentences.",  # 0.4 of a sentence
            "5": "Nothing here. Is known. At all.",
            "6": "A dog. Is. Here.",
            "7": "A tree. Stands. Alone.",  # with nothing, so any other object is put in
            "8": "A dog and a cat. Yes. Yes.",  # the dog and the cat have no other company
        }
    )
    assert list(answers) == ["6", "7"]
    assert drops == {
        "empty chosen answer": 2,
        "too few sentences": 2,
        "no known object": 1,
        "no absent object": 1,
    }
    _, drops, _ = built(with_others(LONG), model=FakeModel(lambda p: Reply("", "too long")))
    assert drops == {"too long": 1, "too few sentences": 3}
    same = FakeModel(lambda p: " is near.")
    texts = {"p": "A dog. There is a cat is near. There is a cat is near.", "o": OTHERS[0]}
    _, drops, _ = built(texts, model=same, templates=("There is {object}",), rate=0.5)
    assert "equal answers" not in drops  # a cat is mentioned already, so it is not put in


def test_without_corruptions_and_without_a_vocabulary():
    """A run works without corruptions, but not without a vocabulary."""
    assert not InjectedPairs().uses_corruptions
    with pytest.raises(DataError, match="a vocabulary of objects is needed"):
        InjectedPairs().build([], NOTHING, FakeModel())
