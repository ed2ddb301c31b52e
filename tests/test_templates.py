"""Templates of chat models: the ids are those of the checkpoint's own chat template.

What the Hub's chat templates write is said here in fewer words; `SOURCES` names their files.
"""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
from helpers_tokenizer import (
    asked,
    llama3_style_tokenizer,
    llama_style_tokenizer,
    one_layout,
    qwen2_style_tokenizer,
)
from transformers import (
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    PreTrainedTokenizerFast,
)

from seva_jax.config import Checkpoint, load_experiment
from seva_jax.convert.chat_template import read_template
from seva_jax.convert.processor import chat_template, write_chat_template
from seva_jax.run.own_template import early_text_problems
from seva_jax.text.encode import Encoder
from seva_jax.text.templates import (
    CHATML,
    INTERNVL3,
    LLAMA_3,
    MISTRAL,
    ONEVISION,
    PLAIN,
    QWEN2_VL,
    QWEN3_VL,
    Template,
)
from seva_jax.text.tokenizer import check_tokenizer, load_tokenizer, save_tokenizer
from seva_jax.text.words import WordIds
from seva_jax.types import DataError, ExampleError, ImageLayout, Prompt, View

SOURCES = {
    "mistral": "llava-hf/llava-v1.6-mistral-7b-hf, chat_template.json",
    "llama_3": "llava-hf/llama3-llava-next-8b-hf, chat_template.json",
    "onevision": "llava-hf/llava-onevision-qwen2-7b-ov-hf, chat_template.json",
    "onevision_before": "llava-hf/llava-onevision-qwen2-7b-si-hf at 974bbb6, chat_template.json",
    "internvl": "OpenGVLab/InternVL3-8B-hf, chat_template.jinja",
    "internvl3": "OpenGVLab/InternVL3-78B, tokenizer_config.json",
    # As public copies of both files have them, the first also transformers' tests.
    "qwen2_vl": "Qwen/Qwen2-VL-7B-Instruct and Qwen/Qwen2.5-VL-7B-Instruct, chat_template.json",
    "qwen3_vl": "Qwen/Qwen3-VL-8B-Instruct, chat_template.json",
}
_IMAGES = "{%- for c in m.content if c.type == 'image' -%}{{- IMAGE -}}{%- endfor -%}"
_TEXTS = "{%- for c in m.content if c.type == 'text' -%}{{- TEXT -}}{%- endfor -%}"
_LAST = "{{- LAST if add_generation_prompt -}}"


def _chat(before: str, image: str, text: str, after: str, last: str) -> str:
    """Returns a chat template that writes images in front of texts, the same way for each role."""
    return (
        "{%- for m in messages -%}{{- " + before + " -}}" + _IMAGES.replace("IMAGE", image)
        + _TEXTS.replace("TEXT", text) + "{{- " + after + " -}}{%- endfor -%}"
        + _LAST.replace("LAST", last)
    )  # fmt: skip


