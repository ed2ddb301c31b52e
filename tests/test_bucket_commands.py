"""A whole run in a bucket, by the commands that people start, beside the same run on a disk."""

import re

import pytest
from helpers_gcs import download
from helpers_run import assert_same_run, running, stages, train

from seva_jax.runtime.files import read_lines, write_lines
from seva_jax.runtime.stores import remove


def whole_journals(folder):
    """Makes each journal one file, as a run on a disk has it."""
    for path in sorted(folder.rglob("*.jsonl")):
        if path.is_dir():
            records = read_lines(path)
            remove(path)
            write_lines(path, records)
    return folder


def content(folder):
    """Returns the bytes of every file, by name."""
    names = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return {name: (folder / name).read_bytes() for name in sorted(names)}


def kept(folder):
    """Returns the names of all files but arrays, whose names are not those of another run."""
    return {name for name in content(folder) if not name.startswith("checkpoints/")}


@pytest.mark.slow
def test_a_run_in_a_bucket_is_that_on_a_disk(whole_run, bucket, tmp_path):
    cache, local, remote = whole_run / "cache", whole_run / "run", bucket / "one" / "run"
    secrets = {"CLOUDSDK_AUTH_ACCESS_TOKEN": "ya29.secret", "AWS_SECRET_ACCESS_KEY": "secret/key"}
    with train(cache, remote, "--train.save-every-s", 1e-3, env=secrets) as run:
        assert run.status(900) == 0, run.output[-3000:]
    page = f"{remote}/report.html"
    assert f"■ report: {page} (" in run.output
    assert f"report: {page}\n        https://storage.cloud.google.com/" in run.output
    assert f"files:  {remote}: checkpoints/" in run.output
    assert not re.search(r"gs:/(?!/)", run.output)

    copy = download(remote, tmp_path / "one" / "run")
    for command in (  # a copy is a run, too, whose journals are folders
        ("seva_jax.evaluate", "--model", copy),
        ("seva_jax.report", "--runs", copy, "--out", tmp_path / "copy.html"),
    ):
        with running(cache, *command) as run:
            assert run.status() == 0, run.output[-3000:]
    for secret in secrets.values():
        assert not any(secret.encode() in data for data in content(copy).values())
    assert_same_run(whole_journals(copy), local)
    assert kept(copy) == kept(local)

    with train(cache, remote, "--train.save-every-s", 1e-3) as again:
        assert again.status(900) == 0, again.output[-3000:]
    assert again.output.count("done before") == len(stages(local))

    asked = ("seva_jax.evaluate", "--model", remote, "--out", bucket / "two" / "run")
    with running(cache, *asked) as run:
        assert run.status() == 0, run.output[-3000:]
    assert f"answers and scores: {bucket}/two/run/evals/aligned" in run.output
    answered = whole_journals(download(bucket / "two" / "run", tmp_path / "two"))
    assert content(answered / "evals" / "aligned") == content(local / "evals" / "aligned")

    compared = ("seva_jax.report", "--runs", remote, local, "--out", bucket / "runs.html")
    with running(cache, *compared) as run:
        assert run.status() == 0, run.output[-3000:]
    assert "2 runs compared" in (bucket / "runs.html").read_text()

    for source, out in ((remote, tmp_path / "remote"), (local, tmp_path / "local")):
        with running(cache, "seva_jax.convert", "to-hf", source, out) as run:
            assert run.status() == 0, run.output[-3000:]
    assert content(tmp_path / "remote") == content(tmp_path / "local")
