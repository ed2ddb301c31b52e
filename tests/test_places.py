"""Where the images of a question stand, compared with what LLaVA and TRL make of the same data."""

from __future__ import annotations

import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers_tokenizer import asked, llama_style_tokenizer, one_layout
from PIL import Image

from seva_jax.data.answered import AnsweredPrompts
from seva_jax.data.check import check
from seva_jax.data.embedded import HfParquet
from seva_jax.data.export import Export
from seva_jax.data.files import ImageFolder, LlavaJson, QuestionsJsonl, SevaJson
from seva_jax.data.messages import SwiftPairs, TrlPairs
from seva_jax.data.places import question_of
from seva_jax.data.preferences import (
    HaDpoPairs,
    PovidPairs,
    RlaifVPairs,
    SevaPairs,
    VLFeedbackPairs,
)
from seva_jax.data.records import EXAMPLES, ArrayRecordPairs, ArrayRecordPrompts, build
from seva_jax.data.scores import ScoredPairs
from seva_jax.data.trajectories import TrajectoryPairs
from seva_jax.runtime.files import write_records
from seva_jax.runtime.progress import Progress
from seva_jax.text.encode import Encoder
from seva_jax.text.templates import PLAIN
from seva_jax.types import DataError, ExampleError

PICTURES = "Picture 1 is <image>\nPicture 2 is <image>\nWhich one is red?"

# The text between "USER: " and " ASSISTANT:".
# LLaVA: `preprocess_multimodal` of llava/train/train.py at c121f04, run on each text. It knows one
# image for each record; None where it loses markers of others.
# TRL: `prepare_multimodal_messages` and `apply_chat_template` of trl 1.16.0 with the chat template
# of llava-hf/llava-1.5-7b-hf, run on messages whose content is the text (without markers), or its
# texts and images as parts. None where it refuses.
STRINGS = [
    # text, number of images, LLaVA, ours where it differs
    ("<image>\nWhat is this?", 1, "<image>\nWhat is this?", ""),
    ("<image>What is this?", 1, "<image>\nWhat is this?", ""),
    ("What is this?\n<image>", 1, "<image>\nWhat is this?", ""),
    ("What is this?<image>", 1, "<image>\nWhat is this?", ""),
    ("  What is this? <image> ", 1, "<image>\nWhat is this?", ""),
    ("Is <image> red?", 1, "<image>\nIs  red?", ""),
    ("Look:\n<image>\nIs it red?", 1, "<image>\nLook:\n\nIs it red?", ""),
    # SeVa asks later questions of a conversation alone, with the image; LLaVA's model sees it in
    # the first turn, and where no turn has a marker it trains without the image.
    ("What is this?", 1, "What is this?", "<image>\nWhat is this?"),
    ("What is this?", 0, "What is this?", ""),
    ("<image>\n<image>\nSame?", 2, None, "<image>\n<image>\nSame?"),
    ("Same?<image><image>", 2, None, "<image>\n<image>\nSame?"),
    ("Same?", 2, None, "<image>\n<image>\nSame?"),
    # As in later versions of LLaVA-NeXT, which only move a single image.
    (PICTURES, 2, None, PICTURES),
    ("<image> or <image>?", 2, None, "<image> or <image>?"),
    ("Is <image> like <image>", 2, None, "Is <image> like <image>"),
]
IMAGE = "<image>"
MESSAGES = [
    # content, number of images, TRL, ours where it differs
    (["What is this?", IMAGE], 1, "<image>\nWhat is this?", ""),
    ([IMAGE, "What is this?"], 1, "<image>\nWhat is this?", ""),
    ("What is this?", 1, "<image>\nWhat is this?", ""),
    (["Is", IMAGE, "red?"], 1, "<image>\nIs red?", ""),
    (["Is ", IMAGE, " red?"], 1, "<image>\nIs   red?", ""),
    ([IMAGE, "What is", "this?"], 1, "<image>\nWhat is this?", ""),
    ([IMAGE, IMAGE, "Same?"], 2, "<image>\n<image>\nSame?", ""),
    (["Same?", IMAGE, IMAGE], 2, "<image>\n<image>\nSame?", ""),
    ("Same?", 2, "<image>\n<image>\nSame?", ""),
    ("What?", 0, "What?", ""),
    # The template of LLaVA-1.5 shows all images first, where "Picture 1 is" names none.
    (
        ["Picture 1 is ", IMAGE, "\nPicture 2 is ", IMAGE, "\nWhich one is red?"],
        2,
        "<image>\n<image>\nPicture 1 is  \nPicture 2 is  \nWhich one is red?",
        PICTURES,
    ),
    # TRL refuses parts without images, and shows an image twice for a string with a marker.
    (["What?"], 1, None, "<image>\nWhat?"),
    ("<image>\nWhat?", 1, "<image>\n<image>\nWhat?", "<image>\nWhat?"),
]
WRONG = [
    (["<image><image>\nSame?"], ["a.png"], r"2 <image> for 1 images \(a\.png\)"),
    (["<image>\nSame?"], ["a.png", "b.png"], r"1 <image> for 2 images \(a\.png, b\.png\)"),
    (["<image>\nWhat?"], [], r"1 <image> for 0 images \(none\)"),
    ([IMAGE, "What?"], list("abcdefg"), r"1 <image> for 7 images \(a, b, c, d, e, \.\.\.\)"),
]


