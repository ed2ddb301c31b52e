"""A path as a model that can answer: runs, checkpoints, exports, adapters, and what is none."""

import dataclasses
import json
import shutil
from pathlib import Path

import helpers_run
import jax
import numpy as np
import pytest
from helpers_llava import write_llava, write_original, write_run

from seva_jax.config import Checkpoint, TextOptions, read_config
from seva_jax.convert.__main__ import open_source
from seva_jax.convert.chat_template import read_template
from seva_jax.convert.peft import to_peft
from seva_jax.convert.processor import write_chat_template
from seva_jax.convert.rewrite import to_hf
from seva_jax.data import PromptSet
from seva_jax.data.files import QuestionsJsonl
from seva_jax.run.opened import ModelOptions, find_model, first_devices
from seva_jax.runtime import lock
from seva_jax.sharding import MeshShape
from seva_jax.text import LLAVA_V0, LLAVA_V1, PLAIN, VICUNA_V1, Sampling, Template
from seva_jax.text.tokenizer import word_tokenizer
from seva_jax.types import DataError, Prompt

WORDS = ["USER", "ASSISTANT", ":", "What", "is", "this", "?", *(f"w{i}" for i in range(28))]


@pytest.fixture(scope="module")
def finished(whole_run, tmp_path_factory):
    """Returns a copy of the finished tiny run, which tests may read and export."""
    return shutil.copytree(whole_run / "run", tmp_path_factory.mktemp("opened") / "run")


@pytest.fixture(scope="module")
def exports(finished):
    """Returns the run as a whole model in Hugging Face's layout, and as an adapter."""
    folder = finished.parent
    to_hf(open_source(finished), folder / "hf")
    to_peft(open_source(finished), folder / "peft")
    return folder / "hf", folder / "peft"


def answers(model, num=96):
    """Returns answers to the questions of the run's first evaluation."""
    suite = read_config(Path(model.config.workdir) / "config.py").evals[0]
    asked = suite.open()
    sampling = Sampling(max_new_tokens=suite.max_new_tokens)
    engine = model.engine(batch_size=16)
    return [
        answered.answers[0]
        for batch in engine.answer(PromptSet(asked.prompts[:num], asked.load_image), sampling)
        for answered in batch
    ]


def recorded(workdir, who):
    """Returns the answers that the run itself gave and kept."""
    return [line["answer"] for line in helpers_run.answers(workdir, who)[1:]]


