"""`python -m seva_jax.data`: the check before a run, and every format written can be read again."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers_train import opened, small
from PIL import Image

from seva_jax import train
from seva_jax.batches.encoded import encode_comparisons
from seva_jax.config.base_models import TrainedBase
from seva_jax.config.command_line import load_experiment
from seva_jax.config.config_files import read_config
from seva_jax.config.experiment import Evaluation
from seva_jax.config.source import to_source
from seva_jax.data import json_records
from seva_jax.data.__main__ import main
from seva_jax.data.check import check
from seva_jax.data.export import Export
from seva_jax.data.files import QuestionsJsonl
from seva_jax.data.messages import TrlPairs
from seva_jax.data.preferences import SevaPairs
from seva_jax.data.records import ArrayRecordPairs
from seva_jax.data.sources import PreferenceSet
from seva_jax.evals import Chair, ExactAnswer
from seva_jax.run.preflight import prepared
from seva_jax.runtime import files
from seva_jax.runtime.progress import Progress
from seva_jax.text.templates import PLAIN
from seva_jax.types import Comparison, DataError, View
from seva_jax.worlds import WorldPairs


@pytest.fixture
def pairs(tmp_path):
    """Writes SeVa's pairs over four images: a JPEG, a PNG named .jpg, a broken one, none."""
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (8, 6), (10, 20, 30)).save(images / "a.jpg")
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (200, 0, 0)).save(file, "PNG")
    (images / "b.jpg").write_bytes(file.getvalue())
    (images / "c.jpg").write_bytes(b"<html>")
    records = [
        {"chosen": "red", "reject": "blue", "question": "What color ?", "image_id": name}
        for name in ("a.jpg", "b.png", "a.jpg", "c.jpg", "gone.jpg")
    ]
    records[2]["chosen"] = " ".join(["red"] * 80)
    (tmp_path / "step3.json").write_text(json.dumps(records))
    return SevaPairs(str(tmp_path / "step3.json"), str(images))


def config(tmp_path, source, **changes):
    """Writes the tiny config with this source, few other examples and some changes as a file."""
    experiment, _ = load_experiment("test", ["--base.prompts.num", "8"])
    changes = {"prompts": source, "evals": ()} | changes
    path = tmp_path / "my_run.py"
    path.write_text(to_source(dataclasses.replace(experiment, **changes)))
    return ["--config", str(path)]


def test_check(tmp_path, pairs, capsys):
    main(["check", *config(tmp_path, pairs)])
    progress, title, *shown = capsys.readouterr().out.splitlines()
    assert progress.startswith("check: 3 of 3 images (100%), ")
    assert title == "prompts:"
    assert [line.removeprefix("  ") for line in shown[:9]] == [
        "pairs    3 usable of 5",
        "dropped  1 missing image, 1 unreadable image",
        f"         record 5: missing image: 'gone.jpg': no such image in {tmp_path / 'images'}, "
        "under any extension; check the image folder",
        "         c.jpg#3: unreadable image: c.jpg",
        "images   3 different ones; 1 unreadable image",
        "         c.jpg",
        "sizes    median 6 x 5 pixels, sides 4 to 8",
        "trunks   24 to 24 tokens, median 24, 95 % up to 24; text.max_length 96",
        "answers  2 to 72 tokens, median 2, 95 % up to 47; 1 cut to fit",
    ]
    assert shown[10:12] == ["base:", "  prompts  8 usable of 8"]


