"""What an export does to images and chats: the same as the run that it comes from."""

import dataclasses
import json
import re

import jinja2
import numpy as np
import pytest
from helpers_llava import PROCESSOR, write_llava, write_original, write_run
from PIL import Image
from transformers import AutoImageProcessor
from transformers.utils.chat_template_utils import render_jinja_template

from seva_jax.config.base_models import Checkpoint
from seva_jax.config.options import TextOptions
from seva_jax.convert.__main__ import open_source
from seva_jax.convert.processor import chat_template, image_processing
from seva_jax.convert.rewrite import to_hf, to_llava
from seva_jax.images.preprocess import ImageProcessing
from seva_jax.text import templates
from seva_jax.text.templates import LLAVA_V1, PLAIN, VICUNA_V1, Template
from seva_jax.types import DataError

ODD = Template(
    'It\'s "odd" {{ x }} \\n\n{% é 日本 😀', user="Q", assistant="A", sep="\n", end="<|e|>"
)
TEMPLATES = [
    *(value for value in vars(templates).values() if isinstance(value, Template)),
    *(ODD, dataclasses.replace(ODD, lead='"')),
]


def render(template, messages, answer_next=True):
    """Renders messages as transformers does."""
    (text,), _ = render_jinja_template(
        conversations=[messages],
        chat_template=chat_template(template),
        add_generation_prompt=answer_next,
    )
    return text


def user(*parts):
    """Returns a user message; None stands for an image."""
    texts = ({"type": "image"} if p is None else {"type": "text", "text": p} for p in parts)
    return {"role": "user", "content": list(texts)}


# --- chat templates

QUESTION = " What's {{this}} in 图?\n- a  "


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize(
    ("parts", "question"),
    # One image is in front, and so are several that are all before or all after the words; others
    # keep their places. Where that is in front, LLaVA's `preprocess_multimodal` in
    # llava/train/train.py strips the words. Texts are joined by spaces, as by llava-hf's template.
    [
        ((None, QUESTION), "<image>\n" + QUESTION.strip()),
        ((QUESTION, None), "<image>\n" + QUESTION.strip()),
        ((None, None, QUESTION), "<image>\n<image>\n" + QUESTION.strip()),
        ((QUESTION, None, None), "<image>\n<image>\n" + QUESTION.strip()),
        ((QUESTION,), QUESTION),
        (("a", "b"), "a b"),
        (("Is it", None, "red?"), "<image>\nIs it red?"),
        (("Is ", None, " like ", None, "?"), "Is <image> like <image>?"),
        ((None, "1 ", None, " 2"), "<image>1 <image> 2"),
        ((None, "one", "two", None), "<image>one two<image>"),
        (("<image>\nIs it?",), "<image>\nIs it?"),
        (("Is it?\n<image>",), "<image>\nIs it?"),
        (("<image> <image>\nAre they?",), "<image>\n<image>\nAre they?"),
        (("1 is <image>\n2 is <image>\nSo?",), "1 is <image>\n2 is <image>\nSo?"),
    ],
)
def test_a_question_is_rendered_as_it_was_trained(template, parts, question):
    num_images = question.count("<image>")
    words = re.sub(r"^(<image>\n)+", "", question)  # in front, the template sets them apart
    expected = template.prompt(words, num_images)
    assert render(template, [user(*parts)]) == expected
    if len(parts) == 1:  # lmms-eval gives strings, with the markers in them
        assert render(template, [{"role": "user", "content": parts[0]}]) == expected


@pytest.mark.parametrize("template", TEMPLATES)
def test_an_answer_is_rendered_as_it_was_trained(template):
    """It stands where `Encoder` puts it, which some templates set apart otherwise than turns."""
    chat = [user(None, "One?"), {"role": "assistant", "content": "Yes."}]
    expected = f"{template.prompt('One?')}{template.before_answer}Yes.{template.end}"
    assert render(template, chat, answer_next=False) == expected


