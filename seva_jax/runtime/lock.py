"""One writer per directory: a lock file that names its holder.

What lives here: `claim`, `require_free`, `release` and `release_all`. What does not: which
directories are claimed (`seva_jax/run/workdir.py`, `seva_jax/evaluate.py`).

The file exists while its holder runs and records host, process and start, because `flock` alone
tells a person nothing and, on network file systems (NFS without a lock daemon, buckets mounted by
FUSE), does not work between hosts. `flock` is taken as well: on one host it separates two
processes that start at the same moment, and the system releases it however its holder ends. In an
object store the file is an object that is written only if its generation is still the one that was
read: of two processes that start at the same moment, on whatever hosts, the store lets one succeed.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import fcntl
import json
import os
import socket
from pathlib import Path
from typing import NamedTuple, cast

from seva_jax.runtime.store_client import StoreError
from seva_jax.runtime.stores import StorePath, is_remote
from seva_jax.types import DataError

NAME = "lock.json"
RESTARTED = "SEVA_JAX_RESTARTED"

_held: dict[Path, int] = {}  # the open file of every lock of this process
_objects: dict[Path, bytes] = {}  # the content of every lock of this process in a store


class Holder(NamedTuple):
    """The holder of a lock.

    Attributes:
        host: name of its machine.
        pid: its process id.
        started: when that process started, as the system writes it; distinguishes it from a later
            process with the same id. "" where the system does not say.
        since: when it took the lock, for people to read.
    """

    host: str
    pid: int
    started: str
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"

    @property
    def gone(self) -> bool:
        """Whether it is known to have ended; False for processes on other hosts."""
        if self.host != socket.gethostname():
            return False
        started = _started(self.pid)
        return started is None or started != self.started


def claim(directory: Path) -> str:
    """Makes this process the only writer of a directory, until `release` or its end.

    A lock whose process is gone is taken over. A process on another host cannot be checked: a
    launcher that knows that all earlier processes are gone sets SEVA_JAX_RESTARTED to 1, and the
    lock is taken over as well.

    Args:
        directory: an existing directory. The same process may claim it again.

    Returns:
        A line about the lock that was taken over, or "".

    Raises:
        DataError: another process writes there; the message names it and the file.
    """
    path = directory.resolve() / NAME
    if is_remote(path):
        return _claim_object(directory, path)
    for known, held in list(_held.items()):
        if _is(path, held):  # under this name or, if the directory was moved, under another
            _held[path] = _held.pop(known)
            return ""
    if path in _held:  # the directory was deleted meanwhile
        os.close(_held.pop(path))
    file, free = _open(path)
    try:
        holder = _holder(os.pread(file, 4096, 0), path)
        if not free or (holder and not _free(holder)):
            raise DataError(_refusal(directory, holder))
        os.ftruncate(file, 0)
        os.pwrite(file, _content(), 0)
    except BaseException:
        os.close(file)
        raise
    _held[path] = file
    return f"{directory}: took over from {holder}, which is gone" if holder else ""


def require_free(directory: Path) -> None:
    """Checks, without claiming it, that no other process is known to write in a directory.

    Args:
        directory: need not exist.

    Raises:
        DataError: another process writes there; as `claim`.
    """
    path = directory.resolve() / NAME
    try:
        holder = _holder(path.read_bytes(), path)
    except (FileNotFoundError, NotADirectoryError):
        return
    own = holder is not None and (holder.host, holder.pid) == (socket.gethostname(), os.getpid())
    if holder is not None and not own and not _free(holder):
        raise DataError(_refusal(directory, holder))


def _claim_object(directory: Path, path: Path) -> str:
    lock = cast(StorePath, path)
    if not str(path).startswith("gs://"):  # the only one whose generations are known here
        raise DataError(f"{directory}: a work directory can be local or in a gs:// bucket")
    while True:
        try:
            generation, text = lock.stat().generation, path.read_bytes()
        except FileNotFoundError:
            generation, text = "0", b""
        if text and text in _objects.values():  # perhaps of a directory that was moved
            _objects[path] = text
            return ""
        holder = _holder(text, path)
        if holder and not _free(holder):
            raise DataError(_refusal(directory, holder))
        content = _content()
        if lock.create(content, generation):
            _objects[path] = content
            return f"{directory}: took over from {holder}, which is gone" if holder else ""


def release(directory: Path) -> None:
    """Releases what `claim` took; does nothing if this process does not hold it."""
    _release(directory.resolve() / NAME)


def _release(path: Path) -> None:
    if path in _held:
        file = _held.pop(path)
        if _is(path, file):
            path.unlink()
        os.close(file)
    if path in _objects:
        content = _objects.pop(path)
        with contextlib.suppress(FileNotFoundError):
            if path.read_bytes() == content:
                path.unlink()


@atexit.register
def release_all() -> None:
    """Releases all locks of this process.

    Commands do it themselves (`processes.joined`): when Python has begun to end, a store can no
    longer be reached.
    """
    with contextlib.suppress(StoreError):  # it may be what ended the process
        for path in [*_held, *_objects]:
            _release(path)


def _is(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except OSError:
        return False


def _open(path: Path) -> tuple[int, bool]:
    """Opens the lock file; also returns whether no running process is known to hold it."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return file, False
        except OSError:
            pass  # not supported here: the content of the file has to suffice
        if _is(path, file):
            return file, True
        os.close(file)  # its holder removed it meanwhile


def _content() -> bytes:
    me = Holder(socket.gethostname(), os.getpid(), _started(os.getpid()) or "", _now())
    return json.dumps(me._asdict()).encode() + b"\n"


def _free(holder: Holder) -> bool:
    """Returns whether a holder has ended, as far as this host or its launcher knows."""
    return holder.gone or os.environ.get(RESTARTED, "") not in ("", "0")


def _holder(text: bytes, path: Path) -> Holder | None:
    if not text:
        return None  # new, or its process was killed before it could write
    try:
        return Holder(**json.loads(text))
    except (ValueError, TypeError):
        raise DataError(f"{path} is damaged; delete it if no other process runs there") from None


def _refusal(directory: Path, holder: Holder | None) -> str:
    if holder is None:
        return f"{directory}: another process is just starting to write there; choose another"
    text = f"{directory} is in use by {holder}; wait for it, or choose another directory"
    if holder.host != socket.gethostname():
        text += f"; if that process is gone (it cannot be seen from here), delete {NAME} there"
    return text


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")


def _started(pid: int) -> str | None:
    """Returns when a process of this host started; "" if unknown, None if it is gone."""
    try:
        # After the name in brackets, which may contain anything: state is first, start twentieth.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass  # it exists and belongs to another user
    return ""
