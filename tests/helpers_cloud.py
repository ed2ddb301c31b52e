"""A fake `gcloud` that only carries files and commands, and workers that are empty homes.

Every worker is a folder: its home. A command runs there as `bash -c`, as sshd runs it for a user
without a terminal: a clean environment, no login shell. What a bare Cloud TPU VM has, a metadata
server that knows the worker's number, answers on an address of its own (127.0.0.N).

A trainer and the set-up scripts are stand-ins, which the archive of the test's checkout brings.
"""

import contextlib
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).parent.parent
TPU = ("--type", "v5litepod-16", "--zone", "z")  # options of the launcher

# One TPU. `state` holds its state; the file is missing if there is none. `create-errors`, `queue`
# and `cut` are lists, one a line, used up from the top.
GCLOUD = r'''
import argparse, json, os, pathlib, shutil, signal, subprocess, sys, threading, time

CLOUD = pathlib.Path(os.environ["CLOUD"])
NOT_FOUND = "NOT_FOUND: Resource 'projects/p/locations/z/nodes/seva' was not found."


def fail(text, status=1):
    verb = ".".join(sys.argv[1:5])
    sys.exit(f"ERROR: (gcloud.{verb}) {text}" if status == 1 else status)


def take(name):
    """Returns the first line of a file and removes it there."""
    file = CLOUD / name
    lines = file.read_text().splitlines() if file.exists() else []
    file.write_text("".join(line + "\n" for line in lines[1:]))
    return lines[0] if lines else ""


def homes():
    return sorted(CLOUD.glob("homes/*"))


def state():
    file = CLOUD / "state"
    return file.read_text() if file.exists() else ""


def need_ready():
    if not state():
        fail(NOT_FOUND)
    if state() not in ("READY", "ACTIVE"):
        fail(f'This TPU has terminal state "{state()}", so it cannot be used anymore.')


def create(given):
    if text := take("create-errors"):
        fail(text)
    if state():
        fail("ALREADY_EXISTS: Resource 'projects/p/locations/z/nodes/seva' already exists")
    for number in range(int(os.environ["WORKERS"])):
        shutil.rmtree(CLOUD / "homes" / str(number), ignore_errors=True)
        (CLOUD / "homes" / str(number)).mkdir(parents=True)
    queued = given.kind == "queued-resources"
    (CLOUD / "state").write_text("ACCEPTED" if queued else "READY")
    while (CLOUD / "slow").exists():
        time.sleep(0.1)


def describe(given):
    if text := take("describe-errors"):
        fail(text)
    if not state():
        fail(NOT_FOUND)
    if (CLOUD / "queue").exists() and (following := take("queue")):
        (CLOUD / "state").write_text(following)
    if "failedData" in given.format:
        print((CLOUD / "reason").read_text())
    elif "health" in given.format:
        print(state(), "HEALTHY", "v5litepod-16", sep="\t")
    elif given.kind == "tpu-vm":
        node = {"ACTIVE": "READY"}.get(state(), state())
        print(node if node in ("READY", "PREEMPTED", "TERMINATED", "STOPPED") else fail(NOT_FOUND))
    else:
        print(state())


def delete(given):
    if text := take("delete-errors"):
        fail(text)
    (CLOUD / "state").unlink(missing_ok=True)


def scp(given):
    need_ready()
    *sources, target = given.names
    for home in homes():
        for source in sources:
            shutil.copy(source, home / target.partition(":")[2])


def ssh(given):
    need_ready()
    if take("ssh-errors"):
        sys.exit(255)
    cut = "--follow" in given.command and take("cut")
    at = homes() if given.worker == "all" else [CLOUD / "homes" / given.worker]
    statuses = [0] * len(at)

    def command(number):
        address = f"127.0.0.{int(at[number].name) + 1}:{os.environ['METADATA_PORT']}"
        env = {
            "HOME": str(at[number]), "PATH": "/usr/bin:/bin", "USER": "user", "SHELL": "/bin/bash",
            "GCE_METADATA_HOST": address,
        } | json.loads(os.environ.get("WORKER_ENV", "{}"))
        shell = subprocess.Popen(
            ["bash", "-c", given.command], cwd=at[number], env=env, start_new_session=True
        )
        if cut:
            time.sleep(float(cut))
            os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()
            statuses[number] = 255
        else:
            statuses[number] = shell.wait()

    threads = [threading.Thread(target=command, args=[i]) for i in range(len(at))]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    sys.exit(next((status for status in statuses if status), 0))


with (CLOUD / "log").open("a") as log:
    log.write(json.dumps(sys.argv[1:]) + "\n")
if sys.argv[1:3] != ["compute", "tpus"]:
    fail("Invalid choice: " + sys.argv[1])
parser = argparse.ArgumentParser()
parser.add_argument("kind")
verbs = parser.add_subparsers(dest="verb")
VERBS = {
    "create": (create, "--accelerator-type --version --runtime-version --node-id --node-count "
               "--node-prefix"),
    "describe": (describe, "--format"),
    "delete": (delete, ""),
    "scp": (scp, "--worker --node"),
    "ssh": (ssh, "--worker --node --command"),
}
for verb, (_, options) in VERBS.items():
    one = verbs.add_parser(verb)
    one.add_argument("names", nargs="+")
    for option in ["--zone", "--project", *options.split()]:
        one.add_argument(option)
    for option in ["--spot", "--quiet", "--force"]:
        one.add_argument(option, action="store_true")
given = parser.parse_args(sys.argv[3:])
VERBS[given.verb][0](given)
'''

