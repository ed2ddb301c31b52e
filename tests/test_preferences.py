"""Preferences made by others: each format as its authors write it, and its traps."""

from __future__ import annotations

import collections
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from seva_jax.data.changed import ChangedImages
from seva_jax.data.files import ImageFolder
from seva_jax.data.messages import SwiftPairs, TrlPairs
from seva_jax.data.mixed import Concatenated, Mixture
from seva_jax.data.preferences import (
    HaDpoPairs,
    PovidPairs,
    RlaifVPairs,
    SevaPairs,
    VLFeedbackPairs,
)
from seva_jax.data.scores import ScoredPairs
from seva_jax.types import Comparison, DataError, ExampleError, Prompt, View

HF_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def encoded(level, kind="PNG") -> bytes:
    """Draws a grey image; its level tells it from others."""
    file = io.BytesIO()
    Image.new("RGB", (4, 3), (level,) * 3).save(file, kind)
    return file.getvalue()


@pytest.fixture
def root(tmp_path) -> Path:
    """Writes images `a.png` (10) and `b.gif` (20)."""
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes(encoded(10))
    (folder / "b.gif").write_bytes(encoded(20, "GIF"))
    return folder


def write_json(path, records) -> str:
    path.write_text(json.dumps(records), encoding="utf-8")
    return str(path)


def write_lines(path, records) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return str(path)


def level(found, comparison, number=0):
    return int(found.load_image(comparison.prompt.images[number])[0, 0, 0])


# --- plain fields ---------------------------------------------------------------------------------


def test_seva_step3(root, tmp_path):
    pair = {"chosen": "A cat.", "reject": "A dog.", "question": "What?", "image_id": "b.jpg"}
    bad = [
        (pair | {"reject": " A cat. "}, "equal answers"),
        (pair | {"chosen": ""}, "empty chosen answer"),
        ({k: v for k, v in pair.items() if k != "reject"}, "empty rejected answer"),
        (pair | {"image_id": "gone.jpg"}, "missing image"),
    ]
    path = write_json(tmp_path / "step3.json", [pair, *(record for record, _ in bad)])
    found = SevaPairs(path, str(root)).open()
    prompt = Prompt("b.jpg#0", "What?", ("b.jpg",))
    assert list(found.comparisons) == [Comparison(prompt, ("A cat.", "A dog."))]
    assert list(found.prompts) == [prompt]
    assert level(found, found.comparisons[0]) == 20  # found by its stem, decoded by its content
    assert found.drops == {reason: 1 for _, reason in bad}


def test_rlaif_v_parquet(tmp_path):
    """Two shards in a folder are read as on the Hub: images are embedded, `image_path` ignored."""
    schema = pa.schema(
        [(x, pa.string()) for x in ("ds_name",)]
        + [("image", HF_IMAGE)]
        + [(x, pa.string()) for x in ("question", "chosen", "rejected")]
        + [(x, pa.string()) for x in ("origin_dataset", "origin_split")]
        + [("idx", pa.string()), ("image_path", pa.string())]
    )
    for shard in range(2):
        rows = [
            {
                "ds_name": "RLAIF-V", "image": {"bytes": encoded(50 * shard + i), "path": None},
                "question": f"Q{i}?", "chosen": "yes", "rejected": "no" if i else "yes",
                "origin_dataset": "VQAv2", "origin_split": '{"model": "OmniLMM"}',
                "idx": str(i), "image_path": "RLAIF-V-Dataset_0/x.jpg",
            }
            for i in range(5)
        ]  # fmt: skip
        table = pa.Table.from_pylist(rows, schema)
        pq.write_table(table, tmp_path / f"RLAIF-V-Dataset_{shard:03}.parquet", row_group_size=2)
    found = RlaifVPairs(str(tmp_path)).open()
    assert [c.prompt.id for c in found.comparisons] == ["1", "2", "3", "4", "6", "7", "8", "9"]
    assert [level(found, c) for c in found.comparisons] == [1, 2, 3, 4, 51, 52, 53, 54]
    assert found.drops == {"equal answers": 2}
    first = found.comparisons[0]
    assert (first.prompt.question, first.answers) == ("Q1?", ("yes", "no"))
    assert first.prompt.meta["origin_split"] == '{"model": "OmniLMM"}'
    assert found.read_image is not None
    assert found.read_image(first.prompt.images[0]) == encoded(1)
    with pytest.raises(ExampleError) as caught:
        found.load_image(first.prompt.images[0].replace("/1/", "/99/"))
    assert caught.value.reason == "missing image"


