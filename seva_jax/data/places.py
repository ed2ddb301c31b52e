r"""Where the images of a question stand: one rule for every source.

What lives here: the rule. What does not: the line breaks after images that are in front
(`seva_jax/text/templates.py`). Read next: "Where images stand" in `README.md` in this folder, which
compares the rule with what LLaVA and TRL do.

- No markers: all images are in front of the question.
- One image, wherever its marker is: it is in front of the question, with the line break of the
  template, because LLaVA has seen all of its training questions so (`preprocess_multimodal` in
  llava/train/train.py; the chat templates of the Hub's LLaVA-1.5 do the same).
- Several images whose markers are all before the words, or all after them: in front, in order.
- Several images among the words, "Picture 1 is <image>\nPicture 2 is <image>\n...": every image
  keeps its place, as in LLaVA-NeXT, because the words refer to it.
- Any other number of markers than of images is an error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

from seva_jax.types import IMAGE_MARKER, Comparison, ExampleError, Prompt

_Example = TypeVar("_Example", Prompt, Comparison)


def question_of(texts: Sequence[str], images: Sequence[str]) -> str:
    r"""Returns a question that has image markers only where images stand among its words.

    Args:
        texts: the parts of the question, usually one; each may have `<image>` for an image, and a
            part of a chat message that is an image is `<image>`. Two texts without an image
            between them are joined by a space, as chat templates of LLaVA-1.5 do.
        images: names of the images, in the order of their markers.

    Raises:
        ExampleError: there are markers, but not one for each image; the message names the images.

    >>> question_of(["What is this?\n<image>"], ["a.png"])
    'What is this?'
    >>> question_of(["Is ", "<image>", " like ", "<image>", "?"], ["a.png", "b.png"])
    'Is <image> like <image>?'
    """
    num = sum(text.count(IMAGE_MARKER) for text in texts)
    if num not in (0, len(images)):
        names = ", ".join(images[:5]) + ", ..." * (len(images) > 5)
        raise ExampleError(
            f"the question has {num} {IMAGE_MARKER} for {len(images)} images ({names or 'none'}): "
            f"{' '.join(texts)[:80]!r}; give one for each image, or none",
            "image markers",
        )
    if num == 0:
        return " ".join(texts)
    words = [text.strip() for text in "".join(texts).split(IMAGE_MARKER)]
    if num == 1 or not any(words[:-1]) or not any(words[1:]):
        without = (text.replace(IMAGE_MARKER, "") for text in texts if text != IMAGE_MARKER)
        return " ".join(without).strip()
    question = ""
    for text in texts:
        apart = question and not question.endswith(IMAGE_MARKER) and text[:7] != IMAGE_MARKER
        question += " " * bool(apart) + text
    return question


def placed(example: _Example) -> _Example:
    """Returns a prompt or a comparison whose questions have been through `question_of`.

    Raises:
        ExampleError: see `question_of`.
    """
    if isinstance(example, Prompt):
        question = question_of([example.question], example.images)
        same = question == example.question
        return example if same else dataclasses.replace(example, question=question)
    more = tuple(dataclasses.replace(view, prompt=placed(view.prompt)) for view in example.more)
    prompt = placed(example.prompt)
    if prompt is example.prompt and not more:
        return example
    return dataclasses.replace(example, prompt=prompt, more=more)
