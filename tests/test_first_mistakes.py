"""The ten mistakes of a beginner: each gets an answer that leads to the right option, and no trace.

They are made with the real command, in a process of its own.
"""

import json
import socket
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import pytest
from helpers_first import beginner, command, write_config

from seva_jax.run.stage import Stage
from seva_jax.run.workdir import Workdir
from seva_jax.runtime import lock


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Returns a folder with all that a run needs, beside things that it cannot use."""
    folder = tmp_path_factory.mktemp("beginner")
    experiment = beginner(folder)
    write_config(folder, experiment)
    row = {"id": 1, "question": "what is this ?", "image": "b.png"}
    (folder / "missing.jsonl").write_text(json.dumps(row))
    (folder / "gemma").mkdir()
    (folder / "gemma" / "config.json").write_text(json.dumps({"model_type": "gemma3"}))
    (folder / "used").mkdir()
    holder = lock.Holder(socket.gethostname() + "-2", 7, "", "noon")
    (folder / "used" / lock.NAME).write_text(json.dumps(holder._asdict()))
    return folder


class Mistake(NamedTuple):
    """A mistake and its answer.

    Attributes:
        options: of the command line; FOLDER stands for the folder.
        answer: what the last line says, or the whole answer if it has several lines.
        variables: of the environment.
        status: exit status.
    """

    options: tuple[str, ...]
    answer: str
    variables: Mapping[str, str] = MappingProxyType({})
    status: int = 1


MISTAKES = {
    "a wrong path": Mistake(
        ("--base.path", "FOLDER/modle"),
        "error: FOLDER/modle/config.json does not exist: give a directory that holds a whole "
        "LLaVA-1.5 model (for example downloaded with `hf download llava-hf/llava-1.5-7b-hf "
        "--local-dir DIR`)",
    ),
    "a wrong image folder": Mistake(
        ("--prompts.image-root", "FOLDER/picturse"),
        "error: FOLDER/picturse: no such image folder; check the path",
    ),
    "missing images": Mistake(
        ("--prompts.path", "FOLDER/missing.jsonl"),
        "error: FOLDER/missing.jsonl: no usable prompt is left (1 missing image); the first: line "
        "1: missing image: 'b.png': no such image in FOLDER/data/images, under any extension; "
        "check the image folder",
    ),
    "a bad mesh": Mistake(
        ("--mesh.fsdp", "3"),
        "error: MeshShape(data=-1, fsdp=3, tensor=1) needs a multiple of 3 devices but there are "
        "1; --mesh.data 1 --mesh.fsdp 1 --mesh.tensor 1 would fit",
    ),
    "no GPU": Mistake(
        (),
        "error: JAX_PLATFORMS=cuda, but JAX has no such device here: see whether nvidia-smi lists "
        "one and pip install 'seva_jax[cuda12]'; without JAX_PLATFORMS, or with cpu, the command "
        "uses what this machine has",
        {"JAX_PLATFORMS": "cuda", "CUDA_VISIBLE_DEVICES": ""},
    ),
    "a wrong template": Mistake(
        ("--text.train.end", "<|im_end|>"),
        "error: text.train closes answers with '<|im_end|>', but the end token of the tokenizer "
        "in FOLDER/model is '</s>': use the template that the checkpoint was trained with "
        "(seva_jax.text has LLaVA's; Template(end=...))",
    ),
    "a max_length too small": Mistake(
        ("--text.max-length", "4"),
        "error: text.max_length 4 leaves no room for questions and answers: an image alone takes "
        "4 tokens; set --text.max-length 2048 or more",
    ),
    "a directory in use": Mistake(
        ("--workdir", "FOLDER/used"),
        f"error: FOLDER/used is in use by process 7 on {socket.gethostname()}-2, since noon; wait "
        "for it, or choose another directory; if that process is gone (it cannot be seen from "
        "here), delete lock.json there",
    ),
    "another kind of model": Mistake(
        ("--base.path", "FOLDER/gemma"),
        "error: FOLDER/gemma/config.json: model_type is 'gemma3', supported: \"llava\", "
        '"llava_next", "llava_onevision", "internvl", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"; give '
        "the directory of a model of one of these families",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_one_line_and_nothing_claimed(folder, name):
    mistake = MISTAKES[name]
    options = [option.replace("FOLDER", str(folder)) for option in mistake.options]
    ran = command("seva_jax.train", "--config", folder / "mine.py", *options, **mistake.variables)
    assert ran.stderr.replace(str(folder), "FOLDER").splitlines() == [mistake.answer]
    assert (ran.returncode, ran.stdout) == (mistake.status, "")
    assert not (folder / "run").exists()
    assert [path.name for path in (folder / "used").iterdir()] == [lock.NAME]


def test_a_misspelt_option(folder):
    ran = command("seva_jax.train", "--config", folder / "mine.py", "--optim.learning-rate", 1)
    assert ran.returncode == 2
    assert "--optim.lr" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert len(ran.stderr.splitlines()) <= 5  # also what else is similar
    assert not (folder / "run").exists()


def test_a_number_out_of_range(folder):
    ran = command("seva_jax.train", "--config", folder / "mine.py", "--optim.lr", -1)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.splitlines() == [
        "error: the config has problems:",
        "  optim.lr must be above 0 and at most 100, not -1.0",
    ]
    assert not (folder / "run").exists()


def test_another_model_s_checkpoint_in_the_work_directory(tmp_path):
    """A run is resumed with another base: one field differs, and its line names both values."""
    experiment = beginner(tmp_path)
    workdir = Workdir.open(experiment)
    workdir.run_stage(Stage("rollouts", "same", lambda: "answered"))
    workdir.close()
    config = write_config(tmp_path, experiment)
    (tmp_path / "model").rename(tmp_path / "other")
    ran = command("seva_jax.train", "--config", config, "--base.path", tmp_path / "other")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.splitlines() == [
        f"error: {tmp_path}/run holds a run with another config:",
        f"  base.path: '{tmp_path}/model' there, '{tmp_path}/other' now",
        f"choose another --workdir (--take-from {tmp_path}/run copies the stages that this does "
        "not change), or delete that one",
    ]