@pytest.mark.parametrize("as_string", [True, False])
def test_rlhf_v_parquet(tmp_path, as_string):
    """The column `text` is declared as a string and holds an object."""
    said = {"question": "Q?", "chosen": "yes", "rejected": "no"}
    rows = [
        {"ds_name": "RLHF-V", "image": {"bytes": encoded(7), "path": "x.jpg"}, "idx": i,
         "text": json.dumps(said) if as_string else said, "image_path": "x.jpg"}
        for i in range(2)
    ]  # fmt: skip
    if as_string:
        rows[1]["text"] = "{'question': 'Q?'}"
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "RLHF-V-Dataset.parquet")
    found = RlaifVPairs(str(tmp_path / "RLHF-V-Dataset.parquet")).open()
    first = found.comparisons[0]
    assert (first.prompt.question, first.answers) == ("Q?", ("yes", "no"))
    assert level(found, first) == 7
    assert first.prompt.meta["idx"] == 0
    assert found.drops == ({"broken line": 1} if as_string else {})


def test_parquet_that_names_files(root, tmp_path):
    """`datasets` writes a null for the bytes of an image that stayed a file."""
    rows = [{"image": {"bytes": None, "path": name}, "question": "Q?", "chosen": "x",
             "rejected": "y"} for name in ("b.gif", "gone.png", "../secret.png")]  # fmt: skip
    schema = pa.schema([("image", HF_IMAGE)] + [(x, pa.string()) for x in list(rows[0])[1:]])
    path = tmp_path / "x.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema), path)
    found = RlaifVPairs(str(path), str(root)).open()
    assert level(found, found.comparisons[0]) == 20
    assert found.drops == {"missing image": 1, "unsafe image path": 1}
    with pytest.raises(DataError, match="image folder is not set"):
        RlaifVPairs(str(path)).open()


def talk(*values):
    roles = ("human", "gpt") * len(values)
    return [{"from": role, "value": value} for role, value in zip(roles, values, strict=False)]


def test_povid(root, tmp_path):
    record = {
        "id": "000000033471",
        "image": "a.png",
        "conversations": talk("<image>\nWhat?", "A bus.", "Why?", "So."),
        "rejected_conversations": talk("<image>\nWhat?", "A ship.", "Why?", "No."),
    }
    system = {"from": "system", "value": "Be brief."}
    same, short = talk("<image>\nWhat?", "A bus."), record | {"conversations": talk("Q?", "A.")}
    bad = [
        (record | {"rejected_conversations": talk("<image>\nWho?", "A ship.")}, "no question"),
        (record | {"rejected_conversations": None}, "no question"),
        (record | {"rejected_conversations": [system, *same]}, "system message"),
        (record | {"rejected_conversations": same + talk("Why?", "No.")}, "several turns"),
        (record | {"conversations": same, "rejected_conversations": same}, "equal answers"),
        (short | {"rejected_conversations": talk("<image><image>Q?", "B.")}, "no question"),
        (record | {"image": "gone.png"}, "missing image"),
    ]
    path = write_json(tmp_path / "povid.json", [record, record, *(r for r, _ in bad)])
    found = PovidPairs(path, str(root)).open()
    assert list(found.comparisons) == [
        Comparison(Prompt(f"000000033471#{i}", "What?", ("a.png",)), ("A bus.", "A ship."))
        for i in range(2)
    ]
    assert found.drops == collections.Counter(reason for _, reason in bad)
    assert found.notes == {"later turns not used": 2}  # of records that are used


