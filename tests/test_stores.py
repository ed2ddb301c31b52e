"""Files, journals and locks in an object store: what they promise, and faults of the store.

The store is a real emulator (`helpers_gcs.py`), behind a proxy that makes the faults
(`helpers_proxy.py`). What does not live here: whole runs in a bucket (`test_kills.py`,
`test_bucket_runs.py`).
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import types

import fsspec.config
import gcsfs.retry
import helpers_gcs
import pytest
from helpers_proxy import CUT, HALF, LOST
from helpers_run import environment
from test_lock import holder

from seva_jax.runtime import files, lock, store_client, stores
from seva_jax.runtime.journal import Journal
from seva_jax.runtime.processes import one_line_errors
from seva_jax.runtime.store_client import StoreError
from seva_jax.runtime.stores import as_path
from seva_jax.types import DataError

# What Cloud Storage says to those who may only read.
FORBIDDEN = (
    "train@project.iam.gserviceaccount.com does not have storage.objects.create access to the "
    "Google Cloud Storage object. Permission 'storage.objects.create' denied on resource (or it "
    "may not exist)."
)
ANONYMOUS = "Anonymous caller does not have storage.objects.get access."


@pytest.fixture
def slept(monkeypatch):
    """Returns the seconds that clients wanted to wait before they tried again; they do not wait."""
    seconds = []

    async def sleep(wanted_s):
        seconds.append(wanted_s)

    monkeypatch.setattr(gcsfs.retry, "asyncio", types.SimpleNamespace(sleep=sleep))
    return seconds


def records(*numbers):
    """Returns lines of a file."""
    return [{"n": n} for n in numbers]


def parts(path):
    """Returns the names of a file's parts in a store."""
    return list(path.below())


def test_lines_survive_faults_on_the_way(proxied, proxy, slept):
    """Overload and lost connections are retried; one answer is lost after the write was done."""
    path = proxied / "a.jsonl"
    for number, fault in enumerate((429, 503, CUT, HALF, LOST)):
        proxy.inject(fault, match="^POST")
        files.append_lines(path, records(number))
        proxy.inject(fault, match="^GET /download")
        assert files.read_lines(path) == records(*range(number + 1))
    assert [x.fault for x in proxy.seen if x.fault] == [
        fault for fault in (429, 503, CUT, HALF, LOST) for _ in range(2)
    ]
    assert slept


@pytest.mark.parametrize("fault", [429, 503, CUT, HALF])
def test_a_long_failure_is_one_line(proxied, proxy, slept, fault):
    """Six attempts within about half a minute; then the command ends, and nothing is lost."""
    path = proxied / "a.jsonl"
    files.append_lines(path, records(1))
    proxy.inject(fault, times=1000)
    calls = [
        lambda: (proxied / "x").write_bytes(b"1"),
        lambda: (proxied / "x").create(b"1"),
        path.below,
        lambda: (path / "000000.jsonl").read_bytes(),
    ]
    for call in calls:
        slept.clear()
        with pytest.raises(StoreError, match="does not answer after several attempts") as caught:
            call()
        assert "\n" not in str(caught.value)
        assert len(slept) == 5
        assert slept == sorted(slept)
        assert 25 < sum(slept) < 40
    line = r"^error: gs://bucket/.*run it again later$"
    with pytest.raises(SystemExit, match=line), one_line_errors():
        files.append_lines(path, records(2))
    proxy.forgive()
    assert files.read_lines(path) == records(1)


def test_a_silent_store_is_tried_again(proxied, proxy, slept, monkeypatch):
    """A request that is never answered does not stop a run for ever."""
    (proxied / "x").write_bytes(b"1")
    helpers_gcs.forget_clients()
    monkeypatch.setattr(fsspec.config, "conf", {})
    monkeypatch.setattr(store_client, "_SILENCE_S", 0.1)
    proxy.delay_s = 0.5
    with pytest.raises(StoreError, match="does not answer after several attempts"):
        (proxied / "x").read_bytes()
    assert len(slept) == 5


def test_objects_are_old_or_new(proxied, proxy, slept):
    """Whatever happens during a write, also in the middle of a large one."""
    small, large = proxied / "small", proxied / "large"
    old, new = b"old", os.urandom(55 * 2**20)  # sent in two requests
    for path in (small, large):
        path.write_bytes(old)
    for fault in (403, 503, CUT):
        proxy.inject(fault, times=6, match="^POST")
        with pytest.raises(StoreError):
            files.write_text(small, "new")
        proxy.forgive()
        assert small.read_bytes() == old
    proxy.inject(403, match="^POST .*upload_id")
    proxy.inject(None, match="^POST .*upload_id")
    with pytest.raises(StoreError):
        large.write_bytes(new)
    proxy.forgive()
    assert large.read_bytes() == old
    large.write_bytes(new)
    assert large.read_bytes() == new


