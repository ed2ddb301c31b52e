"""Trajectories from files to comparisons, and the score that ranks them."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from seva_jax.data.trajectories import (
    Gcpg,
    Outcome,
    Step,
    TrajectoryPairs,
    binned,
    step_pairs,
)
from seva_jax.objectives import Trajectory
from seva_jax.types import DataError, Prompt
from seva_jax.worlds.trajectories import WorldTrajectories


@pytest.mark.parametrize("seed", range(5))
def test_score_against_numpy(seed):
    """The product over stages equals one written out as a product."""
    rng = np.random.default_rng(seed)
    costs = [rng.uniform(0, 30, (int(rng.integers(0, 4)), 2)) for _ in range(3)]
    log_prob, success = float(-rng.uniform(0, 100)), bool(rng.integers(2))
    expected = 0.01 * log_prob + 5 * success
    expected += np.prod([np.exp(-sum(0.01 * max(0, c - top) for c, top in x)) for x in costs])
    stages = tuple(tuple((float(a), float(b)) for a, b in x) for x in costs)
    assert Gcpg()(Outcome(log_prob, stages, success)) == pytest.approx(expected)


def test_score_of_its_parts():
    """Costs below their threshold cost nothing, and each weight counts by itself."""
    free = ((3.0, 5.0), (4.0, 4.0)), ()
    assert Gcpg()(Outcome(0.0, free, False)) == 1.0
    assert Gcpg(success=2.0)(Outcome(0.0, free, True)) == 3.0
    assert Gcpg(likelihood=0.1)(Outcome(-10.0, free, False)) == pytest.approx(0.0)
    one = (((15.0, 5.0),),)
    assert Gcpg(cost=0.1)(Outcome(0.0, one, False)) == pytest.approx(np.exp(-1))


def test_equal_costs_in_another_order_score_alike(tmp_path):
    """Sums of the same numbers may differ in the last bit, and that makes none of them better."""
    costs = [0.1, 0.2, 0.3, 0.4]
    assert sum(costs) != sum(reversed(costs))
    orders = [[[[cost, 0.0] for cost in x]] for x in (costs, costs[::-1], [1.0])]
    alike = [dict(GOOD, stages=stages, log_prob=-0.3, success=False) for stages in orders]
    records = {"trajectories": alike}, {"trajectories": [GOOD, BAD]}
    data = write(tmp_path, *records, window=2, judge=Gcpg(cost=1.0)).open()
    assert data.drops == {"equal scores": 1}


@pytest.mark.parametrize("seed", range(3))
def test_bins_against_numpy(seed):
    """A bin is the number of edges, 256 from -1 to 1, at or below the number, less one."""
    values = np.random.default_rng(seed).uniform(-1.2, 1.2, 50)
    edges = np.linspace(-1, 1, 256)
    expected = [max(sum(edge <= x for edge in edges) - 1, 0) for x in values]
    assert binned(values.tolist()) == " ".join(map(str, expected))
    assert binned([0.0, 5.0, 10.0], 0, 10, 4) == "0 1 3"


# From the release: 31999 minus the ids that `ActionTokenizer` makes with 32,000 in the vocabulary.
BINS = {
    -1.5: 0, -1.0: 0, -0.9999: 0, -0.5: 63, -0.001: 127, 0.0: 127, 0.001: 127, 0.25: 159,
    0.5: 191, 0.9921: 253, 0.9922: 254, 0.999: 254, 1.0: 255, 1.5: 255,
}  # fmt: skip


def test_bins_of_the_release():
    assert binned(list(BINS)) == " ".join(map(str, BINS.values()))


def trajectory(name, actions, **facts):
    """Makes steps with an image each; all trajectories start with the same one."""
    names = ["0.png", *(f"{name}{i}.png" for i in range(1, len(actions)))]
    steps = [{"images": [n], "action": a} for n, a in zip(names, actions, strict=True)]
    return {"steps": steps} | facts


def measured(log_prob, cost, success):
    """Returns what a score needs."""
    return {"log_prob": log_prob, "stages": [[[cost, 10.0]]], "success": success}


GOOD = trajectory("a", ["up", "left", [-1, 1]], **measured(-10.0, 0.0, True))
MIDDLE = trajectory("b", ["up", "right"], **measured(-10.0, 0.0, False))
BAD = trajectory("c", ["down", "right", "stop", "stop"], **measured(-10.0, 300.0, False))


def write(tmp_path, *records, **options):
    """Writes a source of these records."""
    for name in ("0", *(f"{x}{i}" for x in "abc" for i in range(1, 4))):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    lines = [{"id": str(i), "task": "fetch it"} | record for i, record in enumerate(records)]
    path = tmp_path / "trajectories.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return TrajectoryPairs(str(path), str(tmp_path), **options)


def test_the_best_against_the_worst(tmp_path):
    """Branches are in the objective's order; steps with one image share a tree."""
    data = write(tmp_path, {"trajectories": [BAD, MIDDLE, GOOD]}, window=3).open()
    (pair,) = data.comparisons
    assert pair.prompt.question == "What action should the robot take to fetch it?"
    assert pair.prompt.id == "0#0"
    assert pair.all_answers == ("up", "down", "left", "right", "0 255", "stop")
    assert [view.prompt.images for view in pair.views] == [
        ("0.png",), ("a1.png",), ("c1.png",), ("a2.png",), ("c2.png",),
    ]  # fmt: skip
    assert data.notes == {"steps without partner": 1}
    Trajectory().check(data.comparisons)


