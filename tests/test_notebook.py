"""`seva_jax.open` and `seva_jax.show`: answers, log-probs of answers and pairs of a run."""

import dataclasses
import json
import re
import shutil
import sys
import types
from pathlib import Path

import helpers_run
import jax
import numpy as np
import pytest
from PIL import Image

import seva_jax
from seva_jax.corrupt import apply_pixels, corruption_key
from seva_jax.data.files import QuestionsJsonl
from seva_jax.data.json_records import read_comparisons
from seva_jax.images.load import as_rgb
from seva_jax.inference import answering_layout
from seva_jax.notebook import Model
from seva_jax.report.pair_view import Pair
from seva_jax.run.reference import RECORDS
from seva_jax.runtime.files import Records, read_records
from seva_jax.text import Template
from seva_jax.types import Comparison, DataError, Prompt

PACKAGE = Path(seva_jax.__file__).parent


@pytest.fixture(scope="module")
def finished(whole_run, tmp_path_factory):
    """Returns a copy of the finished tiny run."""
    return shutil.copytree(whole_run / "run", tmp_path_factory.mktemp("notebook") / "run")


@pytest.fixture(scope="module")
def model(finished):
    return seva_jax.open(str(finished))


def test_answers_are_those_of_the_run(model, finished):
    suite = model.found.config.evals[0]
    asked = suite.open()
    for which in ("base", "aligned"):
        expected = [line["answer"] for line in helpers_run.answers(finished, which)[1:9]]
        answers = [
            getattr(model, which).answer(
                asked.load_image(prompt.images[0]), prompt.question, suite.max_new_tokens
            )
            for prompt in asked.prompts[:8]
        ]
        assert answers == [answer.strip() for answer in expected]
    assert model.aligned is model
    assert model.base.aligned is model
    assert repr(model.base) == f"<Model {finished} (base)>"


def test_images_in_every_form(model, tmp_path):
    pixels = model.pairs()[0].load_images()[0]
    Image.fromarray(pixels).save(tmp_path / "a.png")
    question = "What color is the circle ?"
    forms = (pixels, str(tmp_path / "a.png"), tmp_path / "a.png", Image.open(tmp_path / "a.png"))
    assert len({model.answer(image, question, 6) for image in forms}) == 1
    assert model.answer(pixels, [question, "What color ?"], 6)[0] == model.answer(
        pixels, question, 6
    )
    assert model.answer([pixels, pixels], question, 2) is not None
    several = ["What ?", "What color ?", "What color is ?"]
    assert model.answer(None, several, 6) == [model.answer(None, one, 6) for one in several]
    sampled = {model.answer(pixels, question, 6, temperature=5.0, seed=seed) for seed in range(6)}
    assert len(sampled) > 1


def test_as_rgb():
    rgba = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    np.testing.assert_array_equal(as_rgb(rgba), rgba[..., :3])
    np.testing.assert_array_equal(as_rgb(Image.fromarray(rgba, "RGBA")), rgba[..., :3])
    grey = rgba[..., 0]
    np.testing.assert_array_equal(as_rgb(grey), np.stack([grey] * 3, -1))
    for wrong in (grey.astype(np.float32), np.zeros((0, 2, 3), np.uint8), 3):
        with pytest.raises(DataError, match=r"give a path, a PIL image, or an array of uint8"):
            as_rgb(wrong)


def test_scores_are_the_reference_log_probs(model, finished):
    """They equal what the run recorded before training, token by token."""
    _, *records = read_records(finished / RECORDS)
    for pair, record in list(zip(model.pairs(), records, strict=True))[:12]:
        assert pair.id == record["id"]
        answers = [pair.chosen, *pair.rejected]
        scored = model.base.score(pair.load_images()[0], pair.question, answers)
        for one, answer, expected in zip(scored, answers, record["logps"], strict=True):
            assert one.answer == answer
            assert one.tokens == (*answer.split(), "</s>")
            np.testing.assert_allclose(one.logps, expected, rtol=0, atol=1e-5)
            assert one.total == pytest.approx(sum(expected), abs=1e-4)
            assert not one.cut
    alone = model.base.score(pair.load_images()[0], pair.question, answers[0])
    np.testing.assert_allclose(alone.logps, scored[0].logps, rtol=0, atol=1e-5)
    aligned = model.score(pair.load_images()[0], pair.question, answers)
    assert np.abs(aligned[0].logps - scored[0].logps).max() > 1e-3


def test_a_device_too_small_for_both_forms_of_the_layers(finished, monkeypatch):
    """Answers and scores take turns with them, also of two models that share them."""
    pair = seva_jax.open(str(finished)).pairs()[0]
    image, question, chosen = pair.load_images()[0], pair.question, pair.chosen

    def ask(crowded):
        model = seva_jax.open(str(finished))
        for one in (model, model.base, model):
            layers = one.opened.variables["params"]["language"]["layers"]
            yield one.answer(image, question), one.score(image, question, chosen).total
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves(layers)) == crowded

    usual = list(ask(crowded=False))
    monkeypatch.setattr(answering_layout, "device_limit", lambda: 1)
    assert list(ask(crowded=True)) == usual
    assert usual[0] == usual[2] != usual[1]