_IN_ORDER = """\
{%- for m in messages -%}
  {{- '<|im_start|>' + m.role + '\n' -}}
  {%- if m.content is string -%}{{- m.content -}}
  {%- else -%}
    {%- for c in m.content -%}
      {{- '<IMG_CONTEXT>\n' if c.type == 'image' else c.text -}}
    {%- endfor -%}
  {%- endif -%}
  {{- '<|im_end|>\n' -}}
{%- endfor -%}
{{- '<|im_start|>assistant\n' if add_generation_prompt -}}
"""
QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
_QWEN = _IN_ORDER.replace("<IMG_CONTEXT>\n", QWEN_IMAGE)
OWN = {
    "qwen2_vl": "{%- if messages[0].role != 'system' -%}{{- '<|im_start|>system\nYou are a helpful "
    f"assistant.<|im_end|>\n' -}}}}{{%- endif -%}}{_QWEN}",
    "qwen3_vl": _QWEN,
    "mistral": """\
{%- for m in messages -%}
  {%- if m.role == 'system' -%}
    {{- '<<SYS>>\n' + m.content[0].text + '\n<</SYS>>\n\n' -}}
  {%- elif m.role == 'user' -%}
    {{- '[INST] ' -}}
    {%- for c in m.content if c.type == 'image' -%}{{- '<image>\n' -}}{%- endfor -%}
    {%- for c in m.content if c.type == 'text' -%}{{- c.text -}}{%- endfor -%}
    {{- ' [/INST]' -}}
  {%- else -%}
    {{- ' ' + m.content[0].text + '</s> ' -}}
  {%- endif -%}
{%- endfor -%}
""",
    "llama_3": _chat(
        r"'<|start_header_id|>' + m.role + '<|end_header_id|>\n\n'",
        "'<image>'",
        r"'\n' + c.text + '<|eot_id|>'",
        "''",
        r"'<|start_header_id|>assistant<|end_header_id|>\n\n'",
    ),
    "onevision": _chat(
        "'<|im_start|>' + m.role + ' '",
        "'<image>'",
        r"'\n' + c.text",
        "'<|im_end|>'",
        r"'<|im_start|>assistant\n'",
    ),
    "onevision_before": _chat(
        r"'<|im_start|>' + m.role + '\n'",
        r"'<image>\n'",
        "c.text",
        r"'<|im_end|>' + '\n'",
        r"'<|im_start|>assistant\n'",
    ),
    "internvl": _IN_ORDER,
    "internvl3": "{%- if messages[0].role != 'system' -%}{{- '<|im_start|>system\n"
    f"{INTERNVL3.system}<|im_end|>\n' -}}}}{{%- endif -%}}{_IN_ORDER}",
}
# llava-hf/llava-v1.6-vicuna-7b-hf at 30f8c4f, chat_template.json
VICUNA = _chat("m.role.upper() + ': '", r"'<image>\n'", "c.text + ' '", "''", "'ASSISTANT:'")
TEMPLATES = {
    "mistral": MISTRAL,
    "llama_3": LLAMA_3,
    "onevision": ONEVISION,
    "onevision_before": CHATML,
    "internvl": CHATML,
    "internvl3": INTERNVL3,
    "qwen2_vl": QWEN2_VL,
    "qwen3_vl": QWEN3_VL,
}
NAMES = sorted(OWN)
QUESTION, ANSWER = "What is it?\n- 12345 é", "It is a red car, isn't it? 中"
CORPUS = [f"[INST] user assistant system {QUESTION} [/INST] {ANSWER}</s>"] * 4
IMAGE_TEXT = "<img><IMG_CONTEXT></img>"


def user(num_images: int, text: str = QUESTION):
    images = [{"type": "image"}] * num_images
    return {"role": "user", "content": [*images, {"type": "text", "text": text}]}


def said(role: str, text: str):
    return {"role": role, "content": [{"type": "text", "text": text}]}


@pytest.fixture(scope="module")
def tokenizers():
    internvl = ("<img>", "</img>", "<IMG_CONTEXT>", "<video>")
    qwen2, other = qwen2_style_tokenizer(CORPUS), qwen2_style_tokenizer(CORPUS, internvl)
    vision = tuple(f"<|{x}|>" for x in ("vision_start", "vision_end", "image_pad", "video_pad"))
    qwen_vl = qwen2_style_tokenizer(CORPUS, vision)
    return {
        "mistral": llama_style_tokenizer(CORPUS, 400),
        "llama_3": llama3_style_tokenizer(CORPUS),
        "onevision": qwen2,
        "onevision_before": qwen2,
        "internvl": other,
        "internvl3": other,
        "qwen2_vl": qwen_vl,
        "qwen3_vl": qwen_vl,
    }


class ByWidth:
    """Lays an image out as one token for each pixel of its width."""

    one_layout, tile_features, blended = False, 1, 1

    def __call__(self, sizes) -> tuple[ImageLayout, ...]:
        return tuple(ImageLayout(1, np.arange(width)) for _, width in sizes)


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def image_of(name: str) -> str:
    """Returns what the chat template of a family writes for an image."""
    if name.startswith("qwen"):
        return QWEN_IMAGE
    return "<IMG_CONTEXT>" if name.startswith("internvl") else "<image>"


