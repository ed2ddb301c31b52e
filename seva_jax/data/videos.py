"""Prompts whose image is a video file: its frames become their images.

What lives here: `Videos`. What does not: decoding and the choice of frames
(`seva_jax/images/video.py`), how a model sees a video (`llava_onevision.py` and `qwen.py` there).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Container, Sequence
from typing import Annotated

import numpy as np
from typing_extensions import override

from seva_jax.data.collect import counted
from seva_jax.data.sources import PreferenceSet, PromptSet, PromptSource
from seva_jax.data.wrapped import changed
from seva_jax.images.video import FrameCount, VideoFrames, is_video, require_decoder
from seva_jax.ranges import FROM_0, FROM_1
from seva_jax.runtime.read_ahead import READERS, read_ahead
from seva_jax.types import (
    SECONDS,
    VIDEO_MARKER,
    Comparison,
    DataError,
    ExampleError,
    Prompt,
    Size,
    View,
)

_PREFIX = "frame"


@dataclasses.dataclass(frozen=True)
class Videos(PromptSource):
    """The prompts or pairs of a source, with frames in place of video files.

    An image whose name ends with .mp4, .webm, .mkv, .mov, .avi, .m4v, .mpg, .mpeg or .flv is a
    video. A prompt has one video and no other image; others are left out and counted ("several
    videos"), and those without a video are not changed. Decoding needs the extra `video`.

    Qwen2.5-VL and Qwen3-VL know when frames are shown. With `fps`, that is read from the file; a
    line may give `seconds_per_frame`, which comes first; otherwise they are half a second apart.

    Attributes:
        source: prompts or pairs.
        fps: frames a second, counted from the first one. All files are read when the source is
            opened, to find out how many that makes. 0 takes always `max_frames`, and opens no file
            before its frames are needed; a shorter video repeats some.
        max_frames: the most frames. If `fps` gives more, these are taken instead, at equal
            distances from the first frame to the last.
        as_images: the frames are several images, for models that take no videos. Otherwise the
            question has `<video>`.
    """

    source: PromptSource = PromptSource()
    fps: Annotated[float, FROM_0] = 1.0
    max_frames: Annotated[int, FROM_1] = 32
    as_images: bool = False

    @property
    @override
    def has_answers(self) -> bool:
        return self.source.has_answers

    @override
    def open(self) -> PromptSet:
        data = self.source.open()
        pairs = data.comparisons if isinstance(data, PreferenceSet) else None
        names = sorted({
            name
            for view in _views(data.prompts if pairs is None else pairs)
            for name in view.prompt.images
            if is_video(name)
        })  # fmt: skip
        if not names:
            return data
        require_decoder()
        if data.read_image is None:
            raise DataError(
                f"Videos.source is {type(self.source).__name__}, whose images are drawn; give one "
                "whose images are files"
            )
        videos = VideoFrames(data.read_image, self.fps, self.max_frames)
        counts = self._counts(videos, names, READERS if data.remote else os.cpu_count() or 1)

        def load_image(name: str) -> np.ndarray:
            if frame := _frame(name, counts):
                return videos.frame(*frame)
            return data.load_image(name)

        def read_size(name: str) -> Size:
            if _frame(name, counts):
                height, width, _ = load_image(name).shape
                return height, width
            return data.image_size(name)

        def change(prompt: Prompt) -> Prompt:
            return self._changed(prompt, counts)

        def change_pair(pair: Comparison) -> Comparison:
            more = tuple(View(change(view.prompt), view.answers) for view in pair.more)
            return dataclasses.replace(pair, prompt=change(pair.prompt), more=more)

        if pairs is None:
            prompts, drops, left_out = changed(data, data.prompts, change)
            pairs_left = {}
        else:
            kept, drops, left_out = changed(data, pairs, change_pair)
            prompts, pairs_left = [pair.prompt for pair in kept], {"comparisons": kept}
        if not prompts:
            raise DataError(f"Videos: no prompt is left ({counted(drops)})")
        return dataclasses.replace(
            data, prompts=prompts, drops=drops, left_out=left_out, load_image=load_image,
            read_image=None, read_size=read_size, **pairs_left,
        )  # fmt: skip

    def _counts(
        self, videos: VideoFrames, names: Sequence[str], threads: int
    ) -> dict[str, FrameCount | ExampleError]:
        """Returns how many frames each video has, or why it cannot be read."""

        def count(name: str) -> FrameCount | ExampleError:
            try:
                return videos.count(name)
            except ExampleError as error:
                return error

        with contextlib.closing(read_ahead(count, names, threads, 2 * threads)) as counts:
            return dict(zip(names, counts, strict=True))

    def _changed(self, prompt: Prompt, counts: dict[str, FrameCount | ExampleError]) -> Prompt:
        """Returns a prompt with the frames of its video as images.

        Raises:
            ExampleError: the video cannot be read, or there are other images beside it.
        """
        if not any(map(is_video, prompt.images)):
            return prompt
        if len(prompt.images) > 1:
            raise ExampleError(
                f"the prompt has {len(prompt.images)} images, one of them a video; ask about one "
                "video, or about images",
                "several videos",
            )
        name = next(filter(is_video, prompt.images))
        count = counts[name]
        if isinstance(count, ExampleError):
            raise count
        question = prompt.question
        if self.as_images:
            question = question.replace(VIDEO_MARKER, "").strip()
        elif VIDEO_MARKER not in question:
            question = f"{VIDEO_MARKER}\n{question}"
        images = tuple(f"{_PREFIX}:{number}:{name}" for number in range(count.num))
        known = {} if count.seconds is None else {SECONDS: count.seconds}
        return dataclasses.replace(
            prompt, question=question, images=images, meta=known | prompt.meta
        )


def _frame(name: str, videos: Container[str]) -> tuple[str, int] | None:
    """Returns the video and the number of a frame by the name of its image; None for others."""
    prefix, _, rest = name.partition(":")
    number, _, video = rest.partition(":")
    if prefix == _PREFIX and number.isdecimal() and video in videos:
        return video, int(number)
    return None


def _views(examples: Sequence[Prompt] | Sequence[Comparison]) -> list[View]:
    """Returns all prompts of examples."""
    return [
        view
        for example in examples
        for view in (example.views if isinstance(example, Comparison) else (View(example, ()),))
    ]