def test_windows_and_further_pairs(tmp_path):
    """Each window is a comparison; the second best is compared with the second worst."""
    ranked = [dict(t, score=s) for t, s in ((BAD, 0), (MIDDLE, 1), (GOOD, 2), (GOOD, 3))]
    data = write(tmp_path, {"trajectories": ranked}, window=2, pairs=5).open()
    found = {c.prompt.id: c.all_answers for c in data.comparisons}
    first = {
        "0#0": ("up", "down", "left", "right"),
        "0@1#0": ("up", "up", "left", "right"),
    }
    assert found == first | {"0#1": ("left", "right", "0 255", "stop")}
    apart = write(tmp_path, {"trajectories": ranked}, window=2, stride=2, pairs=5).open()
    assert {c.prompt.id: c.all_answers for c in apart.comparisons} == first


# From the release, `window_batch`: the first steps of the windows of 8, by number of steps.
@pytest.mark.parametrize(("steps", "starts"), [(7, 0), (8, 1), (9, 2), (20, 13)])
def test_windows_of_the_release(steps, starts):
    """They have exactly 8 steps and slide by one."""
    good, bad = ([Step((f"{i}.png",), f"{who} {i}") for i in range(steps)] for who in "gb")
    found = list(step_pairs(Prompt("p", "what?", ()), good, bad, 8))
    assert [c.prompt.id for c in found] == [f"p#{i}" for i in range(starts)]
    assert {len(c.all_answers) for c in found} <= {16}
    assert [c.answers for c in found] == [(f"g {i}", f"b {i}") for i in range(starts)]


def test_windows_in_which_nothing_differs_are_left_out(tmp_path):
    same = trajectory("a", ["up", "left", "down"])
    data = write(tmp_path, {"chosen": GOOD, "rejected": same}, window=1).open()
    assert [c.prompt.id for c in data.comparisons] == ["0#2"]


def test_what_cannot_be_used_is_counted(tmp_path):
    """Each bad record has one reason, and the good one stays."""
    gone = trajectory("z", ["up", "down"])
    one = {"steps": [{"images": ["0.png"], "action": ""}]}
    records = [
        {"chosen": GOOD, "rejected": BAD},
        {"trajectories": [GOOD]},
        {"trajectories": [GOOD, GOOD]},
        {"trajectories": [GOOD, MIDDLE | {"success": 1}]},
        {"trajectories": [GOOD, MIDDLE | {"log_prob": None}]},
        {"trajectories": [GOOD, MIDDLE | {"stages": [[1.0]]}]},
        {"trajectories": [GOOD, MIDDLE | {"stages": [[["far", 1.0]]]}]},
        {"chosen": GOOD, "rejected": gone},
        {"chosen": GOOD, "rejected": GOOD},
        {"chosen": GOOD, "rejected": one},
        {"chosen": GOOD, "rejected": {"steps": []}},
        {"chosen": GOOD},
        {"chosen": GOOD, "rejected": trajectory("b", [[1, True]])},
        {"task": 3, "chosen": GOOD, "rejected": BAD},
        {"chosen": GOOD, "rejected": trajectory("b", ["up"])},
    ]
    data = write(tmp_path, *records, window=2, stride=9).open()
    assert [c.prompt.id for c in data.comparisons] == ["0#0"]
    assert data.drops == {
        "no trajectories": 2, "equal scores": 1, "no score": 4, "missing image": 1,
        "equal trajectories": 1, "no action": 2, "no steps": 1, "no question": 1,
        "short trajectory": 1,
    }  # fmt: skip
    with pytest.raises(DataError, match=r"low 1\.0 must be below high -1\.0"):
        dataclasses.replace(write(tmp_path, *records), low=1.0, high=-1.0).open()


def test_trajectories_of_the_world():
    """The better attempt has fewer wrong steps, and every image can be drawn."""
    data = WorldTrajectories(num=30, steps=4, window=3).open()
    assert {c.prompt.id.split("#")[1] for c in data.comparisons} == {"0", "1"}
    truth = {}
    for pair in data.comparisons:
        Trajectory(window=3).check([pair])
        for view in pair.views:
            (name,) = view.prompt.images
            split, index = name.rsplit("/", 1)
            said = WorldTrajectories().world.prompt(split, int(index), False, "describe")
            right = [answer == said.meta["answer"] for answer in view.answers]
            truth.setdefault(pair.prompt.id.split("#")[0], []).append(right)
    wrong = {task: (~np.array(steps)).sum(0) for task, steps in truth.items()}
    assert all(chosen < rejected for chosen, rejected in wrong.values())
    assert data.load_image(data.comparisons[0].images[0]).shape == (32, 32, 3)
