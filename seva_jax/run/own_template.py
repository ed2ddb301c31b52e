"""What the small files of a checkpoint say about the templates and lengths of a run.

What lives here: certain mistakes that show without a tokenizer, which takes seconds to load, and
signs that another template is likely. What does not: what the tokenizer decides
(`seva_jax/text/encode.py`). The chat template of a checkpoint is a program and is not run: its
files need not be trusted.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from seva_jax.config import BaseModel, Checkpoint, Experiment, TrainedBase
from seva_jax.convert import read_special_tokens, tower_directory
from seva_jax.convert.original import read_json
from seva_jax.data import PromptSet
from seva_jax.runtime.stores import as_path
from seva_jax.text import Template
from seva_jax.types import DataError

# Words that only one family of chat templates has.
_MARKS = {
    "<|im_start|>": "ChatML",
    "<|start_header_id|>": "Llama 3's",
    "<start_of_turn>": "Gemma's",
    "[INST]": "Llama 2's or Mistral's",
    "<|user|>": "Phi's or Zephyr's",
}
_FILES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")


def early_text_problems(config: Experiment, prompts: PromptSet) -> Iterator[str]:
    """Yields why no prompt can be answered, or no answer can end, as far as small files tell.

    Args:
        config: the run.
        prompts: its prompts, or pairs.
    """
    base, text = config.base, config.text
    images = min((len(prompt.images) for prompt in prompts.prompts), default=0)
    tokens = images * _least_tokens(base)
    if tokens >= text.max_length:
        what = "an image alone takes" if images == 1 else f"the {images} images of a prompt take"
        yield (
            f"text.max_length {text.max_length} leaves no room for questions and answers: {what} "
            f"{tokens} tokens; set --text.max-length {_rounded(tokens)} or more"
        )
    if isinstance(base, Checkpoint):
        ends = _end_tokens(as_path(base.path))
        for name, template in used_templates(config).items():
            end = template.end.strip()
            if ends and end not in ends and end not in _added_tokens(as_path(base.path)):
                yield (
                    f"{name} closes answers with {template.end!r}, but the end token of the "
                    f"tokenizer in {base.path} is {' or '.join(map(repr, sorted(ends)))}: use the "
                    "template that the checkpoint was trained with (seva_jax.text has LLaVA's; "
                    "Template(end=...))"
                )


def used_templates(config: Experiment) -> dict[str, Template]:
    """Returns the templates that a run uses, by the names of their fields."""
    templates = {"text.train": config.text.train}
    if config.evals or not config.prompts.has_answers:
        templates["text.generate"] = config.text.generate
    return templates


def _rounded(tokens: int) -> int:
    """Returns a usual limit that leaves room beside some tokens."""
    return max(2048, 1024 * (tokens // 1024 + 1))


def _least_tokens(base: BaseModel) -> int:
    """Returns the tokens that an image takes at least; 0 if small files do not tell."""
    if isinstance(base, TrainedBase):
        return base.model.tile_features
    if not isinstance(base, Checkpoint):
        return 0
    path = as_path(base.path)
    tower = tower_directory(path, base.vision_tower)
    fields = read_json((tower or path) / "config.json")
    vision = fields.get("vision_config", fields if tower else None)
    sizes: dict[str, Any] = vision if isinstance(vision, dict) else {}
    side, patch = sizes.get("image_size"), sizes.get("patch_size")
    if not isinstance(side, int) or not isinstance(patch, int) or not 0 < patch <= side:
        return 0
    if "downsample_ratio" in fields:  # patches are joined before they become tokens
        return 0
    return (side // patch) ** 2


def _end_tokens(directory: Path) -> set[str]:
    """Returns what the tokenizer's files name as its end token; empty if they name none."""
    tokens = set[str]()
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        with contextlib.suppress(DataError):  # missing, or what loading the tokenizer reports
            token = read_json(directory / name).get("eos_token")
            token = token.get("content") if isinstance(token, dict) else token
            tokens |= {token} if isinstance(token, str) else set()
    return tokens


def _added_tokens(directory: Path) -> set[str]:
    """Returns the special tokens beside the vocabulary of a tokenizer; the file may be large."""
    with contextlib.suppress(DataError):  # missing, or what loading the tokenizer reports
        added = read_json(directory / "tokenizer.json").get("added_tokens")
        if isinstance(added, list):
            tokens = (token for token in added if isinstance(token, dict))
            return {str(token.get("content")) for token in tokens if token.get("special")}
    return set()


def template_warnings(
    base: BaseModel, tokenizer: Any, templates: Mapping[str, Template]
) -> Iterator[str]:
    """Yields why the templates of a run may not be those that its checkpoint was trained with.

    Args:
        base: the base; only a `Checkpoint` has something to say.
        tokenizer: its tokenizer.
        templates: the templates by the names of their fields.
    """
    if not isinstance(base, Checkpoint):
        return
    path = as_path(base.path)
    file, own = _chat_template(path)
    for mark, family in _MARKS.items():
        if mark in own:
            wrong = [name for name, x in templates.items() if mark not in x.prompt("question", 0)]
            if wrong:
                names = " and ".join(wrong)
                yield (
                    f"{path / file} is {family} template (it has {mark}), which {names} lack; a "
                    "model answers best with the template that it was trained with "
                    "(seva_jax.text.Template)"
                )
            break
    stops = read_special_tokens(path).stop_ids
    for name, template in templates.items():
        end = tokenizer(template.end, add_special_tokens=False).input_ids
        if stops and len(end) == 1 and end[0] not in stops:
            tokens = " or ".join(map(repr, tokenizer.convert_ids_to_tokens(list(stops))))
            yield (
                f"{name} ends answers with {template.end!r}, but {path} with {tokens} "
                "(eos_token_id of its generation_config.json or config.json)"
            )


def _chat_template(directory: Path) -> tuple[str, str]:
    """Returns the name of the file with a checkpoint's chat template, and its source or ""."""
    for name in _FILES:
        try:
            text = (directory / name).read_text(encoding="utf-8")
            if name.endswith(".jinja"):
                return name, text
            fields = json.loads(text)
            value = fields.get("chat_template") if isinstance(fields, dict) else None
        except (OSError, ValueError, RecursionError):  # missing, or what others report
            continue
        if value:
            return name, value if isinstance(value, str) else json.dumps(value)
    return "", ""
