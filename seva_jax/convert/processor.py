"""Writes what transformers does to images and chats before the model sees them, as a run did it.

What lives here: the image processor, the processor and the chat template of an exported directory.
What does not: the image pipeline itself (`seva_jax/images/preprocess.py`), the words around a
question (`seva_jax/text/templates.py`), tokenizer files.
"""

from __future__ import annotations

import json
from pathlib import Path

from seva_jax.convert.families import family_of
from seva_jax.convert.files import write_json
from seva_jax.convert.hf_config import read_family, read_layouts
from seva_jax.convert.original import read_json
from seva_jax.convert.original_config import original_processing
from seva_jax.images.preprocess import ImageProcessing
from seva_jax.images.processor_files import IMAGES, PROCESSOR, VIDEOS
from seva_jax.models import LlavaConfig
from seva_jax.runtime.stores import as_path
from seva_jax.text.templates import Template
from seva_jax.types import IMAGE_MARKER, DataError

CHAT = "chat_template.jinja"
# Where older versions of transformers look for a chat template, some of them before `CHAT`.
OLD_CHAT = "chat_template.json"
TOKENIZER = "tokenizer_config.json"

# Every string of the run's template is set above these lines. All blocks drop the blanks around
# them, so only expressions write. vLLM passes parts, not one string, only where it sees a loop over
# message['content'].
_JINJA = """\
{%- set chat = namespace(between='') -%}
{%- for message in messages -%}
  {%- set at = namespace(text='', words='', num=0) -%}
  {%- if message['content'] is string -%}
    {%- set at.text = message['content'] -%}
    {%- set at.words = at.text.replace('<image>', '') -%}
  {%- else -%}
    {%- for part in message['content'] -%}
      {%- if part['type'] not in ('text', 'image') and not (video and part['type'] == 'video') -%}
        {{- raise_exception('only texts and images' ~ (' and videos' if video else '')
                            ~ ' are supported, not ' ~ part['type']) -}}
      {%- endif -%}
      {%- set piece = '<image>' if part['type'] == 'image' else
                      video if part['type'] == 'video' else part['text'] -%}
      {%- set touches = at.text[-7:] == '<image>' or piece[:7] == '<image>' -%}
      {%- set at.text = at.text ~ ('' if touches or not at.text else ' ') ~ piece -%}
      {%- if piece != '<image>' -%}
        {%- set at.words = at.words ~ (' ' if at.num else '') ~ piece.replace('<image>', '') -%}
        {%- set at.num = at.num + 1 -%}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
  {%- set at.videos = 0 -%}
  {%- if video -%}
    {%- set at.videos = at.text.split(video) | length - 1 -%}
    {%- set at.text = at.text.replace(video, '') -%}
    {%- set at.words = at.words.replace(video, '') -%}
  {%- endif -%}
  {#- Several images among the words keep their places; all others, and videos, are in front. -#}
  {%- set pieces = at.text.split('<image>') -%}
  {%- set images = pieces | length - 1 -%}
  {%- set start = text_start if message['role'] == 'user' else '' -%}
  {%- if not images and not at.videos -%}
    {%- set at.text = start ~ at.words -%}
  {%- elif at.videos or images == 1 or not pieces[:-1] | join | trim
           or not pieces[1:] | join | trim -%}
    {%- set at.text = ('<image>' ~ image_end) * images ~ (video ~ image_end) * at.videos
                      ~ start ~ at.words | trim -%}
  {%- endif -%}
  {%- if image != '<image>' -%}
    {%- set at.text = at.text.replace('<image>', image) -%}
  {%- endif -%}
  {%- if message['role'] == 'system' -%}
    {%- if not loop.first -%}
      {{- raise_exception('only the first message may be a system message') -}}
    {%- endif -%}
    {{- system_start + at.text + after_system if at.text else '' -}}
  {%- else -%}
    {{- system_start + system + after_system if loop.first and system else '' -}}
    {%- if message['role'] == 'user' -%}
      {{- chat.between + before_question + at.text + sep -}}
    {%- elif message['role'] == 'assistant' -%}
      {%- if loop.last -%}
        {{- after_question + before_answer + at.text + end -}}
      {%- else -%}
        {{- before_earlier_answer + at.text + end -}}
        {%- set chat.between = turn_end -%}
      {%- endif -%}
    {%- else -%}
      {{- raise_exception('a message is of system, user or assistant, not ' ~ message['role']) -}}
    {%- endif -%}
  {%- endif -%}
{%- endfor -%}
{{- after_question if add_generation_prompt else '' -}}
"""


