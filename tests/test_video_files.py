"""Video files: which frames are taken, decoding, sources of prompts and pairs, broken files."""

import json
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from seva_jax.data import QuestionsJsonl, TrlPairs, Videos
from seva_jax.images.video import VideoFrames, chosen_frames
from seva_jax.types import DataError, ExampleError


def written(path, frames=30, rate=10, codec="mpeg4"):
    """Writes a video whose frame i is grey, of the level 7 i + 20."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.bit_rate = 4_000_000
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(frames):
            image = np.full((48, 64, 3), 7 * i + 20, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def level(image):
    """Returns which frame of `written` an image is."""
    assert image.shape == (48, 64, 3)
    assert image.dtype == np.uint8
    assert image.std() < 3
    return round((image.mean() - 20) / 7)


@pytest.mark.parametrize(
    ("num", "rate", "fps", "most", "expected"),
    [
        (10, 30.0, 1.0, 8, [0]),
        (61, 30.0, 1.0, 8, [0, 30, 60]),
        (61, 29.97, 1.0, 8, [0, 30, 60]),
        (61, 30.0, 1.0, 2, [0, 60]),
        (61, 30.0, 100.0, 5, [0, 15, 30, 45, 60]),
        (3, 1.0, 2.0, 5, [0, 1, 2]),
        (9, 30.0, 0, 3, [0, 4, 8]),
        (2, 30.0, 0, 4, [0, 0, 0, 1]),
        (7, 30.0, 0, 1, [0]),
    ],
)
def test_chosen_frames(num, rate, fps, most, expected):
    """As LLaVA-Video's `load_video`: every round(rate / fps)-th, or `most` at equal distances."""
    assert chosen_frames(num, rate, fps, most) == expected


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "mpeg4"), ("a.webm", "libvpx-vp9")])
def test_frames_of_a_file(tmp_path, name, codec):
    written(tmp_path / name, codec=codec)
    read = lambda name: (tmp_path / name).read_bytes()  # noqa: E731
    frames = VideoFrames(read, fps=2, most=8)
    assert frames.count(name) == (6, 0.5)
    assert [level(frames.frame(name, i)) for i in range(6)] == [0, 5, 10, 15, 20, 25]
    few = pickle.loads(pickle.dumps(VideoFrames(_Read(str(tmp_path)), fps=0, most=3)))
    assert [level(few.frame(name, i)) for i in range(few.count(name).num)] == [0, 14, 29]


class _Read:
    def __init__(self, folder):
        self.folder, self.calls = folder, []

    def __call__(self, name):
        self.calls.append(name)
        with open(f"{self.folder}/{name}", "rb") as file:  # noqa: PTH123
            return file.read()


def test_a_video_is_read_once_by_many_threads(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        written(tmp_path / name)
    read = _Read(str(tmp_path))
    frames = VideoFrames(read, fps=0, most=4)
    asked = [(name, i) for name in ("a.mp4", "b.mp4") for i in range(4)]
    with ThreadPoolExecutor(8) as pool:
        levels = list(pool.map(lambda use: level(frames.frame(*use)), asked))
    assert levels == 2 * [0, 9, 19, 29]
    assert sorted(read.calls) == ["a.mp4", "b.mp4"]


def jsonl(path, *records):
    path.write_text("".join(json.dumps(x) + "\n" for x in records))
    return str(path)


def test_prompts_about_videos(tmp_path, monkeypatch):
    """Files that are broken or missing are counted; prompts about images stay as they are."""
    written(tmp_path / "a.mp4")
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    whole = (tmp_path / "a.mp4").read_bytes()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile a.mp4\n")  # FFmpeg would
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (9, 7)).save(tmp_path / "b.png")
    asked = ("a.mp4", "broken.mp4", "list.mp4", "cut.mp4", "b.png", "none.mp4", ["a.mp4", "b.png"])
    path = jsonl(
        tmp_path / "q.jsonl",
        *({"id": f"q{i}", "question": "what", "images": x} for i, x in enumerate(asked)),
        {"id": "m", "question": "what happens <video>", "images": ["a.mp4"]},
    )
    data = Videos(QuestionsJsonl(path, str(tmp_path)), fps=1).open()
    assert [p.id for p in data.prompts] == ["q0", "q4", "m"]
    assert data.drops == {"missing image": 1, "unreadable image": 3, "several videos": 1}
    video, image, marked = data.prompts
    assert video.about_video
    assert video.question == "<video>\nwhat"
    assert marked.question == "what happens <video>"
    assert video.seconds_per_frame == 1
    assert [level(data.load_image(x)) for x in video.images] == [0, 10, 20]
    assert data.image_size(video.images[0]) == (48, 64)
    assert image.images == ("b.png",)
    assert data.image_size("b.png") == (7, 9)
    assert data.load_image("b.png").shape == (7, 9, 3)
    source = Videos(QuestionsJsonl(path, str(tmp_path)), fps=0, max_frames=2, as_images=True)
    prompts = source.open().prompts
    assert [len(p.images) for p in prompts if p.id in ("q0", "m")] == [2, 2]
    assert not any(p.about_video for p in prompts)
    assert prompts[-1].question == "what happens"