def test_lines_in_parts(bucket):
    """What the parts are called; a part with all lines takes the place of those before it."""
    path = bucket / "a.jsonl"
    assert files.read_lines(path) == []
    files.append_lines(path, records(1))
    files.append_lines(path, records(2, 3))
    files.append_lines(path, [])
    assert parts(path) == ["000000.jsonl", "000001.jsonl"]
    assert files.read_lines(path) == records(1, 2, 3)
    files.replace_lines(path, records(1, 2))
    assert parts(path) == ["000002.all.jsonl"]
    files.append_lines(path, records(4))
    assert parts(path) == ["000002.all.jsonl", "000003.jsonl"]
    assert files.read_lines(path) == records(1, 2, 4)
    (path / "999999.jsonl").write_bytes(b'{"n": 5}\n')
    files.append_lines(path, records(6))
    (path / "notes.jsonl").write_bytes(b"a person's own")
    assert files.read_lines(path) == records(1, 2, 4, 5, 6)


@pytest.mark.parametrize("removed", [0, 1, 2])
def test_a_kill_while_lines_are_replaced(proxied, proxy, removed):
    """Before the new part the lines are the old ones; after it the new ones, whatever is left."""
    path = proxied / "a.jsonl"
    for number in range(3):
        files.append_lines(path, records(number))
    proxy.inject(403, match="^POST")
    with pytest.raises(StoreError):
        files.replace_lines(path, records(7))
    assert files.read_lines(path) == records(0, 1, 2)
    proxy.inject(None, times=removed, match="^DELETE")
    proxy.inject(403, match="^DELETE")
    with pytest.raises(StoreError):
        files.replace_lines(path, records(8))
    assert len(parts(path)) == 4 - removed
    assert files.read_lines(path) == records(8)
    files.append_lines(path, records(9))
    assert files.read_lines(path) == records(8, 9)
    files.replace_lines(path, records(5))
    assert len(parts(path)) == 1
    assert files.read_lines(path) == records(5)


def test_lines_that_are_copied_between_disk_and_store(bucket, tmp_path):
    """A folder of parts on a disk is read and continued there, and a plain file in a store."""
    there, here = bucket / "a.jsonl", tmp_path / "a.jsonl"
    files.append_lines(there, records(1))
    files.append_lines(there, records(2))
    for name in parts(there):
        (there / name).download(here / name)
    assert files.read_lines(here) == records(1, 2)
    files.append_lines(here, records(3))
    assert files.read_lines(here) == records(1, 2, 3)
    files.replace_lines(here, records(4))
    assert files.read_lines(here) == records(4)
    assert [p.name for p in here.iterdir()] == ["000003.all.jsonl"]

    plain = bucket / "plain.jsonl"
    plain.write_bytes(b'{"n": 1}\n{"n": 2}\n{"n"')  # the last line is what a kill left
    files.append_lines(plain, records(3))
    assert files.read_lines(plain) == records(1, 2, 3)
    files.replace_lines(plain, records(5))
    assert files.read_lines(plain) == records(5)
    assert not plain.is_file()


def test_a_journal_in_a_store(proxied, proxy, slept):
    """It resumes under the same header and starts again under another; damage names the part."""
    path = proxied / "journal.jsonl"
    journal = Journal(path, {"seed": 1})
    assert journal.resume() == []
    proxy.inject(LOST, match="^POST")
    journal.append(records(1))
    journal.append(records(1))  # the same once more is not a repetition of the first
    assert Journal(path, {"seed": 1}).resume() == records(1, 1)
    assert Journal(path, {"seed": 2}).resume() == []
    assert Journal(path, {"seed": 2}).resume() == []
    (path / "000009.jsonl").write_bytes(b'{"n": 1}\n{"n"')
    with pytest.raises(DataError, match=r"journal\.jsonl/000009\.jsonl, line 2: not JSON"):
        journal.read()


def test_lines_that_are_replaced_while_they_are_read(bucket, monkeypatch):
    """Another process lists them again; so it is with the report of a run that is training."""
    path, read_below = bucket / "a.jsonl", type(bucket).read_below
    files.append_lines(path, records(1))

    def replaced_meanwhile(self, names):
        monkeypatch.setattr(type(bucket), "read_below", read_below)
        files.replace_lines(path, records(2))
        return read_below(self, names)

    monkeypatch.setattr(type(bucket), "read_below", replaced_meanwhile)
    assert files.read_lines(path) == records(2)


def test_create_writes_once(proxied, proxy, slept):
    """One content wins; a repetition whose first answer was lost counts as its own success."""
    path = proxied / "x"
    proxy.inject(LOST, times=2, match="^POST")
    assert path.create(b"mine")
    assert not path.create(b"other")
    assert path.read_bytes() == b"mine"
    generation = path.stat().generation
    proxy.inject(LOST, match="^POST")
    assert path.create(b"second", generation)
    assert not path.create(b"third", generation)
    assert path.read_bytes() == b"second"


CLAIMS = """
import sys
from seva_jax.runtime import lock, stores
from seva_jax.types import DataError
folder = stores.as_path(sys.argv[1])
stores.require_bucket(folder)
print("ready", flush=True)
sys.stdin.readline()
for number in range(int(sys.argv[2])):
    try:
        print(repr(lock.claim(folder / str(number))), flush=True)
    except DataError as error:
        print(error, flush=True)
sys.stdin.read()
"""