def content(folder):
    """Returns every file below a folder, with its time and bytes."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


# --- runs


def test_both_models_of_a_run_answer_as_the_run_did(finished):
    """They share the frozen weights; opening needs no lock and writes nothing."""
    before = content(finished)
    lock.claim(finished)  # as a run or an evaluation that is working there
    base = find_model(finished, "base").load()
    aligned = find_model(str(finished)).load(base.mesh, beside=base)
    lock.release(finished)
    assert (base.label, aligned.label) == (f"{finished} (base)", str(finished))
    assert answers(base) == recorded(finished, "base")
    assert answers(aligned) == recorded(finished, "aligned")
    assert recorded(finished, "base") != recorded(finished, "aligned")
    assert aligned.variables["params"]["vision"] is base.variables["params"]["vision"]
    after = content(finished)
    after.pop(finished / lock.NAME, None)
    before.pop(finished / lock.NAME, None)
    assert after == before


def test_a_mesh_of_several_devices(finished):
    found, mesh = find_model(finished), MeshShape(data=1, fsdp=2).make(jax.devices()[:2])
    assert answers(found.load(mesh), 16) == recorded(finished, "aligned")[:16]
    assert first_devices(2).shape["tensor"] == 2
    assert first_devices(None).size == len(jax.devices())
    # The axis does not divide the vocabulary of 35 words.
    assert answers(found.load(first_devices(2)), 16) == recorded(finished, "aligned")[:16]
    with pytest.raises(DataError, match="99 devices are wanted, and there are 8"):
        first_devices(99)


def copied(finished, tmp_path, *without):
    """Returns a copy of a run in which some stages have not finished."""
    run = shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("base-hf"))
    stages = json.loads((run / "stages.json").read_text())
    (run / "stages.json").write_text(
        json.dumps({k: v for k, v in stages.items() if k not in without})
    )
    return run


def test_a_run_that_is_training(finished, tmp_path):
    """Its base answers, and so does a saved step of its alignment."""
    run = copied(finished, tmp_path, "align", "evaluate base", "evaluate aligned", "report")
    message = r"its alignment is not finished; .*, or open its base, or a saved step \(22, 24\)"
    with pytest.raises(DataError, match=message):
        find_model(run)
    assert answers(find_model(run, "base").load(), 16) == recorded(finished, "base")[:16]
    last = find_model(run, step=24).load()
    assert last.label == f"{run} (step 24)"
    assert answers(last) == recorded(finished, "aligned")
    earlier = find_model(run, step=22).load()
    changed = [np.any(np.asarray(a) != np.asarray(b)) for a, b in zip(
        *(x.variables["lora"]["language"]["layers"]["q_proj"].values() for x in (last, earlier)),
        strict=True,
    )]  # fmt: skip
    assert any(changed)
    with pytest.raises(DataError, match="no intact checkpoint of step 7"):
        find_model(run, step=7).load()
    run = copied(
        finished, tmp_path / "sooner", *json.loads((run / "stages.json").read_text()), "align"
    )
    for which in ("base", "aligned"):
        with pytest.raises(DataError, match="its base model is not trained yet"):
            find_model(run, which)


# --- checkpoints, exports and adapters


def tokenized(directory):
    """Adds a tokenizer that fits the models of `write_llava`; returns the directory."""
    tokenizer = word_tokenizer(WORDS)  # 5 special tokens: 40 ids
    fields = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = fields["model"]["vocab"]  # these models' image token is the last id
    vocabulary["<image>"], vocabulary["w27"] = vocabulary["w27"], vocabulary["<image>"]
    for token in fields["added_tokens"]:
        token["id"] = vocabulary[token["content"]]
    (directory / "tokenizer.json").write_text(json.dumps(fields))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
        "pad_token": "<pad>", "unk_token": "<unk>",
    }  # fmt: skip
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


@pytest.fixture
def checkpoint(tmp_path):
    """Returns a Hugging Face directory that has everything but a chat template."""
    (tmp_path / "model").mkdir()
    return tokenized(write_llava(tmp_path / "model"))


def test_exports_answer_as_the_run(finished, exports):
    """The whole model, and the adapter with the base that its adapter_config.json names."""
    whole, adapter = exports
    expected = recorded(finished, "aligned")[:32]
    for path in (whole, adapter):
        options = ModelOptions(compute=read_config(finished / "config.py").compute)
        found = find_model(path, options=options)
        assert (found.is_run, found.label) == (False, str(path))
        assert found.config.text.generate == PLAIN  # as the run's
        model = found.load()
        workdir = dataclasses.replace(model.config, workdir=str(finished))
        assert answers(dataclasses.replace(model, config=workdir), 32) == expected
    base = find_model(finished / "base-hf", options=options).load()
    base = dataclasses.replace(base, config=workdir)
    assert answers(base, 32) == recorded(finished, "base")[:32]


def test_an_adapter_needs_its_base(exports, tmp_path):
    _, exported = exports
    adapter = shutil.copytree(exported, tmp_path / "adapter")
    file = adapter / "adapter_config.json"
    fields = json.loads(file.read_text())
    file.write_text(json.dumps(fields | {"base_model_name_or_path": "llava-hf/somewhere"}))
    with pytest.raises(DataError, match=r"names 'llava-hf/somewhere', which is not here: .* --b"):
        find_model(adapter)
    file.write_text(json.dumps(fields | {"base_model_name_or_path": None}))
    with pytest.raises(DataError, match="names none: give the directory"):
        find_model(adapter)
    base = fields["base_model_name_or_path"]
    given = find_model(adapter, options=ModelOptions(base=base))
    assert given.config.base == Checkpoint(base, pad_to_square=None, adapter=str(adapter))
    with pytest.raises(DataError, match="is a whole model, not an adapter; leave out its base"):
        find_model(base, options=ModelOptions(base=base))


def test_the_original_layout(tmp_path):
    model = write_original(tmp_path / "llava", tmp_path / "clip")
    with pytest.raises(DataError, match="vision_tower"):
        find_model(model)
    template = Template("", user="w1", assistant="w2")
    options = ModelOptions(vision_tower=str(tmp_path / "clip"), template=template)
    found = find_model(model, options=options)
    assert found.assets.processing.pad_to_square  # image_aspect_ratio is pad
    assert found.config.text.generate == template
    with pytest.raises(DataError, match="is not the work directory of a run"):
        find_model(model, "base", options=options)
    with pytest.raises(DataError, match=f"there is no step 3 of {model}"):
        find_model(model, step=3, options=options)


# What the chat template of llava-hf/llava-1.5-7b-hf writes, in fewer words.
LLAVA_HF = """\
{%- for message in messages -%}
  {{- message.role.upper() + ': ' -}}
  {%- for part in message.content if part.type == 'image' -%}{{- '<image>\n' -}}{%- endfor -%}
  {%- for part in message.content if part.type == 'text' -%}{{- part.text + ' ' -}}{%- endfor -%}
{%- endfor -%}
{{- 'ASSISTANT:' if add_generation_prompt -}}
"""
ON_TEXT = (
    "{{ bos_token }}A chat. {% for m in messages %}{{ m.role.upper() }}: {{ m.content + ' ' }}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
ODD = Template('It\'s "odd" {{ x }}\n', user="Q", assistant="A", sep="\n\n", end="</s>")


@pytest.mark.parametrize(
    "template",
    [PLAIN, VICUNA_V1, LLAVA_V1, LLAVA_V0, ODD, dataclasses.replace(ODD, lead='"')],
)
def test_templates_of_exports_are_read_back(tmp_path, template):
    write_chat_template(tmp_path, template)
    assert read_template(tmp_path, word_tokenizer(WORDS)) == template


@pytest.mark.parametrize(
    ("file", "chat", "expected"),
    [
        ("chat_template.jinja", LLAVA_HF, PLAIN),
        ("chat_template.json", LLAVA_HF, PLAIN),
        ("processor_config.json", LLAVA_HF, PLAIN),
        ("tokenizer_config.json", ON_TEXT, Template("A chat.")),
        (
            "tokenizer_config.json",
            [{"name": "tool_use", "template": "x"}, {"name": "default", "template": LLAVA_HF}],
            PLAIN,
        ),
    ],
)
def test_templates_of_others(tmp_path, file, chat, expected):
    text = chat if file.endswith("jinja") else json.dumps({"chat_template": chat})
    (tmp_path / file).write_text(text)
    assert read_template(tmp_path, word_tokenizer(WORDS)) == expected
    (tmp_path / "config.json").write_text('{"model_type": "llava_llama"}')
    assert read_template(tmp_path, word_tokenizer(WORDS), original=True) == VICUNA_V1


@pytest.mark.parametrize(
    "chat",
    [
        "<|user|>{{ messages[0].content }}<|end|>", "{{ raise_exception('no') }}", "{{ 1 / 0 }}",
        "{% for", LLAVA_HF.replace("'ASSISTANT:'", "'ASSISTANT: '"),
    ],
)  # fmt: skip
def test_other_chat_templates_are_refused(checkpoint, chat):
    (checkpoint / "chat_template.jinja").write_text(chat)
    message = r"chat_template\.jinja: its chat template is not of the form SYSTEM USER: .* yourself"
    with pytest.raises(DataError, match=message):
        find_model(checkpoint)
    assert find_model(checkpoint, options=ModelOptions(template=PLAIN)).config.text.train == PLAIN


def test_a_checkpoint_without_a_chat_template(checkpoint):
    """It gets Vicuna's, whose words this tokenizer lacks; its own processor crops."""
    found = find_model(checkpoint, options=ModelOptions(pad_to_square=True))
    assert found.config.text.generate == found.config.text.train == VICUNA_V1
    assert found.config.text.max_length == 2048  # transformers' default
    assert found.assets.processing.pad_to_square
    assert not find_model(checkpoint).assets.processing.pad_to_square
    with pytest.raises(DataError, match="does not know every word of the template"):
        found.load().engine(1)


