"""Hostile files in a data set or a checkpoint are counted or refused, cheaply.

Single formats and fields are in test_images.py, test_files.py, test_convert.py; made-up input is in
test_fuzz_*.py. Here: what it costs, and what a person is told.
"""

import collections
import dataclasses
import io
import json
import pickle
import struct
import subprocess
import sys
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers_formats import FORMATS, LISTS
from helpers_fuzz import picture
from helpers_train import opened
from PIL import Image

from seva_jax import train
from seva_jax.config.base_models import TrainedBase
from seva_jax.config.command_line import load_experiment
from seva_jax.config.experiment import Evaluation
from seva_jax.config.source import to_source
from seva_jax.data.__main__ import main as data_command
from seva_jax.data.files import QuestionsJsonl
from seva_jax.data.preferences import HaDpoPairs, RlaifVPairs, SevaPairs, VLFeedbackPairs
from seva_jax.evals import ExactAnswer
from seva_jax.evals.suite import folder_images
from seva_jax.run.preflight import require_all_examples
from seva_jax.types import DataError, ExampleError
from seva_jax.worlds import WorldPrompts

# Reads a folder of images and refuses checkpoints in a process of its own, whose memory can be
# measured. ru_maxrss is in KiB and never falls.
MEASURING = """
import collections, json, resource, sys, time
from pathlib import Path
from seva_jax.convert.load import read_headers
from seva_jax.data.check import _decode
from seva_jax.data.files import ImageFolder
from seva_jax.types import DataError

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

root = Path(sys.argv[1])
data = ImageFolder(str(root / "images"), questions=("What?",)).open()
data.load_image("good.png")
before, found = peak(), collections.Counter()
for prompt in data.prompts:
    result = _decode(data, prompt.images[0])
    found[result if isinstance(result, str) else "read"] += 1
images = {"found": found, "MiB": peak() - before}
refused = []
for path in sorted((root / "weights").iterdir()):
    before, start = peak(), time.perf_counter()
    try:
        read_headers(path)
        message = "accepted"
    except DataError as error:
        message = str(error)
    took = time.perf_counter() - start
    refused.append({"message": message, "s": took, "MiB": peak() - before})
print(json.dumps({"images": images, "refused": refused}))
"""


def bomb(side: int) -> bytes:
    """Makes a black PNG of `side` x `side` pixels that is small as a file."""

    def chunk(name, body):
        checksum = struct.pack(">I", zlib.crc32(name + body))
        return struct.pack(">I", len(body)) + name + body + checksum

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + 3 * side)) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def encoded(image, format_, **options):
    file = io.BytesIO()
    image.save(file, format_, **options)
    return file.getvalue()


def corpus():
    """Returns file name -> content, and how many of each kind `decode_image` has to find."""
    noise = np.random.default_rng(0).integers(0, 256, (60, 40, 3), np.uint8)
    photo = Image.fromarray(noise)
    exif = Image.Exif()
    exif[0x0112] = 6
    jpeg, png = encoded(photo, "JPEG"), encoded(photo, "PNG")
    huge = bytearray(bomb(8))
    huge[16:24] = struct.pack(">II", 20_000, 20_000)
    huge[29:33] = struct.pack(">I", zlib.crc32(huge[12:29]))
    files = {
        "good.png": png,
        "called_jpg.jpg": png,
        "deep.png": encoded(Image.fromarray(noise[..., 0].astype(np.uint16) * 257), "PNG"),
        "turned.jpg": encoded(photo, "JPEG", exif=exif),
        "print.jpg": encoded(photo.convert("CMYK"), "JPEG"),
        "clear.png": encoded(photo.convert("RGBA"), "PNG"),
        "palette.gif": encoded(photo.quantize(8), "GIF", transparency=1),
        "moving.gif": encoded(photo, "GIF", save_all=True, append_images=[photo.rotate(9)] * 3),
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "cut.png": png[: len(png) // 2],
        "header.png": png[:40],
        "page.jpg": b"<!DOCTYPE html><html><body>404 not found</body></html>",
        "text.jpg": b"https://example.org/a.jpg",
        "empty.jpg": b"",
        "zeros.jpg": bytes(10_000),
        "400_megapixels.png": bytes(huge),
        "81_megapixels.png": bomb(9000),
    }
    return files, {"read": 8, "unreadable image": 7, "image too large": 2}


def header(fields, data=b""):
    text = json.dumps(fields).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape, start, end):
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