def test_scores_have_the_template_of_training(model):
    """Answers have that of generation, as in a run (SeVa's two templates differ)."""
    image, other = np.zeros((8, 8, 3), np.uint8), Template("a red ring .")
    scored = model.score(image, "What ?", "red").total
    changed = model.found.config
    text = dataclasses.replace(changed.text, train=other)
    found = dataclasses.replace(model.found, config=dataclasses.replace(changed, text=text))
    mixed = Model(found, model.opened.mesh, None)
    whole = seva_jax.open(model.found.path, template=other)
    assert mixed.score(image, "What ?", "red").total == whole.score(image, "What ?", "red").total
    assert mixed.score(image, "What ?", "red").total != scored
    assert mixed.answer(image, "What ?", 6) == model.answer(image, "What ?", 6)


def test_a_long_answer_is_cut_as_in_training(model):
    longest = model.found.config.text.max_length
    scored = model.score(None, "What ?", "a red ring " * longest)
    assert scored.cut
    assert scored.tokens[-1] != "</s>"
    assert len(scored.logps) == len(scored.tokens) < longest
    assert model.score(None, "What ?", []) == []


def test_what_cannot_be_asked(model, tmp_path):
    image = np.zeros((8, 8, 3), np.uint8)
    for wrong, message in (
        ((tmp_path / "none.jpg", "What ?"), "no such image"),
        ((image, ""), "empty question"),
        ((image, "What " * 500), "leave no room for an answer"),
        ((image, "What ?", 0), "max_new_tokens must be at least 1, not 0"),
        ((image, "What ?", 4, -1.0), "temperature must be at least 0"),
        ((image, "<image> or <image> ?"), "2 <image> markers but the example has 1 images"),
    ):
        with pytest.raises(DataError, match=message):
            model.answer(*wrong)
    with pytest.raises(DataError, match="the answer is empty"):
        model.score(image, "What ?", ["red", ""])
    with pytest.raises(DataError, match="the tokenizer has no token for 'zebra'"):
        model.score(image, "What ?", "a zebra")