def test_check_looks_at_all_data(tmp_path, pairs, capsys):
    """The base model's training, and the ground truth of every evaluation (as `train` does)."""
    lines = [{"id": i, "question": "what ?", "image": "a.jpg", "answer": "a"} for i in range(3)]
    good = {"objects": [["red", "circle"]]}
    lines = [line | good for line in lines[:1]] + lines[1:] + [{"id": 9}]
    files.append_lines(tmp_path / "q.jsonl", lines)
    questions = QuestionsJsonl(str(tmp_path / "q.jsonl"), pairs.image_root)
    chair = Chair("chair", synonyms=(("red circle", "red circle"),))
    options = config(tmp_path, pairs, evals=(Evaluation(chair, questions),
                                             Evaluation(ExactAnswer(), questions)))  # fmt: skip
    problem = (
        r"2 questions cannot be scored; the first: chair: prompt '1' has no list of word lists in "
        r"meta\['objects'\]"
    )
    with pytest.raises(SystemExit, match=rf"^error: chair: {problem}"):
        main(["check", *options])
    shown = capsys.readouterr().out
    chair, exact = shown[shown.index("chair:") :].split("exact:")
    assert "prompts  3 usable of 4" in chair
    assert re.search(rf"^  truth    {problem}", chair, re.M)
    assert "prompts  3 usable of 4" in exact
    assert "truth" not in exact
    with pytest.raises(SystemExit) as caught:
        main(["check", *options, "--strict"])
    strict = (
        r"strict: 2 of 5 pairs(.|\n)*\n  chair: 2 .*\n  strict: chair: 1 of 4 (.|\n)*exact: 1 of 4"
    )
    assert re.search(strict, str(caught.value.code))
    experiment = read_config(Path(options[1]))
    assert isinstance(experiment.base, TrainedBase)
    base = dataclasses.replace(experiment.base, prompts=questions)
    main(["check", *config(tmp_path, pairs, base=base)])  # 3 examples have an answer
    base = dataclasses.replace(base, prompts=WorldPairs(num=3))
    with pytest.raises(SystemExit, match="WorldPairs, which has answers already"):
        main(["check", *config(tmp_path, pairs, base=base)])


def test_a_run_refuses_questions_without_truth_before_its_first_stage(tmp_path, pairs):
    files.append_lines(tmp_path / "q.jsonl", [{"id": 1, "question": "what ?", "image": "a.jpg"}])
    questions = QuestionsJsonl(str(tmp_path / "q.jsonl"), pairs.image_root)
    experiment = small(tmp_path / "run", "--mesh.data", "2")
    chair = Evaluation(Chair("chair", synonyms=(("a", "a"),)), questions)
    experiment = dataclasses.replace(experiment, evals=(*experiment.evals, chair))
    with pytest.raises(DataError, match="prompt '1' has no list of word lists"):
        train.run(experiment)
    assert not (tmp_path / "run").exists()
    opened(experiment)
    # What has been evaluated already does not need its files.
    done = {f"evaluate {who}": {"fingerprint": ""} for who in ("base", "aligned")}
    files.write_json(tmp_path / "run" / "stages.json", done)
    prepared(experiment)


def test_words_that_the_tokenizer_lacks(tmp_path, pairs, capsys):
    """In an answer to learn they are counted and left out, as `<unk>` would be learnt."""
    records = [
        {"chosen": "red", "reject": "blue", "question": "What zebra ?", "image_id": "a.jpg"},
        {"chosen": "red zebra.", "reject": "blue", "question": "What color ?", "image_id": "a.jpg"},
        {"chosen": "red", "reject": "zebra", "question": "What color ?", "image_id": "a.jpg"},
        {"chosen": "red <unk>", "reject": "a", "question": "What color ?", "image_id": "a.jpg"},
    ]
    (tmp_path / "step3.json").write_text(json.dumps(records))
    main(["check", *config(tmp_path, pairs)])
    shown = capsys.readouterr().out
    assert "1 usable of 4\n  dropped  2 unknown word in answer, 1 special token in answer" in shown
    assert "the tokenizer has no token for 'zebra.', and <unk> must not be learnt" in shown
    assert "the answer contains the special token '<unk>'" in shown
    assert "unknown  1 words of questions that the tokenizer lacks: 'zebra' in 1\n" in shown
    encoder = load_experiment("test", [])[0].base.assets().encoder(PLAIN, 96)
    encoded = encode_comparisons(pairs.open().comparisons, encoder)  # as a run does
    assert (len(encoded.comparisons), encoded.drops) == (
        1,
        {"unknown word in answer": 2, "special token in answer": 1},
    )