def test_turns_and_system_messages():
    """Turns follow each other as in SeparatorStyle.TWO of LLaVA's llava/conversation.py."""
    chat = [user(None, "One?"), {"role": "assistant", "content": "Yes."}, user("Two?")]
    turns = "USER: <image>\nOne? ASSISTANT: Yes.</s>USER: Two? ASSISTANT:"
    assert render(PLAIN, chat) == turns
    assert render(VICUNA_V1, chat) == f"{VICUNA_V1.system} {turns}"
    assert render(VICUNA_V1, [{"role": "system", "content": "Be brief."}, *chat]) == (
        f"Be brief. {turns}"
    )
    parts = [{"type": "text", "text": "Be brief."}]
    assert render(PLAIN, [{"role": "system", "content": parts}, *chat]) == f"Be brief. {turns}"
    assert render(VICUNA_V1, [{"role": "system", "content": ""}, *chat]) == turns
    answered = [*chat, {"role": "assistant", "content": [{"type": "text", "text": "No."}]}]
    assert render(PLAIN, answered, answer_next=False) == f"{turns} No.</s>"
    for wrong, message in (
        ([*chat, {"role": "system", "content": "x"}], "only the first message"),
        ([{"role": "tool", "content": "x"}], "not tool"),
        ([{"role": "user", "content": [{"type": "video"}]}], "not video"),
    ):
        with pytest.raises(jinja2.TemplateError, match=message):
            render(VICUNA_V1, wrong)


# --- image processors

PIPELINES = [
    ImageProcessing(size=28),
    ImageProcessing(size=28, pad_to_square=False),
    ImageProcessing(size=28, pad_to_square=False, shortest_edge=32, resample=Image.Resampling(2)),
    ImageProcessing(size=28, pad_to_square=False, keep_aspect=False),
    ImageProcessing(size=28, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), pad_colour=(127, 102, 76)),
    ImageProcessing(size=28, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),  # of do_normalize: false
]


