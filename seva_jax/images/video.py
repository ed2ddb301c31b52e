"""Frames of video files: which of them, and decoding them with PyAV (the extra `video`).

What lives here: choosing frames by a rate and a maximum, decoding, and `VideoFrames`, which keeps
what was decoded last. What does not: prompts about videos (`seva_jax/data/videos.py`).
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import io
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from typing_extensions import override

from seva_jax.images.load import MAX_PIXELS
from seva_jax.types import DataError, ExampleError

VIDEO_EXTENSIONS = (".mp4", ".webm", ".mkv", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".flv")
# Containers of one file. Others are refused: playlists make FFmpeg open other files and addresses.
_FORMATS = "mov,mp4,matroska,webm,avi,mpeg,mpegvideo,mpegts,flv,ogg"
_KEPT = 2  # videos whose frames are kept


def is_video(name: str) -> bool:
    """Returns whether the name of an image is that of a video file, by its extension."""
    return name.lower().endswith(VIDEO_EXTENSIONS)


def chosen_frames(num_frames: int, rate: float, fps: float, most: int) -> list[int]:
    """Returns which frames of a video the model sees, as LLaVA-Video's `load_video` chooses them.

    Args:
        num_frames: frames of the video, at least 1.
        rate: its frames a second.
        fps: frames a second to take, the first one among them; with 0, always `most`.
        most: maximum number of frames. Where `fps` gives more, and with `fps` 0, exactly this
            number is taken, evenly spaced from the first frame to the last; a shorter video
            repeats some.

    >>> chosen_frames(60, 30.0, 2.0, 8)
    [0, 15, 30, 45]
    >>> chosen_frames(60, 30.0, 2.0, 3)
    [0, 29, 59]
    """
    if fps:
        frames = range(0, num_frames, max(round(rate / fps), 1))
        if len(frames) <= most:
            return list(frames)
    return np.linspace(0, num_frames - 1, most, dtype=int).tolist()


def require_decoder() -> None:
    """Raises `DataError` unless PyAV is installed."""
    try:
        import av  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise DataError(
            "video files need PyAV: pip install 'seva_jax[video]', or extract the frames and list "
            "them as images"
        ) from error


class FrameCount(NamedTuple):
    """How many frames of a video are chosen.

    Attributes:
        num: the number.
        seconds: how far apart they are, on average; None where that is not known.
    """

    num: int
    seconds: float | None = None


class VideoFrames:
    """Gives the chosen frames of videos, and keeps those of the last two.

    Frames of one prompt are asked for one by one, and from several threads.

    Args:
        read: video name -> the bytes of the file.
        fps: see `chosen_frames`.
        most: see `chosen_frames`.
    """

    def __init__(self, read: Callable[[str], bytes], fps: float, most: int) -> None:
        self._read, self._fps, self._most = read, fps, most
        self._lock = threading.Lock()
        self._kept = collections.OrderedDict[str, _Video]()

    @override
    def __getstate__(self) -> dict[str, Any]:
        return {"_read": self._read, "_fps": self._fps, "_most": self._most}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(*state.values())

    def count(self, name: str) -> FrameCount:
        """Returns how many frames of a video are chosen; with `fps` 0, without opening it.

        Raises:
            ExampleError: see `frame`.
        """
        if not self._fps:
            return FrameCount(self._most)
        with _opened(self._read(name), name) as (container, stream):
            chosen, rate = self._chosen(container, stream), float(stream.average_rate or 0)
            if len(chosen) < 2 or not rate or chosen[0] == chosen[-1]:
                return FrameCount(len(chosen))
            return FrameCount(len(chosen), (chosen[-1] - chosen[0]) / (len(chosen) - 1) / rate)

    def frame(self, name: str, number: int) -> np.ndarray:
        """Returns one of the chosen frames, uint8 RGB [H, W, 3].

        Raises:
            ExampleError: the file is missing, or not a readable video, or its pictures are too
                large.
        """
        with self._lock:
            video = self._kept.setdefault(name, _Video())
            self._kept.move_to_end(name)
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        with video.lock:  # other videos are decoded meanwhile
            if not video.frames:
                data = self._read(name)
                with _opened(data, name) as (container, stream):
                    chosen = self._chosen(container, stream)
                with _opened(data, name) as (container, stream):
                    video.frames += _decoded(container, stream, chosen, name)
            if number >= len(video.frames):
                raise _unreadable(name, "it has become shorter since the run began")
            return video.frames[number]

    def _chosen(self, container: Any, stream: Any) -> list[int]:
        """Returns the frames of an opened file that are chosen; may decode all of it."""
        # Some containers, such as WebM, do not say how many frames there are.
        num_frames = stream.frames or sum(1 for _ in container.decode(stream))
        if not num_frames:
            raise ValueError("it has no frames")
        return chosen_frames(num_frames, float(stream.average_rate or 0), self._fps, self._most)


@dataclasses.dataclass
class _Video:
    frames: list[np.ndarray] = dataclasses.field(default_factory=list)
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)


@contextlib.contextmanager
def _opened(data: bytes, name: str) -> Iterator[tuple[Any, Any]]:
    """Opens a video and yields container and stream; errors of decoding mean an unreadable file."""
    require_decoder()
    import av  # pyright: ignore[reportMissingImports]

    try:
        with av.open(io.BytesIO(data), options={"format_whitelist": _FORMATS}) as container:
            if not container.streams.video:
                raise ValueError("it has no pictures")
            stream = container.streams.video[0]
            if stream.width * stream.height > MAX_PIXELS:
                raise ExampleError(
                    f"{name}: the video is too large ({stream.width} x {stream.height}, limit "
                    f"{MAX_PIXELS:,} pixels); shrink it",
                    "image too large",
                )
            yield container, stream
    except ExampleError:
        raise
    # FFmpeg's errors are of many classes, as those of Pillow's decoders, and all mean the same.
    except Exception as error:
        raise _unreadable(name, f"{type(error).__name__}: {error}") from error


def _decoded(container: Any, stream: Any, chosen: Sequence[int], name: str) -> list[np.ndarray]:
    """Returns the chosen frames; `chosen` is sorted and may repeat some."""
    wanted, by_index, index = set(chosen), dict[int, np.ndarray](), -1
    for index, frame in enumerate(container.decode(stream)):
        if index in wanted:
            by_index[index] = frame.to_ndarray(format="rgb24")
        if index == chosen[-1]:
            return [by_index[index] for index in chosen]
    raise _unreadable(name, f"it ends after {index + 1} frames; at least {chosen[-1] + 1} expected")


def _unreadable(name: str, problem: str) -> ExampleError:
    return ExampleError(
        f"{name}: not a readable video ({problem}); fetch it again or drop it", "unreadable image"
    )