@pytest.fixture
def root(tmp_path):
    """Writes `a.png`, `b.png` and `VG_100K/1.jpg`."""
    for name in ("a.png", "b.png", "VG_100K/1.jpg"):
        (tmp_path / "images" / name).parent.mkdir(exist_ok=True, parents=True)
        Image.new("RGB", (4, 3)).save(tmp_path / "images" / name)
    return str(tmp_path / "images")


def prompt_of(source):
    """Opens a source of one example, and returns the text between "USER: " and " ASSISTANT:"."""
    (prompt,) = source.open().prompts
    text = PLAIN.prompt(prompt.question, len(prompt.images))
    return text.removeprefix("USER: ").removesuffix(" ASSISTANT:")


def turns(asked, said):
    return [{"from": "human", "value": asked}, {"from": "gpt", "value": said}]


def lines(tmp_path, *records):
    path = tmp_path / "data.json"
    path.write_text(json.dumps(list(records)))
    return str(path)


def one_line(tmp_path, record):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(record))
    return str(path)


@pytest.mark.parametrize(("text", "num", "llava", "ours"), STRINGS)
def test_a_rule_of_llava(tmp_path, root, text, num, llava, ours):
    """Every source makes of a text what LLaVA makes of it, or what the table says."""
    expected = ours or llava
    names = ["a.png", "b.png"][:num]
    answers = {"chosen": "yes", "rejected": "no", "reject": "no"}
    llava_record = {"id": 1, "image": names, "conversations": turns(text, "yes")}
    said = [{"role": "user", "content": text}, {"role": "assistant", "content": "yes"}]
    swift = {"messages": said, "images": names, "rejected_response": "no"}
    own = {"id": 1, "question": text, "images": names}
    assert prompt_of(QuestionsJsonl(one_line(tmp_path, own), root)) == expected
    povid = llava_record | {"rejected_conversations": turns(text, "no")}
    assert prompt_of(PovidPairs(lines(tmp_path, povid), root)) == expected
    if num:
        assert prompt_of(LlavaJson(lines(tmp_path, llava_record), root)) == expected
    assert prompt_of(SwiftPairs(lines(tmp_path, swift), root)) == expected
    trl = {"images": names, "prompt": text, **answers}
    assert prompt_of(TrlPairs(lines(tmp_path, trl), root)) == expected
    rlaif = {"image": names, "question": text, **answers}
    assert prompt_of(RlaifVPairs(lines(tmp_path, rlaif), root)) == expected
    pq.write_table(pa.Table.from_pylist([rlaif], SCHEMA), tmp_path / "x.parquet")
    assert prompt_of(HfParquet(str(tmp_path / "x.parquet"), image_root=root)) == expected
    if num == 1:
        seva = {"image_id": "a.png", "question": text, **answers}
        assert prompt_of(SevaPairs(lines(tmp_path, seva), root)) == expected
        assert prompt_of(SevaJson(lines(tmp_path, seva), root)) == expected
        ha_dpo = {"image_id": 1, "question": text, **answers}
        assert prompt_of(HaDpoPairs(lines(tmp_path, ha_dpo), root)) == expected
        rated = [
            {"response": word, "annotations": {"Helpfulness": {"Rating": rating}}}
            for word, rating in (("yes", "2"), ("no", "1"))
        ]
        feedback = {"id": "a", "prompt": text, "completions": rated, "img_path": "a.png"}
        path = lines(tmp_path, feedback)
        assert prompt_of(VLFeedbackPairs(path, root, aspects=("Helpfulness",))) == expected
        assert prompt_of(ImageFolder(root, questions=(text,), limit=1)) == expected
        steps = {"steps": [{"image": "a.png", "action": "up"}]}
        other = {"steps": [{"image": "a.png", "action": "down"}]}
        record = {"id": 1, "task": "x", "chosen": steps, "rejected": other}
        assert prompt_of(TrajectoryPairs(lines(tmp_path, record), root, text, window=1)) == expected