def test_mmedpo(root, tmp_path):
    """Its files are POVID's with a weight for each pair (data/slake_dpo_weighted.json)."""
    record = {
        "id": 0,
        "image": "a.png",
        "conversations": talk("<image>\nWhat modality is used?", " MRI"),
        "rejected_conversations": talk("<image>\nWhat modality is used?", " X-ray."),
        "weighted_score": 0.8,
    }
    path = write_json(tmp_path / "mmedpo.json", [record])
    (pair,) = ScoredPairs(PovidPairs(path, str(root)), "weighted_score").open().comparisons
    assert pair.answers == ("MRI", "X-ray.")
    assert pair.scores == (0.0, 0.8)


def test_ha_dpo(tmp_path):
    folder = tmp_path / "VG"
    for name, grey in (("VG_100K/2316", 1), ("VG_100K_2/99", 2)):
        (folder / name).parent.mkdir(parents=True)
        (folder / f"{name}.jpg").write_bytes(encoded(grey, "JPEG"))
    wordings = {"chosen": ["good 1", "good 2"], "rejected": ["bad 1", "bad 2", "bad 3"]}
    records = [
        *({"image_id": 2316} | wordings for _ in range(20)),
        {"image_id": "99", "question": "Is it red?", "chosen": "No.", "reject": "Yes."},
        {"image_id": 5} | wordings,
        {"image_id": 99, "chosen": [], "rejected": ["bad"]},
    ]
    path = write_json(tmp_path / "desc_data.json", records)
    found = HaDpoPairs(path, str(folder)).open()
    assert found.drops == {"missing image": 1, "empty chosen answer": 1}
    *described, asked = found.comparisons
    assert {c.prompt.question for c in described} == {"Describe this image in detail."}
    assert {text for c in described for text in c.answers} == {
        text for texts in wordings.values() for text in texts
    }
    assert all(c.answers[0].startswith("good") for c in described)
    assert (asked.prompt.question, asked.answers) == ("Is it red?", ("No.", "Yes."))
    assert [level(found, c) for c in (described[0], asked)] == [1, 2]
    assert [c.answers for c in HaDpoPairs(path, str(folder)).open().comparisons] == [
        c.answers for c in found.comparisons
    ]


def completion(response, *ratings):
    aspects = ("Helpfulness", "Visual Faithfulness", "Ethical Considerations")
    return {
        "annotations": {
            a: {"Rating": r, "Rationale": "because"} for a, r in zip(aspects, ratings, strict=True)
        },
        "model": "some-vlm",
        "response": response,
    }


FEEDBACK = {
    "id": "svit-1",
    "prompt": "What?",
    "models": ["some-vlm"] * 4,
    "completions": [
        completion("middling", "3", "4", "5"),
        completion("worst", "1", "2", "5"),
        completion("never mind", "5", "N/A", "5"),
        completion("best", "5", "5", "5"),
    ],
    "img_path": "a.jpg",
}
BAD_FEEDBACK = [
    (FEEDBACK | {"completions": [completion(x, "4", "4", "4") for x in "ab"]}, "equal ratings"),
    # The sums of these, added in order, differ in the last bit.
    (
        FEEDBACK
        | {
            "completions": [
                completion("a", "0.1", "0.2", "0.3"),
                completion("b", "0.3", "0.2", "0.1"),
            ]
        },
        "equal ratings",
    ),
    (FEEDBACK | {"completions": FEEDBACK["completions"][2:]}, "unparsable rating"),
    (FEEDBACK | {"completions": None}, "no answers"),
    (FEEDBACK | {"id": "x", "img_path": None}, "missing image"),
]


def test_vlfeedback_lines(root, tmp_path):
    (root / "svit-2.jpg").write_bytes(encoded(30, "JPEG"))
    moved = FEEDBACK | {"id": "svit-2", "img_path": "/mnt/authors/disk/images/x.jpg"}
    records = [FEEDBACK, moved, *(record for record, _ in BAD_FEEDBACK)]
    found = VLFeedbackPairs(write_lines(tmp_path / "vlf.jsonl", records), str(root)).open()
    assert [c.answers for c in found.comparisons] == [("best", "worst")] * 2
    assert [level(found, c) for c in found.comparisons] == [10, 30]
    assert found.comparisons[0].prompt.meta == {"ratings": [5.0, pytest.approx(8 / 3)]}
    assert found.drops == collections.Counter(reason for _, reason in BAD_FEEDBACK)
    assert found.notes == {"unparsable rating": 2}  # of records that are used


