"""Bare machines become working environments: setup.sh, check.py and the image's Dockerfile.

The machines are empty home directories, with a PATH of links to the few programs they have.
"""

import fnmatch
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from helpers_gcs import BUCKET, emulator, environment

ROOT = Path(__file__).parent.parent
PROGRAMS = ["bash", "sh", "env", "cat", "chmod", "cp", "dirname", "mkdir", "mktemp", "rm", "tail"]
LOCAL = [sys.executable, ROOT / "launch" / "local.py", "--processes", 2, "--devices", 2, "--"]
CHECK = [sys.executable, ROOT / "launch" / "check.py"]


def python(version):
    """Returns the path of a Python of pyenv, such as "3.10", or skips the test."""
    places = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python3"))
    if not places:
        pytest.skip(f"pyenv has no Python {version}")
    return places[-1]


def real_uv():
    """Returns the path of the uv in the environment of the tests, or skips the test."""
    name = Path(sys.executable).parent / "uv"
    if not name.exists():
        pytest.skip("the environment has no uv (extra dev)")
    return name


class Machine:
    """A machine with an empty home directory, a checkout, and few programs.

    Attributes:
        checkout: what travels to a worker, without environments.
    """

    def __init__(self, folder, programs=()):
        self.home, self.bin, self.checkout = folder / "home", folder / "bin", folder / "checkout"
        for path in (self.home, self.bin):
            path.mkdir(parents=True)
        for name in PROGRAMS:
            (self.bin / name).symlink_to(shutil.which(name))
        for name, target in programs:
            (self.bin / name).symlink_to(target)
        copy_context(ROOT, self.checkout)

    def command(self, name, script):
        """Gives the machine a program that is a shell script."""
        (self.bin / name).write_text(f"#!{self.bin}/bash\n{script}\n")
        (self.bin / name).chmod(0o755)

    def run(self, *arguments, cwd=None, **env):
        """Runs a command with the machine's programs and home directory only."""
        kept = {n: os.environ[n] for n in ("SSL_CERT_FILE", "PIP_CERT") if n in os.environ}
        cache = os.environ.get("UV_CACHE_DIR", str(Path.home() / ".cache" / "uv"))
        kept |= {"HOME": str(self.home), "PATH": str(self.bin), "UV_CACHE_DIR": cache}
        return subprocess.run(
            list(map(str, arguments)),
            env=kept | {"UV_PYTHON_DOWNLOADS": "never"} | env,
            capture_output=True, text=True, timeout=900, check=False, cwd=cwd or self.home,
        )  # fmt: skip

    def set_up(self, *options, **env):
        """Runs the script."""
        script = self.checkout / "launch" / "setup.sh"
        return self.run(self.bin / "bash", script, *options, **env)


def dockerignored(path, patterns):
    """Returns whether .dockerignore leaves a path out: the last pattern that matches decides.

    A pattern that matches a folder matches all below it.
    """
    ignored = False
    parents = [str(p) for p in (path, *path.parents) if p != Path()]
    for pattern in patterns:
        bare = pattern.removeprefix("!")
        if any(
            fnmatch.fnmatchcase(parent.rpartition("/")[2], bare.removeprefix("**/"))
            if bare.startswith("**/")
            else fnmatch.fnmatchcase(parent, bare) and parent.count("/") == bare.count("/")
            for parent in parents
        ):
            ignored = not pattern.startswith("!")
    return ignored


