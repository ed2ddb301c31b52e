"""The benchmark of reading images: both sides read the same ones."""

import pytest
from helpers_formats import encoded

from seva_jax.bench.reading import ReadingBench, run_reading
from seva_jax.runtime.copies import upload
from seva_jax.types import DataError


def test_both_sides_read_a_bucket(tmp_path, bucket, capsys):
    """It says what was read, and how fast."""
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(encoded(i))
    upload(tmp_path, bucket)
    run_reading(ReadingBench(str(bucket), images=2, rounds=1))
    shown = capsys.readouterr().out
    assert f"2 images of {bucket}" in shown
    assert shown.count("x\n") == 2


def test_bad_numbers():
    with pytest.raises(DataError, match="must be at least 1"):
        run_reading(ReadingBench("x", images=0))