# Makes what launch/setup.sh makes, .venv with a Python, and says so.
SETUP = """#!/bin/bash
set -e
cd "$(dirname "$0")/.."
printf '%s\\n' "$*" >>"$HOME/setup-calls"
mkdir -p .venv/bin
printf '#!/bin/sh\\nexec {python} "$@"\\n' >.venv/bin/python
chmod +x .venv/bin/python
echo "$(basename "$HOME"): ready"
"""

CHECK = """import os, pathlib, sys
home = pathlib.Path(os.environ["HOME"])
(home / "check-calls").open("a").write(" ".join(sys.argv[1:]) + "\\n")
if (home.parent.parent / "check-fails").exists():
    sys.exit("error: the work directory cannot be written")
"""

# Runs what the test wants of a trainer, with its words, its worker's number and how often it was
# started there.
TRAIN = """import json, os, pathlib, signal, sys, time
home = pathlib.Path(os.environ["HOME"])
cloud = home.parent.parent
worker = int(home.name)
starts = cloud / f"starts-{worker}"
with starts.open("a") as file:
    file.write(json.dumps([sys.argv[1:], os.environ.get("SEVA_JAX_RESTARTED", "")]) + "\\n")
start = len(starts.read_text().splitlines())
sys.stdout.reconfigure(line_buffering=True)

def wait_for(name):
    while not (cloud / name).exists():
        time.sleep(0.02)

def tpu_is(state):
    (cloud / "state").write_text(state)

exec((cloud / "trainer.py").read_text())
"""


