"""TEMPLE: sequences in other orders, asking about them, the filters of pairs, and its stages."""

import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest
from helpers_rollout import MODEL, SAMPLING, engine, prompt_set
from PIL import Image
from tiny_models import noisy_variables

from seva_jax.config.command_line import load_experiments
from seva_jax.config.config_files import config_directory
from seva_jax.config.prior_run import PriorRun
from seva_jax.config.rounds import runs_of
from seva_jax.corrupt import (
    DiffusionNoise,
    Drop,
    Reverse,
    SequenceCorruption,
    Shuffle,
    corruption_key,
)
from seva_jax.corrupt.sequence import captioned
from seva_jax.data.answered import AnsweredPrompts
from seva_jax.data.captions import CaptionedPrompts, without_captions
from seva_jax.data.files import QuestionsJsonl
from seva_jax.objectives import DPO, Supervised
from seva_jax.pairs import TemplePairs
from seva_jax.text import templates
from seva_jax.types import IMAGE_MARKER, DataError, ExampleError, Prompt, Rollout
from seva_jax.worlds import WorldPairs, WorldPrompts
from seva_jax.worlds.sequences import WorldSequences

SIZES = [(n, m) for n in (2, 3, 5, 7, 16, 17, 40) for m in (2, 3, 4, 8, 16)]


@pytest.fixture(scope="module")
def variables():
    """Returns weights with which answers differ in content and in length."""
    return noisy_variables(MODEL)


def drawn(corruption, num, seed=0):
    """Draws one order of `num` items."""
    return corruption.order(np.random.default_rng(seed), num)


def runs(order):
    """Splits an order into its longest runs of successive numbers."""
    starts = [i for i, x in enumerate(order) if i == 0 or x != order[i - 1] + 1]
    return [order[a:b] for a, b in itertools.pairwise([*starts, len(order)])]