def test_files_that_break_later(tmp_path):
    """With `fps` 0 a file is opened when its frames are needed; the error is of one example."""
    written(tmp_path / "a.mp4")
    whole = (tmp_path / "a.mp4").read_bytes()
    path = jsonl(tmp_path / "q.jsonl", {"id": "q", "question": "what", "image": "a.mp4"})
    data = Videos(QuestionsJsonl(path, str(tmp_path)), fps=0, max_frames=2).open()
    (tmp_path / "a.mp4").write_bytes(whole[:200])
    with pytest.raises(ExampleError, match=r"a\.mp4: not a readable video") as caught:
        data.load_image(data.prompts[0].images[0])
    assert caught.value.reason == "unreadable image"


def test_pairs_about_videos(tmp_path):
    written(tmp_path / "a.mp4")
    path = jsonl(
        tmp_path / "p.jsonl",
        {"prompt": "what", "images": ["a.mp4"], "chosen": "x", "rejected": "y"},
    )
    source = Videos(TrlPairs(path, str(tmp_path)), fps=1)
    assert source.has_answers
    (pair,) = source.open().comparisons
    assert pair.answers == ("x", "y")
    assert pair.prompt.about_video
    assert len(pair.prompt.images) == 3


def test_a_folder_of_frames(tmp_path):
    """Its images are the frames, in the order of their numbers; other files are ignored."""
    (tmp_path / "images" / "clip" / "more").mkdir(parents=True)
    (tmp_path / "images" / "empty").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "images" / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("clip/f10.png", "clip/f9.png", "clip/f1.JPG", "clip/more/f0.png"):
        Image.new("RGB", (9, 7)).save(tmp_path / "images" / name)
    (tmp_path / "images" / "clip" / "notes.txt").write_text("")
    names = ("clip/", "none/", "empty/", "../elsewhere/", "link/", "clip")
    path = jsonl(
        tmp_path / "q.jsonl",
        *({"id": f"q{i}", "question": "<video> what", "image": x} for i, x in enumerate(names)),
    )
    data = QuestionsJsonl(path, str(tmp_path / "images")).open()
    (prompt,) = data.prompts
    assert prompt.images == ("clip/f1.JPG", "clip/f9.png", "clip/f10.png")
    assert prompt.about_video
    assert data.drops == {"missing image": 3, "unsafe image path": 2}
    assert data.load_image(prompt.images[1]).shape == (7, 9, 3)
    pairs = jsonl(
        tmp_path / "p.jsonl",
        {"prompt": "<video> what", "images": ["clip/"], "chosen": "x", "rejected": "y"},
    )
    (pair,) = TrlPairs(pairs, str(tmp_path / "images")).open().comparisons
    assert pair.prompt.images == prompt.images


def test_without_the_decoder(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "a.mp4").write_bytes(b"")
    Image.new("RGB", (9, 7)).save(tmp_path / "b.png")
    path = jsonl(tmp_path / "q.jsonl", {"id": "q", "question": "what", "image": "a.mp4"})
    with pytest.raises(DataError, match=r"pip install 'seva_jax\[video\]', or extract the frames"):
        Videos(QuestionsJsonl(path, str(tmp_path))).open()
    path = jsonl(tmp_path / "q.jsonl", {"id": "q", "question": "what", "image": "b.png"})
    assert len(Videos(QuestionsJsonl(path, str(tmp_path))).open().prompts) == 1
