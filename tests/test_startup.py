"""What a command imports before it knows what it is asked: neither torch nor other slow libraries.

A typo or `--help` is answered after these imports. `python -m seva_jax.bench startup` measures how
long that takes; here no clock is read.
"""

import json
import subprocess
import sys

import pytest

COMMANDS = (
    "seva_jax.train",
    "seva_jax.evaluate",
    "seva_jax.data.__main__",
    "seva_jax.convert.__main__",
    "seva_jax.plan.__main__",
    "seva_jax.report.__main__",
    "seva_jax.chat",
    "seva_jax.bench.__main__",
    "seva_jax.completion",
)
SLOW = {  # each takes from 20 ms to more than a second
    "torch", "transformers", "tokenizers", "sentencepiece", "huggingface_hub", "orbax", "grain",
    "tensorflow", "tensorflow_datasets", "pyarrow", "pandas", "datasets", "scipy", "dm_pix", "chex",
    "fsspec", "gcsfs", "aiohttp", "qwix", "wandb", "tensorboardX", "trackio", "matplotlib",
    "jax.experimental.pallas", "jax.experimental.multihost_utils", "PIL.ImageFont",
}  # fmt: skip


def imported(code):
    """Returns the names of all modules after some code ran in a process of its own."""
    code = f"{code}\nimport json, sys\nprint(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_starts_without_slow_libraries(command):
    names = imported(f"import {command}")
    assert command in names
    assert [name for name in names if name in SLOW] == []