SCHEMA = pa.schema(
    [("image", pa.list_(pa.string())), ("question", pa.string())]
    + [(side, pa.string()) for side in ("chosen", "rejected", "reject")]
)


@pytest.mark.parametrize(("content", "num", "trl", "ours"), MESSAGES)
def test_messages_as_trl_shows_them(tmp_path, root, content, num, trl, ours):
    names = ["a.png", "b.png"][:num]
    if isinstance(content, list):
        content = [
            {"type": "image"} if part == IMAGE else {"type": "text", "text": part}
            for part in content
        ]
    asked = [{"role": "user", "content": content}]
    said = {
        side: [{"role": "assistant", "content": [{"type": "text", "text": word}]}]
        for side, word in (("chosen", "yes"), ("rejected", "no"))
    }
    expected = ours or trl
    record = {"images": names, "prompt": asked, **said}
    assert prompt_of(TrlPairs(lines(tmp_path, record), root)) == expected
    whole = {side: asked + said[side] for side in said}
    assert prompt_of(TrlPairs(lines(tmp_path, {"images": names, **whole}), root)) == expected
    swift = {"messages": whole["chosen"], "rejected_messages": whole["rejected"], "images": names}
    assert prompt_of(SwiftPairs(lines(tmp_path, swift), root)) == expected


@pytest.mark.parametrize(("texts", "images", "message"), WRONG)
def test_other_numbers_of_markers_are_refused(texts, images, message):
    """The message names the images; LLaVA drops markers silently, TRL and TRL's models refuse."""
    with pytest.raises(ExampleError, match=message) as info:
        question_of(texts, images)
    assert info.value.reason == "image markers"


def test_places_reach_the_tokens():
    """Image tokens stand where the markers do, in the order of the images."""
    tokenizer = llama_style_tokenizer([f"USER: {PICTURES} ASSISTANT: No."], 330)
    image_id = tokenizer.convert_tokens_to_ids(IMAGE)
    encoder = Encoder(tokenizer, PLAIN, image_id, one_layout(3), 200)
    ids = encoder.trunk(asked(PICTURES, 2)).tolist()
    first = ids.index(image_id)
    assert ids[first : first + 3] == [image_id] * 3
    second = ids.index(image_id, first + 3)
    assert ids[second : second + 3] == [image_id] * 3
    assert ids.count(image_id) == 6
    words = [tokenizer.decode(part).strip() for part in (ids[:first], ids[first + 3 : second])]
    assert [words[0].endswith("Picture 1 is"), words[1]] == [True, "Picture 2 is"]


@pytest.mark.parametrize("format_", ["trl", "jsonl"])
def test_exports_keep_the_places(tmp_path, root, format_):
    """What is read back from another format is what was exported."""
    questions = ["What?", PICTURES, "Same?", "<image> or <image>?", "None?"]
    images = [["a.png"], ["a.png", "b.png"], ["b.png", "a.png"], ["a.png", "b.png"], []]
    records = [
        {"prompt": text, "images": names, "chosen": "yes", "rejected": "no"}
        for text, names in zip(questions, images, strict=True)
    ]
    data = TrlPairs(lines(tmp_path, *records), root).open()
    out = tmp_path / "out.file"
    Export(data, None, lambda _: None)(format_, out)
    found = TrlPairs(str(out), root).open()
    assert [p.question for p in found.prompts] == questions
    assert [len(p.images) for p in found.prompts] == [1, 2, 2, 2, 0]


