"""Texts about videos: the ids are those of LLaVA-OneVision's own chat template and processor."""

import jinja2
import numpy as np
import pytest
from helpers_families import SIDE, video_tokens
from helpers_tokenizer import qwen2_style_tokenizer

from seva_jax.convert.chat_template import read_template
from seva_jax.convert.families import FAMILIES
from seva_jax.convert.processor import chat_template, write_chat_template
from seva_jax.images import ImageLayouts, LlavaOnevisionProcessing
from seva_jax.text import ONEVISION, Encoder
from seva_jax.types import IMAGE_MARKER, VIDEO_MARKER, Prompt, View

# What llava-hf/llava-onevision-qwen2-7b-ov-hf, chat_template.json, writes: in each message images,
# then videos, then texts.
OWN = """\
{%- for m in messages -%}
  {{- '<|im_start|>' + m.role + ' ' -}}
  {%- for c in m.content if c.type == 'image' -%}{{- '<image>' -}}{%- endfor -%}
  {%- for c in m.content if c.type == 'video' -%}{{- '<video>' -}}{%- endfor -%}
  {%- for c in m.content if c.type == 'text' -%}{{- '\n' + c.text -}}{%- endfor -%}
  {{- '<|im_end|>' -}}
{%- endfor -%}
{{- '<|im_start|>assistant\n' if add_generation_prompt -}}
"""
QUESTION, ANSWER = "What happens?\n- 12345 é", "It is a red car, isn't it? 中"
TOKENIZER = qwen2_style_tokenizer([f"user assistant {QUESTION} {ANSWER}"] * 4)
IMAGE, VIDEO = TOKENIZER.convert_tokens_to_ids([IMAGE_MARKER, VIDEO_MARKER])
PROCESSING = LlavaOnevisionProcessing(size=SIDE, resolutions=((SIDE, SIDE),))
FEATURES = (SIDE // 14) ** 2


def user(*content):
    """Returns a message of texts, and of images and videos where a part is a marker."""
    kinds = {IMAGE_MARKER: {"type": "image"}, VIDEO_MARKER: {"type": "video"}}
    parts = [kinds.get(part) or {"type": "text", "text": part} for part in content]
    return {"role": "user", "content": parts}


def said(text):
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def rendered(chat, messages, answer_next=True):
    return TOKENIZER.apply_chat_template(
        messages, chat_template=chat, tokenize=False, add_generation_prompt=answer_next
    )


@pytest.mark.parametrize("frames", [1, 3])
def test_ids_of_a_prompt_are_those_of_the_own_chat_template(frames):
    """Positions of a video have the image's id with us: neither is looked up."""
    layouts = ImageLayouts(PROCESSING, FEATURES)
    encoder = Encoder(TOKENIZER, ONEVISION, IMAGE, layouts, 600, lambda name: (9, 9))
    text = rendered(OWN, [user(VIDEO_MARKER, QUESTION)])
    # As the processor of transformers does.
    count = video_tokens(frames, SIDE)
    ids = np.array(TOKENIZER(text.replace(VIDEO_MARKER, VIDEO_MARKER * count)).input_ids)
    assert (ids == VIDEO).sum() == count
    for question in (f"{VIDEO_MARKER}\n{QUESTION}", f"{QUESTION} {VIDEO_MARKER}"):
        prompt = Prompt("", question, ("x",) * frames)
        tree = encoder.encode(View(prompt, (ANSWER,)))
        np.testing.assert_array_equal(tree.trunk, np.where(ids == VIDEO, IMAGE, ids))
        whole = rendered(OWN, [user(VIDEO_MARKER, QUESTION)]) + f"{ANSWER}<|im_end|>"
        answer = TOKENIZER(whole).input_ids[-len(tree.branches[0]) :]
        assert tree.branches[0].tolist() == answer


CHATS = {
    "one turn": [user(VIDEO_MARKER, QUESTION)],
    "the video last": [user(QUESTION, VIDEO_MARKER)],
    "several videos": [user(VIDEO_MARKER, VIDEO_MARKER, QUESTION)],
    "an image and a video": [user(IMAGE_MARKER, VIDEO_MARKER, QUESTION)],
    "several turns": [
        user(VIDEO_MARKER, QUESTION), said(ANSWER), user("Why?"), said("No."),
        user(VIDEO_MARKER, "And here?"),
    ],
    "an image, then a video": [
        user(IMAGE_MARKER, QUESTION), said("No."), user(VIDEO_MARKER, "Why?"),
    ],
    "none": [user(QUESTION), said(ANSWER), user("Why?")],
}  # fmt: skip


@pytest.mark.parametrize("name", CHATS)
def test_exported_chats_have_the_ids_of_the_own_chat_template(name):
    chat = chat_template(ONEVISION, video=VIDEO_MARKER)
    assert rendered(chat, CHATS[name]) == rendered(OWN, CHATS[name])


def test_a_text_may_have_the_marker():
    """The video then goes in front, as in questions of data."""
    chat = chat_template(ONEVISION, video=VIDEO_MARKER)
    expected = rendered(OWN, CHATS["one turn"])
    for text in (f"{VIDEO_MARKER}\n{QUESTION}", f"{QUESTION} {VIDEO_MARKER}"):
        assert rendered(chat, [{"role": "user", "content": text}]) == expected


def test_answers_of_exported_chats_are_those_of_training():
    text = rendered(
        chat_template(ONEVISION, video=VIDEO_MARKER), [*CHATS["one turn"], said(ANSWER)], False
    )
    prompt = rendered(OWN, CHATS["one turn"])
    assert text == prompt + ONEVISION.before_answer + ANSWER + ONEVISION.end


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
def test_only_families_with_videos_write_them(family, tmp_path):
    write_chat_template(tmp_path, ONEVISION, family.chat_image, family.chat_video)
    chat = (tmp_path / "chat_template.jinja").read_text()
    assert read_template(tmp_path, TOKENIZER, image=family.chat_image) == ONEVISION
    if family.chat_video:
        expected = rendered(OWN, CHATS["one turn"]).replace(VIDEO_MARKER, family.chat_video)
        assert rendered(chat, CHATS["one turn"]) == expected
    else:
        with pytest.raises(jinja2.TemplateError, match="only texts and images are supported, not"):
            rendered(chat, CHATS["one turn"])
