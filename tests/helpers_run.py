"""The smallest whole run, as a config file for the real commands: `--config tests/helpers_run.py`.

What lives here: the config, starting a command with it, and what two runs must have in common. What
does not: faults (`test_kills.py`, `test_signals.py`, `test_lock.py`).
"""

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from tiny_models import WORLD_ONE_LAYER
from typing_extensions import override

from seva_jax.config.base_models import TrainedBase
from seva_jax.config.config_files import config_directory, read_config
from seva_jax.inference import rollouts
from seva_jax.models import LoraConfig
from seva_jax.pairs import PairBuilder
from seva_jax.runtime import files
from seva_jax.runtime.journal import Journal
from seva_jax.runtime.stores import is_remote
from seva_jax.text.sampling import Sampling
from seva_jax.training import checkpoint
from seva_jax.training.step_times import PARTS
from seva_jax.types import Comparison

ROOT = Path(__file__).parent.parent
STEPS = 24  # of both trainings
# These have times.
_OTHER = (
    "config.py", "config.json", "stages.json", "starts.jsonl", "metrics.jsonl", "report.html",
    "report.json",
)  # fmt: skip
TIMING = {"seconds", "pairs/s", "tokens/s", "goodput", "memory/in_use", "memory/peak"}
TIMING |= {f"time/{part}" for part in PARTS}
COMMITTED = "commit_success.txt"  # the last file of a checkpoint


@dataclasses.dataclass(frozen=True)
class MadeUpPairs(PairBuilder):
    """Pairs whose answers differ whatever the untrained model said.

    Attributes:
        wait_s: how long it takes, so that a fault can come meanwhile.
    """

    wait_s: float = 0.2

    @override
    def __call__(self, rollouts):
        time.sleep(self.wait_s)
        answers = (("red", "blue"), ("a green ring", "a red circle"))
        return [Comparison(r.prompt, answers[i % 2]) for i, r in enumerate(rollouts)], Counter()


def _commit_slowly(seconds):
    """Delays the publishing of complete checkpoints, and slows down reference passes."""
    write_digests, append = checkpoint.write_digests, Journal.append

    def slowly(step):
        write_digests(step)
        time.sleep(seconds)

    def append_slowly(journal, records):
        append(journal, records)
        if journal.path.name == "reference.jsonl":
            time.sleep(seconds / 4)

    checkpoint.write_digests, Journal.append = slowly, append_slowly


def get_config():
    """Returns the default run, tiny.

    With COMMIT_S in the environment commits are slow; with CROWDED the device seems too small for
    the layers in both forms, that of training and that of answering.
    """
    if "COMMIT_S" in os.environ:
        _commit_slowly(float(os.environ["COMMIT_S"]))
    if "CROWDED" in os.environ:
        rollouts.is_crowded = lambda *_: True
    from helpers_run import MadeUpPairs  # by a name that the run's own config.py can import

    tiny = read_config(config_directory() / "tiny.py")
    assert isinstance(tiny.base, TrainedBase)
    small = dataclasses.replace
    return small(
        tiny,
        base=small(
            tiny.base,
            model=WORLD_ONE_LAYER,
            processing=small(tiny.base.processing, size=16),
            prompts=small(tiny.base.prompts, num=128),
            steps=STEPS,
            batch_size=8,
        ),
        prompts=small(tiny.prompts, num=96),
        rollout=small(tiny.rollout, sampling=Sampling(max_new_tokens=6), batch_size=16),
        pairs=MadeUpPairs(),
        lora=LoraConfig(rank=2),
        train=small(tiny.train, batch_size=8, max_steps=STEPS, log_every=2, save_every_s=600.0),
        compute=small(tiny.compute, row_shapes=1),
        evals=tuple(
            small(e, prompts=small(e.prompts, num=96), max_new_tokens=6)
            for e in (tiny.evals[0], tiny.evals[4])
        ),
        report=small(tiny.report, num_pairs=4, num_examples=2, num_prompts=2),
    )


def environment(**more):
    """Returns the environment of a command in another process: cheap programs, no fake devices.

    Compiled programs are kept for all tests (`conftest.py`).
    """
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ["XLA_FLAGS"])
    here = os.pathsep.join((str(ROOT / "tests"), str(ROOT)))
    cheap = {"XLA_FLAGS": flags.strip(), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "TQDM_DISABLE": "1"}
    return os.environ | cheap | {"PYTHONPATH": here} | more