def test_a_copy_keeps_the_places(tmp_path, root):
    record = {"prompt": PICTURES, "images": ["a.png", "b.png"], "chosen": "yes", "rejected": "no"}
    data = TrlPairs(lines(tmp_path, record), root).open()
    build(data, tmp_path / "built", "", lambda _: None)
    assert ArrayRecordPairs(str(tmp_path / "built")).open().comparisons == data.comparisons


def test_counts_of_turns_are_shown(tmp_path, root):
    """The line of `python -m seva_jax.data check` says what conversations lost."""
    record = {"id": 1, "image": "a.png", "conversations": turns("Q?", "A") * 4}
    data = LlavaJson(lines(tmp_path, record), root, questions_per_image=2).open()
    tokenizer = llama_style_tokenizer(["USER: Q? ASSISTANT: A."], 330)
    encoder = Encoder(tokenizer, PLAIN, tokenizer.convert_tokens_to_ids(IMAGE), one_layout(3), 200)
    assert (
        "left out inside prompts: 2 later turns not asked, 1 later turns asked without earlier ones"
    ) in check(data, encoder, Progress).describe()


def test_images_of_later_turns(tmp_path, root):
    """A turn on its own has the images of its own markers, or those of the turns before."""
    values = ["Hello?", "<image>\nWhat is this?", "Why?", "And <image>", "Same?"]
    record = {
        "id": 1, "image": ["a.png", "b.png"],
        "conversations": [turn for value in values for turn in turns(value, "yes")],
    }  # fmt: skip
    found = LlavaJson(lines(tmp_path, record), root, questions_per_image=0).open()
    assert [(p.question, p.images) for p in found.prompts] == [
        ("Hello?", ()),
        ("What is this?", ("a.png",)),
        ("Why?", ("a.png",)),
        ("And", ("b.png",)),
        ("Same?", ("a.png", "b.png")),
    ]


def test_no_record_is_lost_to_an_id(tmp_path, root):
    """Ids 1 and "1", or one id for several questions or images, are told apart."""
    records = [
        {"id": 1, "image": "a.png", "question": "What?"},
        {"id": "1", "image": "a.png", "question": "Who?"},
        {"question_id": "1", "image": "b.png", "text": "What?"},
        {"id": 1, "image": "a.png", "question": "What?", "answer": "red"},
        {"id": "1@2", "image": "a.png", "question": "Where?"},
        {"id": 1, "image": "a.png", "question": "What?"},
    ]
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    found = QuestionsJsonl(str(path), root).open()
    assert [(p.id, p.question, p.images) for p in found.prompts] == [
        ("1", "What?", ("a.png",)),
        ("1@2", "Who?", ("a.png",)),
        ("1@3", "What?", ("b.png",)),
        ("1@4", "What?", ("a.png",)),
        ("1@2@2", "Where?", ("a.png",)),
    ]
    assert found.drops == {"repeated": 1}  # the last one, which is the first one again

    conversations = [
        {"id": i, "image": "a.png", "conversations": turns("Q?", "A")} for i in (1, "1")
    ]
    found = LlavaJson(lines(tmp_path, *conversations), root).open()
    assert [p.id for p in found.prompts] == ["1@1#0", "1@2#0"]

    pairs = [
        {"id": "7", "images": ["a.png"], "prompt": "Q?", "chosen": yes, "rejected": "no"}
        for yes in ("yes", "Yes.", "yes")
    ]
    found = TrlPairs(lines(tmp_path, *pairs), root).open()
    assert [c.answers[0] for c in found.comparisons] == ["yes", "Yes."]
    assert [c.prompt.id for c in found.comparisons] == ["7", "7@2"]
    assert found.drops == {"repeated": 1}

    steps = {"steps": [{"image": "a.png", "action": "up"}]}
    others = [{"steps": [{"image": "a.png", "action": way}]} for way in ("down", "left")]
    tasks = [{"id": 1, "task": "x", "chosen": steps, "rejected": other} for other in others]
    found = TrajectoryPairs(lines(tmp_path, *tasks), root, window=1).open()
    assert [c.prompt.id for c in found.comparisons] == ["1#0", "1#0@2"]