def chat_template(template: Template, image: str = IMAGE_MARKER, video: str = "") -> str:
    """Returns a conversation template as the Jinja template of chats that transformers renders.

    A system message, which must come first, replaces the system prompt. Every further turn follows
    the end of the answer before it and `turn_end`, without a separator in the original LLaVA.
    Content is a string, in which `<image>` stands for an image, or a list of texts and images, and
    of videos where the model takes them.

    Args:
        template: the words around questions and answers.
        image: what the processor of the model takes for an image.
        video: what it takes for a video; empty if it takes none.
    """
    names = (
        "system_start", "system", "after_system", "before_question", "image_end", "text_start",
        "sep", "after_question", "before_answer", "before_earlier_answer", "end", "turn_end",
    )  # fmt: skip
    values = {name: getattr(template, name) for name in names}
    values |= {"image": image, "video": video}
    sets = (
        f"{{%- set {name} = {json.dumps(value, ensure_ascii=False)} -%}}"
        for name, value in values.items()
    )
    return "\n".join([*sets, _JINJA])


def image_processing(
    directory: str | Path, tower: Path | None, pad_to_square: bool | None = None
) -> ImageProcessing:
    """Reads the image pipeline of a checkpoint, of either layout.

    Args:
        directory: the checkpoint.
        tower: the tower's directory of an original LLaVA.
        pad_to_square: whether images are padded to a square; None takes the checkpoint's own
            way, which for an original LLaVA is in its config.json.

    Raises:
        DataError: the processor file is missing or not supported.
    """
    directory = as_path(directory)
    if tower is not None:
        layouts = read_layouts(directory, tower)
        return original_processing(directory, tower, layouts, pad_to_square)
    return read_family(directory).read_processing(directory, pad_to_square)


def write_processor(directory: Path, config: LlavaConfig, processing: ImageProcessing) -> None:
    """Writes the files of the family's processor, except for tokenizer and chat template.

    Args:
        directory: the directory to write to.
        config: the architecture.
        processing: the image pipeline.

    Raises:
        DataError: transformers has no processor that does the same.
    """
    fields = family_of(config).processor_fields(config)
    image = processing.to_processor_config() | {"processor_class": fields["processor_class"]}
    write_json(directory / IMAGES, image)
    video = processing.to_video_config()
    if video is not None:
        write_json(directory / VIDEOS, video | {"processor_class": fields["processor_class"]})
    write_json(directory / PROCESSOR, fields)


def write_chat_template(
    directory: Path, template: Template, image: str = IMAGE_MARKER, video: str = ""
) -> None:
    """Writes a chat template, and removes every other one from the directory.

    Args:
        directory: a Hugging Face directory.
        template: the words around questions and answers.
        image: see `chat_template`.
        video: see `chat_template`.
    """
    (directory / CHAT).write_text(chat_template(template, image, video), encoding="utf-8")
    (directory / OLD_CHAT).unlink(missing_ok=True)
    for name in (TOKENIZER, PROCESSOR):
        fields = read_json(directory / name) if (directory / name).exists() else {}
        if "chat_template" in fields:
            del fields["chat_template"]
            write_json(directory / name, fields)


def replace_processing(directory: Path, config: LlavaConfig, processing: ImageProcessing) -> bool:
    """Makes a Hugging Face directory process images in a given way; returns whether it changed.

    Files that already say so stay as they are.

    Args:
        directory: a copy of a checkpoint, its files spelled as on the Hub (`hub_files.py`).
        config: the architecture.
        processing: the image pipeline.

    Raises:
        DataError: transformers has no processor that does the same.
    """
    try:
        if family_of(config).read_processing(directory, None) == processing:
            return False
    except DataError:
        pass  # a processor that says less than the run did, such as CLIP's with do_pad
    old = directory / PROCESSOR
    kept = read_json(old) if old.exists() else {}
    write_processor(directory, config, processing)
    write_json(old, read_json(old) | kept)
    return True
