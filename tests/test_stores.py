"""Files, journals and locks of a run in an object store: what they promise, and faults of the store.

The store is a real emulator (`helpers_gcs.py`), behind a proxy that makes the faults
(`helpers_proxy.py`). What does not live here: whole runs in a bucket (`test_kills.py`).
"""

from seva_jax.runtime import files


def test_lines_survive_faults_on_the_way(proxied, proxy):
    """Overload and lost connections are retried; one answer is lost after the write was done."""
    path = proxied / "a.jsonl"
    for number, fault in enumerate((429, 503, "cut", "half", "lost")):
        proxy.inject(fault)
        files.append_lines(path, [{"n": number}])
        proxy.inject(fault, match="^GET /download")
        assert files.read_lines(path) == [{"n": n} for n in range(number + 1)]
    assert not any(times for _, times, _ in proxy._faults)