@pytest.mark.parametrize("lists", [True, False])
def test_vlfeedback_parquet(tmp_path, lists):
    """The Hub's copy has lists of completions, or with older `datasets` a struct of lists."""
    answers = FEEDBACK["completions"]
    aspects = answers[0]["annotations"]
    if not lists:
        answers = {
            "annotations": {
                aspect: {
                    key: [a["annotations"][aspect][key] for a in answers]
                    for key in ("Rating", "Rationale")
                }
                for aspect in aspects
            },
            "model": [a["model"] for a in answers],
            "response": [a["response"] for a in answers],
        }
    image = {"bytes": encoded(9), "path": "x.jpg"}
    row = {k: v for k, v in FEEDBACK.items() if k != "img_path"}
    path = tmp_path / "x.parquet"
    pq.write_table(pa.Table.from_pylist([row | {"completions": answers, "image": image}]), path)
    found = VLFeedbackPairs(str(path)).open()
    assert found.comparisons[0].answers == ("best", "worst")
    assert level(found, found.comparisons[0]) == 9


# --- messages -------------------------------------------------------------------------------------


def said(role, *content):
    parts = [{"type": "image"} if x is None else {"type": "text", "text": x} for x in content]
    return [{"role": role, "content": parts}]


TRL = {
    "images": ["a.png"],
    "prompt": said("user", None, "What?"),
    "chosen": said("assistant", "A cat."),
    "rejected": said("assistant", "A dog."),
}


@pytest.mark.parametrize(
    ("change", "question", "images"),
    [
        ({}, "What?", ("a.png",)),
        ({"prompt": "What?"}, "What?", ("a.png",)),
        ({"prompt": [{"role": "user", "content": "What?"}]}, "What?", ("a.png",)),
        ({"images": None, "image": "a.png"}, "What?", ("a.png",)),
        ({"images": [], "prompt": "What?"}, "What?", ()),
        (
            {"images": ["a.png", "b.gif"], "prompt": said("user", None, None, "Same?")},
            "Same?",
            ("a.png", "b.gif"),
        ),
        (
            {"images": ["a.png", "b.gif"], "prompt": said("user", "Is ", None, " like ", None)},
            "Is <image> like <image>",
            ("a.png", "b.gif"),
        ),
        ({"chosen": "A cat.", "rejected": "A dog."}, "What?", ("a.png",)),
        (
            {
                "prompt": None,
                "chosen": TRL["prompt"] + TRL["chosen"],
                "rejected": TRL["prompt"] + TRL["rejected"],
            },
            "What?",
            ("a.png",),
        ),
    ],
)
def test_trl_lines(root, tmp_path, change, question, images):
    path = write_lines(tmp_path / "trl.jsonl", [TRL | change])
    (found,) = TrlPairs(path, str(root)).open().comparisons
    assert found == Comparison(Prompt("0", question, images), ("A cat.", "A dog."))


BAD_TRL = [
    ({"prompt": said("system", "Be nice.") + TRL["prompt"]}, "system message"),
    ({"prompt": TRL["prompt"] + TRL["chosen"] + TRL["prompt"]}, "several turns"),
    ({"prompt": TRL["chosen"]}, "wrong role"),
    ({"prompt": said("user", None, None, "What?")}, "image markers"),
    ({"prompt": [{"role": "user", "content": [{"type": "audio"}]}]}, "no messages"),
    ({"chosen": []}, "no messages"),
    ({"rejected": TRL["chosen"]}, "equal answers"),
    ({"images": ["gone.png"]}, "missing image"),
    ({"images": [4]}, "no image"),
    ({"prompt": None}, "no question"),
    ({"prompt": None, "chosen": TRL["prompt"] + TRL["chosen"]}, "no messages"),
    (
        {side: (TRL["prompt"] + TRL[side]) * 2 for side in ("chosen", "rejected")}
        | {"prompt": None},
        "several turns",
    ),
    (
        {
            "prompt": None,
            "chosen": TRL["prompt"] + TRL["chosen"],
            "rejected": said("user", "Who?") + TRL["rejected"],
        },
        "no question",
    ),
]