@pytest.mark.parametrize("processing", PIPELINES)
def test_transformers_makes_the_same_pixels(processing, tmp_path):
    """Within the bounds of test_images_parity.py: 1/255 on average, 4/255 anywhere."""
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processing.to_processor_config()))
    assert ImageProcessing.from_processor_config(tmp_path) == processing
    theirs = AutoImageProcessor.from_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    for size in ((40, 120), (53, 31), (28, 28)):
        image = rng.integers(0, 256, (*size, 3), np.uint8)
        image[:, : size[1] // 3] = (255, 0, 0)
        made = theirs(Image.fromarray(image), return_tensors="np")["pixel_values"][0]
        difference = np.abs(made.transpose(1, 2, 0) - processing(image)) * np.array(processing.std)
        assert difference.mean() <= 1 / 255
        assert difference.max() <= 4 / 255


def test_a_colour_that_transformers_cannot_pad_with_is_refused():
    with pytest.raises(DataError, match=r"colour \(0, 0, 0\).*pad with .* \(122, 116, 104\)"):
        ImageProcessing(pad_colour=(0, 0, 0)).to_processor_config()


# --- exported directories


@pytest.fixture
def checkpoint(tmp_path):
    (tmp_path / "model").mkdir()
    directory = write_llava(tmp_path / "model")
    (directory / "tokenizer.json").write_text("{}")
    return directory


def run_of(directory, workdir, pad: bool | None = True, template=VICUNA_V1, vision_tower=""):
    """Writes a run, and returns it as the source of an export."""
    base = Checkpoint(str(directory), vision_tower, pad_to_square=pad)
    text = TextOptions(train=template)
    write_run(workdir, directory, vision_tower=vision_tower, base=base, text=text)
    return open_source(workdir)


def share_of_red(directory):
    """Returns how much of a wide picture, a third of it red, the exported processor keeps."""
    image = np.full((40, 120, 3), 255, np.uint8)
    image[:, :40] = (255, 0, 0)
    processor = AutoImageProcessor.from_pretrained(directory)
    pixels = processor(Image.fromarray(image), return_tensors="np")["pixel_values"][0]
    picture = ImageProcessing(size=28).denormalise(pixels.transpose(1, 2, 0))
    return (picture[..., 1] < 50).mean()


@pytest.mark.parametrize("nested", [False, True])
def test_images_as_the_run_saw_them(checkpoint, tmp_path, nested):
    """A third of a third is red if the picture is padded, nothing where its ends are cropped."""
    if nested:  # as transformers 5 saves processors
        (checkpoint / "preprocessor_config.json").unlink()
        fields = {
            "processor_class": "LlavaProcessor",
            "patch_size": 14,
            "image_processor": PROCESSOR,
        }
        (checkpoint / "processor_config.json").write_text(json.dumps(fields))
    to_hf(run_of(checkpoint, tmp_path / "padded"), tmp_path / "out")
    assert abs(share_of_red(tmp_path / "out") - 1 / 9) < 0.03
    assert image_processing(tmp_path / "out", None) == ImageProcessing(size=28)
    if nested:
        kept = json.loads((tmp_path / "out" / "processor_config.json").read_text())
        assert kept.keys() >= {"patch_size", "processor_class"}
        assert "image_processor" not in kept
    for pad in (False, None):  # the checkpoint's own way: its files stay
        to_hf(run_of(checkpoint, tmp_path / f"run{pad}", pad), tmp_path / f"out{pad}")
        assert share_of_red(tmp_path / f"out{pad}") == 0
        if nested:
            split = json.loads((tmp_path / f"out{pad}" / "preprocessor_config.json").read_text())
            assert split == PROCESSOR | {"processor_class": "LlavaProcessor"}
            continue
        for path in checkpoint.glob("*processor_config.json"):
            assert path.read_bytes() == (tmp_path / f"out{pad}" / path.name).read_bytes()


@pytest.mark.parametrize("template", [VICUNA_V1, LLAVA_V1])
def test_chats_as_the_run_saw_them(checkpoint, tmp_path, template):
    """Every other template of the checkpoint is gone, wherever transformers looks for one."""
    (checkpoint / "chat_template.jinja").write_text("old")
    (checkpoint / "chat_template.json").write_text('{"chat_template": "old"}')
    for name in ("tokenizer_config.json", "processor_config.json"):
        (checkpoint / name).write_text('{"chat_template": "old", "kept": 1}')
    to_hf(run_of(checkpoint, tmp_path / "run", template=template), tmp_path / "out")
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == chat_template(template)
    assert not (tmp_path / "out" / "chat_template.json").exists()
    for name in ("tokenizer_config.json", "processor_config.json"):
        fields = json.loads((tmp_path / "out" / name).read_text())
        assert fields.pop("kept") == 1
        assert "chat_template" not in fields


@pytest.mark.parametrize("pad", [True, False])
def test_from_an_original_checkpoint(tmp_path, pad):
    checkpoint = write_original(tmp_path / "llava", tmp_path / "clip")
    source = run_of(checkpoint, tmp_path / "run", pad, LLAVA_V1, str(tmp_path / "clip"))
    to_hf(source, tmp_path / "hf")
    assert (tmp_path / "hf" / "chat_template.jinja").read_text() == chat_template(LLAVA_V1)
    assert image_processing(tmp_path / "hf", None).pad_to_square == pad
    to_llava(source, tmp_path / "out")
    # process_images in LLaVA's llava/mm_utils.py pads for "pad", and crops for other values.
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    assert fields["image_aspect_ratio"] == ("pad" if pad else "square")
    assert image_processing(tmp_path / "out", tmp_path / "clip").pad_to_square == pad


@pytest.mark.parametrize("pad", [True, False])
def test_from_a_hugging_face_checkpoint_to_the_original_layout(checkpoint, tmp_path, pad):
    to_llava(run_of(checkpoint, tmp_path / "run", pad), tmp_path / "out")
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    assert fields["image_aspect_ratio"] == ("pad" if pad else "square")


def test_an_original_checkpoint_says_itself_whether_it_pads(tmp_path):
    """The processor of its tower does not, so config.json counts."""
    for ratio, pads in (("pad", True), ("square", False)):
        checkpoint = write_original(tmp_path / ratio, tmp_path / f"clip_{ratio}")
        fields = json.loads((checkpoint / "config.json").read_text())
        (checkpoint / "config.json").write_text(json.dumps(fields | {"image_aspect_ratio": ratio}))
        for pad, expected in ((None, pads), (True, True), (False, False)):
            base = Checkpoint(str(checkpoint), str(tmp_path / f"clip_{ratio}"), pad_to_square=pad)
            assert base.assets().processing.pad_to_square == expected