@pytest.mark.parametrize("kind", [Shuffle, Reverse])
@pytest.mark.parametrize(("num", "groups"), SIZES)
def test_every_item_once_and_groups_stay_together(kind, num, groups):
    """Groups are n // m neighbours, and the last group what is left."""
    size = max(1, num // groups)
    whole = [list(range(num))[i : i + size] for i in range(0, num, size)]
    for seed in range(10):
        order = drawn(kind(groups), num, seed)
        assert sorted(order) == list(range(num))
        place = {tuple(group): order.index(group[0]) for group in whole}
        for group in whole:
            at = place[tuple(group)]
            assert order[at : at + len(group)] == group
        if kind is Reverse:
            assert order == [i for group in whole[::-1] for i in group]
            assert len(runs(order)) == len(whole)


# From the release, `DPODataGeneratorBase.generate_rejected_response` with "reverse".
REVERSED = [
    (3, 2, [2, 1, 0]),
    (5, 2, [4, 2, 3, 0, 1]),
    (7, 4, [6, 5, 4, 3, 2, 1, 0]),
    (9, 4, [8, 6, 7, 4, 5, 2, 3, 0, 1]),
    (10, 4, [8, 9, 6, 7, 4, 5, 2, 3, 0, 1]),
    (17, 8, [16, 14, 15, 12, 13, 10, 11, 8, 9, 6, 7, 4, 5, 2, 3, 0, 1]),
    (5, 16, [4, 3, 2, 1, 0]),
]


@pytest.mark.parametrize(("num", "groups", "order"), REVERSED)
def test_orders_of_the_release(num, groups, order):
    """Three items and m = 2 make three groups, not two."""
    assert drawn(Reverse(groups), num) == order


def test_all_shuffles_are_as_likely():
    """Three groups have six orders; the original one is among them, as in the release."""
    found = [tuple(drawn(Shuffle(2), 3, seed)) for seed in range(1200)]
    counts = {order: found.count(order) for order in set(found)}
    assert set(counts) == set(itertools.permutations(range(3)))
    assert min(counts.values()) > 150


@pytest.mark.parametrize(("num", "groups"), SIZES)
def test_dropping_keeps_a_share(num, groups):
    """It keeps N / m items, at least one, in order; every item is kept by some draw."""
    kept = [drawn(Drop(groups), num, seed) for seed in range(200)]
    assert {len(order) for order in kept} == {max(1, num // groups)}
    assert all(order == sorted(set(order)) for order in kept)
    assert set(itertools.chain(*kept)) == set(range(num))


PROMPT = Prompt("p", "what is it", tuple("01234789"))


@pytest.mark.parametrize("change", [Drop(4), Shuffle(4), Reverse(2)])
def test_keys_decide(change):
    """A key always gives the same prompt; other keys differ, except for Reverse; questions stay."""
    found = [change.changed(corruption_key(7, "p", i), PROMPT) for i in (0, 0, 1, 2, 3, 4)]
    assert found[0] == found[1]
    assert (len({p.images for p in found}) > 1) != isinstance(change, Reverse)
    assert {p.question for p in found} == {"what is it"}
    assert set(found[0].images) <= set(PROMPT.images)


def test_places_of_dropped_images_go_with_them():
    """What is said about a kept image stays next to it."""
    question = "a <image> b <image> c <image> d"
    prompt = Prompt("p", question, ("1", "2", "3"))
    found = Drop(2).changed(jax.random.key(0), prompt)
    (kept,) = found.images
    assert found.question.count(IMAGE_MARKER) == 1
    words = question.split(IMAGE_MARKER)
    before = "".join(words[: int(kept)])
    assert found.question.split(IMAGE_MARKER)[0] == before
    assert templates.PLAIN.prompt(found.question, 1)
    assert Shuffle().changed(jax.random.key(0), prompt).question == question


@pytest.mark.parametrize(
    ("prompt", "change", "reason"),
    [
        (Prompt("p", "q", ("1",)), Shuffle(), "nothing to reorder"),
        (Prompt("p", "q", ()), Drop(), "nothing to reorder"),
        (PROMPT, Reverse(of="captions"), "no captions"),
        (Prompt("p", "a\nq", (), {"captions": ["a"], "question": "q"}),
         Drop(of="captions"), "nothing to reorder"),
        (Prompt("p", "b\nq", (), {"captions": ["a"], "question": "q"}),
         Drop(of="captions"), "no captions"),
        (Prompt("p", "q", (), {"captions": [1, 2], "question": "q"}),
         Drop(of="captions"), "no captions"),
    ],
)  # fmt: skip
def test_what_has_no_sequence(prompt, change, reason):
    with pytest.raises(ExampleError) as caught:
        change.changed(jax.random.key(0), prompt)
    assert caught.value.reason == reason
    with pytest.raises(DataError, match="not an image"):
        change(jax.random.key(0), np.zeros((2, 2, 3)))


# --- captions -------------------------------------------------------------------------------------


@pytest.fixture
def clips(tmp_path):
    """Writes clips with captions, one without, and one with a broken list."""
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    clip = {"question": "What happens?", "images": ["0.png"], "answer": "It sleeps."}
    lines = [
        clip | {"id": 1, "captions": ["A dog.", "It runs.", "It sleeps."]},
        clip | {"id": 2, "answer": " "},
        clip | {"id": 3, "captions": ["A dog.", 3]},
    ]
    (tmp_path / "clips.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return QuestionsJsonl(str(tmp_path / "clips.jsonl"), str(tmp_path))


@pytest.mark.parametrize("images", [False, True])
def test_captions_go_into_the_question_and_out_again(clips, images):
    data = CaptionedPrompts(clips, images).open()
    (prompt,) = data.prompts
    assert prompt.question == "A dog.\nIt runs.\nIt sleeps.\nWhat happens?"
    assert prompt.images == (("0.png",) if images else ())
    assert data.drops == {"no captions": 2}
    assert without_captions(prompt) == clips.open().prompts[0]
    back = Reverse(2, "captions").changed(jax.random.key(0), prompt)
    assert back.question == "It sleeps.\nIt runs.\nA dog.\nWhat happens?"
    assert without_captions(dataclasses.replace(back, meta=prompt.meta)) == clips.open().prompts[0]
    assert captioned("q", ["a"]) == "a\nq"


def test_answers_for_supervised_training(clips):
    data = AnsweredPrompts(clips).open()
    assert [c.answers for c in data.comparisons] == [("It sleeps.",), ("It sleeps.",)]
    assert data.drops == {"no answer": 1}
    for wrong in (AnsweredPrompts, CaptionedPrompts):
        with pytest.raises(DataError, match="WorldPairs, which has"):
            wrong(WorldPairs()).open()
    with pytest.raises(DataError, match="no prompt has an answer"):
        AnsweredPrompts(clips, "gone").open()


# --- asking ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Chosen(SequenceCorruption):
    """An order that is given."""

    kept: tuple[int, ...] = ()

    def order(self, rng, num):
        return [i for i in self.kept if i < num]


@pytest.mark.slow
def test_the_model_is_asked_about_the_changed_sequence(variables):
    """Answers equal those to prompts that have fewer images or words from the start."""
    prompts = [
        Prompt("a", "what is it", ("0", "1")),
        Prompt("b", "what is it", ("2", "3", "4")),
        Prompt("c", "a b\nc\nwhat", ("7",), {"captions": ["a b", "c"], "question": "what"}),
        Prompt("d", "what is it", ("5", "8")),  # 5 is broken
    ]
    greedy = dataclasses.replace(SAMPLING, temperature=0.0)
    images, words = Chosen(2, "images", (1, 0)), Chosen(2, "captions", (1,))
    asked = prompts[:2] + prompts[3:]

    def answers(prompts, *corrupt):
        rounds = engine(variables).answer(prompt_set(prompts), greedy, corrupt)
        return list(itertools.chain(*rounds))

    first, second, broken = answers(asked, images, DiffusionNoise(0))
    assert broken.dropped == "unreadable image"
    plain = answers(
        [dataclasses.replace(p, images=p.images[1::-1]) for p in prompts[:2]], DiffusionNoise(0)
    )
    assert [a.answers[1] for a in (first, second)] == [a.answers[0] for a in plain]
    assert all(len(a.answers) == 3 for a in (first, second))
    (dropped,) = answers(prompts[1:2], Chosen(2, "images", (2,)))
    (one,) = answers([dataclasses.replace(prompts[1], images=("4",))], DiffusionNoise(0))
    assert dropped.answers[1] == one.answers[0]
    (caption,) = answers(prompts[2:3], words)
    (alone,) = answers([dataclasses.replace(prompts[2], question="c\nwhat")], DiffusionNoise(0))
    assert caption.answers[1] == alone.answers[0]


def test_single_images_are_dropped_and_counted(variables):
    """Other prompts are answered."""
    prompts = [Prompt("a", "what is it", ("0",)), Prompt("b", "what is it", ("2", "3"))]
    found = list(
        itertools.chain(*engine(variables).answer(prompt_set(prompts), SAMPLING, (Drop(),)))
    )
    assert [a.dropped for a in found] == ["nothing to reorder", ""]


# --- pairs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "rejected", "reason"),
    [
        ("longer", "b" * 9, ""),
        ("longer", "b" * 10, "chosen answer not longer"),
        ("ratio", "b" * 15, ""),
        ("ratio", "b" * 16, "lengths too different"),
        ("ratio", "b" * 7, ""),
        ("ratio", "b" * 6, "lengths too different"),
        ("any", "b" * 99, ""),
        ("any", "x aaaaaaaaaa x", "chosen answer inside the rejected one"),
        ("any", "a" * 10, "equal answers"),
        ("any", " \n", "empty rejected answer"),
    ],
)
def test_filters_on_both_sides(rule, rejected, reason):
    """The chosen answer has ten letters."""
    rollout = Rollout(PROMPT, "a" * 10, (rejected,))
    pairs, drops = TemplePairs((rule,))([rollout])
    assert drops == ({reason: 1} if reason else {})
    assert [p.answers for p in pairs] == ([] if reason else [("a" * 10, rejected)])
    assert [p.prompt for p in pairs] == ([] if reason else [PROMPT])


def test_several_corruptions_give_several_pairs(clips):
    """Pairs have ids of their own and train without captions; each corruption needs a rule."""
    (prompt,) = CaptionedPrompts(clips).open().prompts
    rollout = Rollout(prompt, "a long answer", ("a short", "a longer answer yet", "as long here"))
    builder = TemplePairs(("longer", "longer", "ratio"))
    pairs, drops = builder([rollout, dataclasses.replace(rollout, clean="")])
    assert [p.prompt.id for p in pairs] == ["1#0", "1#2"]
    assert all(p.prompt.question == "What happens?" for p in pairs)
    assert all(p.prompt.images == ("0.png",) for p in pairs)
    assert drops == {"chosen answer not longer": 1, "empty chosen answer": 3}
    kept, _ = dataclasses.replace(builder, captions=True)([rollout])
    assert kept[0].prompt.question == prompt.question
    with pytest.raises(DataError, match="1 rules for 3 corruptions"):
        TemplePairs()([rollout])


# --- stages ---------------------------------------------------------------------------------------


def stages(name):
    """Returns the runs of a recipe."""
    (experiment,), _ = load_experiments("test", ["--config", str(config_directory() / name)])
    return runs_of(experiment)


def test_the_schedule_of_groups():
    """M = 16, 8, 4, 2, merged after each, then supervised training at its own learning rate."""
    *preferred, supervised = stages("temple.py")
    assert [[c.groups for c in run.corrupt] for run in preferred] == [
        [m] * 3 for m in (16, 8, 4, 2)
    ]
    for run in preferred:
        assert [type(c) for c in run.corrupt] == [Drop, Shuffle, Reverse]
        assert run.objective == DPO(beta=0.1, sft_weight=1.0)
        assert run.optim.lr == 5e-6
        assert run.rollout.sampling.repetition_penalty == 1.05
    assert supervised.objective == Supervised()
    assert supervised.optim.lr == 1e-4
    assert supervised.prompts.has_answers
    for before, run in itertools.pairwise([*preferred, supervised]):
        assert run.base == PriorRun(before.workdir, merge=True)
        scale = 32.0 if run is supervised else 64.0
        assert (run.lora.rank, run.lora.alpha, run.train.batch_size) == (32, scale, 16)


def test_the_schedule_of_noise():
    """It is the analogue for single images."""
    *noised, supervised = stages("temple_image.py")
    assert [run.corrupt for run in noised] == [(DiffusionNoise(t),) for t in (999, 800, 500, 300)]
    assert all(run.base == PriorRun(e.workdir) for e, run in itertools.pairwise(noised))
    assert supervised.objective == Supervised()


def test_sequences_of_the_world():
    """Answers name the objects of all images, in order."""
    source = WorldSequences(num=5, images=3)
    data = source.open()
    single = WorldPrompts(source.world, "sequences", False, ("describe",), 15).open()
    for i, prompt in enumerate(data.prompts):
        parts = single.prompts[3 * i : 3 * i + 3]
        assert prompt.images == tuple(p.images[0] for p in parts)
        assert prompt.meta["answer"] == " and ".join(p.meta["answer"] for p in parts)
        assert len(prompt.meta["objects"]) == 3
    np.testing.assert_array_equal(
        data.load_image(data.prompts[1].images[0]), single.load_image(single.prompts[3].images[0])
    )