def test_a_run_that_is_training(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    stages = json.loads((run / "stages.json").read_text())
    (run / "stages.json").write_text(json.dumps({"base": stages["base"]}))
    (run / "pairs.array_record").unlink()
    model = seva_jax.open(run)
    assert isinstance(model.base.answer(None, "What ?", 2), str)
    with pytest.raises(DataError, match="its alignment is not finished; finish it"):
        model.answer(None, "What ?")
    with pytest.raises(DataError, match="its stage pairs is not finished, so it has none"):
        model.pairs()
    assert isinstance(seva_jax.open(run, step=24).answer(None, "What ?", 2), str)


# --- pairs


def test_pairs_are_those_of_the_run(model, finished):
    pairs, expected = model.pairs(), read_comparisons(finished / "pairs.array_record")
    assert [pair.comparison for pair in pairs] == expected
    assert len(pairs) == len(expected) == 96
    assert pairs[-1].comparison == expected[-1]
    assert [pair.id for pair in pairs[3:5]] == [c.prompt.id for c in expected[3:5]]
    with pytest.raises(IndexError):
        pairs[96]
    pair, one = pairs[1], expected[1]
    assert (pair.id, pair.question, pair.images) == (one.prompt.id, one.prompt.question, one.images)
    assert (pair.chosen, pair.rejected) == ("a green ring", ("a red circle",))
    assert pair.corrupted_images() == []  # of made-up answers
    assert repr(pairs) == "<96 pairs>"


def test_records_are_read_one_at_a_time(finished, tmp_path):
    records = Records(finished / "pairs.array_record")
    assert list(records) == read_records(finished / "pairs.array_record")
    with pytest.raises(DataError, match="is missing"):
        Records(tmp_path / "none")
    (tmp_path / "broken").write_bytes(b"x" * 100)
    with pytest.raises(DataError, match="broken is damaged"):
        Records(tmp_path / "broken")[0]


def corrupted(model):
    """Returns a pair whose rejected answer came from the run's first corruption."""
    pair = model.pairs()[0]
    return dataclasses.replace(
        pair, comparison=dataclasses.replace(pair.comparison, corruptions=(0,))
    )


def test_a_corrupted_image_is_what_the_model_saw(model):
    """The key of a corruption is that of the seed, the prompt's id and the number of the image."""
    pair, config = corrupted(model), model.found.config
    ((name, image_HWC),) = pair.corrupted_images()
    assert name == str(config.corrupt[0])
    key = corruption_key(config.seed, f"{pair.id}/0", 0)
    processing, clean = model.found.assets.processing, pair.load_images()[0]
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        seen = (
            processing(apply_pixels(config.corrupt[0], key, clean))
            if config.corrupt[0].space == "pixels"
            else np.asarray(config.corrupt[0](key, processing(clean)))
        )
    difference = processing.denormalise(seen).astype(int) - image_HWC
    assert np.abs(difference).max() <= 1
    assert np.abs(processing.denormalise(processing(clean)).astype(int) - image_HWC).mean() > 20


def test_a_card(model):
    pair = corrupted(model)
    html = pair._repr_html_()
    assert html.count('<img src="data:image/') == 2
    assert "<figcaption" in html
    assert "DiffusionNoise(" in html
    assert re.search(r"<mark style=[^>]*>red</mark>", html)
    assert re.search(r"<del style=[^>]*>blue</del>", html)
    assert str(pair) == (
        f"pair:     {pair.id}\nimages:   {pair.images[0]}, {model.found.config.corrupt[0]}\n"
        f"question: {pair.question}\nchosen:   [red]\nrejected: [blue]"
    )


HOSTILE = '<script>alert(1)</script><mark onclick="x">\x1b[2J'


def test_texts_are_not_markup(model):
    pair = model.pairs()[0]
    prompt = Prompt(HOSTILE, HOSTILE, ())
    hostile = Pair(Comparison(prompt, (HOSTILE + " a", HOSTILE + " b")), pair._run)
    html = hostile._repr_html_()
    assert "<script" not in html
    assert "onclick=&quot;" in html
    assert 'onclick="' not in html
    assert "\x1b" not in html + str(hostile)


def test_images_that_are_not_there(model):
    """The texts are shown, and why there are no images."""
    nowhere = QuestionsJsonl(path="/nowhere/q.jsonl", image_root="/nowhere")
    run = dataclasses.replace(model.pairs()[0]._run, data=nowhere.open)
    pair = dataclasses.replace(model.pairs()[0], _run=run)
    html = pair._repr_html_()
    assert "no images: /nowhere/q.jsonl" in html
    assert "red</mark>" in html
    with pytest.raises(DataError, match=r"/nowhere/q\.jsonl"):
        pair.load_images()


def test_show(model, capsys, monkeypatch):
    pairs = model.pairs()[:2]
    seva_jax.show(*pairs)
    assert capsys.readouterr().out == f"{pairs[0]}\n\n{pairs[1]}\n\n"
    shown = []
    shell = types.SimpleNamespace(kernel=None)
    notebook = types.SimpleNamespace(
        get_ipython=lambda: shell, display=types.SimpleNamespace(display=shown.append)
    )
    monkeypatch.setitem(sys.modules, "IPython", notebook)
    pairs[0].show()
    assert shown == [pairs[0]]
    assert not capsys.readouterr().out
    notebook.get_ipython = lambda: None  # imported, but not in a notebook
    pairs[0].show()
    assert capsys.readouterr().out


def test_what_is_no_run(finished, tmp_path):
    """An export answers as well, but has no base and no pairs."""
    from seva_jax.convert.__main__ import open_source
    from seva_jax.convert.rewrite import to_hf

    to_hf(open_source(finished), tmp_path / "hf")
    export, run = seva_jax.open(tmp_path / "hf", dtype="float32"), seva_jax.open(finished)
    pair = run.pairs()[0]
    image, answers = pair.load_images()[0], [pair.chosen, *pair.rejected]
    for a, b in zip(
        export.score(image, pair.question, answers), run.score(image, pair.question, answers),
        strict=True,
    ):  # fmt: skip
        np.testing.assert_allclose(a.logps, b.logps, rtol=0, atol=1e-4)
    assert export.answer(image, pair.question, 6) == run.answer(image, pair.question, 6)
    for name in ("base", "aligned"):
        with pytest.raises(DataError, match="is not a run but one model; ask that itself"):
            getattr(export, name)
    with pytest.raises(DataError, match="is not a run, and only a run has pairs"):
        export.pairs()


def test_the_documented_example_runs(finished, monkeypatch, capsys):
    """The page's lines run unchanged, in a folder where runs/mine is a finished run."""
    blocks = re.findall(
        r"^```python\n(.*?)^```$", (PACKAGE / "EXTENDING.md").read_text("utf-8"), re.DOTALL | re.M
    )
    (block,) = [block for block in blocks if "seva_jax.open(" in block]
    (finished.parent / "runs").mkdir()
    (finished.parent / "runs/mine").symlink_to(finished)
    monkeypatch.chdir(finished.parent)
    exec(compile(block, "EXTENDING.md", "exec"), {})
    out = capsys.readouterr().out
    assert "base: " in out
    assert "aligned: " in out
    assert re.search(r"^red -\d+\.\d\d$", out, re.M)
    assert out.count("rejected: ") == 3