class Command:
    """A command of the package in a process of its own, with its output so far.

    Args:
        cache: folder of compiled programs.
        argv: the module and its options.
        launcher: what comes before python, such as launch/local.py and its options.
        env: more variables.
    """

    def __init__(self, cache, *argv, launcher=(), env=None):
        lean = Path(__file__).parent / "lean.py"
        command = [*launcher, sys.executable, "-W", "ignore", lean, *map(str, argv)]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(JAX_COMPILATION_CACHE_DIR=str(cache), **(env or {})),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.output = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line

    def when(self, condition, timeout_s=200):
        """Waits for a condition, which is checked every few milliseconds."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert self.process.poll() is None, "ended before:\n" + self.output[-3000:]
            assert time.monotonic() < deadline, "never came:\n" + self.output[-3000:]
            time.sleep(0.002)

    def send(self, number):
        """Sends a signal to the process."""
        self.process.send_signal(number)

    def status(self, timeout_s=300):
        """Waits for the end; returns the exit status, negative for a signal."""
        try:
            return self.process.wait(timeout_s)
        finally:
            self.process.kill()
            self._reader.join(60)
            assert not self._reader.is_alive(), "a process that outlives it has its output"
            if self.process.stdout is not None:
                self.process.stdout.close()

    def kill(self):
        """Kills it and waits for its end."""
        self.send(signal.SIGKILL)
        return self.status()


@contextlib.contextmanager
def running(*args, **kwargs):
    """Starts a `Command` that does not outlive the body."""
    command = Command(*args, **kwargs)
    try:
        yield command
    finally:
        command.kill()


def train(cache, workdir, *options, **kwargs):
    """Starts `seva_jax.train` with the config above; a context manager."""
    config = ("--config", ROOT / "tests" / "helpers_run.py", "--workdir", workdir)
    return running(cache, "seva_jax.train", *config, *options, **kwargs)


def lines(path):
    """Returns the finished lines of a file, parsed as JSON."""
    if is_remote(path):
        return files.read_lines(path)
    text = path.read_bytes() if path.exists() else b""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith(b"\n")]


def rows(workdir, stage):
    """Returns rows of metrics in file order, without timing."""
    return [
        {k: v for k, v in row.items() if k not in TIMING}
        for row in lines(workdir / "metrics.jsonl")
        if row["stage"] == stage
    ]


def answers(workdir, who):
    """Returns the lines of answers to the first evaluation."""
    return lines(workdir / "evals" / who / "color-balanced" / "asked.jsonl")


def saved_steps(workdir, stage):
    """Returns the steps with a finished checkpoint."""
    folder = workdir / "checkpoints" / stage
    if is_remote(folder):
        ended = [name.split("/") for name in folder.below() if name.endswith(f"/{COMMITTED}")]
        return sorted(int(names[0]) for names in ended if len(names) == 2)
    return sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit())


def saving(workdir, stage, since):
    """Returns whether a checkpoint is being written that was started after `since`."""
    folder = workdir / "checkpoints" / stage
    if is_remote(folder):  # where it has its name from the start
        saved = {str(step) for step in saved_steps(workdir, stage)}
        return any(
            name.partition("/")[0].isdigit()
            and name.partition("/")[0] not in saved
            and facts.st_mtime > since
            for name, facts in folder.below().items()
        )
    for path in folder.glob("*tmp*"):
        with contextlib.suppress(FileNotFoundError):
            return path.stat().st_mtime > since
    return False


def stages(workdir):
    """Returns the names of finished stages."""
    path = workdir / "stages.json"
    return list(json.loads(path.read_text())) if path.exists() else []


def parameters(workdir, stage):
    """Returns the leaves of the last checkpoint's state: parameters, moments, step."""
    path = (workdir / "checkpoints" / stage / str(saved_steps(workdir, stage)[-1])).absolute()
    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.metadata(path / "state").item_metadata.tree
        arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        found = checkpointer.restore(path / "state", restore_args=arguments)
        return jax.tree.leaves(found)


def content(path):
    """Returns the bytes of a file, or of a file whose lines a store keeps in parts."""
    if is_remote(path) and not path.is_file():
        return files._text(files.read_lines(path)).encode()
    return path.read_bytes()


def assert_same_run(found, expected):
    """Asserts that everything but times and the report is equal, bit for bit.

    Both directories have the same name, because files of answers mention it. The first may be in a
    store.
    """
    assert found.name == expected.name
    assert stages(found) == stages(expected)
    paths = [p for p in expected.rglob("*") if p.is_file()]
    left_out = {"checkpoints", "base-hf"}  # compared below; what other tests exported from the run
    names = {p.relative_to(expected) for p in paths if left_out.isdisjoint(p.parts)}
    for name in sorted(names - set(map(Path, _OTHER))):
        assert content(found / name) == content(expected / name), name
    for stage in ("base", "align"):
        assert rows(found, stage) == rows(expected, stage)
        for a, b in zip(parameters(found, stage), parameters(expected, stage), strict=True):
            np.testing.assert_array_equal(a, b)