def encoder(name: str, tokenizers, tokens: int = 3, **options) -> Encoder:
    image = image_of(name)
    token = image.removeprefix("<|vision_start|>").removesuffix("<|vision_end|>")
    return Encoder(
        tokenizers[name],
        TEMPLATES[name],
        tokenizers[name].convert_tokens_to_ids(token),
        one_layout(tokens),
        600,
        image_text=IMAGE_TEXT if image == "<IMG_CONTEXT>" else image,
        **options,
    )


def rendered(tokenizer, chat: str, messages, answer_next: bool = True) -> str:
    return tokenizer.apply_chat_template(
        messages, chat_template=chat, tokenize=False, add_generation_prompt=answer_next
    )


def as_processor(text: str, tokens: int = 3) -> str:
    """Expands images as the processors of transformers do."""
    text = text.replace("<image>", "<image>" * tokens)
    text = text.replace("<|image_pad|>", "<|image_pad|>" * tokens)
    return text.replace("<IMG_CONTEXT>", f"<img>{'<IMG_CONTEXT>' * tokens}</img>")


@pytest.mark.parametrize("num_images", [0, 1, 2])
def test_ids_are_those_of_the_own_chat_template(name, num_images, tokenizers):
    tokenizer, coder = tokenizers[name], encoder(name, tokenizers)
    text = rendered(tokenizer, OWN[name], [user(num_images)])
    tree = coder.encode(View(asked(QUESTION, num_images), (ANSWER, f" {ANSWER}\n")))
    assert tree.trunk.tolist() == tokenizer(as_processor(text)).input_ids
    assert (tree.trunk == coder.image_token_id).sum() == 3 * num_images
    lead = " " if name == "mistral" else ""
    end = TEMPLATES[name].end
    whole = tokenizer(as_processor(text) + lead + ANSWER + end).input_ids
    for branch in tree.branches:
        assert [*tree.trunk, *branch] == whole
        assert coder.decode(branch) == ANSWER
        assert branch[-1] == coder.end_id == tokenizer.convert_tokens_to_ids(end)


@pytest.mark.parametrize("template", [MISTRAL, LLAMA_3, PLAIN])
def test_ids_are_those_of_llava_next(template, tokenizers):
    """Transformers' processor says how many tokens an image takes, and what is around them."""
    tokenizer = tokenizers["llama_3" if template == LLAMA_3 else "mistral"]
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 28},
        crop_size={"height": 28, "width": 28},
        image_grid_pinpoints=[[28, 56], [56, 28], [56, 56]],
    )
    processor = LlavaNextProcessor(
        images,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=next((OWN[name] for name, x in TEMPLATES.items() if x == template), VICUNA),
    )
    pictures = {"wide": np.zeros((40, 90, 3), np.uint8), "tall": np.zeros((90, 30, 3), np.uint8)}
    image = tokenizer.convert_tokens_to_ids("<image>")

    def ids(*names):
        content = [{"type": "image", "image": pictures[name]} for name in names]
        messages = [{"role": "user", "content": [*content, {"type": "text", "text": QUESTION}]}]
        made = processor.apply_chat_template(
            [messages], tokenize=True, return_dict=True, add_generation_prompt=True
        )
        return made["input_ids"][0]

    counts = {name: ids(name).count(image) for name in pictures}
    assert counts["wide"] != counts["tall"]
    coder = Encoder(
        tokenizer,
        template,
        image,
        ByWidth(),
        600,
        image_size=lambda name: (1, counts[name]),
    )
    for names in (("wide",), ("tall", "wide"), ()):
        assert coder.trunk(Prompt("", QUESTION, names)).tolist() == ids(*names)


@pytest.mark.parametrize("system", ["", "Be brief."])
def test_exported_chats_have_the_ids_of_the_own_chat_template(name, system, tokenizers):
    """Several turns, each with its images; the last question is to be answered."""
    tokenizer, image = tokenizers[name], image_of(name)
    chats = [[user(1)], [user(2), said("assistant", ANSWER), user(0)]]
    chats.append([*chats[1], said("assistant", "No."), user(1, "Why?")])
    for messages in chats:
        if system:
            messages = [said("system", system), *messages]
            if name == "internvl3":  # it has them as strings
                continue
        ours = rendered(tokenizer, chat_template(TEMPLATES[name], image), messages)
        assert ours == rendered(tokenizer, OWN[name], messages)
        ids = tokenizer(as_processor(ours)).input_ids
        assert ids == tokenizer(as_processor(rendered(tokenizer, OWN[name], messages))).input_ids