class _Metadata(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        worker = int(self.connection.getsockname()[0].rpartition(".")[2]) - 1
        known = {"agent-worker-number": str(worker), "tpu-env": f"WORKER_ID: '{worker}'\n"}
        value = known.get(self.path.rpartition("/")[2])
        if self.headers["Metadata-Flavor"] != "Google" or value is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(value.encode())

    def log_message(self, *_):
        pass


class Cloud:
    """A project in which one TPU can be made, and a checkout with the launcher.

    Attributes:
        folder: the cloud's state; `homes/N` is the home of worker N.
        checkout: a git repository.
        env: variables for the launcher.
    """

    def __init__(self, folder, workers, port):
        self.folder, self.checkout = folder / "cloud", folder / "checkout"
        self.folder.mkdir()
        tools = folder / "bin"
        tools.mkdir()
        (tools / "gcloud").write_text(f"#!{sys.executable}\n{GCLOUD}")
        (tools / "gcloud").chmod(0o755)
        self.env = {
            "PATH": f"{tools}:/usr/bin:/bin", "CLOUD": str(self.folder), "WORKERS": str(workers),
            "METADATA_PORT": str(port), "TPU_POLL_S": "0.1", "HOME": str(folder),
        }  # fmt: skip
        self._make_checkout()

    def _make_checkout(self):
        for name in ("tpu_vm.sh", "tpu_cloud.sh", "worker.py", "worker_log.py", "stage.py"):
            (self.checkout / "launch").mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / "launch" / name, self.checkout / "launch")
        (self.checkout / "seva_jax").mkdir()
        for name, text in (
            ("launch/setup.sh", SETUP.format(python=sys.executable)),
            ("launch/check.py", CHECK),
            ("seva_jax/__init__.py", ""),
            ("seva_jax/train.py", TRAIN),
            ("old.py", "old"),
            (".gitignore", "runs/\n.venv/\n__pycache__/\n"),
        ):
            (self.checkout / name).write_text(text)
        self.git("init", "-q")
        self.commit()

    def brings_runtime(self):
        """Adds the real seva_jax.runtime to the checkout, which logs in a store need."""
        for name in ("runtime", "types.py", "ranges.py"):
            source, target = ROOT / "seva_jax" / name, self.checkout / "seva_jax" / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
        self.commit()

    def git(self, *words):
        """Runs git in the checkout."""
        name = ("-c", "user.name=t", "-c", "user.email=t@example.com")
        subprocess.run(["git", *name, *words], cwd=self.checkout, check=True, capture_output=True)

    def commit(self):
        """Commits everything."""
        self.git("add", "-A")
        self.git("commit", "-q", "-m", "All")

    def trains(self, script):
        """Sets what the trainer does, in Python; see TRAIN."""
        self.put("trainer.py", script)

    def put(self, name, text):
        """Writes a file of the cloud."""
        (self.folder / name).write_text(text)

    def command(self, *words):
        """Returns the launcher's command line."""
        return ["bash", str(self.checkout / "launch" / "tpu_vm.sh"), *words]

    def options(self, *more):
        """Returns options of a run whose work directory all workers see, as a mounted one."""
        shared = str(self.folder)
        return ("--shared-dir", shared, "--", *more, "--workdir", f"{shared}/run")

    def launch(self, *words, **env):
        """Runs the launcher to its end."""
        return subprocess.run(
            self.command(*words), capture_output=True, text=True, timeout=120, check=False,
            env=self.env | env, cwd=self.folder,
        )  # fmt: skip

    def calls(self, *contain):
        """Returns gcloud's command lines so far that contain all of these words."""
        lines = (self.folder / "log").read_text().splitlines()
        return [call for call in map(json.loads, lines) if all(word in call for word in contain)]

    def home(self, worker=0):
        """Returns the home of a worker."""
        return self.folder / "homes" / str(worker)

    def starts(self, worker=0):
        """Returns the trainer's words and its SEVA_JAX_RESTARTED, start by start."""
        file = self.folder / f"starts-{worker}"
        return [json.loads(x) for x in file.read_text().splitlines()] if file.exists() else []

    def end_all(self):
        """Ends what is still running on the workers."""
        for file in self.folder.glob("homes/*/seva_jax_run/state.json"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(json.loads(file.read_text())["supervisor"], signal.SIGKILL)


@contextlib.contextmanager
def cloud(folder, workers=2):
    """Yields a cloud; ends its metadata server and what runs on its workers afterwards.

    Args:
        folder: an empty one.
        workers: of the TPU.
    """
    server = http.server.ThreadingHTTPServer(("0.0.0.0", 0), _Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    made = Cloud(folder, workers, server.server_port)
    try:
        yield made
    finally:
        made.end_all()
        server.shutdown()
        server.server_close()