def overwritten(tmp_path):
    return tmp_path / "weights-were-run"


def checkpoints(tmp_path):
    """Writes the six headers that other readers believe, and a pickle that runs a program."""

    class Payload:
        def __reduce__(self):
            return (open, (str(overwritten(tmp_path)), "w"))

    safetensors = [
        struct.pack("<Q", 2**62) + b"{}",
        header({"a": entry([4], 0, 16), "b": entry([4], 8, 24)}, bytes(24)),
        header({"a": entry([4], -16, 0)}, bytes(16)),
        header({"a": entry([400], 0, 16)}, bytes(16)),
        header({"a": entry([2**62, 4], 0, 16)}, bytes(16)),
        header({"a": entry([4], 0, 2**40)}, bytes(16)),
    ]
    files = {f"{i}/model.safetensors": data for i, data in enumerate(safetensors)}
    return files | {
        "6/pytorch_model.bin": pickle.dumps(Payload()),
        "7/model.safetensors": pickle.dumps(Payload()),  # renamed
    }


def test_what_hostile_files_cost(tmp_path):
    """R10: a corpus with a bomb stays under 200 MB. R13: each header under 1 s and 50 MB."""
    files, expected = corpus()
    assert len(files["81_megapixels.png"]) < 300_000
    written = {f"images/{k}": v for k, v in files.items()}
    written |= {f"weights/{k}": v for k, v in checkpoints(tmp_path).items()}
    for name, data in written.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    argv = [sys.executable, "-W", "error", "-c", MEASURING, str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=300)
    found = json.loads(done.stdout)
    assert found["images"]["found"] == expected
    assert found["images"]["MiB"] < 200
    assert len(found["refused"]) == 8
    for number, refused in enumerate(found["refused"]):
        kind = "as pickles" if number == 6 else "not a complete safetensors file"
        assert kind in refused["message"]
        assert "\n" not in refused["message"]
        assert refused["s"] < 1
        assert refused["MiB"] < 50
    assert not overwritten(tmp_path).exists()


# --- R11 ------------------------------------------------------------------------------------------

LONG = 50 * 2**20


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(picture())
    return tmp_path


def test_every_bad_line_is_counted_and_placed(folder):
    pair = {"image_id": "a.png", "question": "Q?", "chosen": "yes", "reject": "no"}
    lines = {
        json.dumps(pair).encode(): "",
        b'{"image_id": "a.png", "question": "\xff\xfe"}': "broken line",
        b'{"image_id": "a.png", "que': "broken line",
        json.dumps({k: v for k, v in pair.items() if k != "question"}).encode(): "no question",
        b'{"image_id": "a.png", "question": "\0"}': "broken line",
        json.dumps(pair | {"question": "Q\0?"}).encode(): "invalid text",
        json.dumps(pair | {"chosen": ""}).encode(): "empty chosen answer",
        json.dumps(pair | {"reject": " \n"}).encode(): "empty rejected answer",
        json.dumps(pair | {"reject": " yes "}).encode(): "equal answers",
        json.dumps(pair | {"chosen": "x" * LONG}).encode(): "too long",
        json.dumps(pair | {"chosen": "x" * 2_000_000}).encode(): "too long",
    }
    (folder / "p.jsonl").write_bytes(b"\n".join(lines))
    found = SevaPairs(str(folder / "p.jsonl"), str(folder / "images")).open()
    reasons = [reason for reason in lines.values() if reason]
    assert found.drops == collections.Counter(reasons)
    assert [x.split(": ")[:2] for x in found.left_out] == [
        [f"line {number}", reason] for number, reason in enumerate(lines.values(), 1) if reason
    ]
    assert max(map(len, found.left_out)) < 300
    assert "bytes, above" in found.left_out[-2]  # not read as JSON at all
    assert len(found.comparisons) == 1

    good = {"id": "1", "image": "a.png", "question": "Q?"}
    (folder / "q.jsonl").write_text("\n".join(map(json.dumps, [good, good])))
    prompts = QuestionsJsonl(str(folder / "q.jsonl"), str(folder / "images")).open()
    assert [p.question for p in prompts.prompts] == ["Q?"]
    assert prompts.left_out == ["line 2: repeated: the same example with id '1' was there before"]


