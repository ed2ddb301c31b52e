"""Runs and checkpoints in a bucket: signals, fewer processes, damage, other runs, two commands.

The promises are those of a disk (`README.md`). `test_kills.py` has the kills, `test_stores.py` the
files and locks by themselves.
"""

import os
import random
import signal
import time

import jax
import numpy as np
import pytest
from helpers_checkpoints import FACTS, restored, save, state
from helpers_run import STEPS, assert_same_run, lines, rows, running, saved_steps, stages, train
from test_signals_two import children, two

from seva_jax.runtime import lock
from seva_jax.runtime.shutdown import Status
from seva_jax.runtime.store_client import StoreError
from seva_jax.training.checkpoint import (
    ASIDE,
    Checkpoints,
    last_checkpoint,
    read_facts,
    read_variables,
)
from seva_jax.training.digests import NAME, newest
from seva_jax.types import DataError


@pytest.fixture
def saved(bucket):
    """Returns the folder of a stage that saved steps 2 and 3."""
    save(bucket / "align", 1, 2, 3)
    return bucket / "align"


def test_every_damaged_object_is_named(saved):
    """Objects with another content of the same size, cut, emptied or deleted."""
    chance = random.Random(7)
    assert newest(saved) == (3, [])
    assert restored(saved) == 3
    listed = [name for name in (saved / "3").below() if "/" in name]
    assert len(listed) > 5
    for name in listed:
        file = saved / "3" / name
        whole = file.read_bytes()
        harms = {"deleted": None}
        if whole:
            flipped = bytearray(whole)
            flipped[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
            harms |= {"flipped": bytes(flipped), "cut": whole[:-1], "emptied": b""}
        for harm, content in harms.items():
            file.unlink() if content is None else file.write_bytes(content)
            step, ((number, why),) = newest(saved)
            assert (step, number) == (2, "3")
            assert why.startswith(f"{name} "), harm
        file.write_bytes(whole)
    assert newest(saved) == (3, [])


def test_damage_is_set_aside_and_the_previous_one_used(saved, capsys):
    """What a kill during a save leaves is removed; damaged and foreign folders are kept."""
    (saved / "3" / NAME).write_bytes(b"{}")
    saved._fs.pipe_file(f"{saved}/4/", b"")  # an empty folder, as the console makes it
    (saved / "5" / "state" / "d" / "1").write_bytes(b"half of a save")
    (saved / "6").write_bytes(b"a file")
    (saved / "2024" / "photo.jpg").write_bytes(b"mine")
    assert restored(saved) == 2
    said = capsys.readouterr().out
    for name, why, where in (
        ("3", f"{NAME} is damaged (it lists no files)", f"now {saved / ASIDE / '3'}"),
        ("4", "an empty directory", "removed"),
        ("5", "commit_success.txt is missing: not a finished checkpoint", "removed"),
        ("6", "not a directory", f"now {saved / ASIDE / '6'}"),
        ("2024", "commit_success.txt is missing: not a", f"now {saved / ASIDE / '2024'}"),
    ):
        assert f"{saved}/{name} is not used: {why}" in said
        assert f"; it is {where}\n" in said
    assert {p.name for p in saved.iterdir()} == {"2", ASIDE}
    assert (saved / ASIDE / "2024" / "photo.jpg").read_bytes() == b"mine"
    assert (saved / ASIDE / "3" / "commit_success.txt").is_file()
    save(saved, 3, 4, 5)
    assert newest(saved) == (5, [])
    assert restored(saved) == 5


def test_nothing_intact_is_an_error(saved):
    """Training does not silently start from zero."""
    for step in ("2", "3"):
        (saved / step / "data" / "metadata").unlink()
    with pytest.raises(DataError, match=r"^gs://.*/align has no intact checkpoint \(3: data/met"):
        restored(saved)
    assert {"2", "3"} <= {p.name for p in saved.iterdir()}


def test_a_checkpoint_of_another_run_is_refused(saved):
    """The error has both values and the whole address."""
    with pytest.raises(DataError) as caught:
        restored(saved, facts=FACTS | {"tokenizer": "b"})
    assert f"{saved}/3 is of another run: tokenizer is 'a' there and 'b' here" in str(caught.value)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_save_that_fails_is_one_line(proxied, proxy):
    """Faults on the way are retried; a save that the store refuses costs only itself."""
    for fault in (429, 503):
        proxy.inject(fault, match="^POST .*upload")
    save(proxied / "align", 1, 2)
    assert proxy.count("^POST .*upload") > 10
    proxy.inject(403, times=1000, match="^POST .*upload")
    with pytest.raises(DataError, match=r"^checkpoint gs://.*/align/3 cannot be saved: ") as caught:
        save(proxied / "align", 3)
    assert "\n" not in str(caught.value)
    proxy.forgive()
    assert restored(proxied / "align") == 2


def test_a_checkpoint_that_cannot_be_read_is_one_line(proxied, proxy):
    """The store fails after the checkpoint was found intact."""
    save(proxied, 2)
    step = last_checkpoint(proxied)
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(0).trainable
    )
    checkpoints = Checkpoints(proxied, FACTS)
    for match, reads in (
        ("", (lambda: checkpoints.restore(state(0)), lambda: read_facts(step))),
        # Names and shapes, then arrays.
        ("^GET .*state", (lambda: read_variables(step, like),)),
        (r"^GET .*(d/|ocdbt)", (lambda: read_variables(step, like),)),
        (r"^GET .*(d/|ocdbt)", (lambda: checkpoints.restore(state(0)),)),
    ):
        for read in reads:
            proxy.inject(403, times=1000, match=match)
            with pytest.raises(StoreError, match=f"^checkpoint {step} cannot be read: ") as caught:
                read()
            proxy.forgive()
            assert "\n" not in str(caught.value)
    checkpoints.close()