# --- what the data are does not matter, what the model was trained on does


def test_data_need_not_be_there(checkpoint, tmp_path):
    """A run whose images, questions and evaluations are on another machine."""
    nowhere = QuestionsJsonl(path="/nowhere/q.jsonl", image_root="/nowhere/images")
    write_run(tmp_path / "run", checkpoint, prompts=nowhere, text=TextOptions(PLAIN, PLAIN, 64))
    model = find_model(tmp_path / "run").load()
    (answer,) = model.engine(1).answer(
        PromptSet(
            [Prompt("0", "What is this?", ("x",))], lambda name: np.zeros((9, 9, 3), np.uint8)
        ),
        Sampling(max_new_tokens=2),
    )
    assert not answer[0].dropped


def test_another_base_or_tokenizer_is_refused(checkpoint, tmp_path):
    facts = {"frozen weights": "0123", "tokenizer": "4567"}
    write_run(tmp_path / "run", checkpoint, facts=facts)
    with pytest.raises(DataError, match="was trained with another tokenizer"):
        find_model(tmp_path / "run").load()
    shutil.rmtree(tmp_path / "run")
    write_run(tmp_path / "run", checkpoint, facts={"frozen weights": "0123"})
    with pytest.raises(DataError, match="holds other weights than when"):
        find_model(tmp_path / "run").load()
    find_model(tmp_path / "run", options=ModelOptions(same_base=True)).load()
    find_model(tmp_path / "run", "base").load()