def test_check_looks_at_all_trees(tmp_path, pairs):
    """As in a run, bad images and answers of a further tree are found too."""
    data = pairs.open()
    encoder = load_experiment("test", [])[0].base.assets().encoder(PLAIN, 96)
    first = data.comparisons[0]

    def looked_at(*answers, image="a.jpg"):
        more = (View(dataclasses.replace(first.prompt, images=(image,)), answers),)
        comparisons = [dataclasses.replace(first, more=more)]
        found = PreferenceSet([first.prompt], data.load_image, comparisons=comparisons)
        return check(found, encoder, Progress)

    good = looked_at("a red circle", image="b.png")
    assert (good.num_usable, good.num_images, len(good.trunk_tokens)) == (1, 2, 2)
    assert good.answer_tokens.tolist() == [2, 2, 4]
    assert looked_at("red", image="c.jpg").drops == {"unreadable image": 1}
    assert looked_at("red", "").drops == {"empty answer": 1}
    long = " ".join(["red"] * 80)
    assert looked_at(long).num_cut == 1
    assert looked_at(long, long + " blue").drops == {"equal answers after cutting": 1}


def test_check_finds_nothing_usable(tmp_path, pairs, capsys):
    """The exit status tells scripts."""
    with pytest.raises(SystemExit) as caught:
        main(["check", *config(tmp_path, pairs), "--text.max-length", "20"])
    assert caught.value.code == "error: prompts: nothing is usable\n  base: nothing is usable"
    assert "4 too long" in capsys.readouterr().out
    (tmp_path / "gone.json").write_text(
        json.dumps([{"chosen": "a", "reject": "b", "question": "Q?", "image_id": "gone.jpg"}])
    )
    argv = ["check", *config(tmp_path, pairs), "--prompts.path", str(tmp_path / "gone.json")]
    with pytest.raises(SystemExit, match=r"no usable prompt is left \(1 missing image\)"):
        main(argv)


def test_show(tmp_path, pairs, capsys):
    main(["show", "--num", "2", *config(tmp_path, pairs)])
    first, last = capsys.readouterr().out.split("\n\n")
    assert first.splitlines() == [
        "[0]       a.jpg#0", "image     a.jpg (8 x 6)", "question  What color ?",
        "chosen    red", "rejected  blue",
    ]  # fmt: skip
    assert "c.jpg (unreadable image)" in last


def written(tmp_path, pairs, capsys, name, *options):
    main(["convert", str(tmp_path / name), *options, *config(tmp_path, pairs)])
    return capsys.readouterr().out


def test_convert_to_seva(tmp_path, pairs, capsys):
    shown = written(tmp_path, pairs, capsys, "s.json", "--to", "seva", "--images", f"{tmp_path}/i")
    assert shown.endswith("s.json: 3 written; left out: 1 unreadable image\n")
    assert sorted(p.name for p in (tmp_path / "i").iterdir()) == ["00000000.jpg", "00000001.png"]
    before = pairs.open()
    after = SevaPairs(str(tmp_path / "s.json"), str(tmp_path / "i")).open()
    for old, new in zip(before.comparisons[:3], after.comparisons, strict=True):
        assert (new.answers, new.prompt.question) == (old.answers, old.prompt.question)
        images = (x.load_image(c.prompt.images[0]) for x, c in ((before, old), (after, new)))
        np.testing.assert_array_equal(*images)
    with pytest.raises(SystemExit, match=r"s.json exists; delete it"):
        written(tmp_path, pairs, capsys, "s.json")


@pytest.mark.parametrize("to", ["seva", "trl", "jsonl"])
def test_nothing_to_convert_is_an_error(tmp_path, pairs, capsys, to):
    """No file without examples is left behind with status 0."""
    data, out = pairs.open(), tmp_path / "out"
    shutil.rmtree(pairs.image_root)
    export = Export(data, tmp_path / "i" if to != "trl" else None, lambda num: None)
    with pytest.raises(DataError, match=r"none of 4 examples can be \(4 missing image\)"):
        export(to, out)
    assert not out.exists()


def test_convert_to_trl(tmp_path, pairs, capsys):
    """TRL and `datasets` read the parquet: messages, embedded images, the Hub's feature types."""
    written(tmp_path, pairs, capsys, "t.parquet")
    table = pq.read_table(tmp_path / "t.parquet")
    assert table.column_names == ["images", "prompt", "chosen", "rejected"]
    row = table.to_pylist()[1]
    assert row["images"] == [{"bytes": _bytes(pairs, "b.jpg"), "path": None}]
    assert row["prompt"] == [
        {
            "role": "user",
            "content": [{"type": "image", "text": None}, {"type": "text", "text": "What color ?"}],
        }
    ]
    assert row["chosen"] == [{"role": "assistant", "content": [{"type": "text", "text": "red"}]}]
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["images"] == [{"_type": "Image"}]
    after = TrlPairs(str(tmp_path / "t.parquet")).open()
    assert [c.answers for c in after.comparisons] == [c.answers for c in pairs.open().comparisons]
    with pytest.raises(SystemExit, match="has the images inside; leave out --images"):
        written(tmp_path, pairs, capsys, "u.parquet", "--images", f"{tmp_path}/i")
    assert not (tmp_path / "u.parquet").exists()