def test_trl_bad_records(root, tmp_path):
    path = write_lines(tmp_path / "trl.jsonl", [TRL, *(TRL | change for change, _ in BAD_TRL)])
    found = TrlPairs(path, str(root)).open()
    assert len(found.comparisons) == 1
    reasons = [reason for _, reason in BAD_TRL]
    assert found.drops == {reason: reasons.count(reason) for reason in reasons}


def test_trl_parquet(tmp_path):
    """A cell may have several images; `datasets` writes a null as `text` of an image part."""
    message = pa.list_(
        pa.struct(
            [
                ("content", pa.list_(pa.struct([("text", pa.string()), ("type", pa.string())]))),
                ("role", pa.string()),
            ]
        )
    )
    schema = pa.schema(
        [("images", pa.list_(HF_IMAGE))] + [(x, message) for x in ("prompt", "chosen", "rejected")]
    )
    rows = [
        TRL | {"images": [{"bytes": encoded(i + k), "path": None} for k in range(1 + i % 2)],
               "prompt": said("user", *[None] * (1 + i % 2), f"Q{i}?")}
        for i in range(5)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "x.parquet", row_group_size=2)
    found = TrlPairs(str(tmp_path / "x.parquet")).open()
    assert [c.prompt.question for c in found.comparisons] == [f"Q{i}?" for i in range(5)]
    levels = [[level(found, c, k) for k in range(len(c.prompt.images))] for c in found.comparisons]
    assert levels == [[0], [1, 2], [2], [3, 4], [4]]


SWIFT = {
    "messages": [
        {"role": "user", "content": "<image>What?"},
        {"role": "assistant", "content": "A cat."},
    ],
    "images": ["a.png"],
    "rejected_response": "A dog.",
}


def test_swift_lines(root, tmp_path):
    whole = [SWIFT["messages"][0], {"role": "assistant", "content": "A dog."}]
    same = {"rejected_images": ["a.png"]}
    good = [SWIFT, SWIFT | same, {**SWIFT, **same, "rejected_messages": whole}]
    good[2].pop("rejected_response")
    bad = [
        (SWIFT | {"rejected_images": ["nowhere.png"]}, "missing image"),
        (SWIFT | {"rejected_images": ["a.png", "a.png"]}, "image markers"),
        (SWIFT | {"rejected_response": None}, "empty rejected answer"),
        (SWIFT | {"rejected_messages": SWIFT["messages"][1:]}, "no messages"),
        (
            SWIFT | {"rejected_messages": [{"role": "user", "content": "Who?"}, whole[1]]},
            "no question",
        ),
        (SWIFT | {"messages": whole * 2}, "several turns"),
        (SWIFT | {"images": []}, "image markers"),
    ]
    path = write_lines(tmp_path / "swift.jsonl", good + [record for record, _ in bad])
    found = SwiftPairs(path, str(root)).open()
    assert list(found.comparisons) == [
        Comparison(Prompt(str(i), "What?", ("a.png",)), ("A cat.", "A dog.")) for i in range(3)
    ]
    assert found.drops == collections.Counter(reason for _, reason in bad)


