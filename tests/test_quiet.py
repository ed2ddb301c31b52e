"""Lines of libraries that say nothing are left out; a user's own settings and all errors stay."""

import logging
import subprocess
import sys

import pytest
from helpers_first import beginner
from helpers_llava import write_run
from helpers_run import ROOT, environment

from seva_jax.config import TextOptions
from seva_jax.runtime import quiet
from seva_jax.text import PLAIN


def test_a_command_prints_only_its_own_lines(tmp_path):
    """It reads a checkpoint of Orbax and a tokenizer without torch, on whatever devices there are.

    Without `quiet_libraries`, there are lines of Orbax, transformers and, if it is installed where
    there is no TPU, libtpu.
    """
    beginner(tmp_path)
    write_run(tmp_path / "run", tmp_path / "model")
    env = environment()
    del env["JAX_PLATFORMS"]
    ran = subprocess.run(
        [sys.executable, ROOT / "tests" / "lean.py", "seva_jax.convert", "to-hf",
         tmp_path / "run", tmp_path / "merged"],
        env=env, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.splitlines()[-1].startswith(f"{tmp_path}/merged: ")


def test_a_model_that_is_opened_in_python_prints_nothing(tmp_path):
    beginner(tmp_path)
    write_run(tmp_path / "run", tmp_path / "model", text=TextOptions(PLAIN, PLAIN, 32))
    call = (
        f"seva_jax.open({str(tmp_path / 'run')!r}).answer(None, 'what is this ?', max_new_tokens=2)"
    )
    (tmp_path / "asks.py").write_text(f"import seva_jax\n\n{call}\n")
    env = environment()
    env["PYTHONPATH"] = f"{tmp_path}:{env.get('PYTHONPATH', '')}"
    ran = subprocess.run(
        [sys.executable, ROOT / "tests" / "lean.py", "asks"],
        env=env, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


@pytest.fixture
def untouched(monkeypatch):
    """Restores the variables and filters of the process after a test."""
    for name in (*quiet._VARIABLES, *quiet._WITHOUT_TPU):
        monkeypatch.delenv(name, raising=False)
    before = {name: list(logging.getLogger(name).filters) for name in quiet._MESSAGES}
    yield monkeypatch
    for name, filters in before.items():
        logging.getLogger(name).filters[:] = filters


@pytest.mark.parametrize("name", quiet._MESSAGES)
def test_other_messages_of_a_logger_stay(untouched, name):
    quiet.quiet_libraries()
    quiet.quiet_libraries()
    (own,) = [each for each in logging.getLogger(name).filters if isinstance(each, quiet._Without)]

    def kept(message, *values):
        return own.filter(
            logging.LogRecord(name, logging.WARNING, "x.py", 1, message, values, None)
        )

    for beginning in quiet._MESSAGES[name]:
        assert not kept(beginning + ": %s", 7)
        assert kept("Failed: " + beginning)


def test_variables_that_a_user_has_set_stay(untouched):
    untouched.setenv("GRPC_VERBOSITY", "DEBUG")
    untouched.setattr(
        quiet.hardware_utils, "num_available_tpu_chips_and_device_id", lambda: (4, None)
    )
    quiet.quiet_libraries()
    assert quiet.os.environ["GRPC_VERBOSITY"] == "DEBUG"
    assert quiet.os.environ["TF_CPP_MIN_LOG_LEVEL"] == "1"
    assert not quiet._WITHOUT_TPU.keys() & quiet.os.environ.keys()  # there is one to ask