def copy_context(source, target):
    """Copies what the build of the image gets: the files that .dockerignore leaves."""
    lines = (source / ".dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    for folder, folders, names in os.walk(source):
        inside = Path(folder).relative_to(source)
        if not inside.parts:  # only to be quick: they are ignored anyway
            folders[:] = [n for n in folders if not dockerignored(Path(n), patterns)]
        for name in names:
            if not dockerignored(inside / name, patterns):
                (target / inside).mkdir(parents=True, exist_ok=True)
                shutil.copy(Path(folder) / name, target / inside / name)


def test_what_reaches_the_image():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    needed = ["pyproject.toml", "uv.lock", "README.md", "LICENSE", "seva_jax/run/stages.py"]
    needed += ["launch/setup.sh", "launch/check.py", "configs/llava15_7b_seva.py"]
    for name in needed:
        assert (ROOT / name).exists()
        assert not dockerignored(Path(name), patterns), name
    for name in (".git/HEAD", "tests/conftest.py", "runs/tiny/pairs.json", ".venv/bin/python",
                 "seva_jax/__pycache__/types.cpython-312.pyc", ".gitignore"):  # fmt: skip
        assert dockerignored(Path(name), patterns), name


def test_script_parses():
    assert subprocess.run(["bash", "-n", ROOT / "launch" / "setup.sh"], check=False).returncode == 0
    if shutil.which("shellcheck"):
        command = ["shellcheck", ROOT / "launch" / "setup.sh"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_python_3_10_becomes_a_working_environment(tmp_path):
    """As on the runtimes of Cloud TPU VMs: `python3` is 3.10 and has pip, and there is no uv."""
    machine = Machine(tmp_path, [("python3", python("3.10"))])
    env = {"UV_PYTHON": str(python("3.12"))}
    work = tmp_path / "work"
    done = machine.set_up("--extra", "gcs", "--workdir", work, JAX_PLATFORMS="cpu", **env)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    ready, checked = done.stdout.splitlines()
    assert re.search(r": \.venv is ready: Python 3\.12\.\d+, jax [\d.]+, packages inst", ready)
    assert checked == (
        f"worker 0 of 1: ok, 1 of 1 cpu devices, work directory {work} written and read"
    )
    assert (machine.home / ".local" / "bin" / "uv").is_file()
    assert not (machine.checkout / "launch" / "uv").exists()
    # The versions of the lock file: uv itself finds nothing to change.
    uv = machine.home / ".local" / "bin" / "uv"
    sync = [uv, "sync", "--frozen", "--check", "--extra", "gcs"]
    done = machine.run(*sync, cwd=machine.checkout, **env)
    assert done.returncode == 0, done.stderr
    # Programs run in the checkout.
    inside = machine.checkout / ".venv" / "bin" / "python"
    done = machine.run(inside, "-m", "seva_jax.train", "--help", cwd=machine.checkout)
    assert done.returncode == 0, done.stderr
    assert "--train." in done.stdout
    # The second time nothing is installed, with or without a hint about Python.
    done = machine.set_up("--extra", "gcs")
    assert done.returncode == 0, done.stderr
    assert "nothing to install" in done.stdout


@pytest.mark.slow
def test_no_python_and_no_uv(tmp_path):
    """A fake curl serves an install script of uv, which places the real uv."""
    machine = Machine(tmp_path)
    served = f'cp {real_uv()} "$UV_UNMANAGED_INSTALL/uv"'
    (tmp_path / "install.sh").write_text(served)
    url = "https://astral.sh/uv/install.sh"
    take = "while (($#)); do [[ $1 == --output ]] && file=$2; url=$1; shift; done"
    machine.command("curl", f'{take}; [[ $url == {url} ]] && cp {tmp_path}/install.sh "$file"')
    done = machine.set_up("--extra", "gcs", UV_PYTHON=str(python("3.12")))
    assert done.returncode == 0, done.stderr
    assert ".venv is ready" in done.stdout
    assert len(done.stdout.splitlines()) == 1


def test_no_uv_and_no_network(tmp_path):
    machine = Machine(tmp_path)
    machine.command("curl", "echo 'curl: (6) Could not resolve host: astral.sh' >&2; exit 6")
    done = machine.set_up()
    assert done.returncode == 1
    assert not done.stdout
    first, *rest = done.stderr.splitlines()
    assert first.startswith("error: ")
    assert "uv could not be installed; install it by hand" in first
    assert any("Could not resolve host" in line for line in rest)
    assert not (machine.checkout / ".venv").exists()


def test_nothing_to_install_uv_with(tmp_path):
    done = Machine(tmp_path).set_up()
    assert done.returncode == 1
    assert "none of pip (of python3), curl and wget is there" in done.stderr


def test_no_python_and_no_download(tmp_path):
    machine = Machine(tmp_path, [("uv", real_uv())])
    done = machine.set_up()
    assert done.returncode == 1
    assert "there is no Python 3.11 or later here" in done.stderr
    assert "Python downloads are set to 'never'" in done.stderr


def test_a_broken_lock(tmp_path):
    machine = Machine(tmp_path, [("uv", real_uv())])
    (machine.checkout / "uv.lock").write_text("version = 1\n[[package]\n")
    done = machine.set_up(UV_PYTHON=sys.executable)
    assert done.returncode == 1
    assert "uv could not make .venv" in done.stderr
    assert "uv.lock" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"), [(["--extra"], "--extra needs a value"), (["--x"], "unknown option")]
)
def test_mistakes(tmp_path, arguments, message):
    done = Machine(tmp_path).set_up(*arguments)
    assert done.returncode == 2
    assert message in done.stderr


def check(*command, **env):
    """Runs a command that contains `check.py`; returns its status, and its lines in order."""
    done = subprocess.run(
        list(map(str, command)), env=os.environ | env,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return done.returncode, sorted(done.stdout.splitlines())


def test_two_processes_are_checked(tmp_path):
    work = tmp_path / "work"
    status, lines = check(*LOCAL, *CHECK, "--workdir", work, "--expect-devices", 4)
    seen = f"ok, 2 of 4 cpu devices, work directory {work} written and read"
    assert lines == [f"[{n}] worker {n} of 2: {seen}" for n in range(2)]
    assert status == 0
    assert not list(work.iterdir())


def test_a_bucket_is_checked():
    with emulator() as url:
        work = f"gs://{BUCKET}/runs/a"
        status, lines = check(*LOCAL, *CHECK, "--workdir", work, **environment(url))
        seen = f"ok, 2 of 4 cpu devices, work directory {work} written and read"
        assert (status, lines) == (0, [f"[{n}] worker {n} of 2: {seen}" for n in range(2)])
        missing = "gs://missing/runs/a"
        status, lines = check(*LOCAL, *CHECK, "--workdir", missing, **environment(url))
        assert status == 1
        assert len(lines) == 2
        assert all("there is no bucket missing" in line for line in lines)


def test_other_devices_than_expected():
    status, lines = check(*LOCAL, *CHECK, "--expect-devices", 16)
    problem = "there are 4 cpu devices instead of 16; by worker: 2, 2"
    assert (status, lines) == (1, [f"[{n}] worker {n} of 2: {problem}" for n in range(2)])


def test_an_unwritable_work_directory(tmp_path):
    """Whichever worker cannot write, every worker's line has the reason."""
    (tmp_path / "file").touch()
    command = shlex.join(map(str, CHECK))
    script = f"[ $JAX_PROCESS_ID = 0 ] && W=work || W=file/work; {command} --workdir {tmp_path}/$W"
    status, lines = check(*LOCAL, "bash", "-c", script)
    assert status == 1
    assert len(lines) == 2
    problem = f"the work directory {tmp_path}/file/work cannot be used: [Errno 20] Not a directory"
    assert lines[0].startswith(f"[0] worker 0 of 2: worker 1 failed: {problem}")
    assert lines[1].startswith(f"[1] worker 1 of 2: {problem}")


def test_a_work_directory_that_is_not_shared(tmp_path):
    command = f"{shlex.join(map(str, CHECK))} --workdir {tmp_path}/$JAX_PROCESS_ID"
    status, lines = check(*LOCAL, "bash", "-c", command)
    assert status == 1
    assert [line.partition("is not shared: ")[2] for line in lines] == [
        f"what worker {1 - n} wrote there is not visible to worker {n}" for n in range(2)
    ]
    assert not list(tmp_path.glob("*/*"))


@pytest.mark.parametrize(
    ("process", "reason"),
    [(0, "only 1 of 2 workers have joined at 127.0.0.1:"), (1, "not all of the 2 workers have")],
)
def test_a_process_that_never_joins(process, reason):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    env = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2"}
    status, lines = check(*CHECK, "--timeout-s", 15, JAX_PROCESS_ID=str(process), **env)
    assert status == 1
    (line,) = lines
    assert line.startswith(f"worker {process} of 2: gave up after 15 s while joining: {reason}")


def instructions(text):
    """Returns the instructions of a Dockerfile, as pairs of name and argument."""
    joined = re.sub(r"\\\n\s*", " ", re.sub(r"^#.*\n", "", text, flags=re.M))
    return [tuple(line.split(" ", 1)) for line in joined.splitlines() if line]


@pytest.mark.slow
def test_the_image_builds_without_docker(tmp_path):
    """Runs the RUN steps in a real shell, with root's steps replaced by fakes.

    The context is what .dockerignore leaves, and the home directory is empty.
    """
    steps = instructions((ROOT / "launch" / "Dockerfile").read_text())
    names = [name for name, _ in steps]
    known = {"FROM", "ARG", "RUN", "USER", "ENV", "WORKDIR", "COPY", "CMD"}
    assert set(names) <= known
    user = names.index("USER")
    assert steps[user][1] == "1000:1000"
    machine = Machine(tmp_path, [("python3", python("3.12"))])
    context, image = machine.checkout, tmp_path / "image"
    image.mkdir()
    machine.command("useradd", 'echo "$*" >> $HOME/log')
    machine.command("install", 'echo "$*" >> $HOME/log')
    machine.command("pip", f"[[ ${{!#}} == uv==* ]] && cp {real_uv()} {machine.bin}/uv")
    env = {"EXTRA": "gcs"}
    for number, (name, argument) in enumerate(steps):
        if name == "ENV":
            env |= dict(word.split("=", 1) for word in shlex.split(argument))
            env |= {"HOME": str(machine.home), "PATH": str(machine.bin)}
            env |= {"UV_NO_CACHE": "0", "UV_PYTHON": str(python("3.12"))}  # to be quick
        elif name == "COPY":
            *sources, target = [w for w in shlex.split(argument) if not w.startswith("--")]
            assert target in (".", "./")
            for source in sources:
                if source == ".":
                    shutil.copytree(context, image, dirs_exist_ok=True)
                else:
                    shutil.copy(context / source, image / source)
        elif name == "RUN":
            assert number < user or "pip install" not in argument
            done = machine.run("sh", "-c", argument, cwd=image, **env)
            assert done.returncode == 0, done.stderr
    log = (machine.home / "log").read_text()
    assert "--uid 1000 seva" in log
    (workdir,) = (argument for name, argument in steps if name == "WORKDIR")
    assert log.rstrip().endswith(f" {workdir}")
    command = json.loads(steps[-1][1])
    assert steps[-1][0] == "CMD"
    command[0] = str(image / Path(command[0]).relative_to(workdir))
    done = machine.run(*command, cwd=image)
    assert done.returncode == 0, done.stderr
    assert "--train." in done.stdout