def test_bad_rows_of_parquet(folder):
    """Text that is not UTF-8 cannot be told from good text before it is read."""
    texts = [b"yes", b"\xff\xfe", b"", b"no", b"a\0b"]
    columns = {
        "image": pa.array(["a.png"] * 5),
        "question": pa.array(["Q?"] * 5),
        "chosen": pa.Array.from_buffers(
            pa.string(), 5, pa.array(texts, pa.binary()).buffers()
        ),
        "rejected": pa.array(["no"] * 5),
    }  # fmt: skip
    pq.write_table(pa.table(columns), folder / "p.parquet")
    found = RlaifVPairs(str(folder / "p.parquet"), str(folder / "images")).open()
    assert [c.prompt.id for c in found.comparisons] == ["0"]
    assert [x.split(": ")[:2] for x in found.left_out] == [
        ["p.parquet, row 1", "broken line"],
        ["p.parquet, row 2", "empty chosen answer"],
        ["p.parquet, row 3", "equal answers"],
        ["p.parquet, row 4", "invalid text"],
    ]


def test_strict_runs_stop_before_they_start(folder, capsys, monkeypatch):
    """Only --strict ends check and run, with one error that has the counts and places."""
    pair = {"image_id": "a.png", "question": "what color ?", "chosen": "red", "reject": "blue"}
    bad = [pair, pair | {"chosen": ""}, pair | {"image_id": "b.png"}]
    (folder / "images" / "b.png").write_bytes(b"<html>")
    (folder / "p.json").write_text(json.dumps(bad))
    experiment, _ = load_experiment("test", ["--workdir", str(folder / "run"), "--mesh.data", "8"])
    source = SevaPairs(str(folder / "p.json"), str(folder / "images"))
    assert isinstance(experiment.base, TrainedBase)
    base = dataclasses.replace(experiment.base, prompts=WorldPrompts(num=4))
    experiment = dataclasses.replace(experiment, prompts=source, base=base, evals=())
    (folder / "config.py").write_text(to_source(experiment))
    command = ["check", "--config", str(folder / "config.py")]
    data_command(command)
    shown = capsys.readouterr().out
    assert "pairs    1 usable of 3" in shown
    expected = (
        r"strict: 2 of 3 pairs cannot be used \(1 empty chosen answer, 1 unreadable image\); fix "
        r"or remove them, or leave out --strict:\n +record 2: empty chosen answer: .*\n"
        r" +b.png#2: unreadable image: b.png"
    )
    with pytest.raises(SystemExit, match=expected):
        data_command([*command, "--strict"])

    def nothing(ctx, out):
        pytest.fail("a stage has started")

    with pytest.raises(DataError, match=expected):
        train.run(dataclasses.replace(experiment, strict=True), table=nothing)
    (folder / "p.json").write_text(json.dumps(bad[:1]))
    good = dataclasses.replace(experiment, strict=True, workdir=str(folder / "good"))
    out = opened(good)
    require_all_examples(out.ctx, out)

    (folder / "q.jsonl").write_text(
        '{"id": 1, "question": "what color ?", "image": "a.png", "answer": "red"}\n{"id": 2\n'
    )
    questions = QuestionsJsonl(str(folder / "q.jsonl"), str(folder / "images"))
    expected = r"strict: {}: 1 of 2 prompts cannot be used \(1 broken line.*\n +line 2: "
    for what, change in (
        ("exact", {"evals": (Evaluation(ExactAnswer("exact"), questions),)}),
        ("base", {"base": dataclasses.replace(base, prompts=questions)}),
    ):
        other = dataclasses.replace(good, workdir=str(folder / what), **change)
        with pytest.raises(DataError, match=expected.format(what)):
            train.run(other, table=nothing)