def test_answers_of_exported_chats_are_those_of_training(name, tokenizers):
    """The last answer of a chat stands where the encoder puts it."""
    template, image = TEMPLATES[name], image_of(name)
    chat = chat_template(template, image)
    text = rendered(tokenizers[name], chat, [user(1), said("assistant", ANSWER)], False)
    prompt = template.prompt(QUESTION).replace("<image>", image)
    assert text == prompt + template.before_answer + ANSWER + template.end


def test_own_chat_templates_are_read(name, tokenizers, tmp_path):
    image, tokenizer = image_of(name), tokenizers[name]
    (tmp_path / "chat_template.jinja").write_text(OWN[name], encoding="utf-8")
    assert read_template(tmp_path, tokenizer, image=image) == TEMPLATES[name]
    for template in (TEMPLATES[name], dataclasses.replace(TEMPLATES[name], system="Be brief.")):
        write_chat_template(tmp_path, template, image)
        assert read_template(tmp_path, tokenizer, image=image) == template


def test_chat_templates_of_texts_are_read(tokenizers, tmp_path):
    """As those of language models, which know no images."""
    chat = "{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(chat, encoding="utf-8")
    assert read_template(tmp_path, tokenizers["mistral"]) == MISTRAL
    # A line break after each image, or after all: one image alone would not tell them apart.
    other = _chat("'<|im_start|>' + m.role + '\n'", "'<image>'", r"'\n' + c.text", "'<|im_end|>\n'",
                  "'<|im_start|>assistant\n'")  # fmt: skip
    (tmp_path / "chat_template.jinja").write_text(other, encoding="utf-8")
    with pytest.raises(DataError, match="nor that of Mistral, Llama 3 or ChatML"):
        read_template(tmp_path, tokenizers["onevision"])


def test_spelled_special_tokens_are_refused(name, tokenizers):
    """All of the tokenizer, although the template may have them, too."""
    coder = encoder(name, tokenizers)
    vocabulary = tokenizers[name].added_tokens_decoder.values()
    specials = {token.content for token in vocabulary if token.special} | {"<image>"}
    assert len(specials) >= 5
    for special in specials:
        if special not in ("<image>", "<video>"):  # markers, which the template counts
            with pytest.raises(ExampleError) as info:
                coder.trunk(asked(f"What does {special} mean?"))
            assert info.value.reason == "special token in question"
            assert special in str(info.value)
        for prompt, text in (
            (asked("Why?"), f"It is {special} here"),
            (asked("Why?", start=f"It {special}"), " is"),
        ):
            with pytest.raises(ExampleError) as info:
                coder.answer(prompt, text)
            assert info.value.reason == "special token in answer"
            assert special in str(info.value)
    coder.trunk(asked("Is <|im| or <im_end|> special? <s", 2))


def test_generation_stops_at_both_ends(tokenizers):
    """Llama 3 ends turns and texts with different tokens; a base model names the latter."""
    tokenizer = llama3_style_tokenizer(CORPUS)
    tokenizer.eos_token = "<|end_of_text|>"
    coder = encoder("llama_3", tokenizers | {"llama_3": tokenizer})
    ids = tokenizer.convert_tokens_to_ids(["<|eot_id|>", "<|end_of_text|>"])
    assert list(coder.stop_ids) == ids
    assert coder.answer(asked("Why?"), "No.")[-1] == coder.end_id == ids[0]
    assert encoder("llama_3", tokenizers).stop_ids == (ids[0],)