def test_swift_sides_that_see_different_images(root, tmp_path):
    """They become two trees; without a rejected text both have the same answer."""
    apart = SWIFT | {"rejected_images": ["b.png"]}
    alone = {k: v for k, v in apart.items() if k != "rejected_response"}
    whole = [
        {"role": "user", "content": "<image><image>What?"},
        {"role": "assistant", "content": "A dog."},
    ]
    many = alone | {"rejected_images": ["b.png", "a.png"], "rejected_messages": whole}
    path = write_lines(tmp_path / "swift.jsonl", [apart, alone, many])
    found = SwiftPairs(path, str(root)).open()
    assert not found.drops
    for i, (answer, images) in enumerate(
        [("A dog.", ("b.png",)), ("A cat.", ("b.png",)), ("A dog.", ("b.png", "a.png"))]
    ):
        comparison = found.comparisons[i]
        assert comparison.prompt == Prompt(str(i), "What?", ("a.png",))
        assert comparison.answers == ("A cat.",)
        assert comparison.more == (View(Prompt(str(i), "What?", images), (answer,)),)
    assert found.load_image("b.png")[0, 0, 0] == 20  # which is b.gif
    with pytest.raises(DataError, match="several views"):
        ChangedImages(SwiftPairs(path, str(root))).open()


# --- files that cannot be read --------------------------------------------------------------------


def test_nothing_to_read(root, tmp_path):
    with pytest.raises(DataError, match="path of the data is not set"):
        TrlPairs().open()
    with pytest.raises(DataError, match=r"no \.parquet files below"):
        RlaifVPairs(str(root)).open()
    (tmp_path / "x.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(DataError, match=r"x\.parquet: not readable as parquet"):
        RlaifVPairs(str(tmp_path / "x.parquet")).open()
    path = write_lines(tmp_path / "trl.jsonl", [TRL | {"chosen": None}])
    with pytest.raises(DataError, match=r"no usable prompt is left \(1 no messages\); the first: "):
        TrlPairs(path, str(root)).open()


# --- several sources ------------------------------------------------------------------------------


def seva(path, num, root, word):
    pairs = [
        {"chosen": f"{word} {i}", "reject": "x", "question": "Q?", "image_id": "a.png"}
        for i in range(num)
    ]
    return SevaPairs(write_json(path, pairs), str(root))


def test_mixture_has_the_shares_everywhere(root, tmp_path):
    few, many = seva(tmp_path / "f", 20, root, "few"), seva(tmp_path / "m", 100, root, "many")
    mixture = Mixture((few, many), weights=(1, 3))
    assert mixture.has_answers
    found = mixture.open()
    words = [c.answers[0].split()[0] for c in found.comparisons]
    assert len(words) == 81  # the few run out before the 21st of them
    for start in range(0, 80, 4):
        assert words[start : start + 4].count("few") == 1
    ids = [p.id for p in found.prompts]
    assert len(set(ids)) == len(ids)
    assert {id_[:2] for id_ in ids} == {"0/", "1/"}
    assert [c.prompt for c in found.comparisons] == list(found.prompts)
    assert np.all(found.load_image(found.prompts[0].images[0]) == 10)
    assert [p.id for p in mixture.open().prompts] == ids
    other = [p.id for p in Mixture((few, many), weights=(1, 3), seed=1).open().prompts]
    assert other != ids
    assert [p.id for p in Mixture((few, many), weights=(2, 6), num=8).open().prompts] == ids[:8]


def test_mixtures_that_cannot_be(root, tmp_path):
    few = seva(tmp_path / "f", 2, root, "few")
    for mixture, message in (
        (Mixture((few,), (1, 2)), "one number above 0 for each of 1 sources"),
        (Mixture((few,), (0,)), "one number above 0"),
        (Mixture((few,), (float("nan"),)), "one number above 0"),
        (Mixture((few,), (1,), num=3), "needs more examples of source 0 than its 2"),
        (Mixture((few,), (1,), num=-1), "num must be 0"),
        (Mixture(), "sources is empty"),
        (Concatenated((few, ImageFolder(str(root)))), r"both prompts and pairs \(SevaPairs \(pa"),
    ):
        with pytest.raises(DataError, match=message):
            mixture.open()
    joined = Concatenated((few, few)).open()
    assert [c.prompt.id for c in joined.comparisons] == [
        "0/a.png#0", "0/a.png#1", "1/a.png#0", "1/a.png#1",
    ]  # fmt: skip