@pytest.mark.slow
def test_stopped_and_continued(whole_run, bucket):
    """SIGTERM saves; the run ends with 75, gives up its lock and continues bit for bit."""
    workdir, took = bucket / "run", []
    for condition in (lambda: lines(workdir / "rollouts.jsonl"), lambda: rows(workdir, "align")):
        with train(whole_run / "cache", workdir, "--processes.grace-s", 60) as run:
            run.when(condition)
            start = time.monotonic()
            run.send(signal.SIGTERM)
            assert run.status() == Status.STOPPED, run.output[-3000:]
            took.append(time.monotonic() - start)
        assert not (workdir / lock.NAME).exists()
    assert max(took) < 10, took
    (step,) = saved_steps(workdir, "align")  # no other save was due
    assert 2 <= step < STEPS
    with train(whole_run / "cache", workdir) as run:
        assert run.status() == 0, run.output[-3000:]
    assert_same_run(workdir, whole_run / "run")


@pytest.mark.slow
def test_two_processes_stop_and_one_finishes(whole_run, bucket, tmp_path):
    """SIGTERM to one of two stops both; a single process finishes their run on another mesh."""
    workdir = bucket / "run"
    with train(whole_run / "cache", workdir, "--processes.grace-s", 60) as run:
        run.when(lambda: len(stages(workdir)) == 4)  # the reference pass is finished
        run.send(signal.SIGTERM)
        assert run.status() == Status.STOPPED, run.output[-3000:]
    with two(tmp_path / "cache", workdir, "--processes.grace-s", 60) as run:
        run.when(lambda: len(rows(workdir, "align")) > 2)
        start = time.monotonic()
        os.kill(children(run.process.pid)[1], signal.SIGTERM)
        assert run.status() == Status.STOPPED, run.output[-3000:]
        assert time.monotonic() - start < 10
    (step,) = saved_steps(workdir, "align")
    assert 2 < step < STEPS
    with train(whole_run / "cache", workdir) as run:
        assert run.status() == 0, run.output[-3000:]
    found, expected = (
        [(row["step"], row["loss"]) for row in rows(folder, "align")]
        for folder in (workdir, whole_run / "run")
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_two_commands_in_one_bucket(whole_run, bucket):
    """With the first command paused, the others refuse and touch nothing of its directory."""
    workdir, cache = bucket / "run", whole_run / "cache"
    with train(cache, workdir) as first:
        first.when(lambda: "base: at most" in first.output)
        first.send(signal.SIGSTOP)
        before = workdir.below()
        expected = f"error: {workdir} is in use by process {first.process.pid} on "
        another = ("--model", whole_run / "run", "--labels", "another")
        with (
            train(cache, workdir) as second,
            running(cache, "seva_jax.evaluate", *another, "--out", workdir) as third,
        ):
            for refused in (second, third):
                assert refused.status() == 1
                assert refused.output.splitlines()[-1].startswith(expected)
        assert workdir.below() == before


@pytest.mark.slow
def test_what_is_told_before_the_first_stage(whole_run, proxied, proxy, tmp_path, monkeypatch):
    """A bucket that is missing or may not be written, no credentials, and no project."""
    cache = whole_run / "cache"
    proxy.message = "x@y does not have storage.objects.create access to the object."
    proxy.inject(403, times=1000, match="^POST .*upload")
    with (
        train(cache, "gs://no-such-bucket/run") as missing,
        train(cache, f"{proxied}/run") as read_only,
    ):
        refuses_with(missing, "there is no bucket no-such-bucket; check its name")
        refuses_with(read_only, "these credentials may not do this in bucket bucket (Forbidden: ")
    for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL"):
        monkeypatch.delenv(name)
    for name in ("FSSPEC_GS_TOKEN", "FSSPEC_GCS_TOKEN"):
        monkeypatch.delenv(name)
    user = tmp_path / "user.json"
    user.write_text(
        '{"type": "authorized_user", "client_id": "a", "client_secret": "b", "refresh_token": "c"}'
    )
    env = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    with (
        train(cache, "gs://bucket/run", env=env) as unknown,
        train(
            cache, "gs://bucket/run", env=env | {"GOOGLE_APPLICATION_CREDENTIALS": str(user)}
        ) as no_project,
    ):
        refuses_with(unknown, "no valid credentials (Your default credentials were not found")
        refuses_with(no_project, "gs://bucket/run: no project is known; set GOOGLE_CLOUD_PROJECT")


def refuses_with(run, line):
    """Asserts that a command ended with one line, before any stage."""
    assert run.status() == 1, run.output
    assert "▶" not in run.output
    last = run.output.splitlines()[-1]
    assert last.startswith("error: gs://"), run.output
    assert line in last