@pytest.mark.parametrize("end", ["<|im_end|> ", "</s>", "", "end", "<image>"])
def test_an_answer_ends_with_one_special_token(tokenizers, end):
    template = dataclasses.replace(ONEVISION, end=end)
    with pytest.raises(DataError, match=r"but the tokenizer's end token is '<\|im_end\|>'"):
        dataclasses.replace(encoder("onevision", tokenizers), template=template)


def test_an_end_that_is_also_the_unknown_word(tokenizers):
    """Tokenizers of bytes know all words: no answer is refused because it ends."""
    tokenizer = qwen2_style_tokenizer(CORPUS)
    tokenizer.unk_token = "<|im_end|>"
    coder = encoder("onevision", tokenizers | {"onevision": tokenizer})
    assert coder.unknown_id is None
    with pytest.raises(ExampleError, match="special token"):
        coder.answer(asked("Why?"), "No <|im_end|>")


def test_marked_characters_after_a_chat_template(name, tokenizers):
    coder = encoder(name, tokenizers)
    first = ANSWER.index("a red")
    for prompt in (asked(QUESTION), asked(QUESTION, 2)):
        marks = coder.marked(prompt, ANSWER, [(first, first + 5)])
        ids = coder.answer(prompt, ANSWER)
        assert coder.decode(ids[marks.astype(bool)]).strip() == "a red"


def test_wrong_image_texts_are_refused(tokenizers):
    coder = encoder("internvl", tokenizers)
    for text in ("<img>", "<image>", "<IMG_CONTEXT><IMG_CONTEXT>", "an <IMG_CONTEXT>"):
        with pytest.raises(DataError, match="as image token"):
            dataclasses.replace(coder, image_text=text)
    assert WordIds.of(coder.tokenizer) is None


def test_tokenizers_of_bytes_need_no_start_token(tokenizers):
    qwen2, internvl = tokenizers["onevision"], tokenizers["internvl"]
    check_tokenizer(qwen2, 500, qwen2.convert_tokens_to_ids("<image>"))
    image = internvl.convert_tokens_to_ids("<IMG_CONTEXT>")
    check_tokenizer(internvl, 500, image, IMAGE_TEXT)
    with pytest.raises(DataError, match="<img><IMG_CONTEXT></img> becomes"):
        check_tokenizer(internvl, 500, image + 1, IMAGE_TEXT)


def test_saved_tokenizers_keep_the_names_of_their_tokens(tmp_path):
    """Transformers' processor of InternVL asks for them by name, version 4 through this field."""
    names = {"context_image_token": "<IMG_CONTEXT>", "start_image_token": "<img>"}
    inner = qwen2_style_tokenizer(CORPUS, tuple(names.values())).backend_tokenizer
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|im_end|>", extra_special_tokens=names
    )
    save_tokenizer(tokenizer, tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert settings["extra_special_tokens"] == names
    again = load_tokenizer(tmp_path)
    assert (again.context_image_token, again.start_image_token) == ("<IMG_CONTEXT>", "<img>")


@pytest.mark.parametrize("end", ["<|eot_id|>", "<|end_of_text|>", "</s>"])
def test_ends_that_small_files_tell(end, tmp_path):
    """Any special token may end an answer, not only the one that ends a text."""
    tokenizer = llama3_style_tokenizer(CORPUS)
    tokenizer.eos_token = "<|end_of_text|>"
    save_tokenizer(tokenizer, tmp_path)
    (tmp_path / "config.json").write_text("{}")
    template = dataclasses.replace(LLAMA_3, end=end)
    experiment, _ = load_experiment("tiny", [])
    experiment = dataclasses.replace(
        experiment,
        base=Checkpoint(str(tmp_path)),
        text=dataclasses.replace(experiment.text, train=template, generate=template),
    )
    problems = list(early_text_problems(experiment, SimpleNamespace(prompts=[])))
    assert bool(problems) == (end == "</s>")
    assert all("text.train closes answers with '</s>'" in x for x in problems[:1])


def test_recorded_templates_are_what_they_were():
    """The new fields leave the words of the older ones alone."""
    assert Template("S", "U", "A", "#", "=", "<e>").prompt("Q", 2) == "S#U: <image>\n<image>\nQ#A:"
    np.testing.assert_equal(Template("S").before_answer, " ")
