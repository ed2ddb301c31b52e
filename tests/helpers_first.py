"""What a beginner has: a small checkpoint, a few pictures with questions, and a config file.

What lives here: these files, and starting a command as a shell does. What does not: the mistakes
(`test_first_mistakes.py`), what is checked before a run (`test_preflight.py`).
"""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from helpers_llava import write_llava
from helpers_run import ROOT, environment
from PIL import Image

from seva_jax.config import Checkpoint, Experiment, TextOptions, to_source
from seva_jax.data import QuestionsJsonl
from seva_jax.text import PLAIN
from seva_jax.text.tokenizer import save_tokenizer, word_tokenizer

IMAGE_TOKENS = 4  # of an image of the checkpoint: 28 pixels in patches of 14
WORDS = ("USER", "ASSISTANT", ":", "?", "what", "is", "this", "yes", "no", "it", "there", "a")


def write_checkpoint(folder: Path) -> Path:
    """Writes a LLaVA of 40 tokens whose tokenizer ends answers with `</s>`; returns the folder."""
    folder.mkdir()
    write_llava(folder)
    more = [f"w{number}" for number in range(40 - 5 - len(WORDS))]
    save_tokenizer(word_tokenizer([*WORDS, *more]), folder)
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"image_token_index": 4}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
    return folder


def write_questions(folder: Path, questions=("what is this ?",) * 6) -> Path:
    """Writes a picture, and questions about it; returns the file."""
    (folder / "images").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "images" / "a.png")
    rows = [{"id": n, "question": text, "image": "a.png"} for n, text in enumerate(questions)]
    (folder / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "q.jsonl"


def beginner(folder: Path, **changes) -> Experiment:
    """Returns a config that could be run, of files that it writes into an empty folder."""
    checkpoint, questions = write_checkpoint(folder / "model"), write_questions(folder / "data")
    experiment = Experiment(
        workdir=str(folder / "run"),
        base=Checkpoint(str(checkpoint), pad_to_square=None),
        prompts=QuestionsJsonl(str(questions), str(folder / "data" / "images")),
        text=TextOptions(PLAIN, PLAIN, max_length=64),
    )
    return dataclasses.replace(experiment, **changes)


def write_config(folder: Path, experiment: Experiment) -> Path:
    """Writes a config file; returns it."""
    (folder / "mine.py").write_text(to_source(experiment))
    return folder / "mine.py"


def command(module: str, *options: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a command of the package to its end, with nothing that tests leave out.

    Args:
        module: such as "seva_jax.train".
        options: its options.
        variables: of the environment; an empty one is removed.
    """
    env = environment(**variables)
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, options)],
        env={name: value for name, value in env.items() if value != ""},
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