def _bytes(pairs, name):
    found = pairs.open()
    return found.read_image(name)


def test_convert_to_json_lines(tmp_path, pairs, capsys):
    written(tmp_path, pairs, capsys, "p.jsonl", "--to", "jsonl")
    after = TrlPairs(str(tmp_path / "p.jsonl"), pairs.image_root).open()
    assert list(after.comparisons) == list(pairs.open().comparisons)
    main(["convert", str(tmp_path / "q.jsonl"), "--to", "jsonl", "--prompts.num", "3",
          "--images", str(tmp_path / "world")])  # fmt: skip
    questions = QuestionsJsonl(str(tmp_path / "q.jsonl"), str(tmp_path / "world")).open()
    assert [p.images for p in questions.prompts] == [(f"{i:08}.png",) for i in range(3)]
    assert questions.prompts[0].meta["answer"]
    with pytest.raises(SystemExit, match="these are prompts without answers"):
        main(["convert", str(tmp_path / "q.json"), "--to", "seva"])


@pytest.mark.parametrize("to", ["seva", "trl", "jsonl"])
def test_images_keep_their_places(tmp_path, pairs, capsys, to):
    """A question that is written and read again asks the same, with the images at their places."""
    one = ["What is it?", "<image>\nWhat is it?", "What is it?\n<image>", "Is <image> red?"]
    two = ["Which?", "<image><image>\nWhich?", "Picture 1 is <image>\nPicture 2 is <image>\nWhich?",
           "Is <image> like <image>?"]  # fmt: skip
    names, said = ["a.jpg", "b.jpg"], {"chosen": "yes", "rejected": "no"}
    records = [{"images": names[:1], "prompt": text, **said, "id": str(n)}
               for n, text in enumerate(one)]  # fmt: skip
    if to != "seva":  # which has one image
        records += [{"images": names, "prompt": text, **said, "id": f"2{n}"}
                    for n, text in enumerate(two)]  # fmt: skip
    files.append_lines(tmp_path / "d.jsonl", records)
    path, root, out = str(tmp_path / "d.jsonl"), pairs.image_root, str(tmp_path / "out")
    before = TrlPairs(path, root).open().comparisons
    assert len(before) == len(records)
    main(["convert", path, out, "--to", to, "--image-root", root])
    kind = SevaPairs if to == "seva" else TrlPairs
    after = kind(out, root).open().comparisons
    assert [(c.prompt.question, len(c.images), c.answers) for c in after] == [
        (c.prompt.question, len(c.images), c.answers) for c in before
    ]


def test_the_pairs_of_a_run(tmp_path, capsys):
    """There is one line for each rejected answer."""
    experiment, _ = load_experiment("test", ["--prompts.num", "3"])
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.py").write_text(to_source(experiment))
    prompts = experiment.prompts.open().prompts
    made = [Comparison(p, ("red", "blue", "a ring")) for p in prompts]
    json_records.write_comparisons(folder / "pairs.array_record", made)
    main(["convert", str(tmp_path / "x.jsonl"), "--to", "jsonl", "--run", str(folder)])
    lines = files.read_lines(tmp_path / "x.jsonl")
    assert [(x["id"], x["rejected"]) for x in lines[:2]] == [
        (prompts[0].id, "blue"), (prompts[0].id + "@1", "a ring"),
    ]  # fmt: skip
    main(["build", str(tmp_path / "built"), "--run", str(folder)])
    assert "3 pairs, 3 images" in capsys.readouterr().out
    assert list(ArrayRecordPairs(str(tmp_path / "built")).open().comparisons) == made
    with pytest.raises(SystemExit, match=r"unknown: --prompts.num 3"):
        main(["show", "--run", str(folder), "--prompts.num", "3"])