# --- what names no model


def test_what_names_no_model(finished, tmp_path):
    for folder in ("1", "2"):
        (tmp_path / "rounds" / folder).mkdir(parents=True)
        (tmp_path / "rounds" / folder / "config.py").touch()
    (tmp_path / "runs/mine").mkdir(parents=True)
    (tmp_path / "runs/mine/config.py").touch()
    (tmp_path / "pictures").mkdir()
    (tmp_path / "cat.jpg").touch()
    expected = {
        "": "the path of the model is empty; give the work directory of a run",
        tmp_path / "none": "does not exist; give the work directory of a run",
        tmp_path / "rounds": f"it holds several rounds, give one, such as {tmp_path}/rounds/2",
        tmp_path / "runs": f"holds runs; give one, such as {tmp_path}/runs/mine",
        tmp_path / "pictures": r"holds no model \(neither config.py nor config.json\); give",
        tmp_path / "cat.jpg": "is a file; give",
        finished / "checkpoints" / "align": f"a part of a run; give its work directory, {finished}",
        finished / "config.json": f"a part of a run; give its work directory, {finished}",
        "what://x": "what:// is not known",
    }
    for path, message in expected.items():
        with pytest.raises(DataError, match=message) as error:
            find_model(path)
        assert "\n" not in str(error.value)


def test_a_config_of_a_run_is_not_overridden(finished):
    options = ModelOptions(base="x", vision_tower="y", pad_to_square=False)
    message = "whose config.py says .* leave out base, vision_tower, pad_to_square"
    with pytest.raises(DataError, match=message):
        find_model(finished, options=options)
    other = find_model(finished, options=ModelOptions(template=ODD)).config.text
    assert (other.generate, other.train) == (ODD, ODD)
    with pytest.raises(DataError, match="step 24 is of the aligned model"):
        find_model(finished, "base", step=24)