FULL = {
    SevaPairs: {"image_id": "a.png", "question": "Q?", "chosen": "yes", "reject": "no"},
    SevaJson: {"image_id": "a.png", "question": "Q?"},
    RlaifVPairs: {"image": "a.png", "question": "Q?", "chosen": "yes", "rejected": "no"},
    PovidPairs: {
        "image": "a.png", "conversations": turns("Q?", "yes"),
        "rejected_conversations": turns("Q?", "no"),
    },
    HaDpoPairs: {"image_id": 1, "chosen": ["yes"], "rejected": ["no"]},
    VLFeedbackPairs: {"prompt": "Q?", "completions": [], "img_path": "a.png"},
    TrlPairs: {"prompt": "Q?", "chosen": "yes", "rejected": "no"},
    SwiftPairs: {"messages": [], "rejected_response": "no"},
    LlavaJson: {"id": 1, "image": "a.png", "conversations": turns("Q?", "yes")},
    TrajectoryPairs: {"id": 1, "task": "x", "trajectories": []},
    QuestionsJsonl: {"id": 1, "image": "a.png", "question": "Q?"},
}  # fmt: skip
MISSING = [(kind, field) for kind, record in FULL.items() for field in record]
OTHERS = [(VLFeedbackPairs, "img_path"), (SwiftPairs, "rejected_response")]


@pytest.mark.parametrize(("kind", "field"), [case for case in MISSING if case not in OTHERS])
@pytest.mark.parametrize("null", [False, True])
def test_a_missing_field_is_named(tmp_path, root, kind, field, null):
    """The error also names the fields that the record has, which may be misspelt."""
    record = {key: value for key, value in FULL[kind].items() if key != field} | {"wrongg": "x"}
    write = one_line if kind is QuestionsJsonl else lines
    path = write(tmp_path, record | ({field: None} if null else {}))
    with pytest.raises(DataError) as info:
        kind(path, root).open()
    if null:
        assert re.search(rf"\b{field}( \(or \w+\))? must .*, and it is empty", str(info.value))
    else:
        assert re.search(rf"there is no field {field}\b.*; the record has ", str(info.value))
        assert "wrongg" in str(info.value)


def test_other_missing_fields_are_named(tmp_path, root):
    """A field whose absence shows later than others."""
    good = [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "yes"}]
    rated = {"annotations": {"H": {"Rating": "1"}}, "response": "a"}
    best = {"annotations": {"H": {"Rating": "2"}}, "response": "b"}
    for source, field in (
        (SwiftPairs(lines(tmp_path, {"messages": good}), root), "rejected_response"),
        (
            VLFeedbackPairs(
                one_line(tmp_path, {"prompt": "Q?", "completions": [rated, best]}), root,
                aspects=("H",),
            ),
            "img_path",
        ),
    ):  # fmt: skip
        with pytest.raises(DataError, match=rf"no field {field}.*; the record has"):
            source.open()
    said = {"images": ["a.png"], "chosen": [{"content": "yes"}], "rejected": "no", "prompt": "Q?"}
    with pytest.raises(DataError, match="no field role; the record has content"):
        TrlPairs(lines(tmp_path, said), root).open()
    steps = {"steps": [{"image": "a.png"}]}
    task = {"id": 1, "task": "x", "chosen": steps, "rejected": steps}
    for record, field in (
        (task, "action"),
        (task | {"chosen": {"x": 1}}, "steps"),
        ({"id": 1, "task": "x", "trajectories": [steps, steps]}, "success"),
        ({"id": 1, "task": "x", "chosen": steps}, "rejected"),
    ):
        with pytest.raises(DataError, match=f"no field {field}; the record has"):
            TrajectoryPairs(lines(tmp_path, record), root).open()


def test_missing_fields_of_wrapped_sources_and_copies(tmp_path, root):
    """Fields of `meta` are named, and those of a copy that another version wrote."""
    pair = {"images": ["a.png"], "prompt": "Q?", "chosen": "yes", "rejected": "no"}
    with pytest.raises(DataError, match="score is missing"):
        ScoredPairs(TrlPairs(lines(tmp_path, pair), root)).open()
    asked = QuestionsJsonl(one_line(tmp_path, {"id": 1, "image": "a.png", "question": "Q?"}), root)
    with pytest.raises(DataError, match="no prompt has an answer"):
        AnsweredPrompts(asked).open()
    build(asked.open(), tmp_path / "built", "", lambda _: None)
    write_records(tmp_path / "built" / EXAMPLES, [{"example": {"id": "1", "images": []}}])
    with pytest.raises(DataError, match=r"example 0 has no field 'question'; .* build the copy"):
        ArrayRecordPrompts(str(tmp_path / "built")).open()