# --- R12 ------------------------------------------------------------------------------------------

WAYS_OUT = ("/etc/hostname", "{outside}", "../secret.png", "images/../../secret.png", "link.png")
IMAGE_FIELDS = {"image_id", "image", "images", "img_path"}


@pytest.mark.parametrize("kind", FORMATS, ids=lambda kind: kind.__name__)
def test_no_reader_leaves_the_image_folder(folder, kind):
    """No image name leads out of the folder, which may be a link itself."""
    (folder / "secret.png").write_bytes(picture())
    (folder / "images" / "link.png").symlink_to(folder / "secret.png")
    (folder / "root").symlink_to(folder / "images")
    options = {"aspects": ("Helpfulness",)} if kind is VLFeedbackPairs else {}
    source = kind(str(folder / "d.json"), str(folder / "root"), **options)
    good = dict(FORMATS[kind])
    field = (IMAGE_FIELDS & good.keys() or {"img_path"}).pop()
    if kind is HaDpoPairs:
        (folder / "images" / "VG_100K").symlink_to(folder / "images")  # one more folder down
        good["image_id"] = "a"
    (folder / "d.json").write_text(json.dumps([good] if kind in LISTS else good))
    assert len(source.open().prompts) == 1
    for name in WAYS_OUT:
        name = name.format(outside=folder / "secret.png")
        bad = good | {field: [name] if field == "images" else name, "id": "x"}
        (folder / "d.json").write_text(json.dumps([bad] if kind in LISTS else bad))
        with pytest.raises(DataError, match=r"\(1 unsafe image path\)"):
            source.open()


def test_no_benchmark_leaves_the_image_folder(folder):
    (folder / "secret.png").write_bytes(picture())
    load = folder_images("gqa", str(folder / "images")).load
    assert load("a.png").shape == (4, 4, 3)
    for name in (*WAYS_OUT[:1], str(folder / "secret.png"), *WAYS_OUT[2:4], "a\0.png"):
        with pytest.raises(ExampleError) as caught:
            load(name)
        assert caught.value.reason == "unsafe image path"


def test_a_parquet_file_cannot_name_what_is_elsewhere(folder):
    """A path in place of bytes leads neither out nor to another column."""
    (folder / "secret.png").write_bytes(picture())
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    names = ["a.png", "../secret.png", str(folder / "secret.png"), "p.parquet/question/0/0"]
    names += ["p.parquet/image/²/0", f"p.parquet/image/{'9' * 5000}/0"]
    cells = pa.array([{"bytes": None, "path": name} for name in names], kind)
    table = {"image": cells, "question": ["Q?"] * 6, "chosen": ["yes"] * 6, "rejected": ["no"] * 6}
    pq.write_table(pa.table(table), folder / "p.parquet")
    found = RlaifVPairs(str(folder / "p.parquet"), str(folder / "images")).open()
    assert found.drops == {"unsafe image path": 2, "missing image": 2}
    assert found.load_image("a.png").shape == (4, 4, 3)
    with pytest.raises(ExampleError) as caught:
        found.load_image("p.parquet/question/0/0")
    assert caught.value.reason in ("unreadable image", "missing image")