def claiming(folder, number):
    """Starts a process that claims folders of a store, one after the other, when it is told to."""
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", CLAIMS, str(folder), str(number)],
        env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_one_of_two_processes_gets_a_lock(bucket, monkeypatch):
    """Two that try at the same moment, for new locks and for those of a process that is gone."""
    number = 30
    for stale in range(0, number, 2):
        (bucket / str(stale) / lock.NAME).write_text(holder(pid=2**22 + 1))
    with claiming(bucket, number) as first, claiming(bucket, number) as second:
        assert [p.stdout.readline() for p in (first, second)] == ["ready\n"] * 2
        for process in (first, second):
            process.stdin.write("go\n")
            process.stdin.flush()
        for folder in range(number):
            said = [p.stdout.readline() for p in (first, second)]
            won = [text == "''\n" or "took over from process" in text for text in said]
            assert sum(won) == 1, said
            winner, refused = (first, said[1]) if won[0] else (second, said[0])
            assert f"is in use by process {winner.pid} on {socket.gethostname()}" in refused
            held = json.loads((bucket / str(folder) / lock.NAME).read_text())
            assert held["pid"] == winner.pid
        last = bucket / str(number - 1)
        with pytest.raises(DataError, match=f"is in use by process {winner.pid} on"):
            lock.claim(last)
        for process in (first, second):
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert f"took over from process {winner.pid} on" in lock.claim(last)
    assert lock.claim(last) == ""  # it is this process's own
    lock.release(last)
    assert not (last / lock.NAME).exists()


def test_a_lock_of_another_host(bucket, monkeypatch):
    """It is refused until its object is deleted, or a launcher says that its process is gone."""
    file, there = bucket / lock.NAME, holder(host="elsewhere", pid=2**22 + 1)
    file.write_text(there)
    with pytest.raises(DataError, match=r"on elsewhere, since noon.*delete lock\.json there"):
        lock.claim(bucket)
    assert file.read_text() == there
    monkeypatch.setenv(lock.RESTARTED, "1")
    assert "took over from process" in lock.claim(bucket)
    file.write_text(there)  # as a launcher elsewhere may do
    lock.release(bucket)
    assert file.read_text() == there
    file.write_text("{")
    with pytest.raises(DataError, match=r"lock\.json is damaged; delete it"):
        lock.claim(bucket)


def test_answers_that_are_lost_while_a_lock_is_taken(proxied, proxy, slept):
    """A process does not refuse itself."""
    proxy.inject(LOST, times=2, match="^POST")
    assert lock.claim(proxied) == ""
    proxy.inject(LOST, match="^DELETE")
    lock.release(proxied)
    assert not (proxied / lock.NAME).exists()


def test_what_the_store_refuses(proxied, proxy):
    """Each is one line that says what to do."""
    cases = [
        (403, FORBIDDEN, "may not do this in bucket bucket .*roles Storage Object User"),
        (401, ANONYMOUS, "no valid credentials .*gcloud auth application-default login"),
    ]
    for status, message, expected in cases:
        proxy.message = message
        for call in (
            lambda: stores.require_bucket(proxied),
            lambda: lock.claim(proxied),
            lambda: files.append_lines(proxied / "a.jsonl", records(1)),
            lambda: (proxied / "x").read_bytes(),
            lambda: (proxied / "x").unlink(missing_ok=True),
        ):
            proxy.inject(status, times=10)
            with pytest.raises(StoreError, match=re.escape(message[:40])) as caught:
                call()
            proxy.forgive()
            assert re.search(expected, str(caught.value))
            assert "\n" not in str(caught.value)


def test_a_missing_bucket(bucket):
    """It is named, and is not taken for an empty one."""
    missing = as_path("gs://no-such-bucket/run")
    for call in (
        lambda: stores.require_bucket(missing),
        lambda: lock.claim(missing),
        lambda: files.write_text(missing / "x", "1"),
        lambda: files.append_lines(missing / "a.jsonl", records(1)),
        lambda: files.read_lines(missing / "a.jsonl"),
    ):
        with pytest.raises(StoreError, match="there is no bucket no-such-bucket; check its name"):
            call()
    with pytest.raises(DataError, match="no such object or bucket"):
        files.read_bytes("gs://no-such-bucket/x")


def test_names_are_no_patterns(bucket):
    """Brackets and stars in names mean themselves; only the argument of `glob` is a pattern."""
    names = ["[1] a?.txt", "run/run", "run/x*/b.txt"]
    for name in names:
        (bucket / "odd [2]" / name).write_text(name)
    folder = bucket / "odd [2]"
    assert sorted(folder.below()) == sorted(names)
    assert folder.read_below(names) == [name.encode() for name in names]
    assert [p.name for p in folder.glob("*")] == ["[1] a?.txt", "run"]
    assert [p.name for p in folder.glob("run/*")] == ["run", "x*"]
    assert [p.name for p in (folder / "run").iterdir()] == ["run", "x*"]
    assert list((bucket / "odd 2").glob("*")) == []
    folder.rename(bucket / "even [2]")
    assert sorted((bucket / "even [2]").below()) == sorted(names)
